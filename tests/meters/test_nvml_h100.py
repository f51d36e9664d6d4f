"""Meters, throttle reasons and windows on what a real H100 told NVML, and on that trace with a mishap put into it."""

from pathlib import Path

import pytest

from frugalbench.meters.environment import void_reason
from frugalbench.meters.trace import integral
from frugalbench.schema import Environment
from nvml_driver import TRACES, in_child

GEMM, COPY = (3.495, 6.692), (8.699, 10.402)
"""Marks of the trace, in its own seconds."""
RECORDED = TRACES / "nvml_h100.csv"
LOOK_S = 0.1
HOPPER = {"FAKE_NVML_FACTS": "architecture=9"}
WINDOWS = """
def looks(start_s, end_s):
    return [start_s + 0.1 * n for n in range(1, int((end_s - start_s) / 0.1) + 1)]
found = nvml.discover(clock=clock)
print(json.dumps([window(found, a, b, looks(a, b)) for a, b in %r]))"""


def rows(path: Path = RECORDED) -> tuple[list[str], list[list[str]]]:
    """Heading and cells."""
    lines = [line.split(",") for line in path.read_text().splitlines() if not line.startswith("#")]
    return lines[0], lines[1:]


def derived(folder: Path, change) -> Path:
    """The recorded trace with ``change(time_s, row as dict) -> dict`` applied to each line."""
    heading, cells = rows()
    made = [change(float(row[0]), dict(zip(heading, row, strict=True))) for row in cells]
    path = folder / "derived.csv"
    path.write_text("\n".join([",".join(heading), *(",".join(row.values()) for row in made)]) + "\n")
    return path


def within(time_s: float, span: tuple[float, float] = GEMM) -> bool:
    return span[0] <= time_s < span[1]


def measure(tmp_path, *spans, trace: Path = RECORDED, **environ):
    return in_child(WINDOWS % (list(spans),), tmp_path / "now", trace, **{**HOPPER, **environ})


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """Counter and power over the products, the copies, their first half second, and idling."""
    spans = (GEMM, COPY, (GEMM[0], GEMM[0] + 0.5), (0.1, 1.9))
    return measure(tmp_path_factory.mktemp("h100"), *spans)


def test_counter_and_instantaneous_power_agree_over_windows_of_many_updates(steady):
    for (counter, power), joule, apart in zip(
        (steady[0], steady[1], steady[3]), (2223.6, 828.2, 128.3), (-0.028, 0.016, 0.002), strict=True
    ):
        assert counter[1] == pytest.approx(joule, abs=0.1)
        assert power[0] == "NVML instantaneous power, integrated"
        assert power[1] / counter[1] - 1 == pytest.approx(apart, abs=0.005)
        assert counter[2:5] == power[2:5] == [None, "measured", ""]


def test_five_updates_are_too_few(steady):
    """Both sources are up to an update late, so the start of a load is missed by 17%: hence 20 updates a window."""
    counter, power = steady[2]
    assert power[1] / counter[1] - 1 == pytest.approx(-0.17, abs=0.02)


def average_j(start_s: float, end_s: float) -> float:
    heading, cells = rows()
    place = heading.index("average_mw")
    return integral([float(row[0]) for row in cells], [float(row[place]) * 1e-3 for row in cells], start_s, end_s)


@pytest.mark.parametrize(("length_s", "low"), [(0.5, (-0.70, -0.60)), (1.0, (-0.45, -0.30)), (2.0, (-0.25, -0.15))])
def test_integrated_average_power_is_wrong_for_short_windows(tmp_path, length_s, low):
    """A mean over the last second still remembers idling: far too low, and too low even after 20 updates."""
    ((counter, _),) = measure(tmp_path, (GEMM[0], GEMM[0] + length_s))
    error = average_j(GEMM[0], GEMM[0] + length_s) / counter[1] - 1
    assert low[0] < error < low[1]


def without_instant(_time_s, row):
    return row | {"instant_mw": "none"}


def test_average_power_neither_checks_a_counter_nor_takes_its_place_in_short_windows(tmp_path):
    """It would put a right counter 21% off, and cap it to ``modelled``."""
    ((counter, *others),) = measure(tmp_path, (GEMM[0], GEMM[0] + 2.0), trace=derived(tmp_path, without_instant))
    assert counter[1] == pytest.approx(1398.5, abs=0.1) and counter[3] == "measured" and others == []


