"""NVML through the real binding and a fake driver library, which replays a trace in place of the real library."""

import pytest

from frugalbench.meters import MeterSettings, nvml, pick
from frugalbench.schema import NothingRunsHere
from nvml_driver import in_child


@pytest.fixture
def child(tmp_path):
    """Runs code in a process that finds the fake driver; gives what it prints as JSON."""

    def run(code: str, driver: str = "new", trace: str = "nvml_board", **environ: str):
        return in_child(code, tmp_path / "now", trace, driver == "old", **environ)

    return run


@pytest.fixture
def windows(child):
    """Readings of the counter and of the power over several windows of the board's trace."""
    return child("""
found = nvml.discover(clock=clock)
print(json.dumps({
    "steady": window(found, 1.0, 3.0, (1.5, 2.0, 2.5)),
    "ends": window(found[1:], 1.0, 3.0),
    "lost at the end": window(found, 3.0, 3.5),
    "lost at the begin": window(found, 3.5, 4.0),
    "lost within": window(found[1:], 3.0, 4.0, (3.5,)),
    "went back": window(found[:1], 4.0, 4.5),
    "parts": [window(found[:1], a, b)[0][1] for a, b in ((0.0, 0.5), (0.5, 2.0), (2.0, 3.0))],
    "whole": window(found[:1], 0.0, 3.0)[0][1],
}))""")


def test_counter_and_power_over_one_window(windows):
    counter, power = windows["steady"]
    assert counter[:3] == ["NVML total energy counter", pytest.approx(500.0), None]  # 250 W for 2 s, in joules
    assert power[:3] == ["NVML instantaneous power, integrated", pytest.approx(1.5 * 250 + 0.5 * (250 + 60) / 2), None]
    assert [reading[3] for reading in (counter, power)] == ["measured", "measured"]
    assert counter[5] == power[5] == "gpu-board"


def test_power_is_only_as_good_as_its_looks(windows):
    assert windows["ends"][0][1] == pytest.approx(2.0 * (250 + 60) / 2)


@pytest.mark.parametrize("where", ["lost at the end", "lost at the begin", "lost within"])
def test_a_lost_read_poisons_the_window(windows, where):
    for _, joule, error, *_ in windows[where]:
        assert joule is None and ("Unknown Error" in error or "NVML error 999" in error)


def test_a_counter_that_goes_back_is_an_error_not_negative_energy(windows):
    ((_, joule, error, *_),) = windows["went back"]
    assert joule is None and "went back" in error


def test_adjacent_windows_add_up_to_the_whole(windows):
    assert sum(windows["parts"]) == pytest.approx(windows["whole"])


def test_methods_that_disagree_do_not_count_as_measured(child):
    (counter, power) = child(
        "print(json.dumps(window(nvml.discover(clock=clock), 20.0, 22.0)))", trace="nvml_odd_boards"
    )
    assert (counter[1], power[1]) == (pytest.approx(187.0), pytest.approx(327.0))
    assert counter[3] == power[3] == "modelled"
    assert "187 J" in counter[4] and "327 J" in counter[4] and "43% apart" in counter[4]


def test_a_board_in_mig_mode_is_refused_with_the_reason(child):
    answer, chosen, refused = child(
        """
go(10.0)
answer = nvml.probe()
try:
    meters.pick(meters.MeterSettings(kind="nvml", device="cuda"))
except Exception as error:
    refused = type(error).__name__ + " " + str(error)
nowhere = dict.fromkeys(("powercap_root", "hwmon_root", "battery_root"), Path("/nonexistent"))
auto = meters.MeterSettings(device="cuda", ipmi_command=("/nonexistent",), **nowhere)
print(json.dumps([[answer.ok, answer.detail, answer.remedy], len(meters.pick(auto)), refused]))""",
        trace="nvml_odd_boards",
    )
    assert not answer[0] and "MIG" in answer[1] and "instance" in answer[1] and "nvidia-smi -mig 0" in answer[2]
    assert chosen == 0 and refused.startswith("NothingRunsHere") and "MIG" in refused


