"""Intervals from paired rounds: pure functions of numbers and records.

The datum is the log-ratio of two arms in the same round. A replicate contributes the median of its rounds, the
interval is Student's t over replicates, because the variation between fresh processes is the one that repeating
inside a process cannot average away (Kalibera and Jones, ISMM 2013). It is widened by the machine's A/A floor.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, median, stdev
from typing import TypeVar

from frugalbench.schema import Record, Status, Tier

_Name = TypeVar("_Name", bound=Hashable)
DEFAULT_FLOOR = 0.03
"""A/A floor of a machine that was never self-tested: a ratio closer to the truth than 3% is not claimed."""


@dataclass(frozen=True)
class Interval:
    """A ratio with its interval. ``low``/``high`` are ``None`` when one replicate is all there is."""

    ratio: float
    low: float | None
    high: float | None
    confidence: float
    replicates: int


@dataclass(frozen=True)
class Pair:
    """Log-ratios of one candidate to one baseline, one per replicate."""

    baseline: str
    candidate: str
    logs: tuple[float, ...]


def counted(record: Record) -> bool:
    """Whether a record's samples may enter a verdict: not the pilot, not cut short, not failed or skipped."""
    return record.replicate > 0 and not record.interrupted and record.status in (Status.OK, Status.CAPPED)


def latest(records: Iterable[Record]) -> tuple[Record, ...]:
    """The last record of each case and replicate: a resumed run measures a half-written replicate again."""
    found = {(r.comparison, r.arm, r.case.id, r.replicate, r.interrupted): r for r in records}
    return tuple(found.values())


def void_rounds(records: Iterable[Record]) -> dict[tuple[str, str, int], set[int]]:
    """Rounds that the environment spoilt for any arm, by comparison, regime and replicate."""
    spoilt: dict[tuple[str, str, int], set[int]] = {}
    for record in records:
        key = (record.comparison, record.case.regime, record.replicate)
        rounds = spoilt.setdefault(key, set())
        if not record.steady_load:
            rounds.update(sample.round for sample in record.samples if sample.void is not None)
    return spoilt


def round_values(record: Record, metric: str, spoilt: set[int]) -> dict[int, float]:
    """Seconds, or joules, per unit of work in each good round."""
    token = record.case.cost.token if record.case.cost and record.case.cost.token else 1.0
    if metric == "time":
        return {s.round: s.time_s / token for s in record.samples if s.round not in spoilt and s.time_s > 0}
    return _joule_values(record, token)


def _joule_values(record: Record, token: float) -> dict[int, float]:
    """Joules per unit of work in each energy round: scopes add up, one failed reading poisons the round."""
    rounds: dict[int, dict[str, float]] = {}
    poisoned = set()
    for reading in record.readings:
        if reading.tier is not Tier.MEASURED or reading.round is None:
            continue
        if reading.joule is None:
            poisoned.add(reading.round)
        else:
            rounds.setdefault(reading.round, {}).setdefault(reading.scope, reading.joule / reading.calls / token)
    return {
        number: total
        for number, scopes in rounds.items()
        if number not in poisoned and (total := sum(scopes.values())) > 0
    }


def pair_logs(
    baseline: Sequence[Record],
    candidate: Sequence[Record],
    metric: str,
    spoilt: Mapping[tuple[str, str, int], set[int]],
) -> tuple[float, ...]:
    """Median log(baseline / candidate) per replicate, over the rounds that both took."""
    by_replicate = {record.replicate: record for record in baseline}
    logs = []
    for record in sorted(candidate, key=lambda item: item.replicate):
        partner = by_replicate.get(record.replicate)
        if partner is None:
            continue
        bad = spoilt.get((record.comparison, record.case.regime, record.replicate), set())
        ours, theirs = round_values(record, metric, bad), round_values(partner, metric, bad)
        rounds = ours.keys() & theirs.keys()
        if rounds:
            logs.append(median(math.log(theirs[number] / ours[number]) for number in rounds))
    return tuple(logs)


def interval(logs: Sequence[float], factor: float, alpha: float, floor: float) -> Interval | None:
    """Geometric mean over replicates times ``factor``, with its 1 − ``alpha`` interval; ``None`` without data."""
    if not logs:
        return None
    centre = fmean(logs) + math.log(factor)
    if len(logs) == 1:
        return Interval(math.exp(centre), None, None, 1 - alpha, 1)
    half = t_quantile(1 - alpha / 2, len(logs) - 1) * _stdev(tuple(logs)) / math.sqrt(len(logs)) + math.log1p(floor)
    return Interval(math.exp(centre), math.exp(centre - half), math.exp(centre + half), 1 - alpha, len(logs))


@lru_cache(maxsize=10_000)
def _stdev(logs: tuple[float, ...]) -> float:
    """Exact fractions are slow, and each rule and level asks for the same ratios."""
    return stdev(logs)


def p_value(logs: Sequence[float], factor: float, threshold: float, floor: float) -> float:
    """Two-sided p of the ratio being ``threshold``: the smallest alpha whose interval excludes it."""
    if len(logs) < 2:
        return 1.0
    distance = abs(fmean(logs) + math.log(factor) - math.log(threshold)) - math.log1p(floor)
    if distance <= 0:
        return 1.0
    spread = _stdev(tuple(logs)) / math.sqrt(len(logs))
    return 2 * (1 - t_cdf(distance / spread, len(logs) - 1)) if spread > 0 else 0.0


def holm(p_values: Mapping[_Name, float], alpha: float) -> dict[_Name, float]:
    """The alpha that each name is tested at by Holm's step-down procedure; after a failure all share its level."""
    levels: dict[_Name, float] = {}
    left = len(p_values)
    level = alpha
    failed = False
    for name in sorted(p_values, key=lambda item: p_values[item]):
        if not failed:
            level = alpha / left
            failed = p_values[name] > level
            left -= 1
        levels[name] = level
    return levels


def t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def t_cdf(value: float, degrees: float) -> float:
    """Distribution function of Student's t."""
    from scipy.special import stdtr

    return float(stdtr(degrees, value))
