"""Energy turns: how long, whether they fit, the idle baseline, meters that fail. A command plays the meter."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.config import Energy
from frugalbench.meters import environment
from frugalbench.run import energy_turns, protocol, worker
from frugalbench.run.engine import Engine
from frugalbench.run.schedule import METER_UPDATES
from frugalbench.run.store import Store
from frugalbench.schema import Plan, Reading, Role, Status, Tier, decode_record
from frugalbench.workloads import BUILDERS
from run.helpers import make_arm, make_comparison, make_config, stop_at

PERIOD_S = 0.005
WATTS = 50


@given(st.floats(1e-4, 60), st.floats(1e-3, 1))
def test_windows_hold_20_updates_of_the_meter(period_s, sample_s):
    for window_s in (energy_turns.window_s(period_s, sample_s), energy_turns.idle_s(period_s)):
        assert window_s >= METER_UPDATES * period_s
    assert energy_turns.window_s(period_s, sample_s) >= sample_s


def test_a_long_call_stretches_its_turn():
    assert energy_turns.turns_s([2.0, 2.0, 2.0], [0.1, 5.0, 2.0], 2) == 2 * (2.0 + 5.0 + 2.0)


@pytest.mark.parametrize(("number", "first_look", "expected"), [(0, 6, 7), (1, 6, 6), (6, 6, 1), (9, 6, 1)])
def test_replicates_that_the_first_look_still_needs(number, first_look, expected):
    assert energy_turns.replicates_to_come(number, first_look) == expected


def test_turns_that_do_not_fit_say_how_long_they_would_take():
    assert energy_turns.skipped(6, 12.0, 84.0, 7) is None
    fact = energy_turns.skipped(6, 12.0, 83.0, 7)
    assert (fact.value, fact.unit, fact.tier) == (12.0, "s", Tier.MODELLED)
    assert "would take 12.0 s in each of 7 replicates" in fact.source and "83 s" in fact.source


# A run whose meter is a command that prints a number


def run(path, comparison, energy, **measure):
    settings = msgspec.structs.replace(make_config(**measure), energy=energy)
    store = Store.create(path)
    try:
        plan = Plan(seed=1, comparisons=(comparison,))
        Engine(plan, settings, store, stop_at(settings.measure.looks[-1]), 2, lambda _: None).run()
    finally:
        store.close()
    return [decode_record(line) for line in (path / "records.jsonl").read_bytes().splitlines()]


def meter(path, text=str(WATTS), **given):
    (path / "shown").write_text(text)
    usual = {"meter": "command", "command": ("cat", str(path / "shown")), "update_period_s": PERIOD_S}
    return Energy(**(usual | given))


@pytest.fixture(scope="module")
def metered(tmp_path_factory):
    path = tmp_path_factory.mktemp("metered")
    log = str(path / "log")
    comparison = make_comparison(make_arm("a", log=log, regimes=("decode", "batch")), make_arm("b", log=log))
    return run(path / "run", comparison, meter(path), rounds=1, pilot_rounds=1, looks=(2,))


def test_each_case_has_its_energy_turn(metered):
    assert {record.status for record in metered} == {Status.OK}
    for record in metered:
        (gross,) = [r for r in record.readings if r.role is Role.GROSS]
        assert gross.window_s >= METER_UPDATES * PERIOD_S and gross.calls > 1
        assert gross.joule == pytest.approx(WATTS * gross.window_s, rel=0.05)
        assert (gross.round, gross.tier, gross.scope, gross.error) == (0, Tier.MEASURED, "machine", None)


def test_the_idle_baseline_is_taken_once_a_replicate_before_any_energy_turn(metered):
    replicates = {record.replicate for record in metered}
    for number in replicates:
        records = [record for record in metered if record.replicate == number]
        idle = {r.start_s: r for record in records for r in record.readings if r.role is Role.IDLE}
        assert len(idle) == 1
        (reading,) = idle.values()
        assert reading.joule == pytest.approx(WATTS * reading.window_s, rel=0.05)
        assert (reading.calls, reading.round) == (0, None) and reading.window_s >= energy_turns.IDLE_LEAST_S
        turns = [r for record in records for r in record.readings if r.role is Role.GROSS]
        assert all(turn.start_s > reading.start_s + reading.window_s for turn in turns)
        assert all(sum(r.role is Role.IDLE for r in record.readings) == 1 for record in records)


def test_energy_turns_that_do_not_fit_are_skipped_with_their_length(tmp_path):
    comparison = make_comparison(make_arm("a", log=str(tmp_path / "log")))
    records = run(tmp_path / "run", comparison, meter(tmp_path, update_period_s=30.0), rounds=1, looks=(2,))
    assert {record.status for record in records} == {Status.OK}
    for record in records:
        assert record.readings == () and record.samples
        assert record.facts["energy_turns_s"].value == pytest.approx(600 + 1.5 * 600)
        assert "no energy turns: 1 of them" in record.facts["energy_turns_s"].source


def test_a_meter_that_does_not_answer_is_the_reason_of_each_case(tmp_path):
    energy = Energy(meter="csv", csv=str(tmp_path / "none.csv"))
    records = run(tmp_path / "run", make_comparison(make_arm("a", log=str(tmp_path / "log"))), energy)
    assert {record.status for record in records} == {Status.FAILED}
    assert "energy: csv does not answer" in records[0].reason and "none.csv" in records[0].reason


READING = Reading(
    joule=1.0, scope="machine", method="m", tier=Tier.MEASURED, window_s=1.0, calls=1, start_s=0.0, note="odd"
)


@pytest.mark.parametrize(
    ("void", "last", "role", "number", "note"),
    [
        (None, False, Role.GROSS, 3, "odd"),
        (None, True, Role.GROSS, 3, "odd"),
        ("steal", False, Role.PART, None, "window spoilt: steal; odd"),
        ("steal", True, Role.GROSS, 3, "window spoilt: steal; odd"),
    ],
)
def test_a_spoilt_window_counts_only_if_the_next_is_spoilt_too(void, last, role, number, note):
    found = energy_turns.kept(READING, 3, void, last)
    assert (found.role, found.round, found.note, found.joule) == (role, number, note, 1.0)
    part = energy_turns.kept(msgspec.structs.replace(READING, role=Role.PART), 3, void, last)
    assert (part.role, part.round) == (Role.PART, None)


def test_a_spoilt_energy_turn_is_taken_once_more(tmp_path):
    spoilt = 3  # three rounds come first
    arm = make_arm("a", log=str(tmp_path / "log"), void_turns=[spoilt])
    records = run(tmp_path / "run", make_comparison(arm), meter(tmp_path), rounds=3, pilot_rounds=3, looks=(2,))
    for record in records:
        first, second = [r for r in record.readings if r.role is not Role.IDLE]
        assert (first.role, first.round, first.note) == (Role.PART, None, "window spoilt: spoilt by the test")
        assert (second.role, second.round, second.note) == (Role.GROSS, 0, "")
        assert not any(sample.void for sample in record.samples)


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.setitem(BUILDERS, "fake", "fake_workload")
    monkeypatch.setattr(environment, "void_reason", environment.void_reason)  # the fake replaces it; put it back
    job = protocol.Job(
        arm=make_arm("arm", log=str(tmp_path / "log")), seed=1, threads=1, device="cpu", cache_dir=str(tmp_path),
        scratch_dir=str(tmp_path), start_s=0.0, energy=meter(tmp_path),
    )  # fmt: skip
    return worker.Session(job)


def test_calls_are_added_until_the_window_is_filled(session):
    session.answer(protocol.Load())
    turned = session.answer(protocol.Turn("fake/arm/decode", 1, 0.0, 0.0, None, energy=True, fill_s=0.02))
    (reading,) = turned.readings
    assert 2 <= turned.calls == reading.calls <= 40 and reading.window_s >= turned.calls * turned.time_s >= 0.0199


def test_a_failed_read_poisons_the_reading_and_not_the_case(session, tmp_path):
    (tmp_path / "shown").write_text("off")
    (reading,) = session.answer(protocol.Idle(0.0, 0.0, 0.0, None)).readings
    assert reading.joule is None and "no number" in reading.error and reading.role is Role.IDLE
