"""One replicate on the fake workload: the baton, what a broken arm does to its neighbours, void rounds."""

import itertools
import re

import pytest

from frugalbench.run import engine
from frugalbench.run.replicate import CaseState, _fail_if_late
from frugalbench.schema import Environment, Sample, Status
from run.helpers import log_entries, make_arm, make_case, make_comparison, run_fake

MIB = 2**20


def good_samples(record):
    return [sample for sample in record.samples if sample.void is None]


# One comparison with every kind of trouble in it, and two arms that must not notice.


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo")
    log = str(path / "log")
    both = ("decode", "batch")
    arms = (
        make_arm("fine", log=log, regimes=both),
        make_arm("fine-too", log=log, regimes=both),
        make_arm("wrong", log=log, wrong=1.0),
        make_arm("not-a-number", log=log, wrong=float("nan")),
        make_arm("killed", log=log, die_in="call", how="kill", die_at=1),
        make_arm("exits", log=log, die_in="load", how="exit"),
        make_arm("segfault", log=log, die_in="output", how="segfault"),
        make_arm("raises", log=log, die_in="call", how="raise"),
        make_arm("hangs", log=log, hang_in="load"),
        make_arm("greedy", log=log, hold_bytes=900 * MIB),
        make_arm("growing", log=log, hold_bytes=900 * MIB, slow_load=600),
        make_arm("slow", log=log, work_s=0.08),
        make_arm("too-slow", log=log, work_s=0.36),
        make_arm("unbindable", log=log, unbindable=True),
        make_arm("no-import", log=log, imports=("fake_is_missing",)),
        make_arm("threads", log=log, imports=("fake_threads", "fake_workload")),
        make_arm("no-reference", log=log, die_in="reference", how="raise", key="its own"),
    )
    result = run_fake(
        path / "run", make_comparison(*arms), looks=(2,), memory_limit_bytes=700 * MIB, load_limit_s=3.0,
        slow_call_s=0.05, cap_call_s=0.3, pilot_rounds=1,
    )  # fmt: skip
    return result, log


REASONS = {
    "wrong": r"wrong answer: error .*, allowed 1e-09",
    "not-a-number": r"wrong answer: error not finite or of the wrong shape",
    "exits": r"worker exited with code 3",
    "segfault": r"worker killed by SIGSEGV",
    "raises": r"ZeroDivisionError: division by zero",
    "hangs": r"no answer within 3 s; killed",
    "greedy": r"memory limit: .*0.7 GiB allowed .*; raise measure.memory_limit_bytes",
    "growing": r"memory limit: .*0.7 GiB allowed .*; raise measure.memory_limit_bytes",
    "unbindable": r"RuntimeError: this case cannot be bound",
    "no-import": r"import fake_is_missing: package fake_is_missing is missing .*: pip install fake_is_missing",
    "no-reference": r"no float64 reference",
}


@pytest.mark.parametrize("arm", REASONS)
def test_a_broken_arm_is_failed_with_its_reason_and_without_samples(zoo, arm):
    record = zoo[0].one(arm, 0)
    assert record.status is Status.FAILED
    assert re.search(REASONS[arm], record.reason), record.reason
    assert record.samples == ()
    assert not record.interrupted


@pytest.mark.parametrize("arm", REASONS)
def test_what_failed_in_the_pilot_is_not_tried_again(zoo, arm):
    result, log = zoo
    assert [record.replicate for record in result.of(arm)] == [0]
    assert sum(entry["name"] == arm for entry in log_entries(log, "load")) <= 1


def test_the_reason_of_a_missing_reference_is_the_exception(zoo):
    assert "ZeroDivisionError" in zoo[0].one("no-reference", 0).reason


def test_neighbours_of_broken_arms_are_complete(zoo):
    for arm, replicate in itertools.product(("fine", "fine-too"), (0, 1, 2)):
        records = zoo[0].of(arm, replicate)
        assert {record.case.regime for record in records} == {"decode", "batch"}
        for record in records:
            assert (record.status, record.reason) == (Status.OK, "")
            assert len(good_samples(record)) == (3 if replicate else 1)
            assert record.verification.passed


def test_an_arm_killed_in_a_later_replicate_fails_there_only_and_is_tried_again(zoo):
    pilot, killed, again = (zoo[0].one("killed", number) for number in (0, 1, 2))
    assert (pilot.status, again.status) == (Status.OK, Status.OK)
    assert killed.status is Status.FAILED
    assert killed.reason.startswith("worker killed by SIGKILL")


