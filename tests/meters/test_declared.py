"""The declared model, choosing meters, and windows over several of them."""

from pathlib import Path

import pytest

from frugalbench.meters import Energy, MeterSettings, Window, declared, pick
from frugalbench.schema import FrugalbenchError, Tier

NOWHERE = Path("/nonexistent")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_an_interval_never_a_value():
    clock = Clock()
    window = Window([declared.DeclaredMeter(20.0, 65.0, "data sheet", clock=clock)], clock=clock)
    clock.now_s += 3.0
    (reading,) = window.close(calls=7, round_number=4, origin_s=90.0)
    assert reading.joule is None and reading.error is None
    assert (reading.low_joule, reading.high_joule) == (60.0, 195.0)
    assert reading.tier is Tier.MODELLED
    assert (reading.window_s, reading.start_s, reading.calls, reading.round) == (3.0, 10.0, 7, 4)


def test_an_unknown_bound_stays_unknown():
    clock = Clock()
    meter = declared.DeclaredMeter(None, 65.0, "data sheet", clock=clock)
    mark = meter.begin()
    clock.now_s += 2.0
    assert meter.end(mark) == Energy(None, None, 130.0)


def test_watts_per_core():
    meter = declared.declare(1.0, 3.75, "360 W over 96 cores", cores=2, per_core=True)
    assert (meter.idle_w, meter.tdp_w) == (2.0, 7.5)


@pytest.mark.parametrize(
    ("idle_w", "tdp_w", "source", "problem"),
    [
        (None, None, "x", "needs idle_w"),
        (70.0, 65.0, "x", "idle_w <= tdp_w"),
        (-1.0, 65.0, "x", "idle_w <= tdp_w"),
        (float("nan"), None, "x", "idle_w <= tdp_w"),
        (20.0, 65.0, "", "source"),
    ],
)
def test_bad_declarations_are_refused(idle_w, tdp_w, source, problem):
    with pytest.raises(FrugalbenchError, match=problem):
        declared.declare(idle_w, tdp_w, source)


def test_pick_adds_the_model_only_where_watts_are_declared():
    assert pick(MeterSettings(powercap_root=NOWHERE)) == []
    (meter,) = pick(MeterSettings(tdp_w=65.0, source="data sheet", powercap_root=NOWHERE))
    assert meter.scope == "declared-model"
    assert pick(MeterSettings(kind="none", tdp_w=65.0, source="data sheet")) == []
    with pytest.raises(FrugalbenchError, match="choose one of"):
        pick(MeterSettings(kind="rapl"))


class Broken:
    """A meter with a bug."""

    name, scope, method, tier, update_period_s = "broken", "somewhere", "none", Tier.MEASURED, 0.0

    def begin(self):
        raise ZeroDivisionError("oops")


def test_one_broken_meter_leaves_its_neighbours_alone():
    clock = Clock()
    window = Window([Broken(), declared.DeclaredMeter(1.0, 2.0, "x", clock=clock)], clock=clock)
    clock.now_s += 1.0
    broken, good = window.close(calls=1)
    assert broken.joule is None and "ZeroDivisionError" in broken.error and broken.scope == "somewhere"
    assert (good.low_joule, good.high_joule, good.error) == (1.0, 2.0, None)
