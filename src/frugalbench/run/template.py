"""A template process: imports an arm's libraries once, never computes, and makes the workers.

Forking is safe only from a process with one thread that never asked the CUDA driver anything, so the template looks
after each import and tells which module spoilt it, and how. Its workers are then forked from a template without that
module, which they import themselves; where nothing else is to be imported, they are started afresh (still as its
children). OpenBLAS would start threads on import, hence ``OPENBLAS_NUM_THREADS=1`` in its environment.

The template reaps its children and relays their exit status, because a grandchild's status is not visible to the
parent; before it does, it ends whatever they left behind. It ends all of them when the parent is gone.
"""

import contextlib
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
    spoilt_by: str = ""
    """The module after whose import no worker may be forked."""
    spoilt_how: str = ""


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


def unforkable() -> str:
    """Why no worker may be forked from this process; empty when one may."""
    names = [_text(task / "comm") for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    if names:
        return f"started {len(names)} thread{'s' * (len(names) > 1)} ({', '.join(sorted(set(names)))})"
    return "asked the CUDA driver, which does not outlive a fork" if _asked_cuda() else ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip() or "unnamed"
    except OSError:
        return "already ended"


def _asked_cuda() -> bool:
    """Whether torch would refuse CUDA in a child; it tells only there. The process must have one thread."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    pid = os.fork()
    if pid == 0:
        spoilt = True
        with contextlib.suppress(Exception):
            spoilt = torch.cuda._is_in_bad_fork()
        os._exit(int(spoilt))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def main(argv: list[str]) -> None:
    """``template CONTROL_FD MODULE…``: import the modules, then make a worker for each channel received."""
    family.die_with_parent()
    serve(socket.socket(fileno=int(argv[0])), argv[1:])
    os._exit(0)


def serve(control: socket.socket, modules: list[str]) -> None:
    """Import, report, then make workers and further templates until the parent is gone."""
    started = time.monotonic()
    problem, *spoilt = _import([*modules, "frugalbench.run.worker"])
    gc.collect()
    gc.freeze()
    family.adopt_orphans()
    family.die_with_parent(False)
    try:
        protocol.send(control, Ready(thread_count(), time.monotonic() - started, problem, *spoilt))
        _serve(control)
    except OSError:
        pass
    finally:
        family.end_strays(())


def _import(modules: list[str]) -> tuple[str, str, str]:
    """What failed, which module was the first to make forking unsafe, and how; each empty when nothing did."""
    spoilt_by = spoilt_how = ""
    for module in modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as problem:
            return f"import {module}: {reasons.one_line(problem)}", spoilt_by, spoilt_how
        if not spoilt_by and (how := unforkable()):
            spoilt_by, spoilt_how = module, how
    if spoilt_by and not unforkable():  # its threads have ended
        return "", "", ""
    return "", spoilt_by, spoilt_how


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
