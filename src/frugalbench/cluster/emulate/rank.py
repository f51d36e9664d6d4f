"""The program of a follower: ``python -m frugalbench.cluster.emulate.rank RANK RANKS STORE SEED PARENT``.

Orders come on standard input (see :mod:`frugalbench.cluster.emulate.lockstep`); end of input ends the process, and so
does the death of its parent.
"""

import ctypes
import os
import select
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from frugalbench.cluster.emulate.lockstep import ORDER_BYTES, REFILL, Order, rank_input, ready_mark

PATIENCE = timedelta(days=1)
"""Between calls a rank waits inside a collective for as long as the others compute."""
_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Join the group and follow orders."""
    rank, ranks, store, seed, parent = int(argv[0]), int(argv[1]), argv[2], int(argv[3]), int(argv[4])
    die_with(parent)
    import torch.distributed  # noqa: F401

    ready_mark(Path(store), rank).touch()
    join(rank, ranks, Path(store))
    follow(rank, seed)
    # Without the teardown of torch, which may wait for ranks that are already gone.
    os._exit(0)


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


def follow(rank: int, seed: int) -> None:
    """All-reduce after all-reduce, changing size when ordered, until told to leave."""
    import torch
    import torch.distributed as dist

    done, order, pending = 0, _wait(), None
    while order.elements:
        source = torch.from_numpy(rank_input(seed, rank, order.elements))
        buffer, uses = source.clone(), 0
        while pending is None or done < pending.after:
            if uses == REFILL:
                buffer.copy_(source)
                uses = 0
            dist.all_reduce(buffer)
            done, uses = done + 1, uses + 1
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
