"""How each tool compares two callables in a given time: what it is run on, how it is run, how its answer is read.

Every tool gets the same ``arms.py`` with two functions, ``first`` and ``second``, and answers rule by rule which one
is faster: a rule is one way of reading its output. No threshold of ours enters a peer's rule; a gate's threshold is
the user's, and is part of the rule's name. All times given to a tool include its start-up.
"""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FIRST, SECOND = "first", "second"
GATE_FIELDS = ("mean", "median", "min")
PYPERF_VALUE_S = 0.1
"""pyperf's own default for the least duration of a value."""
PYPERF_WARMUPS, PYPERF_VALUES = 1, 3
"""pyperf's defaults per process."""
BEST_COLOUR = "\x1b[92m"
"""torch's Compare paints the fastest in this, and whatever it takes for equally fast."""


class ToolFailed(Exception):
    """The tool gave no answer; says why in one line."""


@dataclass(frozen=True)
class Job:
    """One comparison of one kind of work."""

    folder: Path
    kind: str
    units: tuple[int, int]
    """Work of ``first`` and of ``second``; 100 is the base."""
    seconds: float
    """Wall time for both arms together."""
    spare_s: float
    """What the tool was seen to take beside what it is asked for; for pyperf, per process."""
    call_s: float
    """Rough time of one call."""
    threads: int
    gates: tuple[float, ...]
    """Thresholds in percent, for the rules that need one."""
    seed: int


@dataclass(frozen=True)
class Answer:
    """What a tool said."""

    faster: dict[str, str | None]
    """By rule: the arm that it calls faster, ``None`` when it calls none."""
    wall_s: float
    spare_s: float
    raw: dict[str, Any]


class Runs:
    """Starts a tool's processes one after the other and adds up what they take."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.wall_s = 0.0
        self.errors = ""
        """What the last process said on stderr."""

    def __call__(self, words: Sequence[str], good: Sequence[int] = (0,), **more: str) -> str:
        """Output of ``python WORDS``; ``more`` is added to its environment. Raises :class:`ToolFailed`."""
        begin_s = time.perf_counter()
        code, output, self.errors = _call([sys.executable, *words], self.job, {**os.environ, **more})
        self.wall_s += time.perf_counter() - begin_s
        if code not in good:
            said = (self.errors.strip() or output.strip() or "nothing").splitlines()[-1]
            raise ToolFailed(f"{' '.join(words[:3])} ended with code {code}: {said[:200]}")
        return output


def _call(words: Sequence[str], job: Job, environment: Mapping[str, str]) -> tuple[int, str, str]:
    child = subprocess.Popen(
        words, cwd=job.folder, env=dict(environment), text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        output, errors = child.communicate(timeout=60 + 6 * job.seconds)
    except subprocess.TimeoutExpired:
        raise ToolFailed(f"{words[1]} took more than {60 + 6 * job.seconds:.0f} s") from None
    finally:
        if child.poll() is None:
            _end(child)
    return child.returncode, output, errors


def _end(child: "subprocess.Popen[str]") -> None:
    """Ask the child's group to stop, then make it."""
    for how in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=10)
            return


def rough_call_s(job: Job) -> float:
    """Time of one call of the first arm, median of a few."""
    program = (
        "import time, statistics, arms\n"
        "def once():\n begin = time.perf_counter(); arms.first(); return time.perf_counter() - begin\n"
        "print(statistics.median(once() for _ in range(9)))"
    )
    return float(Runs(job)(["-c", program]))


def frugalbench(job: Job) -> Answer:
    """``frugalbench versus``, with its defaults."""
    runs, asked_s = Runs(job), max(1.0, job.seconds - job.spare_s)
    words = ["-m", "frugalbench.cli.main", "versus", "arms.py:first", "arms.py:second", "--json"]
    words += ["--time-budget", f"{asked_s:.2f}", "--threads", str(job.threads), "--seed", str(job.seed)]
    faster, raw = read_versus(runs(words, good=(0, 1)))
    return Answer({"versus": faster}, runs.wall_s, max(0.0, runs.wall_s - asked_s), raw)


