"""The reach rule: how large a published model generates at a useful speed here, in 4 bits over bf16. Modelled.

A token costs the bytes of the weights that it multiplies and of the cache that it reads. What an arm moved per second
while a whole model was decoded, which is the measured read bandwidth times the share of it that the arm reached, turns
them into tokens per second. A model must fit into memory with its cache. Experts are taken to stream as dense weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Annotated

import msgspec

from frugalbench.analysis import paired
from frugalbench.analysis.judge import Evidence, judge, not_tested
from frugalbench.analysis.metrics import replicate_time_s, time_interval
from frugalbench.schema import Claim, PairedRatio, Reach, Record, Tier, Verdict
from frugalbench.units import byte_size, interval, share, significant

BF16_BYTES = 2.0
_PEAK = "read_bytes_per_s"
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e18)]


class Published(msgspec.Struct, frozen=True):
    """What a record says of a published model."""

    parameters: Positive
    active_parameters: Positive
    kv_bytes_per_token: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    """In bf16."""
    recalled: bool


@dataclass(frozen=True)
class Span:
    """A number and its interval."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Span":
        """All three times ``factor``."""
        return Span(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Pace:
    """What one arm holds, and moved while it generated."""

    variant: str
    bytes_per_weight: float
    bytes_per_s: Span
    of_read: float | None
    """Share of the measured read bandwidth; ``None`` where that was not measured."""
    context: int
    replicates: int


@dataclass(frozen=True)
class Reached:
    """The largest model for an arm."""

    name: str
    parameters: float
    active_parameters: float
    memory_bytes: float
    token_per_s: Span


def published(records: Sequence[Record], workload: str, variant: str) -> dict[str, Published] | None:
    """The models that a run lists, those from memory left out; ``None`` where no record holds a readable list."""
    for record in records:
        if record.case.workload == workload and record.case.variant == variant:
            try:
                found = msgspec.convert(record.details.get("shapes"), dict[str, Published], strict=False)
            except msgspec.ValidationError:
                continue
            return {name: shape for name, shape in found.items() if not shape.recalled}
    return None


def paces(evidence: Evidence, group: paired.Group) -> dict[str, Pace]:
    """Every arm that was counted and whose records say what it held and moved."""
    found = {name: _pace(evidence, records) for name, records in group.counted.items()}
    return {name: pace for name, pace in found.items() if pace is not None}


def _pace(evidence: Evidence, records: Sequence[Record]) -> Pace | None:
    case, stored = records[0].case, records[0].facts.get("weight_bytes")
    times_s = [time_s for record in records if (time_s := replicate_time_s(record))]
    low_s, high_s = time_interval(times_s)
    context = case.params.get("context")
    cost = case.cost
    if low_s is None or high_s is None or cost is None or stored is None or not isinstance(context, int):
        return None
    if not (stored.value and stored.value > 0 and cost.parameters > 0 and cost.traffic_bytes > 0 and context >= 0):
        return None
    middle_s, room = median(times_s), 1 + evidence.floor
    moved = Span(1 / middle_s, min(1 / high_s, 1 / middle_s) / room, max(1 / low_s, 1 / middle_s) * room)
    peak = evidence.peaks.get((case.device, _PEAK))
    return Pace(
        variant=case.variant,
        bytes_per_weight=stored.value / cost.parameters,
        bytes_per_s=moved.times(cost.traffic_bytes),
        of_read=moved.value * cost.traffic_bytes / peak if peak else None,
        context=context,
        replicates=len(times_s),
    )


def reached(
    pace: Pace, shapes: dict[str, Published], memory_bytes: float, least_token_per_s: float, bound: str = "value"
) -> Reached | None:
    """The model of most parameters that fits and is fast enough at the ``bound`` (value, low, high) of the speed."""
    fitting = [
        found for name, shape in shapes.items() if (found := _held(pace, name, shape)).memory_bytes <= memory_bytes
    ]
    fast = [found for found in fitting if getattr(found.token_per_s, bound) >= least_token_per_s]
    return max(fast, key=lambda found: found.parameters, default=None)


def _held(pace: Pace, name: str, shape: Published) -> Reached:
    cache_bytes = shape.kv_bytes_per_token * pace.context
    moved_bytes = shape.active_parameters * pace.bytes_per_weight + cache_bytes
    return Reached(
        name=name,
        parameters=shape.parameters,
        active_parameters=shape.active_parameters,
        memory_bytes=shape.parameters * pace.bytes_per_weight + cache_bytes,
        token_per_s=pace.bytes_per_s.times(1 / moved_bytes),
    )


def verdicts(claim: Claim, evidence: Evidence) -> list[Verdict]:
    """One verdict per model that was decoded."""
    rule = claim.rule
    assert isinstance(rule, Reach)
    groups = paired.groups(evidence, rule.workload)
    mine = [group for group in groups.values() if group.regime in claim.regimes]
    if not mine:
        return [not_tested(claim, evidence, claim.regimes[0], evidence.absence(rule.workload, claim.regimes[0]))]
    return [_verdict(claim, rule, evidence, group) for group in mine]


def _verdict(claim: Claim, rule: Reach, evidence: Evidence, group: paired.Group) -> Verdict:
    shapes = published(evidence.records, rule.workload, rule.shapes)
    if not shapes:
        return not_tested(claim, evidence, group.regime, "this run lists no published models that can be read")
    if evidence.memory_bytes is None:
        return not_tested(claim, evidence, group.regime, "the manifest does not say how much memory the machine has")
    known = paces(evidence, group)
    ours, base = _best(rule, rule.candidates, evidence, group, known), baseline(rule, evidence, group, known)
    if ours is None or base is None:
        wanted = rule.candidates if ours is None else (*rule.baselines, *rule.fallback)
        return not_tested(claim, evidence, group.regime, _why_absent(wanted, group))
    return _judged(claim, rule, evidence, group, shapes, ours, base)


def _why_absent(names: Sequence[str], group: paired.Group) -> str:
    reasons = [f"{name}: {group.absent[name]}" for name in names if name in group.absent]
    return reasons[0] if reasons else f"no arm of {', '.join(names)} has a pilot and two replicates in this run"


def baseline(rule: Reach, evidence: Evidence, group: paired.Group, known: dict[str, Pace]) -> Pace | None:
    """The best arm with 2 bytes a weight; without one, as fast as the best unquantised arm moves its bytes."""
    own = _best(rule, rule.baselines, evidence, group, known)
    if own is not None:
        return replace(own, bytes_per_weight=BF16_BYTES)
    other = _best(rule, rule.fallback, evidence, group, known)
    return other and replace(other, variant=f"bf16 as {other.variant}", bytes_per_weight=BF16_BYTES)


def _best(
    rule: Reach, names: tuple[str, ...], evidence: Evidence, group: paired.Group, known: dict[str, Pace]
) -> Pace | None:
    """The fastest in the pilot, whose samples do not count."""
    speed = PairedRatio(workload=rule.workload, metric="time", scale="none", baselines=names, as_shipped=(), best=names)
    chosen = paired.champion([name for name in names if name in known], group, speed, evidence)
    return known[chosen] if chosen else None


def _judged(
    claim: Claim, rule: Reach, evidence: Evidence, group: paired.Group, shapes: dict[str, Published], ours: Pace,
    base: Pace,
) -> Verdict:  # fmt: skip
    assert evidence.memory_bytes is not None
    memory, least = evidence.memory_bytes, rule.least_token_per_s
    mine = {bound: reached(ours, shapes, memory, least, bound) for bound in ("value", "low", "high")}
    theirs = {bound: reached(base, shapes, memory, least, bound) for bound in ("value", "low", "high")}
    found, against = mine["value"], theirs["value"]
    largest, smallest = theirs["high"], theirs["low"]
    if found is None or against is None or largest is None or smallest is None:
        return not_tested(claim, evidence, group.regime, f"no ratio: {_none(ours, found, base, against, least)}")
    return judge(
        claim, evidence, group.regime, found.parameters / against.parameters,
        _parameters(mine["low"]) / largest.parameters, _parameters(mine["high"]) / smallest.parameters,
        metric="parameters of the largest model that fits and generates fast enough",
        candidate=f"{ours.variant}{group.label}", baseline=base.variant, tier=Tier.MODELLED,
        replicates=min(ours.replicates, base.replicates), confidence=0.95,
        extra="; ".join(_notes(ours, found, base, against, memory)),
    )  # fmt: skip


def _parameters(found: Reached | None) -> float:
    return found.parameters if found else 0.0


def _none(ours: Pace, found: Reached | None, base: Pace, against: Reached | None, least: float) -> str:
    """Which side has no model at all, and what the other one has."""
    each = [(ours, found), (base, against)]
    lacking = [pace.variant for pace, best in each if best is None] or [f"the lower bound of {base.variant}"]
    having = [f"{best.name} with {pace.variant}" for pace, best in each if best is not None]
    rest = f"; reached: {' and '.join(having)}" if having else ""
    return f"no published model fits and generates {least:g} token/s with {' or '.join(lacking)}{rest}"


def _notes(ours: Pace, found: Reached, base: Pace, against: Reached, memory_bytes: float) -> Iterator[str]:
    for pace, best in ((ours, found), (base, against)):
        read = f" at {share(pace.of_read)} of the read bandwidth" if pace.of_read is not None else ""
        speed = f"{significant(best.token_per_s.value)} {interval(best.token_per_s.low, best.token_per_s.high)}"
        yield f"{pace.variant}: {best.name}, {byte_size(best.memory_bytes)}, {speed} token/s{read}"
    yield f"{byte_size(memory_bytes)} of memory, {ours.context} tokens of context; recalled shapes left out"


@dataclass(frozen=True)
class ArmReach:
    """How far one arm reaches, for a table."""

    pace: Pace
    best: Reached | None


def arm_reaches(evidence: Evidence, rule: Reach) -> dict[str, list[ArmReach]]:
    """Decoded model to its arms, the one that reaches farthest first; empty where nothing can be modelled."""
    shapes, memory = published(evidence.records, rule.workload, rule.shapes), evidence.memory_bytes
    if not shapes or memory is None:
        return {}
    found: dict[str, list[ArmReach]] = {}
    for group in paired.groups(evidence, rule.workload).values():
        known = paces(evidence, group) if group.regime == "decode" else {}
        base = baseline(rule, evidence, group, known)
        if base and base.variant not in known:
            known = {**known, base.variant: base}
        arms = [ArmReach(pace, reached(pace, shapes, memory, rule.least_token_per_s)) for pace in known.values()]
        if arms:
            shape = next(iter(group.counted.values()))[0].case.shape
            found[shape] = sorted(arms, key=lambda arm: -_parameters(arm.best))
    return found
