"""Two methods on the same items: the ratio of their shares of right answers, with a score interval.

Items on which both are right or both wrong say nothing against equality, so the counts that matter are the discordant
ones. The interval inverts the score test of a ratio of matched proportions: the variance is taken at the constrained
maximum likelihood estimate (Nam and Blackwelder, *Analysis of the ratio of marginal probabilities in a matched-pair
setting*, Statistics in Medicine 21, 2002), which gives an honest width also where no item is discordant. Items that
come in clusters (tokens of a window, sentences of a text) are no independent draws: the score is divided by the root of
the design effect (Rao and Scott, Biometrics 48, 1992), estimated by linearisation of the ratio, at least 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import NormalDist

from frugalbench.analysis.statistics import t_quantile

ALPHA = 0.05
POWER = 0.8
_STEPS = 200
_TINY = 1e-9


@dataclass(frozen=True)
class Matched:
    """Counts of matched items."""

    both: int
    only_ours: int
    only_base: int
    neither: int
    clusters: int
    effect: float
    """Design effect: variance with these clusters over variance of as many independent items."""

    @property
    def items(self) -> int:
        """All of them."""
        return self.both + self.only_ours + self.only_base + self.neither

    @property
    def ratio(self) -> float | None:
        """Share of ours right over share of the base right; ``None`` where the base is never right."""
        base = self.both + self.only_base
        return (self.both + self.only_ours) / base if base else None


@dataclass(frozen=True)
class Bounds:
    """A share or a ratio with its interval."""

    value: float
    low: float
    high: float


def matched(ours: Sequence[int], base: Sequence[int], clusters: Sequence[int]) -> Matched:
    """Counts from 0 and 1 per item; ``clusters`` numbers the cluster of each item. Raises ``ValueError`` for unequal
    lengths."""
    pairs = list(zip(ours, base, strict=True))
    counts = dict.fromkeys(((1, 1), (1, 0), (0, 1), (0, 0)), 0)
    for pair in pairs:
        counts[pair] += 1
    ratio = sum(ours) / sum(base) if sum(base) else 0.0
    residuals = [a - ratio * b for a, b in pairs]
    return Matched(
        both=counts[1, 1],
        only_ours=counts[1, 0],
        only_base=counts[0, 1],
        neither=counts[0, 0],
        clusters=len(set(clusters)),
        effect=design_effect(residuals, clusters),
    )


def design_effect(residuals: Sequence[float], clusters: Sequence[int]) -> float:
    """Squared cluster sums over squared residuals, corrected for the number of clusters; at least 1.

    Items of a cluster stand together. ``residuals`` sum to about 0 over all items.
    """
    keyed = zip(clusters, residuals, strict=True)
    sums = [sum(value for _, value in group) for _, group in groupby(keyed, key=lambda item: item[0])]
    single = sum(value * value for value in residuals)
    if single <= 0 or len(sums) < 2 or len(sums) == len(residuals):
        return 1.0
    return max(1.0, sum(value * value for value in sums) / single * len(sums) / (len(sums) - 1))


def ratio_interval(found: Matched, alpha: float = ALPHA) -> Bounds | None:
    """The 1 − ``alpha`` score interval of the ratio; ``None`` where the base is never right or a single cluster is."""
    ratio = found.ratio
    if ratio is None or found.clusters < 2:
        return None
    most = t_quantile(1 - alpha / 2, found.clusters - 1)
    low = 0.0 if ratio == 0 else _crossing(found, most, _TINY, ratio)
    return Bounds(ratio, low, _crossing(found, -most, max(ratio, _TINY), _above(found, most, ratio)))


def _above(found: Matched, most: float, ratio: float) -> float:
    """Some ratio that the score test rejects as too high."""
    high = 2 * max(ratio, 0.5)
    while score(found, high) > -most and high < 1 / _TINY:
        high *= 2
    return high


def _crossing(found: Matched, wanted: float, low: float, high: float) -> float:
    """Where the score, which falls with the ratio, equals ``wanted``: bisection on the logarithm."""
    for _ in range(_STEPS):
        middle = math.sqrt(low * high)
        if not low < middle < high:
            break
        low, high = (middle, high) if score(found, middle) > wanted else (low, middle)
    return math.sqrt(low * high)


def score(found: Matched, ratio: float) -> float:
    """Standard normal where the true ratio is ``ratio``: (ours − ratio × base) / √(variance under that ratio).

    Under the constraint P(ours) = r P(base), and S = 1 − P(neither), q = P(only ours) / S solves the quadratic
    a q² − b q − c = 0 below, P(only base) / S = r q + 1 − r, and the variance is n r (P(only ours) + P(only base)).
    """
    both, ours, base = found.both, found.only_ours, found.only_base
    some = both + ours + base
    a = ratio * (1 + ratio) * some
    b = ours * (2 * ratio**2 - 1) + base * ratio**2 - both * (1 - ratio**2)
    c = ours * ratio * (1 - ratio)
    q = (b + math.sqrt(max(0.0, b * b + 4 * a * c))) / (2 * a)
    q = min(max(q, 0.0, (ratio - 1) / ratio), ratio / (1 + ratio))
    variance = ratio * some * (q + max(0.0, ratio * q + 1 - ratio)) * found.effect
    distance = (both + ours) - ratio * (both + base)
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0


def share_interval(right: int, items: int, effect: float = 1.0, alpha: float = ALPHA) -> Bounds:
    """Wilson's score interval of a share, with as many items as the design effect leaves."""
    share, z = right / items, NormalDist().inv_cdf(1 - alpha / 2)
    n = items / effect
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Bounds(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def items_needed(found: Matched, gate: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Items that would settle with ``power`` on which side of ``gate`` a ratio as seen lies.

    (z + z')² × gate × discordant share × design effect / (share right × distance to the gate)², the usual size of a
    trial of matched pairs (Nam, Biometrics 53, 1997), with at least the discordance that the gate itself would bring.
    ``None`` where the ratio lies on the gate, or there is none.
    """
    if found.ratio is None or not 0 < gate < 1 or found.ratio == gate:
        return None
    normal, right = NormalDist(), (found.both + found.only_base) / found.items
    z = normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)
    discordant = math.hypot((found.only_ours + found.only_base) / found.items, right * (1 - gate))
    return math.ceil(z * z * gate * discordant * found.effect / (right * (found.ratio - gate)) ** 2)