def test_a_board_without_counter_or_fields_gives_its_power_usage(child):
    names, answer = child(
        """
picked = meters.pick(meters.MeterSettings(kind="nvml", device="cuda"))
print(json.dumps([[m.method for m in picked], nvml.probe().detail]))""",
        trace="nvml_odd_boards",
    )
    assert names == ["NVML power usage, integrated"] and "80 W" in answer


def test_kinds_of_power_and_what_doctor_says_of_them(child):
    instant, average, detail = child("""
import pynvml
pynvml.nvmlInit()
go(1.0)
powers = [nvml.field_power_w(pynvml, 0, kind) for kind in ("instantaneous", "average")]
print(json.dumps([*powers, nvml.probe().detail]))""")
    assert (instant, average) == (250.0, 60.0)
    assert detail.endswith("instantaneous power 250 W")


@pytest.mark.parametrize("driver", ["new", "old"])
def test_throttle_reasons_leave_out_idle_and_clocks_that_were_set(child, driver):
    found = child(
        """
import pynvml
pynvml.nvmlInit()
said = []
for at_s in (0.0, 1.0, 1.5, 2.0, 3.5):
    go(at_s)
    try:
        said.append(nvml.throttle_reasons(pynvml, 0))
    except meters.MeterError as error:
        said.append(str(error))
print(json.dumps(said))""",
        driver=driver,
    )
    assert found[:4] == [[], ["sw_power_cap"], ["sw_power_cap", "hw_thermal_slowdown"], []]
    assert "Unknown Error" in found[4]


def test_an_old_driver_falls_back_to_power_usage(child):
    methods = child("print(json.dumps([m.method for m in nvml.discover()]))", driver="old")
    assert methods == ["NVML total energy counter", "NVML power usage, integrated"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [["gpu0", "gpu-board"], ["gpu1", "gpu-board-1"], ["gpu2", "gpu-board-2"]]),
        ("2,0", [["gpu2", "gpu-board"], ["gpu0", "gpu-board-1"]]),
        ("GPU-1", [["gpu1", "gpu-board"]]),
        ("1,9,0", [["gpu1", "gpu-board"]]),
        ("", []),
    ],
)
def test_only_boards_that_cuda_may_use_and_only_the_first_counts(child, visible, expected):
    environ = {"FAKE_NVML_BOARDS": "3"} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    found = child("print(json.dumps([[m.name.split()[-1], m.scope] for m in nvml.discover()]))", **environ)
    assert found == [pair for pair in expected for _ in ("counter", "power")]


def test_a_second_board_is_shown_and_not_added(child):
    rows = child(
        """
picked = meters.pick(meters.MeterSettings(kind="nvml", device="cuda"))
go(0.0)
opened = meters.window(picked, clock, device="cuda")
go(0.5)
print(json.dumps([[r.scope, r.joule, str(r.role), r.round] for r in opened.close(1, 3)]))""",
        FAKE_NVML_BOARDS="2",
    )
    assert [row[:3:2] for row in rows[::2]] == [["gpu-board", "gross"], ["gpu-board-1", "part"]]
    assert rows[0][1] == pytest.approx(30.0) and rows[2][1] == pytest.approx(60.0)
    assert rows[0][3] == 3 and rows[2][3] is None


def test_a_library_without_a_device_is_no_meter(child):
    ok, detail = child("answer = nvml.probe(); print(json.dumps([answer.ok, answer.detail]))", FAKE_NVML_NO_DEVICE="1")
    assert not ok and "NVML does not answer" in detail


@pytest.mark.skipif(nvml.has_library(), reason="an NVIDIA driver is present")
def test_without_the_library_nothing_is_initialised():
    assert nvml.discover() == []
    assert "libnvidia-ml" in nvml.probe().detail
    with pytest.raises(NothingRunsHere, match="NVIDIA driver"):
        pick(MeterSettings(kind="nvml"))
