"""How much memory a worker and its children hold, and three nets below it, from fine to coarse.

1. The parent looks twice a second while a worker loads, verifies and calibrates, and between turns: over the limit, the
   worker is killed with a reason. While it times, nobody looks.
2. Between two looks a process can grow faster than that. On the CPU its private writable memory is therefore bounded by
   ``RLIMIT_DATA`` at twice the limit and a little: the allocation fails inside the worker. GPU runtimes reserve far
   more than they use, so there this net is left out.
3. Last, workers volunteer to the kernel's out-of-memory killer, so it never picks the parent.
"""

import contextlib
import os
import resource
from collections.abc import Iterable
from pathlib import Path

from frugalbench import machine
from frugalbench.run import family

HARD_FACTOR = 2
HARD_EXTRA_BYTES = 2**30
ADVICE = "raise measure.memory_limit_bytes, and measure.worker_memory_limit_bytes where that is set"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def tree(pid: int) -> list[int]:
    """A worker and everything below it."""
    return [pid, *family.descendants(pid)]


def rss_bytes(pids: Iterable[int]) -> int:
    """Resident memory, pages shared between processes counted in each: cheap, and never less than the true sum."""
    return sum(_rss_bytes(pid) for pid in pids)


def _rss_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def pss_bytes(pids: Iterable[int]) -> int:
    """Memory that would come free without these processes, roughly: the sum of their proportional set sizes."""
    return sum(machine.pss_bytes(pid) or 0 for pid in pids)


def held_bytes(pid: int, limit_bytes: float) -> int:
    """What a worker and its children hold. The exact sum is worth its milliseconds only near ``limit_bytes``."""
    pids = tree(pid)
    cheap = rss_bytes(pids)
    return cheap if cheap <= limit_bytes else pss_bytes(pids)


def limit_own(limit_bytes: float | None, device: str) -> None:
    """Second net: bound this process's private writable memory, whatever it holds already coming on top."""
    if limit_bytes is None or device != "cpu":
        return
    wanted = _data_bytes() + HARD_FACTOR * int(limit_bytes) + HARD_EXTRA_BYTES
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    with contextlib.suppress(OSError, ValueError, OverflowError):
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def _data_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    line = next((line for line in text.splitlines() if line.startswith("VmData:")), "VmData: 0 kB")
    return int(line.split()[1]) * 1024


def oom_kills(proc: Path = Path("/proc")) -> int | None:
    """How often the kernel has killed a process for want of memory since boot; ``None`` where it does not say."""
    try:
        lines = (proc / "vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def gib(size_bytes: float) -> str:
    """``1.5 GiB``."""
    return f"{size_bytes / 2**30:.1f} GiB"
