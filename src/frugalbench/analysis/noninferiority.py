"""The non-inferiority rule: does a quantised model answer as many items of a task right as the unquantised one?

Both answered the same items, so the interval is that of a ratio of matched proportions
(:mod:`frugalbench.analysis.matched`). A claim is supported only when the whole interval clears its gate; too few items
leave it inconclusive, with how many it would take. Answers repeat themselves, so replicates add no information: the
first one speaks, and what later ones answered otherwise is told. No floor widens the interval, since nothing is timed.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from frugalbench.analysis.judge import Evidence, decide_outcome, judge, not_tested
from frugalbench.analysis.matched import (
    ALPHA,
    Bounds,
    Matched,
    design_effect,
    items_needed,
    matched,
    ratio_interval,
    share_interval,
)
from frugalbench.analysis.statistics import counted
from frugalbench.schema import Claim, NonInferiority, Outcome, Record, Status, Tier, Verdict
from frugalbench.units import share, significant

MOST_ITEMS = 10_000_000
_TOLD_EFFECT = 1.05


@dataclass(frozen=True)
class Answered:
    """What one scheme answered to one task."""

    record: Record
    correct: tuple[int, ...]
    clusters: tuple[int, ...]
    identity: tuple[object, ...]
    """Model and items; only answers with equal ones can be paired."""


@dataclass(frozen=True)
class Finding:
    """A scheme beside the unquantised model, on one task."""

    case: Record
    pair: Matched | None
    relative: Bounds | None
    accuracy: Bounds | None
    reason: str
    """Why there is no relative accuracy."""


def verdicts(claim: Claim, evidence: Evidence) -> list[Verdict]:
    """One verdict per model, task and candidate that was tried."""
    rule = claim.rule
    assert isinstance(rule, NonInferiority)
    found = findings(evidence.of(rule.workload), rule.workload, rule.baseline)
    mine = [item for item in found if item.case.case.variant in rule.candidates]
    several = len({item.case.case.shape for item in mine}) > 1
    rows = [_row(claim, rule, evidence, item, several) for item in mine]
    return rows or [not_tested(claim, evidence, claim.regimes[0], evidence.absence(rule.workload, None))]


def findings(records: Sequence[Record], workload: str, baseline: str) -> list[Finding]:
    """Every scheme of every model and task that was tried, the unquantised one too, in the order of the records."""
    speaking: dict[tuple[str, str, str, str], Record] = {}
    for record in records:
        case = record.case
        if case.workload == workload and not record.interrupted and record.status is not Status.SKIPPED:
            speaking.setdefault((case.shape, case.regime, case.device, case.variant), record)
    bases = {key[:3]: answered(record) for key, record in speaking.items() if key[3] == baseline}
    return [_finding(record, bases.get(key[:3])) for key, record in speaking.items()]


def _finding(record: Record, base: Answered | str | None) -> Finding:
    ours = answered(record)
    if isinstance(ours, str):
        return Finding(record, None, None, None, ours)
    alone = matched(ours.correct, ours.correct, ours.clusters)
    accuracy = share_interval(sum(ours.correct), len(ours.correct), _own_effect(ours))
    if not isinstance(base, Answered):
        why = f": {base}" if base else ""
        return Finding(record, None, None, accuracy, f"the unquantised model gave no answers in this run{why}")
    if base.record is record:
        return Finding(record, alone, None, accuracy, "")
    if base.identity != ours.identity:
        return Finding(record, None, None, accuracy, "the unquantised model answered other items")
    pair = matched(ours.correct, base.correct, ours.clusters)
    relative = ratio_interval(pair)
    reason = "" if relative else "the unquantised model has no item right, or the items are one cluster"
    return Finding(record, pair, relative, accuracy, reason)


def _own_effect(ours: Answered) -> float:
    mean = sum(ours.correct) / len(ours.correct)
    return design_effect([value - mean for value in ours.correct], ours.clusters)


def answered(record: Record) -> Answered | str:
    """The answers in a record, or why there are none to judge. Records may come from anywhere."""
    if record.status is Status.CAPPED:
        return f"capped: {record.reason}"
    if not counted(record):
        return record.reason or "nothing was answered"
    details = record.details
    items = details.get("items")
    if not isinstance(items, int) or not 0 < items <= MOST_ITEMS:
        return "the record holds no answers"
    correct, starts = (bits(details.get(name), items) for name in ("correct", "starts"))
    if correct is None or starts is None:
        return "the record's answers cannot be read"
    task = details.get("task")
    digest = task.get("digest") if isinstance(task, dict) else None
    identity = (str(details.get("model_digest")), str(digest), items, starts)
    return Answered(record, correct, _clusters(starts), identity)


def bits(text: object, items: int) -> tuple[int, ...] | None:
    """``items`` bits from base64, eight to a byte, the first in the highest; ``None`` where that is not what it is."""
    if not isinstance(text, str):
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(raw) != -(-items // 8):
        return None
    return tuple(byte >> (7 - place) & 1 for byte in raw for place in range(8))[:items]


def _clusters(starts: Sequence[int]) -> tuple[int, ...]:
    number, found = 0, []
    for start in starts:
        number += start
        found.append(number)
    return tuple(found)


def _row(claim: Claim, rule: NonInferiority, evidence: Evidence, item: Finding, several: bool) -> Verdict:
    case = item.case.case
    name = f"{case.variant} @ {case.shape}" if several else case.variant
    scope = case.params.get("scope")
    if item.relative is None or item.pair is None:
        row = not_tested(claim, evidence, case.regime, f"{name}: {item.reason}")
    else:
        low, high = item.relative.low, item.relative.high
        row = judge(
            claim, evidence, case.regime, item.relative.value, low, high,
            metric="relative accuracy", candidate=name, baseline=rule.baseline, tier=Tier.MEASURED,
            replicates=_replicates(evidence, item.case), confidence=1 - ALPHA,
            extra="; ".join(_notes(claim, rule, evidence, item)),
        )  # fmt: skip
    return msgspec.structs.replace(row, scope=scope) if scope in ("literal", "analogue") else row


def _replicates(evidence: Evidence, record: Record) -> int:
    return sum(other.case.id == record.case.id and counted(other) for other in evidence.records)


def _notes(claim: Claim, rule: NonInferiority, evidence: Evidence, item: Finding) -> Iterator[str]:
    pair, relative = item.pair, item.relative
    assert pair is not None and relative is not None
    lost, won = pair.only_base, pair.only_ours
    yield f"{pair.items} items, of which {lost} became wrong and {won} right"
    if pair.effect > _TOLD_EFFECT:
        yield f"design effect {significant(pair.effect)}"
    strict = decide_outcome(claim.direction, rule.strict, relative.low, relative.high)
    yield f"strict gate {rule.strict:g}: {strict.value}"
    outcome = decide_outcome(claim.direction, claim.threshold, relative.low, relative.high)
    if outcome is Outcome.INCONCLUSIVE and (needed := items_needed(pair, claim.threshold)):
        yield f"at the ratio and discordance seen, {_count(needed)} items would settle it"
    note = item.case.details.get("note")
    if isinstance(note, str) and note:
        yield note
    yield from changed(evidence.records, item.case)


def _count(items: int) -> str:
    """Rounded to two digits: it is an estimate."""
    if items > MOST_ITEMS:
        return f"more than {MOST_ITEMS}"
    scale = 10 ** max(0, len(str(items)) - 2)
    return f"about {-(-items // scale) * scale}"


def changed(records: Sequence[Record], speaking: Record) -> Iterator[str]:
    """What later replicates answered otherwise."""
    for record in records:
        if record.case.id == speaking.case.id and record.replicate != speaking.replicate:
            again, same = record.details.get("repeated"), record.details.get("same")
            if isinstance(again, int) and isinstance(same, int) and 0 <= same < again:
                yield f"replicate {record.replicate} answered {share((again - same) / again)} of {again} otherwise"


def fact(record: Record, name: str) -> float | None:
    """The value of one of a record's facts."""
    found: Mapping[str, Any] = record.facts
    return found[name].value if name in found else None
