"""NVML answers replayed from a trace through a driver that looks like pynvml."""

import csv
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.meters import MeterSettings, Window, nvml, pick
from frugalbench.schema import NothingRunsHere

TRACE = Path(__file__).parent / "traces" / "nvml_board.csv"


class DriverError(Exception):
    pass


class Driver:
    """One board whose answers are the trace's row at ``now_s``."""

    def __init__(self) -> None:
        lines = [line for line in TRACE.read_text().splitlines() if not line.startswith("#")]
        self.rows = [(float(row["time_s"]), row["energy_mj"], row["power_mw"]) for row in csv.DictReader(lines)]
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return f"board {index}"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        return self._answer(handle, 1)

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return self._answer(handle, 2)

    def _answer(self, handle, column):
        assert handle == "board 0"
        value = [row for row in self.rows if row[0] <= self.now_s][-1][column]
        if value == "-":
            raise DriverError("Unknown Error")
        return int(value)


@pytest.fixture
def driver():
    return Driver()


def window_over(driver, meter, start_s, end_s, samples_s=()):
    driver.now_s = start_s
    window = Window([meter], clock=driver.clock)
    for driver.now_s in samples_s:
        window.sample()
    driver.now_s = end_s
    return window.close(calls=1)[0]


def test_counter_gives_joules_not_millijoules(driver):
    reading = window_over(driver, nvml.CounterMeter(driver, 0), 1.0, 3.0)
    assert reading.joule == pytest.approx(500.0)  # 250 W for 2 s
    assert (reading.scope, reading.window_s) == ("gpu-board", 2.0)


def test_power_integrates_by_trapezoids_where_it_was_sampled(driver):
    meter = nvml.PowerMeter(driver, 0, clock=driver.clock)
    ends_only = window_over(driver, meter, 1.0, 3.0)
    assert ends_only.joule == pytest.approx(2.0 * (250 + 60) / 2)
    sampled = window_over(driver, meter, 1.0, 3.0, samples_s=(1.5, 2.0, 2.5))
    assert sampled.joule == pytest.approx(1.5 * 250 + 0.5 * (250 + 60) / 2)


@pytest.mark.parametrize(("start_s", "end_s"), [(3.0, 3.5), (3.5, 4.0)])
def test_a_lost_read_poisons_the_window_on_either_side(driver, start_s, end_s):
    reading = window_over(driver, nvml.CounterMeter(driver, 0), start_s, end_s)
    assert reading.joule is None and "Unknown Error" in reading.error


def test_a_lost_sample_poisons_integrated_power(driver):
    meter = nvml.PowerMeter(driver, 0, clock=driver.clock)
    assert window_over(driver, meter, 3.0, 4.0, samples_s=(3.5,)).joule is None


def test_a_counter_that_goes_back_is_an_error_not_negative_energy(driver):
    reading = window_over(driver, nvml.CounterMeter(driver, 0), 4.0, 4.5)
    assert reading.joule is None and "went back" in reading.error


def test_probing_reads(driver):
    assert nvml.probe(driver)
    driver.now_s = 3.5
    assert not nvml.probe(driver)
    assert pick(MeterSettings(kind="auto", nvml_driver=driver, powercap_root=Path("/nonexistent"))) == []


def test_pick_offers_counter_first(driver):
    meters = pick(MeterSettings(kind="nvml", nvml_driver=driver))
    assert [meter.name for meter in meters] == ["nvml energy gpu0", "nvml power gpu0"]


@pytest.mark.skipif(nvml.device_node() is not None, reason="an NVIDIA driver is present")
def test_without_a_device_node_nothing_is_initialised():
    assert nvml.discover() == []
    with pytest.raises(NothingRunsHere, match="device node"):
        pick(MeterSettings(kind="nvml"))


@given(cuts=st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 2.5]), unique=True).map(sorted))
def test_adjacent_windows_add_up_to_the_whole(cuts):
    driver = Driver()
    meter = nvml.CounterMeter(driver, 0)
    edges = [0.0, *cuts, 3.0]
    parts = [window_over(driver, meter, a, b).joule for a, b in pairwise(edges)]
    assert sum(parts) == pytest.approx(window_over(driver, meter, 0.0, 3.0).joule)
