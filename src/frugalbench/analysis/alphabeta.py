"""A latency and a bandwidth out of measured all-reduce times, and what they predict for other sizes.

Ring model over ``n`` ranks: ``time = 2(n-1) alpha + 2(n-1)/n * size * beta``. Pure Python.
"""

import statistics
from collections.abc import Sequence

from frugalbench.interconnect import fit_wire
from frugalbench.schema import Frozen, FrugalbenchError


class AlphaBeta(Frozen, frozen=True, kw_only=True):
    """The fitted line."""

    alpha_s: float
    """Start-up per step."""
    beta_s_per_byte: float
    """Inverse of the bus bandwidth."""
    ranks: int
    sizes_bytes: tuple[float, ...]
    """What it was fitted on."""

    def predict(self, size_bytes: float) -> float:
        """Time of one all-reduce of ``size_bytes`` per rank, in seconds."""
        steps, share = _coefficients(size_bytes, self.ranks)
        return steps * self.alpha_s + share * self.beta_s_per_byte


def fit_alpha_beta(sizes_bytes: Sequence[float], times_s: Sequence[float], ranks: int) -> AlphaBeta:
    """Least squares on relative errors, so that small sizes count as much as large ones; neither term below zero.

    Raises :class:`FrugalbenchError` for fewer than two distinct sizes, times that are not positive, or one rank.
    """
    if ranks < 2 or len(set(sizes_bytes)) < 2 or len(sizes_bytes) != len(times_s) or min(times_s) <= 0:
        raise FrugalbenchError("alpha-beta fit: needs two ranks, two distinct sizes and one positive time for each")
    wire = fit_wire([_coefficients(size, ranks) for size in sizes_bytes], times_s)
    return AlphaBeta(
        alpha_s=wire.alpha_s, beta_s_per_byte=wire.beta_s_per_byte, ranks=ranks, sizes_bytes=tuple(sizes_bytes)
    )


def misses(fit: AlphaBeta, sizes_bytes: Sequence[float], times_s: Sequence[float]) -> list[float]:
    """Signed relative error of each prediction."""
    return [fit.predict(size) / time_s - 1 for size, time_s in zip(sizes_bytes, times_s, strict=True)]


def median_miss(fit: AlphaBeta, sizes_bytes: Sequence[float], times_s: Sequence[float]) -> float:
    """Median of the absolute relative errors."""
    return statistics.median(abs(miss) for miss in misses(fit, sizes_bytes, times_s))


def _coefficients(size_bytes: float, ranks: int) -> tuple[float, float]:
    return 2.0 * (ranks - 1), 2 * (ranks - 1) / ranks * size_bytes
