"""Whether a series of times is one steady thing: two modes, a trend. Pure functions of positive numbers.

Both tests work on logarithms, are conservative, and never remove a value: what they find is reported beside the ratio.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

LEAST_CHANGE = 0.03
"""Modes or ends nearer to each other than this are not told apart: it is the floor of a machine without self-test."""
LEAST_VALUES = 8
"""Fewer values than this have neither modes nor a trend."""
LEAST_SHARE = 0.1
"""A mode holds at least this share of the values; fewer are outliers."""
DRIFT_ALPHA = 0.001
"""Two-sided level of the trend test: a report tests dozens of cases."""
_FEW = 12
"""Below this many values a mode may consist of two."""
_APART = 7.0
_APART_FEW = 20


@dataclass(frozen=True)
class Modes:
    """Two separate groups of values."""

    ratio: float
    """Geometric mean of the slow mode over that of the fast one."""
    slow_share: float
    """Share of values in the slow mode, 0 to 1."""
    boundary: float
    """Between the two, in the unit of the values."""


@dataclass(frozen=True)
class Drift:
    """A trend over the order of the values."""

    change: float
    """Median of the last third over that of the first third, less 1."""
    p: float


def modes(values: Sequence[float]) -> Modes | None:
    """Two modes, or ``None`` where one explains the values.

    The sorted logarithms are cut where the two parts are tightest (2-means, exactly). They are two modes when their
    means lie at least :func:`least_apart` pooled standard deviations apart, each part holds a tenth of the values
    (three at least; two below 12 values), and the means differ by 3%. ``values`` are positive.
    """
    if len(values) < LEAST_VALUES or max(values) < (1 + LEAST_CHANGE) * min(values):
        return None
    logs = sorted(map(math.log, values))
    left, within = _best_cut(logs)
    low, high = _mean(logs[:left]), _mean(logs[left:])
    spread = math.sqrt(within / (len(logs) - 2))
    if high - low < math.log1p(LEAST_CHANGE) or high - low < least_apart(len(logs)) * spread:
        return None
    boundary = math.exp((logs[left - 1] + logs[left]) / 2)
    return Modes(math.exp(high - low), 1 - left / len(logs), boundary)


def least_apart(count: int) -> float:
    """Distance of the modes' means, in pooled standard deviations within them, that one mode almost never shows.

    7 from 20 values on, more below (12 at 8): found by simulation so that normal, uniform, Laplace, t with 3 degrees
    of freedom and even exponential noise pass in less than 1% of series (the last is the worst, and a usual shape of
    times). Any cut of normal noise leaves its halves about 2.7 apart.
    """
    return _APART * float(max(1.0, _APART_FEW / count) ** 0.6)


def _best_cut(logs: Sequence[float]) -> tuple[int, float]:
    """Size of the lower part, and the sum of squares within both parts, where that is least."""
    count = len(logs)
    least = max(2 if count < _FEW else 3, math.ceil(LEAST_SHARE * count))
    origin = logs[count // 2]
    sums = list(accumulate(value - origin for value in logs))
    squares = math.fsum((value - origin) ** 2 for value in logs)
    total = sums[-1]
    between = [
        below**2 / left + (total - below) ** 2 / (count - left)
        for left, below in enumerate(sums[least - 1 : count - least], least)
    ]
    most = max(between)
    return least + between.index(most), max(0.0, squares - most)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def round_modes(replicates: Sequence[Sequence[float]]) -> Modes | None:
    """Modes that alternate within processes: of all values together, when a third of the replicates hold both.

    Values of one process share its luck, so replicates that lie wholly in one mode are no evidence here.
    """
    found = modes([value for values in replicates for value in values])
    if found is None:
        return None
    mixed = sum(min(values) < found.boundary < max(values) for values in replicates if values)
    return found if 3 * mixed >= len(replicates) else None


def drift(values: Sequence[float]) -> Drift | None:
    """A trend over the order of ``values`` (positive), or ``None``.

    Spearman's rank correlation with the order, Student's t for its p below 0.001, and a change of at least 3% from the
    first to the last third. Ranks, so that a few outliers make no trend.
    """
    if len(values) < LEAST_VALUES:
        return None
    third = len(values) // 3
    change = median(values[-third:]) / median(values[:third]) - 1
    if abs(math.log1p(change)) < math.log1p(LEAST_CHANGE):
        return None
    p = _spearman_p(values)
    return Drift(change, p) if p < DRIFT_ALPHA else None


def _spearman_p(values: Sequence[float]) -> float:
    from scipy.special import stdtr

    count, ranks = len(values), _ranks(values)
    middle = (count - 1) / 2
    products = math.fsum((position - middle) * (rank - middle) for position, rank in enumerate(ranks))
    size = math.fsum((rank - middle) ** 2 for rank in ranks) * (count**3 - count) / 12
    correlation = products / math.sqrt(size) if size else 0.0
    if abs(correlation) >= 1:
        return 2 / math.factorial(min(count, 20))
    t = abs(correlation) * math.sqrt((count - 2) / (1 - correlation**2))
    return float(2 * stdtr(count - 2, -t))


def _ranks(values: Sequence[float]) -> list[float]:
    """From 0; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop + 1 < len(order) and values[order[stop + 1]] == values[order[start]]:
            stop += 1
        for position in order[start : stop + 1]:
            ranks[position] = (start + stop) / 2
        start = stop + 1
    return ranks
