"""Watts to joules, and meters made of looks."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.meters import MeterError
from frugalbench.meters.trace import TraceMeter, growth, integral, value_at

times = st.lists(st.floats(0, 100), min_size=1, max_size=12, unique=True).map(sorted)


@st.composite
def looks(draw):
    found = draw(times)
    return found, draw(st.lists(st.floats(0, 500), min_size=len(found), max_size=len(found)))


@given(looks(), st.floats(0, 100), st.floats(0, 100))
def test_constant_power_times_time(made, start_s, length_s):
    found, _ = made
    assert integral(found, [7.0] * len(found), start_s, start_s + length_s) == pytest.approx(7.0 * length_s, abs=1e-6)


@given(looks(), st.lists(st.floats(-10, 110), min_size=3, max_size=6, unique=True))
def test_adjacent_windows_add_up(made, edges):
    edges = sorted(edges)
    parts = sum(integral(*made, a, b) for a, b in pairwise(edges))
    assert parts == pytest.approx(integral(*made, edges[0], edges[-1]), abs=1e-6)


@given(looks(), st.floats(0, 50), st.floats(0.1, 50))
def test_joules_lie_between_the_extremes_of_power(made, start_s, length_s):
    joule = integral(*made, start_s, start_s + length_s)
    assert min(made[1]) * length_s - 1e-6 <= joule <= max(made[1]) * length_s + 1e-6


def test_values_between_looks_are_on_the_line():
    assert [value_at([1.0, 3.0], [10.0, 30.0], at) for at in (0.0, 1.0, 2.0, 3.0, 9.0)] == [10, 10, 20, 30, 30]


def test_a_counter_between_its_looks():
    assert growth([0.0, 10.0], [100.0, 200.0], 2.0, 5.0) == pytest.approx(30.0)
    with pytest.raises(MeterError, match="went back"):
        growth([0.0, 1.0, 2.0], [100.0, 50.0, 200.0], 0.0, 2.0)


class Slow:
    """A source of steady watts that takes ``lag_s`` to answer, and its clock."""

    def __init__(self, watts: float, lag_s: float) -> None:
        self.watts, self.lag_s, self.now_s = watts, lag_s, 0.0

    def clock(self) -> float:
        return self.now_s

    def read(self) -> float:
        self.now_s += self.lag_s
        return self.watts


def test_what_a_read_takes_is_not_part_of_the_window():
    source = Slow(100.0, 0.4)
    meter = TraceMeter("slow", "machine", "slow", source.read, 1.0, clock=source.clock)
    mark = meter.begin()
    source.now_s += 10.0
    assert meter.end(mark).joule == pytest.approx(1000.0)


def test_stopping_ends_the_window_before_the_last_look():
    source = Slow(100.0, 0.0)
    meter = TraceMeter("slow", "machine", "slow", source.read, 1.0, clock=source.clock)
    mark = meter.begin()
    source.now_s = 10.0
    meter.stop(mark)
    source.now_s = 15.0
    assert meter.end(mark).joule == pytest.approx(1000.0)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_what_is_no_reading(value):
    meter = TraceMeter("odd", "machine", "odd", lambda: value, 1.0)
    assert not meter.available()
    with pytest.raises(MeterError, match="no reading"):
        meter.begin()
