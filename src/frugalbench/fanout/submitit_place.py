"""A Slurm cluster through submitit, one exclusive job per node; and submitit's local executor, for this machine.

Caller and job talk through files in a folder that both see, as submitit itself does.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from frugalbench.fanout import agent
from frugalbench.fanout.place import LeftOut, Lost, Node, safe_names
from frugalbench.schema import FrugalbenchError, NothingRunsHere

CHECK_S = 30.0
"""Between two questions to the scheduler about a job that says nothing."""
_QUIET_S = 20.0
_CALL_S = 60.0
_USABLE = "idle,mixed,allocated,completing"
_OWN = frozenset({"name", "nodes", "tasks_per_node", "slurm_nodes", "slurm_ntasks_per_node", "slurm_nodelist"})
"""What makes a job hold one whole machine, which options may not change."""
_OWN_FLAGS = frozenset({"slurm_exclusive", "slurm_additional_parameters", "slurm_srun_args", "slurm_use_srun"})


def load() -> Any:
    """The package; raises :class:`FrugalbenchError` where it is missing."""
    try:
        import submitit
    except ImportError:
        raise FrugalbenchError(
            "--on slurm: needs submitit, which is not installed.\nInstall: pip install 'frugalbench[slurm]'"
        ) from None
    return submitit


class SubmititPlace:
    """Nodes that Slurm (or this machine's own executor) runs jobs on."""

    def __init__(self, cluster: str, folder: Path, options: Mapping[str, Any], limit_min: int) -> None:
        """``cluster`` is ``slurm`` or ``local``; ``folder`` must be seen by the nodes; ``options`` are submitit's
        parameters, with or without ``slurm_``; ``limit_min`` is each job's time unless they say otherwise."""
        self._submitit = load()
        self._cluster, self._folder = cluster, folder.resolve()
        self._options = {"timeout_min": limit_min, **_prefixed(options)}
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise NothingRunsHere("--on slurm: no `sbatch` here.\nRun it where jobs are submitted from.")

    def nodes(self) -> list[Node]:
        """Nodes that answer, idle ones first; of the partition, if one was chosen."""
        keys = [socket.gethostname()] if self._cluster == "local" else self._listed()
        return [Node(name, key) for name, key in zip(safe_names(keys), keys, strict=True)]

    def _listed(self) -> list[str]:
        chosen = self._options.get("slurm_partition")
        where = [f"--partition={chosen}"] if chosen else []
        asked = ["sinfo", "--noheader", "--Node", "--responding", f"--states={_USABLE}", "--format=%t %N", *where]
        lines = sorted(
            set(_call(asked).splitlines()), key=lambda line: (not line.startswith("idle"), line.partition(" ")[2])
        )
        return list(dict.fromkeys(line.partition(" ")[2].strip() for line in lines if line.strip()))

    def occupy(self, node: Node) -> "BatchJob":
        """Submit the node's job; raises :class:`LeftOut` when Slurm does not take it (a constraint not met, say)."""
        mail = agent.Mailbox(self._folder / "mail" / node.name)
        mail.folder.mkdir(parents=True, exist_ok=True)
        try:
            executor = self._submitit.AutoExecutor(folder=self._folder / "log" / "%j", cluster=self._cluster)
            executor.update_parameters(**self._parameters(node))
        except (NameError, ValueError, AssertionError, TypeError, RuntimeError) as problem:
            first = (str(problem).splitlines() or ["not taken"])[0]
            raise FrugalbenchError(f"--on, --on-option: {first[:300]}") from None
        try:
            with _deaf(), redirect_stderr(StringIO()):  # submitit prints what it raises
                job = executor.submit(agent.serve, str(mail.folder))
        except Exception as problem:  # submitit passes on whatever sbatch said
            raise LeftOut(_last_line(str(problem))) from None
        return BatchJob(job, mail, self._cluster)

    def _parameters(self, node: Node) -> dict[str, Any]:
        own: dict[str, Any] = {"name": "frugalbench", "nodes": 1, "tasks_per_node": 1}
        if self._cluster == "slurm":
            own |= {"slurm_exclusive": True, "slurm_nodelist": node.key, "slurm_srun_args": ["--cpu-bind=none"]}
            own["slurm_additional_parameters"] = {"no_requeue": True}
        whole = {} if {"mem_gb", "slurm_mem"} & self._options.keys() else {"slurm_mem": "0"}
        return {**whole, **self._options, **own}

    def close(self) -> None:
        """Nothing is held but the folder."""


def _prefixed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Names as submitit's AutoExecutor takes them."""
    shared = {"timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "stderr_to_stdout"}
    found = {
        name if name in shared | _OWN or name.startswith("slurm_") else f"slurm_{name}": value
        for name, value in options.items()
    }
    if own := sorted((_OWN | _OWN_FLAGS) & found.keys()):
        raise FrugalbenchError(f"--on-option {own[0]}: is set so that a job holds one whole machine; leave it out")
    return found


class BatchJob:
    """One job and its mailbox."""

    def __init__(self, job: Any, mail: agent.Mailbox, cluster: str) -> None:
        self._job, self._mail, self._cluster = job, mail, cluster
        self._greeted, self._next, self._beats = False, 1, 0
        self._heard_s = self._checked_s = self._beat_s = time.monotonic()
        self._state = "submitted"
        self._released = False

    def heard(self) -> Sequence[dict[str, Any]]:
        """What lies in the mailbox; raises :class:`Lost` when the job has ended without its last word."""
        self._beat()
        gone = self._gone()
        found = list(self._letters())
        if found:
            self._heard_s = time.monotonic()
        elif gone:
            raise Lost(gone)
        return found

    def _letters(self) -> Iterator[dict[str, Any]]:
        if not self._greeted and (hello := self._mail.take("hello")) is not None:
            self._greeted = True
            yield {"hello": hello}
        while (report := self._mail.take(f"report-{self._next}")) is not None:
            self._next += 1
            yield {"report": report}

    def _beat(self) -> None:
        if time.monotonic() - self._beat_s > 5.0:
            self._beats, self._beat_s = self._beats + 1, time.monotonic()
            self._mail.put("alive", self._beats)

    def _gone(self) -> str:
        """Why the job is no more, or nothing while it is. Asked before the mailbox is read, so no letter is missed."""
        if self._cluster == "local":
            return f"its job ended: {self._last_words()}" if self._job.done() else ""
        now = time.monotonic()
        if (self._greeted and now - self._heard_s < _QUIET_S) or now - self._checked_s < CHECK_S:
            return ""
        self._checked_s = now
        listed = _ask(["squeue", "--noheader", f"--jobs={self._job.job_id}", "--format=%T %r"])
        if listed is None:
            return ""
        self._state = listed.strip()
        if self._state:
            return ""
        return f"Slurm ended its job ({_fate(self._job.job_id)}): {self._last_words()}"

    def _last_words(self) -> str:
        with suppress(Exception):
            return _last_line(self._job.stderr() or "")
        return "it left no message"

    def begin(self, request: dict[str, Any]) -> None:
        """Start measuring. On this machine the GPUs are those that the caller sees: submitit's executor hides them."""
        shown = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")} if self._cluster == "local" else {}
        self._mail.put("begin", {**request, "environment": shown})

    def stop(self) -> None:
        """Ctrl-C for the node's program."""
        self._mail.put("stop", True)

    def release(self) -> None:
        """End the job, whatever it does."""
        if self._released:
            return
        self._released = True
        with suppress(OSError):
            self._mail.put("end", True)
        if self._cluster == "local":
            self._end_here()
        else:
            _ask(["scancel", str(self._job.job_id)])

    def _end_here(self) -> None:
        limit_s = time.monotonic() + 3 * agent.PAUSE_S
        while not self._job.done() and time.monotonic() < limit_s:
            time.sleep(0.05)
        if not self._job.done():
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(self._job.job_id), signal.SIGTERM)

    def waiting(self) -> str:
        """State and reason as Slurm tells them."""
        return f"waiting for its job {self._job.job_id} ({self._state})"


@contextmanager
def _deaf() -> Iterator[None]:
    """What is started here does not hear Ctrl-C of this terminal: it is asked to stop, and answers."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _call(command: Sequence[str]) -> str:
    """What a program of Slurm prints; raises :class:`NothingRunsHere` with what it complains of."""
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=_CALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise NothingRunsHere(f"--on slurm: `{command[0]}` does not answer: {problem}") from None
    if made.returncode:
        raise NothingRunsHere(f"--on slurm: `{command[0]}`: {_last_line(made.stderr)}")
    return made.stdout


def _ask(command: Sequence[str]) -> str | None:
    """The same where no answer is an answer: a job that Slurm no longer knows is the empty text."""
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=_CALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if made.returncode:
        return "" if "nvalid job id" in made.stderr else None
    return made.stdout


def _fate(job_id: str) -> str:
    """State and reason of a job that has just ended."""
    told = _ask(["scontrol", "show", "job", "--oneliner", str(job_id)]) or ""
    fields = dict(item.split("=", 1) for item in told.split() if "=" in item)
    state, reason = fields.get("JobState", "state unknown"), fields.get("Reason", "None")
    return state if reason == "None" else f"{state}, {reason}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip(" -")]
    return lines[-1][:300] if lines else "it left no message"
