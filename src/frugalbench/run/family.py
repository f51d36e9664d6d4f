"""Processes and whom they leave behind. Nothing that a worker starts may outlive its arm.

A worker leads a session of its own and adopts the orphans of its tree (``PR_SET_CHILD_SUBREAPER``), so a child that
forked twice into another session is still found below it. When the worker dies, those children fall to its template,
which adopts too and ends every child that it did not fork itself. Whatever slips through both is known by a mark in
its environment and ended at the end of the run.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path

MARK = "FRUGALBENCH_FAMILY"
"""Environment variable that all processes of one run carry, with the run's own value."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STRAYS_LIMIT_S = 5.0
_PAUSE_S = 0.002


def die_with_parent(also: bool = True) -> None:
    """Ask the kernel to kill this process when its parent dies; with ``also=False`` take that back."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if also else 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies. Children do not inherit this."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def settle_as_worker() -> None:
    """A worker's place: dies with its template, leads a session, adopts, and goes first when memory runs out."""
    die_with_parent()
    with contextlib.suppress(OSError):
        os.setsid()
    adopt_orphans()
    with contextlib.suppress(OSError):
        _write("/proc/self/oom_score_adj", b"1000")


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _write(path: str, text: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text)
    finally:
        os.close(descriptor)


def parents() -> dict[int, int]:
    """Parent of every process that can be seen, zombies included. Reads one file per process of the machine."""
    return {pid: parent for pid, parent in ((pid, _parent(pid)) for pid in _pids()) if parent is not None}


def children(pid: int) -> list[int]:
    """Direct children of ``pid``, zombies included."""
    return [child for child, parent in parents().items() if parent == pid]


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``, nearest first."""
    found = _listed_children(pid)
    if found is None:
        return _descendants(pid, parents())
    for child in found:
        found += _listed_children(child) or ()
    return found


def _listed_children(pid: int) -> list[int] | None:
    """Children by the kernel's own list, which only some kernels keep; it may miss one while others exit."""
    tasks = f"/proc/{pid}/task"
    try:
        texts = [Path(f"{tasks}/{tid}/children").read_text() for tid in os.listdir(tasks)]  # noqa: PTH208
    except OSError:
        return None
    return [int(child) for text in texts for child in text.split()]


def _descendants(pid: int, parent_of: dict[int, int]) -> list[int]:
    below: dict[int, list[int]] = {}
    for child, parent in parent_of.items():
        below.setdefault(parent, []).append(child)
    found = list(below.get(pid, ()))
    for child in found:
        found += below.get(child, ())
    return found


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 (names only, no stat)


def _parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:  # noqa: PTH123 (once per process of the machine)
            return int(stream.read().rsplit(b")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def end_strays(known: Collection[int], limit_s: float = _STRAYS_LIMIT_S) -> int:
    """Kill and reap every child of this process but ``known``, and what falls to it meanwhile; how many there were."""
    stop, ended = time.monotonic() + limit_s, 0
    while strays := [pid for pid in children(os.getpid()) if pid not in known]:
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended += sum(_reap(pid, stop) for pid in strays)
        if time.monotonic() >= stop:
            break
    return ended


def _reap(pid: int, stop: float) -> bool:
    """Wait for a killed child until ``stop``: one in uninterruptible sleep must not hold everybody up."""
    try:
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() >= stop:
                return False
            time.sleep(_PAUSE_S)
    except ChildProcessError:
        return False
    return True


def end_marked(value: str) -> int:
    """Kill every other process whose environment carries this run's mark; how many there were."""
    mark, ended = f"{MARK}={value}".encode(), 0
    for _ in range(10):
        found = [pid for pid in _pids() if pid != os.getpid() and _carries(pid, mark)]
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                ended += 1
        if not found:
            break
        time.sleep(_PAUSE_S)
    return ended


def _carries(pid: int, mark: bytes) -> bool:
    """A zombie's environment reads as empty, so one that waits to be reaped does not count."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as stream:  # noqa: PTH123 (once per process of the machine)
            return mark in stream.read().split(b"\0")
    except OSError:
        return False
