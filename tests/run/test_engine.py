"""The engine on the fake workload: looks and decisions, going on with a run, the time budget, Ctrl-C."""

import itertools
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from frugalbench.schema import Decision, Skipped, Status
from run import helpers
from run.helpers import FAKES, log_entries, make_arm, make_case, make_comparison, run_fake, stop_at

# Looks, decisions, replicates


def test_decide_is_asked_at_planned_looks_only_and_obeyed(tmp_path):
    asked = []

    def decide(records, number):
        asked.append((number, {record.replicate for record in records}))
        return Decision(stop=number >= 3, look=len(asked), reason="enough")

    result = run_fake(
        tmp_path / "run", make_comparison(make_arm("a"), make_arm("b")), decide=decide, looks=(1, 3, 5), rounds=1
    )
    assert asked == [(1, {0, 1}), (3, {0, 1, 2, 3})]
    assert result.by_replicate().keys() == {0, 1, 2, 3}
    assert result.outcome.decisions == {"fake": Decision(stop=True, look=2, reason="enough")}


def test_replicate_0_is_the_pilot_with_its_own_number_of_rounds(tmp_path):
    result = run_fake(tmp_path / "run", make_comparison(make_arm("a")), pilot_rounds=2, rounds=4)
    assert [len(result.one("a", number).samples) for number in (0, 1, 2)] == [2, 4, 4]


def test_one_comparison_after_the_other_with_references_of_their_own(tmp_path):
    log = str(tmp_path / "log")
    result = run_fake(
        tmp_path / "run",
        make_comparison(make_arm("a", "one", log=log), make_arm("b", "one", log=log, key="b's"), name="one"),
        make_comparison(make_arm("a", "two", log=log), name="two"),
        looks=(1,),
    )
    assert [record.comparison for record in result.records] == ["one"] * 4 + ["two"] * 2
    assert sorted(entry["name"] for entry in log_entries(log, "reference")) == ["one/a/decode", "one/b/decode"]


def test_arms_with_nothing_to_build_that_share_a_reference_start_no_worker_for_it(tmp_path):
    arms = make_arm("a"), make_arm("same"), make_arm("other", key="its own")
    result = run_fake(tmp_path / "run", make_comparison(*arms), looks=(1,))
    assert [line for line in result.progress if "reference of" in line] == [
        f"fake: artefacts and reference of {arm.id}" for arm in (arms[0], arms[2])
    ]
    assert {record.status for record in result.records} == {Status.OK}


def test_skipped_cases_become_records_once(tmp_path, monkeypatch):
    skip = Skipped(case=make_case("left-out"), reason="needs what is not here")
    real = helpers.Plan
    monkeypatch.setattr(helpers, "Plan", lambda **fields: real(**fields, skipped=(skip,)))
    first = run_fake(tmp_path / "run", make_comparison(make_arm("a")), looks=(1,))
    assert [(r.status, r.reason) for r in first.records if r.case == skip.case] == [(Status.SKIPPED, skip.reason)]
    second = run_fake(tmp_path / "again", make_comparison(make_arm("a")), looks=(1,), before=first.records)
    assert second.records == []


def test_an_arm_without_a_kernel_here_is_skipped_by_the_first_worker_and_not_asked_again(tmp_path):
    log = str(tmp_path / "log")
    comparison = make_comparison(make_arm("a"), make_arm("b", no_path="no kernel\nin this build", log=log))
    result = run_fake(tmp_path / "run", comparison)
    record = result.one("b", 0)
    assert (record.status, record.reason, record.samples) == (Status.SKIPPED, "no kernel in this build", ())
    assert len(log_entries(log, "start")) == 1
    assert result.outcome.failed == 0
    assert {r.replicate for r in result.of("a")} == {0, 1, 2}
    assert run_fake(tmp_path / "again", comparison, before=result.records).records == []


def test_a_case_that_loading_shows_to_be_hopeless_is_capped_by_the_first_worker_and_not_asked_again(tmp_path):
    log = str(tmp_path / "log")
    comparison = make_comparison(make_arm("a"), make_arm("b", capped="would take an hour", log=log))
    result = run_fake(tmp_path / "run", comparison)
    record = result.one("b", 0)
    assert (record.status, record.reason, record.samples) == (Status.CAPPED, "would take an hour", ())
    assert record.verification is None
    assert len(log_entries(log, "start")) == 1
    assert result.outcome.failed == 0


# Going on with a run


def counted(records):
    return sorted(
        (r.comparison, r.replicate, r.arm) for r in records if not r.interrupted and r.status is not Status.SKIPPED
    )


def test_resuming_measures_what_is_missing_and_nothing_twice(tmp_path):
    comparison = make_comparison(make_arm("a"), make_arm("b"))
    first = run_fake(tmp_path / "first", comparison, looks=(2,))
    cut = [record for record in first.records if record.replicate < 2]
    cut.append(msgspec.structs.replace(first.one("a", 2), interrupted=True))
    second = run_fake(tmp_path / "second", comparison, looks=(2, 3), before=cut, decide=stop_at(3))
    assert counted([*cut, *second.records]) == sorted(("fake", number, arm) for number in range(4) for arm in "ab")


