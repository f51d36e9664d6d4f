"""Whether times fit the clock they were taken on and the turns they were taken in.

One worker computes at a time, inside a window that the harness looks at from outside, so start times, windows, calls
and the run's own length hang together. Limits are wide of what loaded machines give; each says how wide.
"""

import math
import re
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from statistics import median

from frugalbench.analysis.load import Run
from frugalbench.schema import Record, Sample, Status

_DECIDED_AT = re.compile(r"\b(?:settled at|look, at) (\d{1,6}) replicates$")
Finding = tuple[str, str]
"""Where, and what is wrong."""

GONE_ON = "gone on with"
"""How the note of a run begins that was interrupted and resumed: its clock went on in between."""
GAP_FACTOR, GAP_S = 8.0, 6.5e-3
"""Between a timed window and the look around it: a record's median against the run's. Seen: 5.3 ms beside 0.26."""
MOST_WARM_CALLS = 10**9
MOST_GAP_S, MOST_GAP_SHARE = 0.2, 0.5
LEAST_FILL, MOST_FILL_OFF = 0.005, math.log(300)
"""A window of several calls is filled to ``sample_s``; medians of 0.007 to 59 times were seen, the small ones where the
warm-up's calls were slower. Warm-up and samples of a case differed by a factor of 70 at most."""


def name(record: Record) -> str:
    """A record in words."""
    return f"{record.case.id}, replicate {record.replicate}"


def window_s(sample: Sample) -> float:
    """Length of the timed window."""
    return sample.calls * sample.time_s


def windows(run: Run) -> Iterator[Finding]:
    """Environment against the window that it surrounds."""
    timed = [record for record in run.records if record.samples]
    cores = _cores(run)
    usual_s = median([_gap_s(record) for record in timed]) if timed else 0.0
    for record in timed:
        for sample in record.samples:
            if reason := _sample_fault(sample, cores, record):
                yield name(record), reason
                break
        if len(record.samples) >= 3 and (gap_s := _gap_s(record)) > max(GAP_FACTOR * usual_s, GAP_S):
            yield (
                name(record),
                f"calls x time_s falls short of wall_s by {gap_s * 1e3:.3g} ms, in the rest of the run by "
                f"{usual_s * 1e3:.3g} ms",
            )


def _sample_fault(sample: Sample, cores: int, record: Record) -> str | None:
    found, timed_s = sample.environment, window_s(sample)
    gap_s = found.wall_s - timed_s
    if gap_s < -1e-6:
        return f"wall_s {found.wall_s:.6g} is less than calls x time_s = {timed_s:.6g}, which it surrounds"
    if gap_s > MOST_GAP_S + MOST_GAP_SHARE * timed_s:
        return f"wall_s {found.wall_s:.6g} is far from calls x time_s = {timed_s:.6g}"
    if not -1e-9 <= found.cpu_s <= 1.3 * cores * found.wall_s + 0.03:
        return f"cpu_s {found.cpu_s:.4g} is more than {cores} cores give in {found.wall_s:.4g} s"
    if any((value or 0.0) < -1e-9 for value in (found.run_delay_s, found.steal_s, found.foreign_cpu_s)):
        return "a negative time in the environment"
    if sample.start_s < 0 or (sample.time_s <= 0 and record.case.cost is not None):
        return "a sample before the run began, or without a duration"
    return None


def _gap_s(record: Record) -> float:
    return median(sample.environment.wall_s - window_s(sample) for sample in record.samples)


def _cores(run: Run) -> int:
    found = run.manifest.machine_before.get("logical_cores")
    return found if isinstance(found, int) and 0 < found < 2**16 else 1


def turns(run: Run) -> Iterator[Finding]:
    """Nobody computes while another has the baton; turns are numbered in the order in which they were taken."""
    groups: dict[tuple[str, int, bool], list[tuple[Sample, Record]]] = {}
    for record in run.records:
        for sample in record.samples:
            groups.setdefault((record.comparison, record.replicate, record.interrupted), []).append((sample, record))
    for group in groups.values():
        group.sort(key=lambda pair: pair[0].start_s)
        for (before, one), (after, other) in pairwise(group):
            if after.start_s < before.start_s + window_s(before) - 1e-6:
                yield name(other), f"starts at {after.start_s:.4f} s, before the window of {one.case.id} had ended"
                break
            if after.turn <= before.turn:
                yield name(other), f"turn {after.turn} begins after turn {before.turn}"
                break


