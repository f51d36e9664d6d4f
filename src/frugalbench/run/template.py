"""A template process: imports an arm's libraries once, never computes, and is forked per worker.

Forking is safe only from a process with one thread, so the template counts its threads after importing and
reports the count; the parent then falls back to spawning. OpenBLAS would start threads on import, hence
``OPENBLAS_NUM_THREADS=1`` in its environment. The template reaps its children and relays their exit
status, because a grandchild's status is not visible to the parent.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import msgspec

from frugalbench.run import protocol

_PR_SET_PDEATHSIG = 1


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The imports are done."""

    threads: int
    import_s: float
    problem: str = ""


class Forked(msgspec.Struct, frozen=True, tag=True):
    pid: int


class Exited(msgspec.Struct, frozen=True, tag=True):
    pid: int
    status: int
    """As ``os.waitstatus_to_exitcode`` gives it: negative for a signal."""


FromTemplate = Ready | Forked | Exited


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def thread_count() -> int:
    """Number of threads of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def main(argv: list[str]) -> None:
    """``template CONTROL_FD MODULE…``: import the modules, then fork for each channel received."""
    die_with_parent()
    serve(socket.socket(fileno=int(argv[0])), argv[1:])


def serve(control: socket.socket, modules: list[str]) -> None:
    """Import, report, then fork workers and further templates until the parent is gone."""
    started = time.monotonic()
    problem = _import([*modules, "frugalbench.run.worker"])
    gc.collect()
    gc.freeze()
    protocol.send(control, Ready(thread_count(), time.monotonic() - started, problem))
    _serve(control)


def _import(modules: list[str]) -> str:
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as problem:
            return f"import {module}: {type(problem).__name__}: {problem}"
    return ""


def _serve(control: socket.socket) -> None:
    poller = select.poll()
    poller.register(control, select.POLLIN)
    children: dict[int, int] = {}
    while True:
        for fd, _ in poller.poll():
            if fd == control.fileno():
                if not _fork(control, poller, children):
                    return
            else:
                _reap(control, poller, children, fd)


def _fork(control: socket.socket, poller: select.poll, children: dict[int, int]) -> bool:
    data, fds, _, _ = socket.recv_fds(control, 4096, 1)
    if not data:
        return False
    log, *modules = data.decode().split("\0")
    pid = os.fork()
    if pid == 0:
        control.close()
        _become(fds[0], log, modules)
    os.close(fds[0])
    watch = os.pidfd_open(pid)
    children[watch] = pid
    poller.register(watch, select.POLLIN)
    protocol.send(control, Forked(pid))
    return True


def _become(channel_fd: int, log: str, modules: list[str]) -> None:
    """The child: a worker, or with ``modules`` a template that has imported those too."""
    code = 1
    try:
        die_with_parent()
        redirect_output(log)
        channel = socket.socket(fileno=channel_fd)
        if modules:
            serve(channel, modules)
        else:
            from frugalbench.run import worker

            worker.serve(channel)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def redirect_output(log: str) -> None:
    """Send everything that libraries print to the worker's log file."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _reap(control: socket.socket, poller: select.poll, children: dict[int, int], watch: int) -> None:
    pid = children.pop(watch)
    poller.unregister(watch)
    os.close(watch)
    _, status = os.waitpid(pid, 0)
    protocol.send(control, Exited(pid, os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    main(sys.argv[1:])
