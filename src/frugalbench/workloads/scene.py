"""What the ranks of an emulated network are told, as JSON."""

from frugalbench.gloo import Network, Work
from frugalbench.schema import Frozen


class Described(Frozen, frozen=True, kw_only=True):
    """Everything that the program needs to know."""

    network: Network
    works: tuple[Work, ...]
    seed: int
    store: str
    congestion: str
