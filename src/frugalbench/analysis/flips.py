"""What would have given another verdict: how far the value would have to move, and how many replicates would do."""

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean, stdev

from frugalbench.analysis.chain import Flip
from frugalbench.analysis.statistics import Interval, t_quantile
from frugalbench.schema import Outcome
from frugalbench.units import significant

MOST_REPLICATES = 10_000


def flips(direction: str, limit: float, outcome: Outcome, deciding: Interval, others: Iterable[Interval]) -> list[Flip]:
    """The smallest change of the value that ends the verdict, with intervals that keep their width.

    ``deciding`` refutes alone; support needs every one of ``others`` too. All in the terms of ``limit``.
    """
    if deciding.low is None or deciding.high is None or min(limit, deciding.low, deciding.high) <= 0:
        return []
    every = [item for item in others if item.low and item.high]
    least = direction == "at_least"
    near = [limit / (item.low if least else item.high) for item in every if item.low and item.high]
    supports = max(near) if least else min(near)
    refutes = limit / (deciding.high if least else deciding.low)
    if outcome is Outcome.SUPPORTED:
        return [_flip(Outcome.INCONCLUSIVE, supports), _flip(Outcome.REFUTED, refutes)]
    if outcome is Outcome.REFUTED:
        return [_flip(Outcome.INCONCLUSIVE, refutes), _flip(Outcome.SUPPORTED, supports)]
    return [_flip(Outcome.SUPPORTED, supports), _flip(Outcome.REFUTED, refutes)]


def _flip(outcome: Outcome, factor: float) -> Flip:
    """In words: a change below 100% as a percentage, a larger one as a factor."""
    if factor >= 2:
        moved = f"{significant(factor)} times as large"
    elif factor >= 1:
        moved = f"{significant(100 * (factor - 1))}% higher"
    else:
        moved = f"{significant(100 * (1 - factor))}% lower"
    return Flip(verdict=outcome.value, change=factor, what=f"{outcome.value} from a value {moved}")


def more_replicates(logs: Sequence[float], factor: float, limit: float, alpha: float, floor: float) -> Flip | None:
    """How many replicates an undecided interval would need, were mean, spread and alpha to stay as they are."""
    if len(logs) < 2 or limit <= 0:
        return None
    away = abs(fmean(logs) + math.log(factor) - math.log(limit))
    if away <= math.log1p(floor):
        what = f"no number of replicates: the value lies within the floor of {100 * floor:.2g}% of the threshold"
        return Flip(verdict="settled", change=None, what=what)
    spread, distance = stdev(logs), away - math.log1p(floor)
    needed = next((n for n in _sizes() if t_quantile(1 - alpha / 2, n - 1) * spread / math.sqrt(n) < distance), None)
    number = f"{needed}" if needed else f"more than {MOST_REPLICATES}"
    what = f"{number} replicates would settle it, were mean, spread and alpha to stay as they are ({len(logs)} counted)"
    return Flip(verdict="settled", change=None, what=what)


def _sizes() -> Iterator[int]:
    return iter(range(2, MOST_REPLICATES + 1))


def exact_flip(direction: str, limit: float, value: float) -> list[Flip]:
    """For a value without an interval: where it crosses the threshold."""
    if value <= 0 or limit <= 0:
        return []
    holds = value >= limit if direction == "at_least" else value <= limit
    return [_flip(Outcome.REFUTED if holds else Outcome.SUPPORTED, limit / value)]