def test_a_slow_arm_is_capped_at_one_round_a_replicate(zoo):
    for replicate in (0, 1, 2):
        record = zoo[0].one("slow", replicate)
        assert record.status is Status.CAPPED
        assert len(record.samples) == 1
        assert "one round a replicate" in record.reason


def test_a_hopelessly_slow_arm_is_capped_and_never_timed(zoo):
    (record,) = zoo[0].of("too-slow")
    assert (record.status, record.samples) == (Status.CAPPED, ())
    assert record.reason.startswith("one call takes 0.4 s")
    assert record.verification.passed


def test_an_arm_whose_library_starts_threads_is_forked_without_it(zoo):
    record = zoo[0].one("threads", 1)
    assert (record.status, record.worker.start_method, record.worker.template_id) == (Status.OK, "fork", "template-1")
    assert len(record.samples) == 3


def test_an_arm_whose_template_could_not_start_has_no_worker(zoo):
    assert zoo[0].one("no-import", 0).worker is None


def test_workers_are_fresh_and_come_from_one_template(zoo):
    workers = [
        record.worker for arm in ("fine", "fine-too") for record in zoo[0].of(arm) if record.case.regime == "batch"
    ]
    assert len({worker.pid for worker in workers}) == len(workers) == 6
    assert {(worker.start_method, worker.template_id) for worker in workers} == {("fork", "template-1")}


def test_only_one_worker_computes_at_a_time(zoo):
    """The baton: no interval of one process overlaps an interval of another, loads and references included."""
    entries = sorted(log_entries(zoo[1]), key=lambda entry: entry["begin"])
    assert {entry["what"] for entry in entries} == {"reference", "start", "load", "output", "call"}
    assert len({entry["pid"] for entry in entries}) > 10
    for before, after in itertools.pairwise(entries):
        assert after["begin"] >= before["end"], (before, after)


def test_no_case_is_timed_before_its_answer_was_right(zoo):
    seen = {}
    for entry in sorted(log_entries(zoo[1], "output", "call"), key=lambda entry: entry["begin"]):
        seen.setdefault((entry["pid"], entry["name"]), []).append(entry["what"])
    assert len(seen) > 12
    order = ["".join(kind[0] for kind in kinds) for kinds in seen.values()]
    assert all(re.fullmatch("o+c*o?", kinds) for kinds in order), "outputs, then calls, and one output again at the end"
    assert sum(kinds.endswith("co") for kinds in order) > 9
    assert not [
        entry for entry in log_entries(zoo[1], "call") if entry["name"].split("/")[1] in ("wrong", "not-a-number")
    ]


def test_one_reference_for_all_cases_that_share_it(zoo):
    assert len(log_entries(zoo[1], "reference")) == 1


def test_turns_alternate_within_a_round_in_orders_that_vary(zoo):
    """Turn by turn: in every round each arm comes once, and not always in the same order."""
    for replicate in (1, 2):
        turns = sorted(
            (sample.turn, sample.round, record.arm)
            for record in zoo[0].by_replicate()[replicate]
            if record.case.regime == "decode" and record.arm in ("fine", "fine-too")
            for sample in record.samples
        )
        rounds = {number: [arm for _, found, arm in turns if found == number] for number in (0, 1, 2)}
        assert all(sorted(arms) == ["fine", "fine-too"] for arms in rounds.values())
        assert [number for _, number, _ in turns] == sorted(number for _, number, _ in turns)
    starts = [
        [e["name"] for e in log_entries(zoo[1], "load") if e["name"].startswith("fine")][i : i + 2] for i in (0, 2, 4)
    ]
    assert all(sorted(pair) == ["fine", "fine-too"] for pair in starts)


def test_turn_numbers_are_unique_in_a_replicate(zoo):
    for records in zoo[0].by_replicate().values():
        turns = [sample.turn for record in records for sample in record.samples]
        assert sorted(turns) == list(range(1, len(turns) + 1))


def test_failures_are_counted(zoo):
    assert zoo[0].outcome.failed == len(REASONS) + 1
    assert zoo[0].outcome.state == "complete"


# Void rounds


