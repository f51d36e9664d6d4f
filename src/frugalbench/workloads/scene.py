"""What the ranks of an emulated network are told, as JSON."""

from frugalbench.gloo import Network
from frugalbench.schema import Frozen


class Work(Frozen, frozen=True, kw_only=True):
    """One thing that the ranks do together."""

    kind: str
    """``all_reduce``, ``all_to_all`` or ``step`` (compute, then all-reduce)."""
    elements: int
    """Float32 values that a rank holds."""
    blocks: tuple[tuple[int, ...], ...] = ()
    """Elements that each rank (row) sends to each rank (column) in an all-to-all."""
    compute_s: float = 0.0
    """Of one local step, at pace 1."""
    steps: int = 1
    """Local steps before the ranks exchange."""
    overlap: bool = False
    """Exchange what the last local steps gave while the next ones compute."""

    def most_held(self) -> int:
        """Elements that the rank with most has afterwards."""
        return max(map(sum, zip(*self.blocks, strict=True)), default=self.elements)


class Described(Frozen, frozen=True, kw_only=True):
    """Everything that the program needs to know."""

    network: Network
    works: tuple[Work, ...]
    seed: int
    store: str
    congestion: str
