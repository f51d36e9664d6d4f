"""What the machines of a cluster do for a fanned-out run: start ``frugalbench run`` there and hand its files out.

Ray sends this module by value to nodes that may lack frugalbench or have another version, so it imports the standard
library alone and runs the node's frugalbench as a program only. Between two questions it sleeps; nothing here computes
while the node is being timed.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAM = "frugalbench.cli.on_node"
"""Measures; its request is a line of JSON on standard input, its progress are lines on standard error."""
IDENTITY = "frugalbench.fanout.identity"
PAUSE_S = 2.0
"""Between two looks at the mailbox of a job."""
SILENCE_S = 600.0
"""A job whose caller has not given a sign of life for so long ends itself."""
_MOST_RECORDS_BYTES = 8 * 2**20
_MOST_LINES = 40
_MOST_LINE = 500
_ASK_LIMIT_S = 180.0


class Agent:
    """One node of the cluster, as long as it is ours. Every answer is plain data."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="frugalbench-node-"))
        self._run = self._folder / "run"
        self._child: subprocess.Popen[bytes] | None = None
        self._read_bytes = {"log": 0, "records.jsonl": 0}
        self._manifest: tuple[int, int] = (0, 0)

    def hello(self) -> dict[str, Any]:
        """Which machine this is, and which frugalbench its interpreter runs (``problem`` when none)."""
        told = {"host": socket.gethostname(), "boot": _boot(), "executable": sys.executable}
        try:
            asked = subprocess.run(
                [sys.executable, "-P", "-m", IDENTITY],
                capture_output=True, timeout=_ASK_LIMIT_S, env=_environment({}), check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as problem:
            return {**told, "problem": f"cannot ask {sys.executable} for its frugalbench: {problem}"}
        if asked.returncode:
            last = (asked.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
            return {**told, "problem": f"{sys.executable}: {last[:_MOST_LINE]}"}
        return {**told, **json.loads(asked.stdout)}

    def begin(self, request: dict[str, Any]) -> None:
        """Start measuring what ``request`` asks for; ``environment`` in it sets variables, or unsets those of None."""
        here = request.get("cwd")
        with (self._folder / "log").open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", PROGRAM],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log,
                cwd=here if here and Path(here).is_dir() else self._folder,
                env=_environment(request.get("environment", {})), start_new_session=True,
            )  # fmt: skip
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._child.stdin as stream:
            stream.write(json.dumps({**request, "out": str(self._run), "parent": os.getpid()}).encode())

    def poll(self) -> dict[str, Any]:
        """What is new: ``lines`` of progress, whole ``records`` as text, the ``manifest`` if it changed, the exit
        ``code`` once the program has ended and everything of it was handed out."""
        code = None if self._child is None else self._child.poll()
        records = self._new("records.jsonl", self._run / "records.jsonl", _MOST_RECORDS_BYTES)
        log = self._new("log", self._folder / "log", 2**20)
        lines = [line[:_MOST_LINE] for line in log.splitlines() if line.strip()][-_MOST_LINES:]
        return {"lines": lines, "records": records, "manifest": self._changed(), "code": None if records else code}

    def stop(self) -> None:
        """Ctrl-C for the program: it keeps what it has and ends."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End what still runs, and leave nothing behind."""
        if self._child is not None and self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _new(self, name: str, file: Path, most_bytes: int) -> str:
        """Whole lines that were not handed out yet."""
        try:
            with file.open("rb") as stream:
                stream.seek(self._read_bytes[name])
                content = stream.read(most_bytes)
                while b"\n" not in content and (more := stream.read(most_bytes)):
                    content += more
        except FileNotFoundError:
            return ""
        whole = content[: content.rfind(b"\n") + 1]
        self._read_bytes[name] += len(whole)
        return whole.decode(errors="replace")

    def _changed(self) -> str | None:
        file = self._run / "manifest.json"
        try:
            status = file.stat()
            if (found := (status.st_mtime_ns, status.st_ino)) == self._manifest:
                return None
            self._manifest = found
            return file.read_text()
        except FileNotFoundError:
            return None


def _boot() -> str:
    """The same for all containers of one machine until it starts anew; empty where the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _environment(changes: dict[str, str | None]) -> dict[str, str]:
    """The environment, without a number of threads that Ray put there by itself."""
    found = dict(os.environ)
    with contextlib.suppress(OSError):
        if b"OMP_NUM_THREADS=" not in Path("/proc/self/environ").read_bytes():
            found.pop("OMP_NUM_THREADS", None)
    for name, value in changes.items():
        found.pop(name, None)
        found |= {} if value is None else {name: value}
    return found


def serve(folder: str) -> None:
    """A whole batch job: talks with its caller through files of ``folder``, which both of them see.

    Writes ``hello.json`` and ``report-N.json``; begins on ``begin.json``, stops on ``stop`` or a signal of the
    scheduler, gives up on ``end``.
    """
    agent, mail = Agent(), Mailbox(Path(folder))
    for warning in (signal.SIGTERM, signal.SIGUSR2):  # scancel and preemption; the end of the job's time
        signal.signal(warning, mail.ask_to_stop)
    try:
        mail.put("hello", agent.hello())
        _converse(agent, mail)
    finally:
        agent.close()


def _converse(agent: Agent, mail: "Mailbox") -> None:
    begun, stopped, number = False, False, 0
    while not mail.has("end") and not (mail.stopping() and not begun):
        if not begun and (request := mail.take("begin")) is not None:
            begun = True
            agent.begin(request)
        if mail.stopping() and not stopped:
            stopped = True
            agent.stop()
        report = agent.poll() if begun else {"code": None}
        if any(value not in (None, "", []) for value in report.values()):
            number += 1
            mail.put(f"report-{number}", report)
        if report["code"] is not None:
            return
        time.sleep(PAUSE_S)


class Mailbox:
    """Both ends of a folder that caller and job share. A file is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._asked = False
        self._alive: tuple[str, float] = ("", time.monotonic())

    def put(self, name: str, value: Any) -> None:
        """Leave ``value`` for the other end."""
        partial = self.folder / f".{name}.partial"
        partial.write_text(json.dumps(value))
        partial.replace(self.folder / f"{name}.json")

    def take(self, name: str) -> Any:
        """What the other end left, once; ``None`` while there is nothing that can be read."""
        file = self.folder / f"{name}.json"
        try:
            found = json.loads(file.read_text())
            file.unlink(missing_ok=True)
        except (OSError, ValueError):
            return None
        return found

    def has(self, name: str) -> bool:
        """Whether something called ``name`` lies here."""
        return (self.folder / f"{name}.json").exists()

    def ask_to_stop(self, *_signal: Any) -> None:
        """The scheduler wants the node back."""
        self._asked = True

    def stopping(self) -> bool:
        """Whether the caller or the scheduler said stop, or the caller is gone."""
        return self._asked or self.has("stop") or self._silent()

    def _silent(self) -> bool:
        """The caller writes another number every few seconds; how clocks are set does not matter."""
        try:
            now = (self.folder / "alive.json").read_text()
        except OSError:
            now = ""
        if now != self._alive[0]:
            self._alive = (now, time.monotonic())
        return time.monotonic() - self._alive[1] > SILENCE_S
