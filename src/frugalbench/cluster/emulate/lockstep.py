"""How the ranks of a measured group keep in step, and what each contributes. No torch.

Rank 0 is timed; the others follow. A follower performs one call of the agreed work after another and, between two
calls of rank 0, waits inside the collective that the next one begins with: gloo blocks there on a condition variable
and uses no CPU, so a timed call carries no signalling at all, just as in nccl-tests, where every rank runs the same
loop. To change the work, rank 0 writes an :class:`Order` to every follower's standard input: it takes effect after a
given number of calls, one more than rank 0 has done, and rank 0 then does that one (untimed) to release the followers
from it.

An all-reduce leaves the sum in the buffer, so the values grow by the number of ranks with each call; both sides put
the original input back every ``REFILL`` calls, long before float32 overflows.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

REFILL = 32
"""At 8 ranks the values have grown by 8**32 = 2**96 by then."""

_ORDER = struct.Struct("<qqq")
ORDER_BYTES = _ORDER.size


@dataclass(frozen=True)
class Order:
    """From call number ``after`` on, another work."""

    after: int
    work: int
    """What to do: the elements to reduce, or a case's number; 0: leave."""
    position: int = 0
    """Where in the work's rotation of inputs to begin."""

    def pack(self) -> bytes:
        """The bytes for the pipe; fewer than the kernel writes at once."""
        return _ORDER.pack(self.after, self.work, self.position)

    @staticmethod
    def unpack(text: bytes) -> "Order":
        """Inverse of :meth:`pack`."""
        return Order(*_ORDER.unpack(text))


def ready_mark(store: Path, rank: int) -> Path:
    """The file that a follower makes once it has loaded torch and can join."""
    return store.with_name(f"ready-{rank}")


def note(store: Path) -> Path:
    """The file in which rank 0 leaves what does not fit an order."""
    return store.with_name("note.json")


def rank_input(seed: int, rank: int, elements: int) -> np.ndarray:
    """What a rank contributes: ``elements`` standard normal float32 values, the same whenever asked."""
    return np.random.default_rng([seed, rank, elements]).standard_normal(elements, dtype=np.float32)
