"""What fewer exchanges cost: loss at equal tokens, and tokens to an equal loss, against data parallelism.

Descriptive; no verdict rests on it. Replicates are pairs of the same seed, and both curves must end at the same number
of tokens. Losses and tokens are counted, not timed, so intervals have no floor. The emulated speed for the same H is
that of ``net.cross_region``: another workload, on a network that was shaped.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from frugalbench.analysis import paired
from frugalbench.analysis.curves import Curve, log_ratio, pairs
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import Run
from frugalbench.analysis.statistics import Interval, counted, interval, latest, pair_logs
from frugalbench.schema import Record

WORKLOAD, NETWORK = "local_steps", "emulated_network"
EVERY_STEP = "every-step"
ONE_SITE, TWO_SITES = "one-site", "two-sites"
ALPHA = 0.05
_MOST = 1e30
_REGIME = re.compile(r"every ([0-9]{1,9}) steps(, overlapped)?")


@dataclass(frozen=True)
class Trained:
    """One way to exchange, over its replicates."""

    shape: str
    variant: str
    local_steps: int
    """Steps between exchanges."""
    loss: float
    """Final, mean over replicates, nat per byte."""
    replicates: int
    sent_bytes: float | None
    """Per rank in the whole training, by formula."""
    over_every_step: "Over | None"
    """``None`` for data parallelism itself, and where it has no replicate of the same seed."""


@dataclass(frozen=True)
class Over:
    """One way to exchange over data parallelism with the same seeds."""

    loss: Interval
    """Ratio of final losses at equal tokens."""
    token: Interval | None
    """Ratio of tokens until both first reached the higher of their final losses; ``None`` where no replicate has it."""
    unread: int
    """Replicates in which a curve reached it before its first point."""


def trainings(run: Run) -> list[Trained]:
    """Every training of a run, data parallelism first, then by steps between exchanges."""
    records = [r for r in latest(run.records) if r.case.workload == WORKLOAD and counted(r) and _local_steps(r)]
    names = dict.fromkeys((r.comparison, r.case.variant) for r in records)
    found = [item for comparison, variant in names for item in _trained(records, comparison, variant)]
    return sorted(found, key=lambda item: (item.shape, item.variant != EVERY_STEP, item.local_steps))


def _trained(records: Sequence[Record], comparison: str, variant: str) -> Iterator[Trained]:
    here = [r for r in records if r.comparison == comparison]
    mine = [r for r in here if r.case.variant == variant]
    ends = [curve[-1]["loss"] for curve, _ in pairs(mine, variant, variant) if curve[-1]["loss"] > 0]
    if ends:
        yield Trained(
            shape=mine[0].case.shape,
            variant=variant,
            local_steps=_local_steps(mine[0]),
            loss=fmean(ends),
            replicates=len(ends),
            sent_bytes=_sent_bytes(mine[0]),
            over_every_step=None if variant == EVERY_STEP else _over(pairs(here, EVERY_STEP, variant)),
        )


def _over(found: Iterable[tuple[Curve, Curve]]) -> Over | None:
    equal = [(ours, base) for ours, base in found if _equal_tokens(ours, base)]
    losses = interval([math.log(ours[-1]["loss"] / base[-1]["loss"]) for ours, base in equal], 1.0, ALPHA, 0.0)
    tokens = [log for ours, base in equal if (log := log_ratio(ours, base, "flop")) is not None]
    if losses is None:
        return None
    return Over(loss=losses, token=interval(tokens, 1.0, ALPHA, 0.0), unread=len(equal) - len(tokens))


def _equal_tokens(ours: Curve, base: Curve) -> bool:
    """One model at the same FLOP has seen the same tokens."""
    return bool(ours[-1]["flop"] == base[-1]["flop"]) and min(ours[-1]["loss"], base[-1]["loss"]) > 0


def _local_steps(record: Record) -> int:
    """0 where the record does not say."""
    steps = record.case.params.get("local_steps")
    return steps if type(steps) is int and 0 < steps < _MOST else 0


def _sent_bytes(record: Record) -> float | None:
    fact = record.facts.get("exchanged_bytes")
    return fact.value if fact is not None and fact.value is not None and 0 <= fact.value < _MOST else None


@dataclass(frozen=True)
class Speed:
    """Of two emulated sites over one, per local step."""

    plain: Interval | None = None
    overlapped: Interval | None = None


def speeds(runs: Sequence[Run]) -> dict[int, Speed]:
    """By steps between exchanges, from the last of the runs that emulated them."""
    found: dict[str, Interval] = {}
    for run in runs:
        evidence = evidence_of(run)
        for group in paired.groups(evidence, NETWORK).values():
            near, far = (group.counted.get(name, ()) for name in (ONE_SITE, TWO_SITES))
            if made := interval(pair_logs(near, far, "time", group.spoilt), 1.0, ALPHA, evidence.floor):
                found[group.regime] = made
    numbers = {int(match[1]) for regime in found if (match := _REGIME.fullmatch(regime))}
    return {n: Speed(found.get(f"every {n} steps"), found.get(f"every {n} steps, overlapped")) for n in numbers}
