"""What every kind of row hands back: a value in SI units, how sure, and on what it rests."""

from frugalbench.schema import Frozen


class Guess(Frozen, frozen=True, kw_only=True):
    """One prediction."""

    si: float
    """In the row's metric: bytes/s, seconds, FLOP/s, shares, tokens/s."""
    pool: str
    """Whose residuals make the interval."""
    basis: str
    """How it was obtained, in a few words."""
    spread: float | None = None
    """Standard deviation of the logarithm where the inputs give it; else the pool's residuals do."""
    doublings: float = 0.0
    """Doublings of scale beyond what was fitted."""
    fitted: bool = False
    """The row's structure was chosen with the row in sight, though no constant comes from it."""
