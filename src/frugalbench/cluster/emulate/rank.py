"""The program of a follower: ``python -m frugalbench.cluster.emulate.rank RANK RANKS STORE SEED PARENT``.

Orders come on standard input (see :mod:`frugalbench.cluster.emulate.lockstep`); end of input ends the process, and so
does the death of its parent. Other followers' programs share :func:`arrive`, :func:`join` and :func:`follow`.
"""

import ctypes
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from frugalbench.cluster.emulate.lockstep import ORDER_BYTES, REFILL, Order, rank_input, ready_mark

PATIENCE = timedelta(days=1)
"""Between calls a rank waits inside a collective for as long as the others compute."""
_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str]) -> None:
    """Join the group and follow orders."""
    rank, ranks, store, (seed,) = arrive(argv)
    import torch.distributed  # noqa: F401

    ready_mark(store, rank).touch()
    dist = join(rank, ranks, store)
    follow(lambda order: Reduction(dist, int(seed), rank, order.work))
    # Without the teardown of torch, which may wait for ranks that are already gone.
    os._exit(0)


def arrive(argv: Sequence[str]) -> tuple[int, int, Path, tuple[str, ...]]:
    """Rank, ranks, store and the program's own words; from now on this process dies with its parent."""
    die_with(int(argv[-1]))
    return int(argv[0]), int(argv[1]), Path(argv[2]), tuple(argv[3:-1])


def die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def join(rank: int, ranks: int, store: Path) -> Any:
    """Meet the other ranks through a file, over loopback; returns ``torch.distributed`` with its default group."""
    import torch
    import torch.distributed as dist

    if rank:
        torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = dist.FileStore(str(store), ranks)
    dist.init_process_group("gloo", store=meeting, rank=rank, world_size=ranks, timeout=PATIENCE)
    return dist


class Reduction:
    """One buffer that is all-reduced again and again, in place."""

    def __init__(self, dist: Any, seed: int, rank: int, elements: int):
        import torch

        self.dist, self.uses = dist, 0
        self.source = torch.from_numpy(rank_input(seed, rank, elements))
        self.buffer = self.source.clone()

    def __call__(self) -> Any:
        """One all-reduce; returns the buffer."""
        if self.uses == REFILL:
            self.buffer.copy_(self.source)
            self.uses = 0
        self.dist.all_reduce(self.buffer)
        self.uses += 1
        return self.buffer


def follow(turn_to: Callable[[Order], Callable[[], object]]) -> None:
    """Call after call of what ``turn_to`` makes of the order in force, until told to leave."""
    done, order, pending = 0, _wait(), None
    while order.work:
        call = turn_to(order)
        while pending is None or done < pending.after:
            call()
            done += 1
            pending = pending or _poll()
        order, pending = pending, None


def _wait() -> Order:
    text = b""
    while len(text) < ORDER_BYTES:
        piece = os.read(0, ORDER_BYTES - len(text))
        if not piece:
            os._exit(0)
        text += piece
    return Order.unpack(text)


def _poll() -> Order | None:
    readable, _, _ = select.select([0], [], [], 0)
    return _wait() if readable else None


if __name__ == "__main__":
    main(sys.argv[1:])
