"""A template process: imports an arm's libraries once, never computes, and makes the workers.

Forking is safe only from a process with one thread, so the template counts its threads after importing and reports the
count; where there are more, its workers are started afresh (still as its children). OpenBLAS would start threads on
import, hence ``OPENBLAS_NUM_THREADS=1`` in its environment. The template reaps its children and relays their exit
status, because a grandchild's status is not visible to the parent; before it does, it ends whatever they left behind.
It ends all of them when the parent is gone.
"""

import gc
import importlib
import os
import select
import socket
import sys
import time
import traceback
from pathlib import Path

import msgspec

from frugalbench.run import family, protocol, reasons

FORK, SPAWN, EXTEND = "fork", "spawn", "extend"
"""What the parent can ask for: a forked worker, a worker from a fresh interpreter, a further template."""


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


def thread_count() -> int:
    """Number of threads of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def main(argv: list[str]) -> None:
    """``template CONTROL_FD MODULE…``: import the modules, then make a worker for each channel received."""
    family.die_with_parent()
    serve(socket.socket(fileno=int(argv[0])), argv[1:])
    os._exit(0)


def serve(control: socket.socket, modules: list[str]) -> None:
    """Import, report, then make workers and further templates until the parent is gone."""
    started = time.monotonic()
    problem = _import([*modules, "frugalbench.run.worker"])
    gc.collect()
    gc.freeze()
    family.adopt_orphans()
    family.die_with_parent(False)
    try:
        protocol.send(control, Ready(thread_count(), time.monotonic() - started, problem))
        _serve(control)
    except OSError:
        pass
    finally:
        family.end_strays(())


def _import(modules: list[str]) -> str:
    for module in modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as problem:
            return f"import {module}: {reasons.one_line(problem)}"
    return ""


def _serve(control: socket.socket) -> None:
    poller = select.poll()
    poller.register(control, select.POLLIN)
    children: dict[int, int] = {}
    while True:
        for fd, _ in poller.poll():
            if fd == control.fileno():
                if not _make(control, poller, children):
                    return
            else:
                _reap(control, poller, children, fd)


def _make(control: socket.socket, poller: select.poll, children: dict[int, int]) -> bool:
    data, fds, _, _ = socket.recv_fds(control, 65536, 1)
    if not data:
        return False
    kind, log, *modules = data.decode().split("\0")
    pid = _spawn(fds[0], log) if kind == SPAWN else os.fork()
    if pid == 0:
        control.close()
        _become(kind, fds[0], log, modules)
    os.close(fds[0])
    watch = os.pidfd_open(pid)
    children[watch] = pid
    poller.register(watch, select.POLLIN)
    protocol.send(control, Forked(pid))
    return True


def _spawn(channel_fd: int, log: str) -> int:
    os.set_inheritable(channel_fd, True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", "frugalbench.run.worker", str(channel_fd)],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, log, flags, 0o644), (os.POSIX_SPAWN_DUP2, 1, 2)],
    )


def _become(kind: str, channel_fd: int, log: str, modules: list[str]) -> None:
    """The child: a worker, or a template that has imported ``modules`` too."""
    code = 1
    try:
        redirect_output(log)
        channel = socket.socket(fileno=channel_fd)
        if kind == EXTEND:
            family.die_with_parent()
            serve(channel, modules)
        else:
            from frugalbench.run import worker

            family.settle_as_worker()
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
    family.end_strays(children.values())
    protocol.send(control, Exited(pid, os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    main(sys.argv[1:])
