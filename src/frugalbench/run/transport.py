"""Processes, pipes and exits: templates, workers, deadlines. The parent only ever blocks in ``poll``."""

import contextlib
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frugalbench.run import family, memory, protocol, reasons, template
from frugalbench.schema import FrugalbenchError

_QUIET_LIBRARIES = {
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "CI": "true",
    "PYTHONWARNINGS": "ignore",
}
"""Environment of every worker: one thread while importing, no telemetry, no helper process pools. Whether there is a
GPU is asked of NVML: after a question to CUDA itself no forked process could use it. A process in which a library
started a thread on import (pyarrow's allocator, which transformers finds through scikit-learn) has no forks."""

_EXIT_WAIT_S = 10.0
_PARTING_S = 2.0
_LOOK_S = 0.5
_READ_BYTES = 2**16
"""At once; a buffer of a mebibyte costs more to map than most answers to read."""
_FORK_LIMIT_S = 60.0
_LOG_LIMIT_BYTES = 2**26
"""Whoever prints more than this is stuck in a loop, and is filling the disk."""

Watch = Callable[[], str | None]
"""Asked now and then while a worker computes; a reason ends the worker."""


def _readable(place: int | socket.socket, limit_s: float) -> bool:
    """Whether there is something to read, or an end, within ``limit_s``; of any descriptor, also beyond 1024."""
    poller = select.poll()
    poller.register(place, select.POLLIN)
    return bool(poller.poll(max(0.0, limit_s) * 1000))


class WorkerGone(Exception):
    """A worker died, hung or was killed; the text is the reason for its failed records."""


class Worker:
    """A process that executes one arm."""

    def __init__(
        self,
        pid: int,
        channel: socket.socket,
        log: Path,
        exit_code: Callable[[], int | None],
        limit_bytes: float | None = None,
    ):
        self.pid = pid
        self.log = log
        self.held_bytes = 0.0
        """With its children, when last looked at."""
        self._channel = channel
        self._watch = os.pidfd_open(pid)
        self._exit_code = exit_code
        self._limit_bytes = limit_bytes
        self._oom_kills = memory.oom_kills()
        self._poller = select.poll()
        self._poller.register(channel, select.POLLIN)
        self._poller.register(self._watch, select.POLLIN)

    def request(self, message: Any, limit_s: float, watch: Watch | None = None, undisturbed_s: float = 0.0) -> Any:
        """Hand the baton over and block until it comes back.

        Twice a second, but not in the first ``undisturbed_s``, the worker's own memory is looked at and ``watch`` is
        asked. Raises :class:`WorkerGone` when the worker dies, exceeds ``limit_s``, is killed or talks nonsense.
        """
        deadline = time.monotonic() + limit_s
        self.hand_over(message, limit_s)
        return self.take_back(message, deadline, limit_s, watch, undisturbed_s)

    def hand_over(self, message: Any, limit_s: float) -> None:
        """Send a request without waiting for its reply, which :meth:`take_back` waits for."""
        try:
            self._channel.settimeout(max(limit_s, 0.1))
            protocol.send(self._channel, message)
        except TimeoutError:
            raise self._ended(f"did not take a request within {limit_s:.0f} s; killed") from None
        except OSError:
            raise WorkerGone(self._obituary()) from None

    def take_back(
        self, message: Any, deadline: float, limit_s: float, watch: Watch | None = None, undisturbed_s: float = 0.0
    ) -> Any:
        """The reply to ``message``, at the latest at ``deadline`` (monotonic), ``limit_s`` after it was sent."""
        try:
            reply = self._await(deadline, limit_s, watch, undisturbed_s)
        except protocol.Garbled as garbled:
            raise self._ended(f"wrote into the pipe of the harness: {garbled}") from None
        if not isinstance(reply, (protocol.ANSWERS[type(message)], protocol.Problem)):
            raise self._ended(f"answered {type(message).__name__} with {type(reply).__name__}")
        return reply

    def _await(self, deadline: float, limit_s: float, watch: Watch | None, undisturbed_s: float) -> protocol.Reply:
        inbox, calm = protocol.Inbox(), time.monotonic() + undisturbed_s
        while True:
            now = time.monotonic()
            if now >= deadline:
                raise self._ended(f"no answer within {limit_s:.0f} s; killed")
            look_s = max(_LOOK_S, calm - now)
            ready = {fd for fd, _ in self._poller.poll(1000 * min(deadline - now, look_s))}
            if self._channel.fileno() in ready:
                if (reply := inbox.feed(self._read())) is not None:
                    return reply
            elif ready:
                raise WorkerGone(self._obituary())
            elif time.monotonic() >= calm and (reason := self.excess() or (watch() if watch else None)):
                raise self._ended(reason)

    def _read(self) -> bytes:
        try:
            part = self._channel.recv(_READ_BYTES)
        except ConnectionError:
            part = b""
        if not part:
            raise WorkerGone(self._obituary())
        return part

    def excess(self) -> str | None:
        """Whether the worker holds or prints more than it may, and what to do about it."""
        with contextlib.suppress(OSError):
            if (printed := self.log.stat().st_size) > _LOG_LIMIT_BYTES:
                return f"printed {memory.gib(printed)}; killed before the disk is full"
        if self._limit_bytes is None:
            return None
        return self.over_limit(memory.held_bytes(self.pid, self._limit_bytes))

    def over_limit(self, held_bytes: float) -> str | None:
        """Note what the worker and its children were seen to hold; a reason when that is too much."""
        self.held_bytes = held_bytes
        if self._limit_bytes is None or held_bytes <= self._limit_bytes:
            return None
        return (
            f"memory limit: this worker holds {memory.gib(self.held_bytes)}, {memory.gib(self._limit_bytes)} allowed "
            f"for each; {memory.ADVICE}"
        )

    def _ended(self, reason: str) -> WorkerGone:
        self.kill()
        return WorkerGone(reason)

    def _obituary(self) -> str:
        if not _readable(self._watch, _PARTING_S):
            self.kill()
            return "the worker closed its pipe and lived on; killed"
        code = self._exit_code()
        how = "worker died" if code is None else reasons.describe_exit(code, self._new_oom_kills(), self._last_look())
        last = reasons.last_line(self.log)
        return f"{how}: {last}" if last else how

    def _new_oom_kills(self) -> int | None:
        now = memory.oom_kills()
        return None if now is None or self._oom_kills is None else now - self._oom_kills

    def _last_look(self) -> str:
        return f"{memory.gib(self.held_bytes)} held at the last look" if self.held_bytes else "not looked at yet"

    def kill(self) -> None:
        """End the process at once; its template ends what it leaves behind."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._watch, signal.SIGKILL)
            _readable(self._watch, _EXIT_WAIT_S)
        self._exit_code()

    def finish(self) -> None:
        """Ask it to exit, wait for that, and make sure."""
        with contextlib.suppress(WorkerGone):
            self.request(protocol.Finish(), _EXIT_WAIT_S)
        if not _readable(self._watch, _EXIT_WAIT_S):
            self.kill()
        self.close()

    def close(self) -> None:
        """Close the parent's ends."""
        self._exit_code()
        self._channel.close()
        with contextlib.suppress(OSError):
            os.close(self._watch)


