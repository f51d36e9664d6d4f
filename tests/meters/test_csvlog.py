"""Logs of external meters. The traces are made up, not recorded."""

from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.meters import MeterError, MeterSettings, Window, pick
from frugalbench.meters.csvlog import CsvMeter, parse, probe
from frugalbench.schema import NothingRunsHere

TRACE = Path(__file__).parent / "traces" / "wall_meter.csv"
ZERO_S = datetime.fromisoformat("2026-11-22T11:00:00Z").timestamp()


class Clock:
    """Time that sleeping moves on; ``wake`` is called with it then."""

    def __init__(self, now_s: float, wake=lambda _now_s: None) -> None:
        self.now_s, self.wake = now_s, wake

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s
        self.wake(self.now_s)


def meter(path: Path, clock: Clock, period_s: float = 1.0) -> CsvMeter:
    return CsvMeter(path, update_period_s=period_s, clock=clock, sleep=clock.sleep)


def over(path: Path, start_s: float, end_s: float, clock: Clock | None = None):
    clock = clock or Clock(0.0)
    clock.now_s = start_s
    window = Window([meter(path, clock)], clock)
    clock.now_s = end_s
    return window.close(1)[0]


@pytest.mark.parametrize(
    ("start_s", "end_s", "joule"),
    [(0, 1, 40), (1, 2, 60), (0, 4, 240), (2, 3, 80), (2.25, 2.75, 40), (1.5, 2.0, 35), (0.5, 3.5, 195)],
)
def test_watts_are_integrated_over_the_window(start_s, end_s, joule):
    reading = over(TRACE, ZERO_S + start_s, ZERO_S + end_s)
    assert reading.joule == pytest.approx(joule) and (reading.scope, reading.error) == ("machine", None)


@pytest.mark.parametrize(("start_s", "end_s"), [(-1, 2), (2, 5), (7, 8), (-3, -2)])
def test_a_window_that_the_log_does_not_cover_is_poisoned(start_s, end_s):
    reading = over(TRACE, ZERO_S + start_s, ZERO_S + end_s)
    assert reading.joule is None and "does not cover" in reading.error


def log(path: Path, heading: str, *rows: str) -> Path:
    path.write_text("\n".join([heading, *rows, ""]))
    return path


def test_a_counter_of_joules_is_read_between_its_rows(tmp_path):
    path = log(tmp_path / "j.csv", " time_s , joules", "10,1000", "11,1050", "12,1150", "13,1150")
    assert over(path, 10.5, 12.0).joule == pytest.approx(125.0)
    path = log(tmp_path / "reset.csv", "time_s,joules", "10,1000", "11,1050", "12,3", "13,1150")
    assert "went back" in over(path, 10.5, 12.5).error


def test_gaps_and_disorder_poison_only_the_windows_they_touch(tmp_path):
    path = log(tmp_path / "gap.csv", "time_s,watts", *(f"{t},50" for t in (0, 1, 2, 9, 10, 11)))
    assert "gap of 7 s" in over(path, 1.0, 10.0).error
    assert over(path, 9.5, 10.5).joule == pytest.approx(50.0)
    path = log(tmp_path / "back.csv", "time_s,watts", *(f"{t},50" for t in (0, 2, 1, 3)))
    assert "do not increase" in over(path, 0.5, 2.5).error


def test_a_log_that_lags_is_waited_for_but_not_for_long(tmp_path):
    path = log(tmp_path / "late.csv", "time_s,watts", "0,50", "1,50")

    def write(now_s: float) -> None:
        if now_s >= 3.0:
            log(path, "time_s,watts", "0,50", "1,50", "2,50", "3,50")

    clock = Clock(0.0, write)
    assert over(path, 0.5, 2.5, clock).joule == pytest.approx(100.0)
    assert 3.0 <= clock.now_s < 3.5
    clock = Clock(0.0)
    assert over(path, 0.5, 9.5, clock).joule is None
    assert clock.now_s < 13


def test_a_line_that_is_being_written_is_left_for_later(tmp_path):
    path = tmp_path / "partial.csv"
    path.write_text("time_s,watts\n0,50\n1,50\n2,5")
    assert over(path, 0.25, 0.75).joule == pytest.approx(25.0)


def test_only_the_end_of_a_long_log_is_read(tmp_path):
    rows = [f"{t},{50 if t < 19_000 else 100}" for t in range(20_000)]
    path = log(tmp_path / "long.csv", "time_s,watts", *rows)
    assert over(path, 19_990.0, 19_995.0).joule == pytest.approx(500.0)
    clock = Clock(0.0)
    assert meter(path, clock)._rows(path.stat().st_size - 2000).times_s[0] > 19_000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no column time_s or time"),
        ("time_s,volts\n1,2\n", "no column watts or joules"),
        ("time_s,watts\n1,lots\n", "cannot be read"),
        ("time_s,watts\n1\n", "cannot be read"),
        ("time,watts\n2026-11-22T12:00:00,1\n", "without an offset"),
        ("time,watts\nyesterday,1\n", "cannot be read"),
    ],
)
def test_what_is_no_log(text, problem):
    with pytest.raises(MeterError, match=problem):
        parse(text, "x.csv")


@pytest.mark.parametrize(("age_s", "ok"), [(0.5, True), (7.0, True), (20.0, False), (-10.0, False)])
def test_a_log_that_nobody_writes_is_no_meter(tmp_path, age_s, ok):
    path = log(tmp_path / "live.csv", "time_s,watts", "99,50", "100,50")
    answer = meter(path, Clock(100.0 + age_s)).available()
    assert answer.ok is ok and (ok or "clocks" in answer.remedy)


def test_a_missing_log_says_where(tmp_path):
    with pytest.raises(NothingRunsHere, match=r"none.csv: No such file"):
        pick(MeterSettings(kind="csv", csv=str(tmp_path / "none.csv")))
    assert "not configured" in probe().detail


@given(
    watts=st.lists(st.floats(0, 1000), min_size=3, max_size=8),
    cuts=st.lists(st.floats(0.001, 0.999), min_size=1, max_size=5, unique=True),
)
def test_adjacent_windows_add_up_to_the_whole(tmp_path_factory, watts, cuts):
    path = log(tmp_path_factory.mktemp("log") / "w.csv", "time_s,watts", *(f"{t},{w!r}" for t, w in enumerate(watts)))
    last = len(watts) - 1
    edges = [0.0, *sorted(cut * last for cut in cuts), float(last)]
    parts = [over(path, a, b).joule for a, b in pairwise(edges)]
    assert sum(parts) == pytest.approx(over(path, 0.0, float(last)).joule, rel=1e-9, abs=1e-6)
