"""RAPL counters as a tree of files: what is summed, what is not, and what a bad counter does."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.meters import MeterSettings, Window, pick, powercap
from frugalbench.schema import NothingRunsHere

RANGE_UJ = 262_143_328_850


def zone(root: Path, folder: str, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path / "energy_uj"


def scopes(root: Path) -> dict[str, list[str]]:
    return {meter.scope: [zone.path.name for zone in meter.zones] for meter in powercap.discover(root)}


def test_parts_psys_and_mmio_are_not_added_to_the_packages(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 10)
    zone(tmp_path, "intel-rapl:0:0", "core", 5)
    zone(tmp_path, "intel-rapl:0:1", "dram", 3)
    zone(tmp_path, "intel-rapl:1", "package-1", 20)
    zone(tmp_path, "intel-rapl:1:0", "core", 6)
    zone(tmp_path, "intel-rapl:2", "psys", 99)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 11)
    zone(tmp_path, "intel-rapl-mmio:0:0", "dram", 3)
    (tmp_path / "intel-rapl").mkdir()
    assert scopes(tmp_path) == {
        "cpu-package": ["intel-rapl:0", "intel-rapl:1"],
        "cpu-core": ["intel-rapl:0:0", "intel-rapl:1:0"],
        "cpu-dram": ["intel-rapl:0:1"],
        "platform": ["intel-rapl:2"],
    }


@pytest.mark.parametrize(("second_uj", "counted"), [(1000, 1), (777, 2)])
def test_dies_that_show_their_packages_counter_count_once(tmp_path, second_uj, counted):
    zone(tmp_path, "intel-rapl:0", "package-0-die-0", 1000)
    zone(tmp_path, "intel-rapl:1", "package-0-die-1", second_uj)
    zone(tmp_path, "intel-rapl:2", "package-1-die-0", 1000)  # another package, equal by chance
    assert len(scopes(tmp_path)["cpu-package"]) == counted + 1


def test_a_window_across_a_wrap_around(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 1_000_000)
    window = Window(powercap.discover(tmp_path))
    counter.write_text("2000000")
    (reading,) = window.close(calls=3)
    assert reading.joule == pytest.approx(3.0)
    assert (reading.scope, reading.calls, reading.error) == ("cpu-package", 3, None)


def test_looks_within_a_long_window_follow_a_counter_that_wraps_more_than_once(tmp_path):
    span = 65_532_610_987  # 32 bits of 15 microjoules
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0, range_uj=span)
    window, total = Window(powercap.discover(tmp_path)), 0
    for _ in range(5):
        total += span // 2 + 1
        counter.write_text(str(total % span))
        window.sample()
    assert window.close(calls=1)[0].joule == pytest.approx(total * 1e-6)
    assert total > 2 * span


def test_a_failed_look_within_a_window_poisons_it(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 10)
    window = Window(powercap.discover(tmp_path))
    counter.write_text("")
    window.sample()
    counter.write_text("20")
    assert window.close(calls=1)[0].joule is None


def test_amds_tree_has_packages_with_cores_and_no_dram(tmp_path):
    for package in (0, 1):
        zone(tmp_path, f"intel-rapl:{package}", f"package-{package}", 10 + package)
        zone(tmp_path, f"intel-rapl:{package}:0", "core", 5)
    assert scopes(tmp_path) == {
        "cpu-package": ["intel-rapl:0", "intel-rapl:1"],
        "cpu-core": ["intel-rapl:0:0", "intel-rapl:1:0"],
    }


@pytest.mark.parametrize("fail", ["begin", "end"])
def test_a_failed_read_poisons_its_window_and_no_other(tmp_path, fail):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    meters = powercap.discover(tmp_path)
    if fail == "begin":
        counter.write_text("")
    window = Window(meters)
    counter.write_text("5000000" if fail == "begin" else "garbage")
    (reading,) = window.close(calls=1)
    assert reading.joule is None and "energy_uj" in reading.error
    counter.write_text("6000000")
    again = Window(meters)
    counter.write_text("7500000")
    assert again.close(calls=1)[0].joule == pytest.approx(1.5)


def test_a_counter_beyond_its_range_is_no_wrap_around(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000, range_uj=1_000_000)
    window = Window(powercap.discover(tmp_path))
    counter.write_text("1")
    assert window.close(calls=1)[0].joule is None


def test_an_unreadable_counter_is_unavailable_with_the_command_that_helps(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    counter.unlink()
    counter.mkdir()  # unreadable for root too, unlike a permission bit
    answer = powercap.probe(tmp_path)
    assert not answer and answer.remedy.startswith("sudo chmod a+r") and str(counter) in answer.remedy
    with pytest.raises(NothingRunsHere, match="chmod"):
        pick(MeterSettings(kind="powercap", powercap_root=tmp_path))
    assert pick(MeterSettings(powercap_root=tmp_path)) == []


def test_no_tree_no_meter(tmp_path):
    assert powercap.discover(tmp_path / "none") == []
    assert not powercap.probe(tmp_path / "none")


@given(
    start=st.integers(0, RANGE_UJ - 1),
    steps=st.lists(st.integers(0, RANGE_UJ // 10), min_size=1, max_size=8),
)
def test_adjacent_windows_add_up_to_the_whole(tmp_path_factory, start, steps):
    root = tmp_path_factory.mktemp("rapl")
    counter = zone(root, "intel-rapl:0", "package-0", start)
    meters = powercap.discover(root)
    whole, parts, now = Window(meters), [], start
    for step in steps:
        part = Window(meters)
        now = (now + step) % RANGE_UJ
        counter.write_text(str(now))
        parts.append(part.close(calls=1)[0].joule)
    assert whole.close(calls=1)[0].joule == pytest.approx(sum(parts), abs=1e-9)
    assert sum(parts) == pytest.approx(sum(steps) * 1e-6, abs=1e-9)