class Template:
    """A process that has imported a set of modules and makes workers."""

    def __init__(self, name: str, modules: frozenset[str], control: socket.socket, pid: int, log: Path, limit_s: float):
        self.id = name
        self.modules = modules
        self.pid = pid
        self.dead = False
        self._control = control
        self._watch = os.pidfd_open(pid)
        self._exits: dict[int, int] = {}
        self._log = log
        self.ready = self._wait_ready(limit_s)

    def _wait_ready(self, limit_s: float) -> template.Ready:
        if not _readable(self._control, limit_s):
            self.kill()
            return template.Ready(0, limit_s, f"imports took longer than {limit_s:.0f} s")
        try:
            ready: template.Ready = protocol.receive(self._control, template.Ready)
        except (EOFError, protocol.Garbled):
            return template.Ready(0, 0.0, f"import died: {reasons.last_line(self._log)}")
        return ready

    @property
    def forkable(self) -> bool:
        """Whether a worker may be forked from it."""
        return not self.dead and not self.ready.problem and not self.ready.spoilt_by

    def worker(self, log: Path, limit_bytes: float | None = None) -> tuple[Worker, str]:
        """A fresh worker, forked where that is safe, and how it was made."""
        kind = template.FORK if self.forkable else template.SPAWN
        channel, pid = self._make(kind, [str(log)])
        try:
            return Worker(pid, channel, log, lambda: self._exit_code(pid), limit_bytes), kind
        except ProcessLookupError:
            raise WorkerGone("the worker died as soon as it was started") from None

    def extend(self, name: str, modules: tuple[str, ...], log: Path, limit_s: float) -> "Template":
        """A further template, forked from this one, that imports the rest of ``modules``."""
        rest = [module for module in modules if module not in self.modules]
        control, pid = self._make(template.EXTEND, [str(log), *rest])
        try:
            return Template(name, frozenset(modules), control, pid, log, limit_s)
        except ProcessLookupError:
            raise WorkerGone(f"the template process of {', '.join(modules)} died as soon as it was started") from None

    def _make(self, kind: str, words: list[str]) -> tuple[socket.socket, int]:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._control, ["\0".join((kind, *words)).encode()], [theirs.fileno()])
            while not isinstance(reply := self._hear(_FORK_LIMIT_S), template.Forked):
                self._note(reply)
        except (OSError, EOFError, protocol.Garbled):
            self.dead = True
            ours.close()
            raise WorkerGone(f"the template process of {', '.join(sorted(self.modules))} died") from None
        return ours, reply.pid

    def _hear(self, limit_s: float) -> Any:
        if not _readable(self._control, limit_s):
            raise TimeoutError
        return protocol.receive(self._control, template.FromTemplate)

    def _note(self, message: Any) -> None:
        if isinstance(message, template.Exited):
            self._exits[message.pid] = message.status

    def _exit_code(self, pid: int) -> int | None:
        """``None`` when the template does not know (any more); it ends what the worker left behind before it tells."""
        while pid not in self._exits:
            try:
                self._note(self._hear(_EXIT_WAIT_S))
            except (OSError, ValueError, EOFError, protocol.Garbled):
                break
        return self._exits.get(pid)

    def dismiss(self) -> None:
        """Tell the template that nobody needs it any more: it ends whatever was made from it, and itself."""
        self._control.close()

    def kill(self) -> None:
        """End the process at once, or, when it was dismissed, after the time that it needs to tidy up."""
        if self._watch < 0:
            return
        patience_s = _EXIT_WAIT_S if self._control.fileno() < 0 else 0.0
        if not _readable(self._watch, patience_s):
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._watch, signal.SIGKILL)
                _readable(self._watch, _EXIT_WAIT_S)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        os.close(self._watch)
        self._watch = -1


