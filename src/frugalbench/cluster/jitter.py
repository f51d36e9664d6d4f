"""How long the slowest of several like devices takes for the same work."""

import math
from random import Random
from statistics import NormalDist
from typing import Protocol

_NORMAL = NormalDist()


class Stragglers(Protocol):
    """See :class:`frugalbench.cluster.scene.Stragglers`."""

    @property
    def spread(self) -> float: ...
    @property
    def pause_share(self) -> float: ...
    @property
    def pause_s(self) -> float: ...


def slowest(seconds: float, copies: int, odd: Stragglers, random: Random) -> float:
    """Seconds of the slowest of ``copies`` devices that need ``seconds`` on the mean, drawn in one go.

    The highest of n draws with distribution F is one draw of F to the power n. Devices with and without a pause are
    two such groups.
    """
    if not odd.spread and not (odd.pause_share and odd.pause_s):
        return seconds
    paused = binomial(copies, odd.pause_share, random) if odd.pause_s else 0
    highest = 0.0
    if paused:
        highest = odd.pause_s + seconds * _highest(paused, odd.spread, random)
    if paused < copies:
        highest = max(highest, seconds * _highest(copies - paused, odd.spread, random))
    return highest


def _highest(copies: int, spread: float, random: Random) -> float:
    """The highest of several log-normal factors of mean 1."""
    if not spread:
        return 1.0
    # 1 - u^(1/n), computed without losing it beside 1.
    above = -math.expm1(math.log1p(-random.random()) / copies)
    z = -_NORMAL.inv_cdf(min(max(above, 5e-324), 1 - 1e-16))
    return math.exp(spread * z - spread**2 / 2)


def binomial(trials: int, share: float, random: Random) -> int:
    """How many of ``trials`` happen: from one happening to the next by geometric gaps."""
    if share <= 0:
        return 0
    if share >= 1:
        return trials
    happened, position = 0, 0
    while True:
        position += 1 + int(math.log1p(-random.random()) / math.log1p(-share))
        if position > trials:
            return happened
        happened += 1
