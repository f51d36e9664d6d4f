"""What a transfer between ranks takes by the alpha-beta model, fitted to measured times. Pure Python, for both wings.

``time = steps * alpha + moved bytes * beta``: a start-up per step, and the inverse of a rate per byte that the busiest
rank moves in one direction. Hockney, "The communication challenge for MPP" (1994).
"""

from collections.abc import Sequence

from frugalbench.schema import Frozen, FrugalbenchError

Terms = tuple[float, float]
"""Steps, and bytes that the busiest rank moves."""


class Wire(Frozen, frozen=True, kw_only=True):
    """The fitted line."""

    alpha_s: float
    """Start-up per step."""
    beta_s_per_byte: float
    """Inverse of the rate at which one rank sends."""

    def time_s(self, terms: Terms) -> float:
        """Seconds for so many steps and bytes."""
        return terms[0] * self.alpha_s + terms[1] * self.beta_s_per_byte


def all_to_all_terms(size_bytes: float, ranks: int) -> Terms:
    """All-to-all of equal blocks, ``size_bytes`` held by each rank: ``n - 1`` steps, every block but the own one moves.

    Pairwise exchange: Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH"
    (2005).
    """
    return ranks - 1.0, (ranks - 1) / ranks * size_bytes


def uneven_terms(moved_bytes: Sequence[Sequence[float]]) -> Terms:
    """All-to-all of unequal blocks, ``moved_bytes[source][target]``: as long as its busiest rank sends or receives."""
    ranks = range(len(moved_bytes))
    sent = [sum(moved_bytes[rank][other] for other in ranks if other != rank) for rank in ranks]
    received = [sum(moved_bytes[other][rank] for other in ranks if other != rank) for rank in ranks]
    return len(moved_bytes) - 1.0, max((*sent, *received))


def fit_wire(terms: Sequence[Terms], times_s: Sequence[float]) -> Wire:
    """Least squares on relative errors, so that small sizes count as much as large ones; neither term below zero.

    Raises :class:`FrugalbenchError` for fewer than two distinct sizes, or times that are not positive.
    """
    if len({size_bytes for _, size_bytes in terms}) < 2 or len(terms) != len(times_s) or min(times_s) <= 0:
        raise FrugalbenchError("alpha-beta fit: needs two distinct sizes and one positive time for each")
    rows = [(steps / time_s, size / time_s) for (steps, size), time_s in zip(terms, times_s, strict=True)]
    alpha_s, beta_s_per_byte = _nonnegative(rows)
    return Wire(alpha_s=alpha_s, beta_s_per_byte=beta_s_per_byte)


def _nonnegative(rows: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Solve ``a x + b y = 1`` over the rows by least squares with both unknowns at least 0."""
    aa, ab, bb = (sum(r[i] * r[j] for r in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = sum(r[0] for r in rows), sum(r[1] for r in rows)
    determinant = aa * bb - ab * ab
    x, y = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
    if x < 0:
        return 0.0, b / bb
    return (x, y) if y >= 0 else (a / aa, 0.0)
