"""Gross and net joules, and what does not count."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory import COST, make_fact, make_reading, make_record
from frugalbench.analysis.energy import energy, gross_and_net, why_no_joules
from frugalbench.analysis.plausible import record_fault
from frugalbench.analysis.statistics import round_values
from frugalbench.schema import Role, Tier


def turn(joule, start_s=0.0, **fields):
    return make_reading(joule, start_s=start_s, round=int(start_s), **fields)


def idle(watts, **fields):
    return make_reading(2.0 * watts, calls=0, window_s=2.0, start_s=-5.0, role=Role.IDLE, **fields)


def joules(*readings):
    return gross_and_net([make_record(readings=readings)], COST)


def test_net_is_gross_less_idle_power_times_the_window():
    found = joules(idle(10.0), turn(80.0, window_s=2.0))
    assert (found.gross_j, found.net_j, found.idle_w) == (pytest.approx(0.8), pytest.approx(0.6), 10.0)
    assert found.token_per_gross_j == pytest.approx(COST.token / 0.8)
    assert found.token_per_net_j == pytest.approx(COST.token / 0.6)


def test_scopes_add_up_and_each_has_its_own_idle_power():
    found = joules(
        idle(20.0), idle(50.0, scope="gpu-board", method="counter"), idle(70.0, scope="gpu-board", method="power"),
        turn(80.0), turn(200.0, scope="gpu-board", method="counter"), turn(210.0, scope="gpu-board", method="power"),
    )  # fmt: skip
    assert (found.gross_j, found.net_j, found.idle_w) == (pytest.approx(2.8), pytest.approx(2.1), 70.0)


@pytest.mark.parametrize(
    "baseline",
    [(), (idle(20.0, scope="gpu-board"),), (idle(20.0, tier=Tier.MODELLED),), (idle(0.0, error="lost"),)],
)
def test_without_a_measured_baseline_of_each_scope_there_is_no_net(baseline):
    baseline = tuple(msgspec.structs.replace(r, joule=None) if r.error else r for r in baseline)
    found = joules(*baseline, turn(80.0))
    assert found.gross_j == pytest.approx(0.8)
    assert (found.net_j, found.idle_w, found.token_per_net_j) == (None, None, None)


def test_net_of_nothing_is_no_rate():
    found = joules(idle(90.0), turn(80.0))
    assert found.net_j == pytest.approx(-0.1) and found.token_per_net_j is None


def test_poisoned_windows_and_parts_count_for_nothing():
    found = joules(
        idle(20.0), turn(80.0), turn(500.0, scope="machine", role=Role.PART), turn(None, start_s=1.0, error="lost")
    )
    assert found.gross_j == pytest.approx(0.8)


def test_windows_whose_methods_disagree_are_counted_and_explained():
    capped = {"tier": Tier.MODELLED, "low_joule": 187.0, "high_joule": 327.0, "note": "43% apart"}
    readings = [
        turn(187.0, method="counter", **capped),
        turn(327.0, method="power", **capped),
        make_reading(None, scope="declared-model", tier=Tier.MODELLED, low_joule=1.0, high_joule=900.0),
        turn(80.0, start_s=1.0),
    ]
    found = joules(*readings)
    assert (found.capped_windows, found.note) == (1, "43% apart")
    spoilt = make_reading(None, scope="declared-model", tier=Tier.MODELLED, low_joule=1.0, note="window spoilt: steal")
    assert joules(spoilt, turn(80.0, note="window spoilt: steal")).capped_windows == 0
    assert found.gross_j == pytest.approx(0.8)
    row = energy([make_record(readings=tuple(readings[:3]))], COST)
    assert row["token_per_joule"] is None
    assert row["token_per_joule_low"] == pytest.approx(COST.token * 100 / 327)
    assert row["token_per_joule_high"] == pytest.approx(COST.token * 100 / 187)


@pytest.mark.parametrize(
    ("readings", "facts", "why"),
    [
        ((), {}, None),
        ((make_reading(None, scope="declared-model", tier=Tier.MODELLED, high_joule=1.0),), {}, None),
        ((), {"energy_turns_s": make_fact(90.0, "s", source="no energy turns: too long")}, "too long"),
        ((turn(1.0, tier=Tier.MODELLED, note="43% apart"),), {}, "two methods disagree: 43% apart"),
        ((turn(None, error="lost"),), {}, "reading the meter failed: lost"),
    ],
)
def test_why_there_are_no_joules(readings, facts, why):
    found = why_no_joules([make_record(), make_record(readings=readings, facts=facts)])
    assert found is None if why is None else why in found


def test_no_records_nothing():
    assert gross_and_net([], None).gross_j is None and joules().gross_j is None


@given(gross=st.floats(1, 1e4), watts=st.floats(0, 1e3))
def test_verdicts_rest_on_gross_joules_alone(gross, watts):
    bare, full = make_record(readings=(turn(gross),)), make_record(readings=(idle(watts), turn(gross)))
    beside = turn(5 * gross, scope="machine", role=Role.PART)
    part = msgspec.structs.replace(full, readings=(*full.readings, msgspec.structs.replace(beside, round=None)))
    values = [round_values(record, "energy", set()) for record in (bare, full, part)]
    assert values[0] == values[1] == values[2] != {}
    rates = [energy([record], COST)["token_per_joule"] for record in (bare, full, part)]
    assert rates[0] == rates[1] == rates[2]
    found = gross_and_net([full], COST)
    assert found.gross_j - found.net_j == pytest.approx(watts / 100, abs=1e-9)


def test_only_an_idle_reading_may_be_without_calls():
    assert record_fault(make_record(readings=(idle(20.0),))) is None
    assert "without calls" in record_fault(make_record(readings=(turn(20.0, calls=0),)))
