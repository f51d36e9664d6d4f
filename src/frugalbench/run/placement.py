"""Threads on cores. A kernel that wakes two busy threads on one core lets them wait for each other for several
scheduler slices before it moves one, which shows as run delay and doubles the time of short parallel calls. For the
length of a turn, the threads that do the work are therefore put on a core each; libraries' own choices of how many
threads there are stay as they are.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_BUSY_SHARE = 0.2
"""A thread that ran for less than this share of a window is not one of those that do the work."""


def thread_cpu_ns() -> dict[int, int]:
    """CPU time of each thread of this process, by thread id (first field of its ``schedstat``)."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0])
    return found


def busy_threads(before: dict[int, int], now: dict[int, int], window_s: float, cores: int) -> tuple[int, ...]:
    """Threads to place: those busy in the window, if there are at least two, at most one per core, and none was new.

    A process whose threads come and go is left alone, because a new thread inherits the core of its maker.
    """
    if before.keys() != now.keys():
        return ()
    busy = [tid for tid, spent in now.items() if spent - before[tid] > _BUSY_SHARE * window_s * 1e9]
    return tuple(sorted(busy)) if 2 <= len(busy) <= cores else ()


@contextlib.contextmanager
def placed(threads: tuple[int, ...]) -> Iterator[None]:
    """Each of ``threads`` on a core of its own; all of them free again afterwards."""
    usable = os.sched_getaffinity(0)
    for tid, core in zip(threads, sorted(usable), strict=False):
        _allow(tid, {core})
    try:
        yield
    finally:
        for tid in threads:
            _allow(tid, usable)


def _allow(tid: int, cores: set[int]) -> None:
    with contextlib.suppress(OSError):
        os.sched_setaffinity(tid, cores)