def read_versus(text: str) -> tuple[str | None, dict[str, Any]]:
    """The faster arm and the row it rests on, from the JSON of ``frugalbench versus``; none where the time ran out."""
    found = json.loads(text or '{"pairs": [], "state": "", "sentence": "frugalbench said nothing"}')
    if not found["pairs"]:
        if found["state"] == "out of time":
            return None, {"state": found["state"], "floor": found["floor"], "replicates": 0}
        raise ToolFailed(found["sentence"])
    pair = found["pairs"][0]
    raw = {name: pair[name] for name in ("ratio", "low", "high", "replicates", "detectable")}
    raw |= {name: found[name] for name in ("floor", "void_share", "steady_load", "state")}
    return {True: SECOND, False: FIRST, None: None}[pair["candidate_faster"]], raw


@dataclass(frozen=True)
class PyperfPlan:
    """Options of one pyperf run."""

    processes: int
    values: int
    loops: int

    def timed_s(self, call_s: float) -> float:
        """What its values take, warm-ups included."""
        return self.processes * (PYPERF_WARMUPS + self.values) * self.loops * call_s


def plan_pyperf(half_s: float, startup_s: float, call_s: float) -> PyperfPlan:
    """As many processes of its default three values as fit; two processes before more values; one if nothing else fits.

    The script's own process, which starts the others, imports what they import and therefore costs a start-up too.
    """
    loops = max(1, math.ceil(PYPERF_VALUE_S / call_s))
    value_s, left_s = loops * call_s, half_s - startup_s
    processes = int(left_s / (startup_s + (PYPERF_WARMUPS + PYPERF_VALUES) * value_s))
    if processes < 2:
        processes = 2 if left_s >= 2 * (startup_s + (PYPERF_WARMUPS + 2) * value_s) else 1
    values = int((left_s / processes - startup_s) / value_s) - PYPERF_WARMUPS
    return PyperfPlan(processes, max(2, min(values, PYPERF_VALUES) if processes > 2 else values), loops)


def pyperf(job: Job) -> Answer:
    """Two runs and ``compare_to``. The loops per value are given, so that no time goes into calibrating them."""
    runs, plan = Runs(job), plan_pyperf(job.seconds / 2, job.spare_s, job.call_s)
    options = ["-q", "-p", str(plan.processes), "-n", str(plan.values), "-w", str(PYPERF_WARMUPS)]
    options += ["-l", str(plan.loops)]
    for arm in (FIRST, SECOND):
        (job.folder / f"{arm}.json").unlink(missing_ok=True)
        runs([f"bench_{arm}.py", *options, "-o", f"{arm}.json"])
    compare = ["-m", "pyperf", "compare_to", "first.json", "second.json"]
    text = runs(compare)
    wall_s = runs.wall_s
    faster = {"compare_to": read_pyperf(text)}
    for gate in job.gates:
        faster[f"compare_to --min-speed={gate:g}"] = read_pyperf(runs([*compare, "--min-speed", f"{gate:g}"]))
    startup_s = (wall_s - 2 * plan.timed_s(job.call_s)) / (2 * plan.processes + 2)
    raw = {"said": text.strip(), "processes": plan.processes, "values": plan.values, "loops": plan.loops}
    return Answer(faster, wall_s, max(0.05, startup_s), raw)


def read_pyperf(text: str) -> str | None:
    """The faster arm by ``pyperf compare_to FIRST SECOND``, as a list, by speed (-G) or as a table."""
    if found := re.search(r"\d+(?:\.\d+)?x (faster|slower)", text):
        return SECOND if found[1] == "faster" else FIRST
    if re.search(r"not significant|no change", text, re.IGNORECASE):
        return None
    raise ToolFailed(f"pyperf compare_to said {text.strip()[:100]!r}")


def pytest_benchmark(job: Job) -> Answer:
    """Two saved runs; the second is gated on the first. The same gate the other way round is computed."""
    runs, share_s = Runs(job), max(0.1, (job.seconds - job.spare_s) / 2)
    store = job.folder / "store"
    for old in store.glob("*/*.json"):
        old.unlink()
    words = ["-m", "pytest", "-q", "-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider", "test_arm.py"]
    words += ["--benchmark-disable-gc", f"--benchmark-max-time={share_s:.2f}", f"--benchmark-storage=file://{store}"]
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    runs([*words, "--benchmark-save=first"], **alone, PEER_ARM=FIRST)
    first = saved_stats(store, FIRST)
    limit_s = first["mean"] * job.gates[0] / 100
    gate = ["--benchmark-compare=0001", f"--benchmark-compare-fail=mean:{limit_s:.9e}"]
    runs([*words, "--benchmark-save=second", *gate], good=(0, 1), **alone, PEER_ARM=SECOND)
    second = saved_stats(store, SECOND)
    faster = {
        f"{name} beyond {limit:g}%": gated(first[name], second[name], limit)
        for limit in job.gates
        for name in GATE_FIELDS
    }
    raw: dict[str, Any] = {FIRST: first, SECOND: second, "gate_failed": "Performance has regressed" in runs.errors}
    raw["gate_agrees"] = raw["gate_failed"] == (faster[f"mean beyond {job.gates[0]:g}%"] == FIRST)
    return Answer(faster, runs.wall_s, max(0.0, runs.wall_s - 2 * share_s), raw)