def test_void_rounds_are_recorded_and_repeated_for_all_arms(tmp_path):
    result = run_fake(
        tmp_path / "run",
        make_comparison(make_arm("quiet"), make_arm("disturbed", void_turns=[1, 3])),
        rounds=6,
        pilot_rounds=4,
    )
    for replicate, wanted in ((0, 4), (1, 6), (2, 6)):
        disturbed, quiet = (result.one(name, replicate) for name in ("disturbed", "quiet"))
        void = {sample.round for sample in disturbed.samples if sample.void == "spoilt by the test"}
        assert len(void) == 2
        assert len(disturbed.samples) == len(quiet.samples) == wanted + 2
        assert {sample.round for sample in quiet.samples} - void == {s.round for s in disturbed.samples} - void
        assert {record.steady_load for record in (disturbed, quiet)} == {replicate == 0 and wanted + 2 < 3 * 2}


def test_under_a_steady_load_rounds_end_and_everything_is_kept(tmp_path):
    result = run_fake(
        tmp_path / "run", make_comparison(make_arm("a"), make_arm("b", void_turns=list(range(99)))), rounds=4
    )
    for record in result.by_replicate()[1]:
        assert record.steady_load
        assert record.status is Status.OK
        assert len(record.samples) == 4 + 2


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("steady", [True, False])
def test_samples_are_longer_once_a_steady_load_makes_them_differ_widely(tmp_path, monkeypatch, wide, steady):
    """The pilot is short in any case: it is the first to find the load. A long warm-up finds the length of a call on a
    busy machine too."""
    monkeypatch.setattr(engine, "WIDE_SPREAD", -1.0 if wide else 99.0)
    spoilt = {"void_turns": list(range(99))} if steady else {}
    arms = (make_arm("a", work_s=0.002), make_arm("b", work_s=0.002, **spoilt))
    result = run_fake(tmp_path / "run", make_comparison(*arms), rounds=3, sample_s=0.01, warmup_limit_s=1.0)
    calls = [sum(sample.calls for sample in result.one("a", number).samples) for number in (0, 1)]
    rounds = [len(result.one("a", number).samples) for number in (0, 1)]
    assert (calls[1] / rounds[1] > 2 * calls[0] / rounds[0]) is (wide and steady)


def test_a_quiet_regime_does_not_hide_that_another_one_lost_every_round(tmp_path):
    """6 void rounds of 18 are rare over the replicate, but they are all that ``decode`` has."""
    regimes = ("decode", "batch", "prefill", "training")
    arms = (make_arm("a", regimes=regimes), make_arm("b", regimes=regimes, void_turns=list(range(6))))
    result = run_fake(tmp_path / "run", make_comparison(*arms), rounds=4)
    steady = {(record.case.regime, record.steady_load) for record in result.by_replicate()[1]}
    assert steady == {("decode", True), ("batch", False), ("prefill", False), ("training", False)}


def overlapping(loads):
    ordered = sorted(loads, key=lambda load: load["begin"])
    return [one["end"] > other["begin"] for one, other in itertools.pairwise(ordered)]


@pytest.mark.parametrize(("device", "side_by_side"), [("cpu", False), ("webgpu", True)])
def test_only_arms_of_a_device_load_side_by_side_and_nothing_computes_meanwhile(tmp_path, device, side_by_side):
    log = str(tmp_path / "log")
    arms = (make_arm(name, log=log, device=device, slow_load=0.3) for name in ("one", "two", "three"))
    result = run_fake(tmp_path / "run", make_comparison(*arms), looks=(1,), pilot_rounds=1)
    assert {record.status for record in result.records} == {Status.OK}
    loads = log_entries(log, "load")
    pilot, later = loads[:3], loads[3:]
    assert overlapping(pilot) == overlapping(later) == [side_by_side] * 2
    computing = log_entries(log, "output", "call")
    assert (
        not any(load["begin"] < entry["end"] and entry["begin"] < load["end"] for load in loads for entry in computing)
        or not side_by_side
    )


@pytest.mark.parametrize(
    ("late", "windows", "pilot", "fails"),
    [(0, 4, False, False), (1, 4, False, True), (4, 4, False, True), (1, 2, True, False), (2, 2, True, True)],
)
def test_a_window_with_a_compilation_is_never_kept_however_many_are_void(late, windows, pilot, fails):
    sample = Sample(round=0, turn=1, calls=1, time_s=1.0, start_s=0.0, environment=Environment(wall_s=1.0, cpu_s=1.0))
    item = CaseState(make_case("a"), samples=[sample] * windows, late_turns=late)
    _fail_if_late(item, pilot)
    assert (item.status is Status.FAILED) == fails
    assert not fails or f"inside {late} of {windows} windows" in item.reason
