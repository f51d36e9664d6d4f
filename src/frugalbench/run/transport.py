"""Processes, pipes and exits: templates, workers, deadlines. The parent only ever blocks in ``poll``."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frugalbench.run import protocol, template
from frugalbench.schema import FrugalbenchError

_QUIET_LIBRARIES = {
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "CI": "true",
    "PYTHONWARNINGS": "ignore",
}
"""Environment of every worker: one thread while importing, no telemetry, no helper process pools."""

_EXIT_WAIT_S = 10.0


class WorkerGone(Exception):
    """A worker died, hung or was killed; the text is the reason for its failed records."""


class Worker:
    """A process that executes one arm."""

    def __init__(self, pid: int, channel: socket.socket, watch: int, log: Path, exit_code: Callable[[], int | None]):
        self.pid = pid
        self.log = log
        self._channel = channel
        self._watch = watch
        self._exit_code = exit_code
        self._poller = select.poll()
        self._poller.register(channel, select.POLLIN)
        self._poller.register(watch, select.POLLIN)

    def request(self, message: Any, limit_s: float, watch: Callable[[], str | None] | None = None) -> Any:
        """Hand the baton over and block until it comes back.

        ``watch`` is asked twice a second and may give a reason to kill the worker.
        Raises :class:`WorkerGone` when the worker dies, exceeds ``limit_s`` or is killed.
        """
        try:
            protocol.send(self._channel, message)
        except OSError:
            raise WorkerGone(self._obituary()) from None
        self._await(limit_s, watch)
        try:
            return protocol.receive(self._channel, protocol.Reply)
        except EOFError:
            raise WorkerGone(self._obituary()) from None

    def _await(self, limit_s: float, watch: Callable[[], str | None] | None) -> None:
        deadline = time.monotonic() + limit_s
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                self.kill()
                raise WorkerGone(f"no answer within {limit_s:.0f} s; killed")
            ready = {fd for fd, _ in self._poller.poll(1000 * (min(left, 0.5) if watch else left))}
            if self._channel.fileno() in ready:
                return
            if ready:
                raise WorkerGone(self._obituary())
            if watch and (reason := watch()):
                self.kill()
                raise WorkerGone(reason)

    def _obituary(self) -> str:
        select.select([self._watch], [], [], _EXIT_WAIT_S)
        code = self._exit_code()
        how = "worker died" if code is None else _describe_exit(code)
        last = _last_line(self.log)
        return f"{how}: {last}" if last else how

    def kill(self) -> None:
        """End the process at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        select.select([self._watch], [], [], _EXIT_WAIT_S)
        self._exit_code()

    def finish(self) -> None:
        """Ask it to exit, wait for that, and make sure."""
        with contextlib.suppress(WorkerGone):
            self.request(protocol.Finish(), _EXIT_WAIT_S)
        if not select.select([self._watch], [], [], _EXIT_WAIT_S)[0]:
            self.kill()
        self.close()

    def close(self) -> None:
        """Close the parent's ends."""
        self._exit_code()
        self._channel.close()
        with contextlib.suppress(OSError):
            os.close(self._watch)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"worker exited with code {code}"
    with contextlib.suppress(ValueError):
        return f"worker killed by {signal.Signals(-code).name}"
    return f"worker killed by signal {-code}"


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""