@pytest.mark.parametrize(("average", "kind"), [("kept", "average power"), ("none", "average power usage")])
def test_a_board_that_tells_averages_alone_gets_long_windows(tmp_path, average, kind):
    def change(_time_s, row):
        hidden = {"energy_mj": "none", "instant_mw": "none"}
        return row | hidden | ({} if average == "kept" else {"average_mw": average})

    found = in_child(
        "print(json.dumps([[m.method, m.update_period_s] for m in nvml.discover() if m.available()]))",
        tmp_path / "now",
        derived(tmp_path, change),
        **HOPPER,
    )
    assert found == [[f"NVML {kind}, integrated", 1.0]]


def stuck(time_s, row):
    return row | {"energy_mj": "3349258"} if time_s >= GEMM[0] else row


def lost(time_s, row):
    if time_s < 5.0:
        return row
    return {name: value if name == "time_s" else "lost" for name, value in row.items()}


def denied(_time_s, row):
    return row | {"energy_mj": "denied"}


def test_a_stuck_counter_is_an_error_and_no_saving(tmp_path):
    ((counter, power),) = measure(tmp_path, GEMM, trace=derived(tmp_path, stuck))
    assert counter[1] is None and "stood at 3349.26 J for 3.2 s (stuck?)" in counter[2]
    assert power[1] == pytest.approx(2160, abs=15) and power[3] == "measured"


def test_a_board_lost_within_a_window_poisons_it_and_those_after(tmp_path):
    windows = measure(tmp_path, (1.0, 3.0), GEMM, COPY, trace=derived(tmp_path, lost))
    assert [[joule is None for _, joule, *_ in window] for window in windows] == [[False] * 2, [True] * 2, [True] * 2]
    errors = [error for window in windows[1:] for _, _, error, *_ in window]
    assert all("GPU is lost" in error or "NVML error 15" in error for error in errors)


def test_a_counter_that_may_not_be_read_leaves_the_power(tmp_path):
    found, detail = in_child(
        """
picked = meters.pick(meters.MeterSettings(kind="nvml", device="cuda"))
print(json.dumps([[m.method for m in picked], nvml.discover()[0].available().detail]))""",
        tmp_path / "now",
        derived(tmp_path, denied),
        **HOPPER,
    )
    assert found == ["NVML instantaneous power, integrated"] and "Insufficient Permissions" in detail


def test_a_slice_of_the_recorded_board_is_refused(tmp_path):
    ok, detail = in_child(
        "answer = nvml.probe(); print(json.dumps([answer.ok, answer.detail]))",
        tmp_path / "now",
        derived(tmp_path, lambda _, row: row | {"mig": "1"}),
    )
    assert not ok and "MIG mode" in detail


REASONS = """
import pynvml
pynvml.nvmlInit()
said = []
for at_s in %r:
    go(at_s)
    try:
        said.append(nvml.throttle_reasons(pynvml, 0))
    except meters.MeterError as error:
        said.append(str(error))
print(json.dumps(said))"""


def spoilt(reasons) -> str | None:
    return void_reason(Environment(wall_s=1.0, cpu_s=0.0, gpu_throttle=tuple(reasons)), 1, 1)


def test_a_board_at_its_power_cap_is_held_back_and_no_round_is_void(tmp_path):
    idle, products, copies = in_child(REASONS % ([1.0, 5.0, 9.5],), tmp_path / "now", RECORDED)
    assert (idle, products, copies) == ([], ["sw_power_cap"], [])
    assert spoilt(products) is None


def hot(time_s, row):
    """What the H100 would say past its thermal limit: the software slows it first, then the hardware."""
    bits = {True: 4, time_s > 4.5: 4 | 32, time_s > 5.5: 4 | 32 | 64}[True]
    return row | {"reasons": str(bits), "sm_mhz": "345", "temperature_c": "92"} if within(time_s) else row


def test_a_board_that_gets_too_hot_voids_its_rounds(tmp_path):
    said = in_child(REASONS % ([4.0, 5.0, 6.0],), tmp_path / "now", derived(tmp_path, hot))
    assert [spoilt(reasons) for reasons in said] == [
        None,
        "GPU throttled: sw_thermal_slowdown",
        "GPU throttled: sw_thermal_slowdown, hw_thermal_slowdown",
    ]


def test_reasons_that_may_not_be_read_are_unknown_and_not_none(tmp_path):
    """Code of the worker's watch: ``None`` is "cannot be read", which spoils nothing and claims nothing."""
    said = in_child(
        "from frugalbench.meters.gpu_throttle import gpu_throttle_reasons\n"
        "watch = gpu_throttle_reasons('cuda')\n"
        "before = watch()\n"
        "go(6.0)\n"
        "print(json.dumps([before, watch()]))",
        tmp_path / "now",
        derived(tmp_path, lost),
    )
    assert said == [[], None]