def saved_stats(store: Path, name: str) -> dict[str, float]:
    """Statistics of the one benchmark that was saved under ``name``."""
    files = list(store.glob(f"*/*_{name}.json"))
    if not files:
        raise ToolFailed(f"pytest-benchmark saved no run '{name}'")
    stats = json.loads(files[0].read_text())["benchmarks"][0]["stats"]
    return {field: stats[field] for field in (*GATE_FIELDS, "iqr", "rounds")}


def gated(first_s: float, second_s: float, percent: float) -> str | None:
    """The faster arm by pytest-benchmark's gate: the other one is slower by more than ``percent``."""
    if second_s / first_s * 100 - 100 > percent:
        return FIRST
    return SECOND if first_s / second_s * 100 - 100 > percent else None


def torch_timer(job: Job) -> Answer:
    """``Timer.blocked_autorange`` of both arms in one process, and ``Compare``."""
    share_s = max(0.1, (job.seconds - job.spare_s) / 2)
    return _torch(job, share_s, "blocked_autorange", {"min_run_time": share_s})


def torch_adaptive(job: Job) -> Answer:
    """``Timer.adaptive_autorange``, made to use the time even where its own criterion holds earlier."""
    share_s = max(0.1, (job.seconds - job.spare_s) / 2)
    return _torch(job, share_s, "adaptive_autorange", {"min_run_time": share_s, "max_run_time": 1.2 * share_s})


def _torch(job: Job, share_s: float, method: str, options: dict[str, float]) -> Answer:
    runs = Runs(job)
    threads = job.threads if job.kind == "blas" else 1
    text = runs(["torch_arms.py", method, json.dumps(options), str(threads)])
    found = json.loads((job.folder / "torch.json").read_text())
    faster = {"trimmed medians": trimmed(found), "colours of Compare": painted(text)}
    return Answer(faster, runs.wall_s, max(0.0, runs.wall_s - 2 * share_s), {**found, "said": text.strip()})


def trimmed(raw: Mapping[str, Mapping[str, float]]) -> str | None:
    """Whose median is smaller once both keep as many figures as the less precise of the two has significant ones."""
    first_s, second_s = raw[FIRST]["trimmed_s"], raw[SECOND]["trimmed_s"]
    same = math.isclose(first_s, second_s, rel_tol=1e-6)  # trim_sigfig rounds in single precision
    return None if same else FIRST if first_s < second_s else SECOND


def painted(text: str) -> str | None:
    """Who alone is painted best in the coloured table of ``Compare``."""
    rows = [
        (found[1], BEST_COLOUR in line) for line in text.splitlines() if (found := re.match(r"\s*(\w+)\s*\|", line))
    ]
    if [name for name, _ in rows] != [FIRST, SECOND]:
        raise ToolFailed(f"torch's Compare said {text.strip()[:100]!r}")
    best = [name for name, is_best in rows if is_best]
    return best[0] if len(best) == 1 else None


TOOLS: dict[str, Callable[[Job], Answer]] = {
    "frugalbench": frugalbench,
    "pyperf": pyperf,
    "pytest-benchmark": pytest_benchmark,
    "torch": torch_timer,
    "torch-adaptive": torch_adaptive,
}


def first_spare_s(tool: str, job: Job, seconds: float) -> float:
    """What a tool takes beside what it is asked for, from one short comparison that does not count."""
    return TOOLS[tool](replace(job, seconds=seconds, spare_s=0.2 if tool == "pyperf" else 0.0)).spare_s


@contextlib.contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """A process that computes all the time on the last core, if wanted; it ends with this one."""
    if not wanted:
        yield
        return
    program = (
        f"import os\nos.sched_setaffinity(0, [{max(os.sched_getaffinity(0))}])\n"
        f"while os.getppid() == {os.getpid()}:\n    sum(range(100_000))"
    )
    child = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        yield
    finally:
        child.kill()
        child.wait()
