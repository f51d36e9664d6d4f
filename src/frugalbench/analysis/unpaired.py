"""Two runs that did not take turns: tests of one case's replicates against another's.

Welch's t on the logarithms of the replicate medians (B. L. Welch, Biometrika 34, 1947). The spread of a case is
steadied by that of all cases (G. K. Smyth, Stat. Appl. Genet. Mol. Biol. 3, 2004, moderated variance). What a machine
drifts between two runs is in no replicate, so it is read off the cases themselves: their ratios' median is the shift
that all share, their spread beyond what replicates explain is added to each case's error (B. Efron, JASA 99, 2004,
empirical null).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, median, variance

from frugalbench.analysis.statistics import t_cdf, t_quantile

LEAST_CASES = 8
"""With fewer, a drift of the machine cannot be told from a change of the code."""
POWER = 0.8
_NORMAL_MAD = 1.4826
"""Median absolute deviation to standard deviation, of a normal distribution."""
_STEPS = 40
"""Of each chi-square, when what could have been found is computed."""
_MAD_EFFICIENCY = 0.37
"""A MAD of n values is about as sure as a standard deviation of this share of n."""


@dataclass(frozen=True)
class Samples:
    """Logarithms of the replicates' medians of one case, in both runs."""

    base: tuple[float, ...]
    new: tuple[float, ...]

    @property
    def difference(self) -> float:
        """mean(new) - mean(base)."""
        return fmean(self.new) - fmean(self.base)

    @property
    def testable(self) -> bool:
        """Two replicates on each side."""
        return len(self.base) > 1 and len(self.new) > 1


@dataclass(frozen=True)
class Drift:
    """What the two runs differ by in all cases."""

    shift: float = 0.0
    """Median log-ratio of the cases."""
    spread: float = 0.0
    """Standard deviation of the cases' log-ratios beyond what their replicates explain, with the error of the shift."""
    cases: int = 0


@dataclass(frozen=True)
class Prior:
    """Spread between replicates over all cases: a scaled inverse chi-square."""

    freedom: float = 0.0
    variance: float = 0.0


@dataclass(frozen=True)
class CaseTest:
    """One case: its log-ratio, the error of it, and how far it must be from 0 to count."""

    difference: float
    error: float
    freedom: float
    above: float
    """What a slowdown must exceed: the A/A floor, above the shift that all cases share where that is a slowdown."""
    below: float

    @property
    def p_value(self) -> float:
        """Two-sided: the smallest alpha whose interval excludes 0."""
        distance = max(self.difference - self.above, -self.difference - self.below)
        if distance <= 0:
            return 1.0
        return 2 * (1 - t_cdf(distance / self.error, self.freedom)) if self.error > 0 else 0.0

    def interval(self, alpha: float) -> tuple[float, float]:
        """Of the log-ratio; it excludes 0 exactly where :attr:`p_value` is below ``alpha``."""
        half = t_quantile(1 - alpha / 2, self.freedom) * self.error
        return self.difference - half - self.above, self.difference + half + self.below

    def detectable(self, alpha: float, power: float = POWER) -> float:
        """Smallest slowdown (0.05: 5%) that such runs, tested at ``alpha``, find with probability ``power``."""
        freedom = float(f"{self.freedom:.3g}")
        return math.expm1(_distance(freedom, t_quantile(1 - alpha / 2, freedom), power) * self.error + self.above)


@lru_cache(maxsize=4096)
def _distance(freedom: float, least: float, power: float) -> float:
    """Errors from 0 at which a t of the next runs exceeds ``least`` with probability ``power``.

    The error that is known is an estimate itself: taken for the truth, four times in five would be seven in ten with 6
    processes a side. So both the true error, given this one, and the next estimate of it vary as a chi-square allows.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.special import gammaincinv, ndtr

    middles = (np.arange(_STEPS) + 0.5) / _STEPS
    errors = np.sqrt(2 * gammaincinv(freedom / 2, middles) / freedom)
    needed = least * errors[:, None]

    def lacks(distance: float) -> float:
        return power - float(ndtr(distance * errors - needed).mean())

    most = 2 * least + 2
    while lacks(most) > 0:
        most *= 2
    return float(brentq(lacks, 0.0, most))


def prior(cases: Sequence[Samples]) -> Prior:
    """Smyth's moment estimate from the variances of all testable cases; no prior below three of them."""
    from scipy.special import digamma, polygamma

    found = [(value, df) for case in cases if case.testable for value, df in [_pooled(case)] if value > 0]
    if len(found) < 3:
        return Prior()
    logs = [math.log(value) - float(digamma(df / 2)) + math.log(df / 2) for value, df in found]
    excess = variance(logs) - fmean(float(polygamma(1, df / 2)) for _, df in found)
    if excess <= 0:
        return Prior(math.inf, math.exp(fmean(logs)))
    freedom = 2 * _inverse_trigamma(excess)
    centre = fmean(logs) + float(digamma(freedom / 2)) - math.log(freedom / 2)
    return Prior(freedom, math.exp(centre))


def _inverse_trigamma(value: float) -> float:
    from scipy.optimize import brentq
    from scipy.special import polygamma

    return float(brentq(lambda x: float(polygamma(1, x)) - value, 1e-6, 1e8))


def _pooled(case: Samples) -> tuple[float, float]:
    """Pooled variance of both sides and its degrees of freedom."""
    degrees = len(case.base) + len(case.new) - 2
    squares = variance(case.base) * (len(case.base) - 1) + variance(case.new) * (len(case.new) - 1)
    return squares / degrees, degrees


def error_of(case: Samples, known: Prior) -> tuple[float, float]:
    """Standard error of a case's log-ratio, and its degrees of freedom: Welch's, each side steadied by ``known``."""
    sides = [_steadied(side, known) for side in (case.base, case.new)]
    total = sum(value for value, _ in sides)
    parts = sum(value**2 / degrees for value, degrees in sides)
    return math.sqrt(total), total**2 / parts if parts > 0 else float(len(case.base) + len(case.new) - 2)


def _steadied(values: Sequence[float], known: Prior) -> tuple[float, float]:
    """Squared standard error of a mean and its degrees of freedom."""
    degrees = len(values) - 1
    weight = min(known.freedom, 1e6)
    steadied = (variance(values) * degrees + known.variance * weight) / (degrees + weight)
    return steadied / len(values), degrees + weight


def drift(cases: Sequence[Samples], known: Prior) -> Drift:
    """Shift and spread that the runs as a whole show; nothing below :data:`LEAST_CASES` testable cases."""
    usable = [case for case in cases if case.testable]
    if len(usable) < LEAST_CASES:
        return Drift()
    differences = [case.difference for case in usable]
    shift = median(differences)
    seen = (_NORMAL_MAD * median(abs(value - shift) for value in differences)) ** 2
    explained = median(error_of(case, known)[0] ** 2 for case in usable)
    of_median = math.pi / 2 * seen / len(usable)
    return Drift(shift, math.sqrt(max(0.0, seen - explained) + of_median), len(usable))


def held(case: Samples, known: Prior, moved: Drift, floor: float) -> CaseTest | None:
    """The test of one case; ``None`` below two replicates on a side."""
    if not case.testable:
        return None
    error, degrees = error_of(case, known)
    least = math.log1p(floor)
    total = error**2 + moved.spread**2
    if moved.spread > 0:
        degrees = total**2 / (error**4 / degrees + moved.spread**4 / (_MAD_EFFICIENCY * moved.cases))
    return CaseTest(
        case.difference, math.sqrt(total), degrees, least + max(0.0, moved.shift), least + max(0.0, -moved.shift)
    )
