"""Whether everything that was measured is in the file: turns, rounds, replicates and arms without a gap.

A turn is numbered when it ends, from 1 in each replicate of a comparison, and a case's rounds from 0: a number that is
missing was taken out. What a worker had sampled when it failed is kept, so that leaves no gap.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from frugalbench.analysis.load import Run
from frugalbench.analysis.statistics import latest
from frugalbench.analysis.submission.turns import GONE_ON, Finding, name
from frugalbench.schema import Record, Status

_COUNTED = re.compile(r"\b(?:settled at|look, at|spent after) (\d{1,6}) replicates$")
_SETTLED = re.compile(r"\bsettled at (\d{1,6}) replicates$")
_STAMP = re.compile(r"(\d{8}T\d{6})Z-")
MOST_AHEAD = timedelta(days=2)
"""Of the reader's clock: time zones and wrong clocks."""

SPENT = "the time budget"
"""How the reason of a decision begins where time ran out within a replicate."""

Group = dict[tuple[str, int], list[Record]]


def gaps(run: Run) -> Iterator[Finding]:
    """Turns and rounds are numbered through, and replicates follow each other in time."""
    groups = _replicates(run)
    for (comparison, number), records in groups.items():
        if not any(record.interrupted for record in records):
            yield from _missing(f"{comparison}, replicate {number}", records)
    yield from _order(groups)
    spent = {name for name, item in run.manifest.decisions.items() if item.stop and item.reason.startswith(SPENT)}
    cut = [record for record in run.records if record.interrupted and record.comparison not in spent]
    stopped = run.manifest.state != "complete" or any(note.startswith(GONE_ON) for note in run.manifest.notes)
    if cut and not stopped:
        yield name(cut[0]), "was cut short in a run that was neither interrupted nor gone on with"


def _replicates(run: Run) -> Group:
    """Timed and failed records of each replicate of each comparison."""
    found: Group = {}
    for record in latest(run.records):
        if record.worker is not None or record.samples or record.status is Status.FAILED:
            found.setdefault((record.comparison, record.replicate), []).append(record)
    return found


def _missing(where: str, records: Sequence[Record]) -> Iterator[Finding]:
    turns = sorted(sample.turn for record in records for sample in record.samples)
    if turns and turns != list(range(1, len(turns) + 1)):
        lost = sorted(set(range(1, max(turns) + 1)) - set(turns))
        told = f"turn {lost[0]} is missing" if lost else "a turn is there twice"
        yield where, f"{told}; {len(turns)} turns are in the file, numbered up to {turns[-1]}"
    for record in records:
        rounds = [sample.round for sample in record.samples]
        if rounds != list(range(len(rounds))):
            yield name(record), "its rounds are not numbered through: some were taken out or put in"


def _order(groups: Group) -> Iterator[Finding]:
    first: dict[str, list[tuple[int, float]]] = {}
    for (comparison, number), records in groups.items():
        if starts := [sample.start_s for record in records for sample in record.samples]:
            first.setdefault(comparison, []).append((number, min(starts)))
    for comparison, found in first.items():
        if [number for number, _ in found] != sorted(number for number, _ in found):
            yield comparison, "its replicates are not in the order in which they were measured"
        for (before, one_s), (after, other_s) in pairwise(sorted(found)):
            if other_s <= one_s:
                yield comparison, f"replicate {after} began before replicate {before}"


def arms(run: Run) -> Iterator[Finding]:
    """Each planned case of a comparison that was measured has a record; a complete run measured every comparison."""
    seen = {(record.comparison, record.arm, record.case.id) for record in run.records}
    begun = {record.comparison for record in run.records if record.replicate and not record.interrupted}
    for comparison in run.manifest.plan.comparisons:
        tiers = {record.tier for record in run.records if record.comparison == comparison.id and record.samples}
        if tiers - {comparison.tier}:
            yield comparison.id, f"its times are planned as {comparison.tier}, and recorded as {sorted(tiers)[0]}"
        if comparison.id not in begun:
            if run.manifest.state == "complete" and comparison.id not in {item for item, _, _ in seen}:
                yield comparison.id, "is planned and has no record in a run that calls itself complete"
            continue
        if comparison.competes and all(r.replicate for r in run.records if r.comparison == comparison.id):
            yield comparison.id, "has no pilot, in which the arm that speaks for the best is chosen"
        for arm in comparison.arms:
            for case in arm.cases:
                if (comparison.id, arm.id, case.id) not in seen:
                    yield case.id, "is planned and has no record, not even of a failure"
    yield from _unmeasured(run)


def _unmeasured(run: Run) -> Iterator[Finding]:
    """What is modelled, or left out with a reason, is written down before anything is measured."""
    plan, there = run.manifest.plan, {record.case.id for record in run.records}
    if run.manifest.state == "complete":
        for case in (*plan.modelled, *(skip.case for skip in plan.skipped)):
            if case.id not in there:
                yield case.id, "is in the plan and has no record in a run that calls itself complete"


def decisions(run: Run) -> Iterator[Finding]:
    """The number of replicates is the one at which the run says that it stopped, and that look was planned."""
    measure = run.manifest.config.get("measure")
    looks = measure.get("looks") if isinstance(measure, dict) else None
    failed = {record.comparison for record in run.records if record.status is not Status.OK}
    numbers: dict[str, set[int]] = {}
    for record in run.records:
        if record.samples and not record.interrupted and record.replicate:
            numbers.setdefault(record.comparison, set()).add(record.replicate)
    for comparison in numbers.keys() - run.manifest.decisions.keys() if run.manifest.state == "complete" else ():
        yield comparison, "was measured to the end, and nothing says why it stopped"
    for comparison, decision in run.manifest.decisions.items():
        said = _COUNTED.search(decision.reason)
        there = len(numbers.get(comparison, ()))
        if said and comparison not in failed and comparison in numbers and there != int(said[1]):
            yield comparison, f"stopped after {said[1]} replicates; {there} are in the file"
        settled = _SETTLED.search(decision.reason)
        if settled and isinstance(looks, list) and decision.look and int(settled[1]) not in looks:
            yield comparison, f"settled at {settled[1]} replicates, which is none of its planned looks {looks}"


def dating(run: Run) -> Iterator[Finding]:
    """The run's name carries its start; nothing is from the future, or of a version that never was."""
    manifest = run.manifest
    if len({manifest.seed, manifest.plan.seed, manifest.config.get("seed", manifest.seed)}) > 1:
        yield "manifest.json", "run, plan and config have different seeds"
    if manifest.machine_after is None:
        yield "manifest.json", "does not describe the machine after the run, which each run that ended does"
    if min((manifest.schema_version, *(record.schema_version for record in run.records))) < 1:
        yield "manifest.json", "there was never a schema version below 1"
    try:
        started = datetime.fromisoformat(manifest.started)
    except ValueError:
        return  # `dates` says so
    if started.tzinfo is not None and started > datetime.now(UTC) + MOST_AHEAD:
        yield "manifest.json", f"started {manifest.started}, which is still to come"
    stamp = _STAMP.match(manifest.run_id)
    if stamp and abs(datetime.strptime(stamp[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC) - started) > timedelta(minutes=1):
        yield "manifest.json", f"the run's name says {stamp[1]}, its start {manifest.started}"
