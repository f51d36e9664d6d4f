"""Threads on cores. A kernel that wakes two busy threads on one core lets them wait for each other for several
scheduler slices before it moves one, which shows as run delay and doubles the time of short parallel calls. For the
length of a turn, the threads that do the work are therefore put on a core each, a single one on the core that all
arms of the round share; libraries' own choices of how many
threads there are stay as they are.
"""

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from frugalbench import machine

_BUSY_SHARE = 0.2
"""A thread that ran for less than this share of a window is not one of those that do the work."""
_ROTATION = 4
"""Cores that single threads rotate over: enough to average a bad one away, few enough to stay near the memory."""
SPIN_LIMIT_S = 0.6
"""Pools of threads spin on after their work, Intel's OpenMP for 0.2 s by default. Longer than this is no such pool."""
_SPIN_WINDOW_S = 0.2


def thread_cpu_ns(pid: int | str = "self") -> dict[int, int]:
    """CPU time of each thread of a process, by thread id (first field of its ``schedstat``)."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0])
    return found


def process_cpu_ns() -> int:
    """CPU time of this process so far, threads that ended and children that were waited for included."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time_ns() + int(1e9 * (children.ru_utime + children.ru_stime))


class Watch:
    """Which threads of this process do the work of a window: made just before it, asked just after."""

    def __init__(self) -> None:
        self._process_ns, self._threads_ns = process_cpu_ns(), thread_cpu_ns()

    def busy(self, window_s: float, cores: int) -> tuple[int, ...]:
        """As :func:`busy_threads` says."""
        process_ns = process_cpu_ns() - self._process_ns
        return busy_threads(self._threads_ns, thread_cpu_ns(), window_s, cores, process_ns)


def busy_threads(
    before: dict[int, int], now: dict[int, int], window_s: float, cores: int, process_ns: int | None = None
) -> tuple[int, ...]:
    """Threads to place: those busy in the window, if they are at most one per core and none was new.

    A process whose threads or children come and go is left alone, because they inherit the core of their maker.
    ``process_ns``, the CPU time of the whole process in the window, tells of those that came and went within it.
    """
    if before.keys() != now.keys():
        return ()
    limit_ns = _BUSY_SHARE * window_s * 1e9
    spent_ns = {tid: now[tid] - before[tid] for tid in now}
    if process_ns is not None and process_ns - sum(spent_ns.values()) > limit_ns:
        return ()
    busy = [tid for tid, spent in spent_ns.items() if spent > limit_ns]
    return tuple(sorted(busy)) if len(busy) <= cores else ()


def spinning_threads(pid: int, patience_s: float = SPIN_LIMIT_S, sleep: Callable[[float], None] = time.sleep) -> int:
    """Threads of a process without work that compute all the same, ``patience_s`` after it was asked; 0 when gone.

    Returns at once when the process is quiet, and as soon as it falls quiet.
    """
    if machine.wait_until_quiet(pid, patience_s, pause_s=0.001, sleep=sleep)[1]:
        return 0
    with contextlib.suppress(OSError):
        before = thread_cpu_ns(pid)
        sleep(_SPIN_WINDOW_S)
        now = thread_cpu_ns(pid)
        return sum(now[tid] - before.get(tid, 0) > _BUSY_SHARE * _SPIN_WINDOW_S * 1e9 for tid in now)
    return 0


@contextlib.contextmanager
def placed(threads: tuple[int, ...], turn: int = 0) -> Iterator[None]:
    """Each of ``threads`` on a core of its own; all of them free again afterwards.

    A single thread goes to a core that ``turn`` chooses among the first few: arms that are given the same number
    share the core, and with it whatever a neighbour of the virtual machine does to it.
    """
    usable = os.sched_getaffinity(0)
    cores = sorted(usable)
    if len(threads) == 1:
        cores = cores[:_ROTATION]
        cores = cores[turn % len(cores) :]
    for tid, core in zip(threads, cores, strict=False):
        _allow(tid, {core})
    try:
        yield
    finally:
        for tid in threads:
            _allow(tid, usable)


def _allow(tid: int, cores: set[int]) -> None:
    with contextlib.suppress(OSError):
        os.sched_setaffinity(tid, cores)