def calls(run: Run) -> Iterator[Finding]:
    """Calls are chosen to fill ``sample_s``, by the time of a call at the end of the warm-up."""
    wanted_s = _setting(run, "sample_s")
    by_case: dict[str, list[float]] = {}
    for record in run.records:
        if record.warmup is not None and not 0 <= record.warmup.calls <= MOST_WARM_CALLS:
            yield name(record), f"a warm-up of {record.warmup.calls:.3g} calls"
        several = [window_s(sample) for sample in record.samples if sample.calls > 1]
        if wanted_s and several and median(several) < LEAST_FILL * wanted_s:
            yield name(record), f"windows of {median(several):.3g} s, where calls were to fill {wanted_s:.3g} s"
        if record.samples and record.warmup is not None and record.warmup.call_s:
            ratio = median(sample.time_s for sample in record.samples) / record.warmup.call_s
            by_case.setdefault(record.case.id, []).append(math.log(ratio) if ratio > 0 else -math.inf)
    for case, logs in by_case.items():
        if abs(median(logs)) > MOST_FILL_OFF:
            yield case, f"a call takes {math.exp(median(logs)):.3g} times what it took at the end of the warm-up"


def _setting(run: Run, key: str) -> float | None:
    measure = run.manifest.config.get("measure")
    found = measure.get(key) if isinstance(measure, dict) else None
    return float(found) if isinstance(found, int | float) and found > 0 else None


def dates(run: Run) -> Iterator[Finding]:
    """Dates, the harness's own clock, and the last sample."""
    manifest = run.manifest
    try:
        start = datetime.fromisoformat(manifest.started)
        end = datetime.fromisoformat(manifest.ended or "")
        wall_s = (end - start).total_seconds()
    except (ValueError, TypeError):
        yield "manifest.json", "started and ended are no dates: the run did not end by itself"
        return
    if manifest.harness is None:
        yield "manifest.json", "does not say what the harness cost, which each finished run does"
        return
    harness = manifest.harness
    if harness.wall_s > wall_s + 5 or wall_s < 0:
        yield "manifest.json", f"wall_s is {harness.wall_s:.0f} s; from started to ended there are {wall_s:.0f} s"
    if harness.measuring_s + harness.prepared_s > harness.wall_s + 1:
        yield "manifest.json", "the harness measured and prepared for longer than the run took"
    last_s = max((s.start_s + window_s(s) for r in run.records for s in r.samples), default=0.0)
    gone_on = any(note.startswith(GONE_ON) for note in manifest.notes)
    if last_s > (wall_s + 5 if gone_on else harness.wall_s + 1):
        yield "records.jsonl", f"a sample ends at {last_s:.0f} s of a run of {harness.wall_s:.0f} s"
    spent_s = sum(window_s(s) for r in run.records for s in r.samples)
    if spent_s > wall_s + 1:
        yield "records.jsonl", f"windows of {spent_s:.0f} s in a run of {wall_s:.0f} s"


def plan(run: Run) -> Iterator[Finding]:
    """Every record is of a planned case, as planned; no replicate of a comparison lacks an arm."""
    planned = {
        (comparison.id, arm.id, case.id): case
        for comparison in run.manifest.plan.comparisons
        for arm in comparison.arms
        for case in arm.cases
    }
    others = {item.id: item for item in run.manifest.plan.modelled}
    others |= {item.case.id: item.case for item in run.manifest.plan.skipped}
    seen: dict[tuple[str, str, str], dict[int, Record]] = {}
    for record in run.records:
        key = (record.comparison, record.arm, record.case.id)
        expected = planned.get(key) or others.get(record.case.id)
        if expected is None:
            yield name(record), "is not in the plan of the manifest"
        elif expected != record.case:
            yield name(record), "shape, cost or tolerance differ from those in the plan of the manifest"
        before = seen.setdefault(key, {}).get(record.replicate)
        if before is not None and record.samples and not before.interrupted:
            yield name(record), "stands twice in records.jsonl"
        seen[key][record.replicate] = record
    if not seen:
        yield "records.jsonl", "holds no record"
    yield from _gaps(run, seen)


def _gaps(run: Run, seen: dict[tuple[str, str, str], dict[int, Record]]) -> Iterator[Finding]:
    """Replicates that some arm took part in and another, which never failed, did not. What was modelled or left out
    while planning has no replicates."""
    numbers: dict[str, set[int]] = {}
    ended = {record.comparison for record in run.records if record.status is not Status.OK}
    for (comparison, _, _), records in seen.items():
        whole = {number for number, record in records.items() if not record.interrupted}
        numbers.setdefault(comparison, set()).update(whole)
    measured = {comparison.id for comparison in run.manifest.plan.comparisons}
    for (comparison, _, case), records in seen.items():
        missing = numbers[comparison] - records.keys() if comparison in measured else set()
        if missing and all(record.status is Status.OK for record in records.values()):
            shown = ", ".join(map(str, sorted(missing)[:4]))
            yield case, f"has no record of replicate {shown}, in which other arms took part"
    for comparison, found in numbers.items():
        counted = sorted(found - {0})
        if counted != list(range(1, len(counted) + 1)):
            yield comparison, "its replicates are not numbered through: some are left out"
        decision = run.manifest.decisions.get(comparison)
        said = _DECIDED_AT.search(decision.reason) if decision is not None else None
        if said and comparison not in ended and len(counted) < int(said[1]):
            yield comparison, f"was decided at {said[1]} replicates; {len(counted)} are in the file"