def test_a_finished_comparison_is_not_measured_again(tmp_path):
    comparison = make_comparison(make_arm("a"), make_arm("b"))
    first = run_fake(tmp_path / "first", comparison)
    again = run_fake(tmp_path / "again", comparison, before=first.records)
    assert again.records == []
    assert again.outcome.decisions["fake"].stop


def test_a_replicate_of_which_only_some_records_reached_the_disk_is_made_whole(tmp_path):
    comparison = make_comparison(make_arm("a"), make_arm("b"))
    first = run_fake(tmp_path / "first", comparison)
    cut = first.records[:-1]
    second = run_fake(tmp_path / "second", comparison, before=cut)
    kept = {(r.replicate, r.arm) for r in [*cut, *second.records] if not r.interrupted}
    assert {(number, arm) for number in (0, 1, 2) for arm in "ab"} <= kept


# Time


@pytest.mark.alone
def test_the_time_budget_is_kept_and_what_was_not_reached_is_skipped(tmp_path):
    names = ("one", "two", "three")
    arms = {name: (make_arm("a", name, work_s=0.03), make_arm("b", name, work_s=0.03)) for name in names}
    comparisons = [make_comparison(*pair, name=name) for name, pair in arms.items()]
    begin = time.monotonic()
    result = run_fake(tmp_path / "run", *comparisons, pilot_rounds=900, time_budget_s=2.0)
    assert time.monotonic() - begin <= 2.0 * 1.1 + 2
    assert result.outcome.state == "out of time"
    skipped = {(r.comparison, r.arm): r.reason for r in result.records if r.status is Status.SKIPPED}
    measured = [record for record in result.records if record.status is not Status.SKIPPED]
    assert measured[0].comparison == "one"
    reached = {(record.comparison, record.arm) for record in measured if record.replicate and not record.interrupted}
    assert skipped.keys() == set(itertools.product(names, "ab")) - reached
    assert skipped
    assert all("the time budget of 2 s ran out" in reason for reason in skipped.values())
    assert all(record.samples for record in measured if record.replicate == 0 and not record.interrupted)
    whole = {(record.comparison, record.replicate): 0 for record in measured if not record.interrupted}
    assert not {(record.comparison, record.replicate) for record in measured if record.interrupted} & whole.keys()


@pytest.mark.alone
def test_each_comparison_gets_its_share_once_the_first_look_is_past(tmp_path):
    pairs = [(name, (make_arm("a", name), make_arm("b", name))) for name in ("one", "two")]
    undecided = lambda records, number: Decision(stop=False, look=1, reason="undecided")  # noqa: ARG005, E731
    begin = time.monotonic()
    result = run_fake(
        tmp_path / "run", *(make_comparison(*arms, name=name) for name, arms in pairs),
        decide=undecided, looks=(1, 1000), time_budget_s=3.0,
    )  # fmt: skip
    assert time.monotonic() - begin <= 3.0 * 1.1 + 2
    assert "its share of the time budget is spent after" in result.outcome.decisions["one"].reason
    last = {
        name: max(r.replicate for r in result.records if r.comparison == name and not r.interrupted)
        for name, _ in pairs
    }
    assert min(last.values()) >= 1


@pytest.mark.alone
def test_a_load_that_hangs_past_the_deadline_ends_the_run_in_time(tmp_path):
    begin = time.monotonic()
    result = run_fake(
        tmp_path / "run", make_comparison(make_arm("a"), make_arm("b", hang_in="load")), time_budget_s=1.5
    )
    assert time.monotonic() - begin <= 1.5 * 1.1 + 2
    assert result.outcome.state == "out of time"


@pytest.mark.alone
def test_a_reference_that_hangs_past_the_deadline_ends_the_run_in_time(tmp_path):
    begin = time.monotonic()
    run_fake(tmp_path / "run", make_comparison(make_arm("a", hang_in="reference")), time_budget_s=0.5, load_limit_s=3.5)
    assert time.monotonic() - begin <= 0.5 * 1.1 + 2


def test_an_arm_that_takes_its_template_along_does_not_end_the_run(tmp_path):
    arms = make_arm("fine"), make_arm("deadly", log=str(tmp_path / "log"), die_in="load", how="template", die_at=1)
    result = run_fake(tmp_path / "run", make_comparison(*arms))
    assert result.one("deadly", 1).status is Status.FAILED
    assert [result.one(name, 2).status for name in ("fine", "deadly")] == [Status.OK] * 2


HANGS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it
from run.helpers import make_arm, make_comparison, run_fake
arm = make_arm("a", hang_in="reference", hang_file=sys.argv[2])
print(run_fake(sys.argv[1], make_comparison(arm)).outcome.state)
"""


@pytest.mark.alone
def test_ctrl_c_during_a_reference_ends_at_once(tmp_path):
    """In a process of its own: a signal kills one in which other tests ran the low-precision layers."""
    hangs = tmp_path / "hangs"
    command = [sys.executable, "-c", HANGS, str(tmp_path / "run"), str(hangs)]
    with subprocess.Popen(command, cwd=FAKES.parents[1], stdout=subprocess.PIPE, text=True) as process:
        while not hangs.exists() and process.poll() is None:
            time.sleep(0.01)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    assert said == "interrupted\n"
    assert time.monotonic() - begin < 4