class Template:
    """A process that has imported a set of modules and can be forked."""

    def __init__(self, name: str, modules: frozenset[str], control: socket.socket, pid: int, log: Path, limit_s: float):
        self.id = name
        self.modules = modules
        self.pid = pid
        self.dead = False
        self._control = control
        self._exits: dict[int, int] = {}
        self._log = log
        self.ready = self._wait_ready(limit_s)

    def _wait_ready(self, limit_s: float) -> template.Ready:
        if not select.select([self._control], [], [], limit_s)[0]:
            self.close()
            return template.Ready(0, limit_s, f"imports took longer than {limit_s:.0f} s")
        try:
            ready: template.Ready = protocol.receive(self._control, template.Ready)
        except EOFError:
            return template.Ready(0, 0.0, f"import died: {_last_line(self._log)}")
        return ready

    def fork(self, log: Path) -> Worker:
        """A fresh worker from this template."""
        channel, pid = self._fork([str(log)])
        return Worker(pid, channel, os.pidfd_open(pid), log, lambda: self._exit_code(pid))

    def extend(self, name: str, modules: tuple[str, ...], log: Path, limit_s: float) -> "Template":
        """A further template, forked from this one, that imports the rest of ``modules``."""
        rest = [module for module in modules if module not in self.modules]
        control, pid = self._fork([str(log), *rest])
        return Template(name, frozenset(modules), control, pid, log, limit_s)

    def _fork(self, words: list[str]) -> tuple[socket.socket, int]:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._control, ["\0".join(words).encode()], [theirs.fileno()])
            while not isinstance(reply := protocol.receive(self._control, template.FromTemplate), template.Forked):
                self._note(reply)
        except (OSError, EOFError):
            self.dead = True
            raise WorkerGone(f"the template process of {', '.join(sorted(self.modules))} died") from None
        return ours, reply.pid

    def _note(self, message: Any) -> None:
        if isinstance(message, template.Exited):
            self._exits[message.pid] = message.status

    def _exit_code(self, pid: int) -> int | None:
        while pid not in self._exits and select.select([self._control], [], [], 1.0)[0]:
            try:
                self._note(protocol.receive(self._control, template.FromTemplate))
            except EOFError:
                break
        return self._exits.get(pid)

    def close(self) -> None:
        """End the template; whatever was forked from it dies with it."""
        self._control.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def start_template(name: str, modules: tuple[str, ...], log: Path, limit_s: float) -> Template:
    """A template from a fresh interpreter."""
    ours, theirs = socket.socketpair()
    process = _launch("frugalbench.run.template", theirs, log, modules)
    return Template(name, frozenset(modules), ours, process.pid, log, limit_s)


def _launch(module: str, channel: socket.socket, log: Path, words: tuple[str, ...] = ()) -> "subprocess.Popen[bytes]":
    with channel, log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(channel.fileno()), *words],
            pass_fds=[channel.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **_QUIET_LIBRARIES},
            start_new_session=True,
        )


def spawn(log: Path) -> Worker:
    """A fresh worker that imports everything by itself."""
    ours, theirs = socket.socketpair()
    process = _launch("frugalbench.run.worker", theirs, log)
    return Worker(process.pid, ours, os.pidfd_open(process.pid), log, lambda: _poll(process))


def _poll(process: subprocess.Popen[bytes]) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=1.0)
    return None


class Pool:
    """Templates by the modules they have imported, started when first needed."""

    def __init__(self, scratch: Path, limit_s: float):
        self._scratch = scratch
        self._limit_s = limit_s
        self._templates: dict[frozenset[str], Template] = {}
        self._made = 0
        self._started = 0

    def template(self, modules: tuple[str, ...]) -> Template:
        """The template for ``modules``; raises :class:`WorkerGone` when its imports fail.

        It grows out of the one that has most of them already, so that a heavy library is imported once a run.
        """
        wanted = frozenset(modules)
        found = self._templates.get(wanted)
        if found is None or found.dead:
            found = self._templates[wanted] = self._make(modules)
        if found.ready.problem:
            raise WorkerGone(found.ready.problem)
        return found

    def _make(self, modules: tuple[str, ...]) -> Template:
        self._made += 1
        name = f"template-{self._made}"
        log = self._scratch / f"{name}.log"
        usable = [item for item in self._templates.values() if item.modules < frozenset(modules) and _forkable(item)]
        base = max(usable, key=lambda item: len(item.modules), default=None)
        if base is not None:
            with contextlib.suppress(WorkerGone):
                return base.extend(name, modules, log, self._limit_s)
        return start_template(name, modules, log, self._limit_s)

    def start(self, modules: tuple[str, ...]) -> tuple[Worker, str | None]:
        """A fresh worker and the id of its template, or ``None`` where it had to be spawned."""
        self._started += 1
        log = self._scratch / f"worker-{self._started}.log"
        for _ in range(2):
            found = self.template(modules)
            if not _forkable(found):
                return spawn(log), None
            try:
                return found.fork(log), found.id
            except WorkerGone:
                continue
        raise WorkerGone(f"the template process of {', '.join(modules)} keeps dying")

    def pids(self) -> list[int]:
        """Process ids of all templates."""
        return [item.pid for item in self._templates.values()]

    def import_s(self) -> dict[str, float]:
        """Import time of each template."""
        return {" ".join(sorted(key)) or "numpy": item.ready.import_s for key, item in self._templates.items()}

    def close(self) -> None:
        """End all templates."""
        for item in self._templates.values():
            item.close()


def _forkable(item: Template) -> bool:
    return not item.dead and not item.ready.problem and item.ready.threads == 1


def check_platform() -> None:
    """Raise :class:`FrugalbenchError` where the engine cannot work."""
    if not (sys.platform == "linux" and hasattr(os, "pidfd_open")):
        raise FrugalbenchError("the engine needs Linux 5.3 or newer (pidfd); run it in a Linux machine or container")