def start_template(name: str, modules: tuple[str, ...], log: Path, limit_s: float, mark: str = "") -> Template:
    """A template from a fresh interpreter."""
    ours, theirs = socket.socketpair()
    with theirs, log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "frugalbench.run.template", str(theirs.fileno()), *modules],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **_QUIET_LIBRARIES, family.MARK: mark},
            start_new_session=True,
        )
    process.returncode = 0  # reaped by the template's own watch, not by the module
    return Template(name, frozenset(modules), ours, process.pid, log, limit_s)


class Pool:
    """Templates by the modules they have imported, started when first needed."""

    def __init__(self, scratch: Path, limit_s: float, worker_limit_bytes: float | None = None):
        self._scratch = scratch
        self._limit_s = limit_s
        self._worker_limit_bytes = worker_limit_bytes
        self._mark = secrets.token_hex(8)
        self._templates: dict[frozenset[str], Template] = {}
        self._ready: dict[frozenset[str], template.Ready] = {}
        self._made = 0
        self._started = 0

    def template(self, modules: tuple[str, ...]) -> Template:
        """The template for ``modules``; raises :class:`WorkerGone` when its imports fail.

        It grows out of the one that has most of them already, so that a heavy library is imported once a run.
        """
        wanted = frozenset(modules)
        found = self._templates.get(wanted)
        if found is None or found.dead:
            if found is not None:
                found.kill()
            found = self._templates[wanted] = self._make(modules)
        if found.ready.problem:
            raise WorkerGone(found.ready.problem)
        self._ready[wanted] = found.ready
        return found

    def _make(self, modules: tuple[str, ...]) -> Template:
        self._made += 1
        name = f"template-{self._made}"
        log = self._scratch / f"{name}.log"
        usable = [item for item in self._templates.values() if item.modules < frozenset(modules) and item.forkable]
        base = max(usable, key=lambda item: len(item.modules), default=None)
        if base is not None:
            with contextlib.suppress(WorkerGone):
                return base.extend(name, modules, log, self._limit_s)
        return start_template(name, modules, log, self._limit_s, self._mark)

    def _source(self, modules: tuple[str, ...]) -> Template:
        """What to make a worker from: the template for ``modules``, or one without what must not be in a template.

        The one with it then ends: it may hold a device's memory, and keep the device awake.
        """
        wanted = frozenset(modules)
        ready = self._ready.get(wanted) or self.template(modules).ready
        rest = tuple(module for module in modules if module != ready.spoilt_by)
        if not rest or len(rest) == len(modules):
            return self.template(modules)
        try:
            lean = self._source(rest)
        except WorkerGone:
            return self.template(modules)
        if not lean.forkable:
            return self.template(modules)
        if (spoilt := self._templates.pop(wanted, None)) is not None:
            spoilt.kill()
        return lean

    def start(self, modules: tuple[str, ...]) -> tuple[Worker, str | None]:
        """A fresh worker and the id of its template, or ``None`` where it could not be forked."""
        self._started += 1
        log = self._scratch / f"worker-{self._started}.log"
        for _ in range(2):
            found = self._source(modules)
            with contextlib.suppress(WorkerGone):
                worker, kind = found.worker(log, self._worker_limit_bytes)
                return worker, found.id if kind == template.FORK else None
        raise WorkerGone(f"the template process of {', '.join(modules)} keeps dying")

    def pids(self) -> list[int]:
        """Process ids of all templates."""
        return [item.pid for item in self._templates.values()]

    def import_s(self) -> dict[str, float]:
        """Import time of each template, also of one that has ended."""
        living = {key: item.ready for key, item in self._templates.items()}
        return {" ".join(sorted(key)) or "numpy": item.import_s for key, item in (self._ready | living).items()}

    def spoilt(self) -> dict[str, str]:
        """What the import of a module did that forbids forks, by module."""
        return {item.spoilt_by: item.spoilt_how for item in self._ready.values() if item.spoilt_by}

    def close(self) -> None:
        """End all templates and everything that was ever made from them."""
        for item in self._templates.values():
            item.dismiss()
        for item in self._templates.values():
            item.kill()
        family.end_marked(self._mark)


def check_platform() -> None:
    """Raise :class:`FrugalbenchError` where the engine cannot work."""
    from frugalbench.machine import why_no_engine

    if reason := why_no_engine():
        raise FrugalbenchError(f"{reason}; run it in a Linux machine or container")
