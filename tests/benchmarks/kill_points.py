"""Kills runs at random moments and resumes them: is an acknowledged record ever lost, or one counted twice?

``python tests/benchmarks/kill_points.py --points 200 --seed 1`` starts ``frugalbench run`` on the fake workload, and at
a random moment either kills the parent; or kills a random worker or template; or kills the parent and then cuts
``records.jsonl`` at a random byte behind the last acknowledged one, as a loss of power would; or cuts it at any byte at
all, as a disk that lies would, which takes what came after the cut along. Then it resumes, kills again, and after a few
kills lets the run complete. A record is acknowledged when the ``fsync`` of its line returned.
Exit code 1 when anything was lost, counted twice, left running or did not complete.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from frugalbench.analysis.load import load_run
from frugalbench.analysis.statistics import counted, latest
from frugalbench.run import family
from frugalbench.schema import Status

FAKES = Path(__file__).parents[1] / "run" / "fakes"
KILLS_PER_RUN = 5
HOW = ("parent", "worker", "power", "cut")
CONFIG = """
name = "fake"
seed = {seed}
[measure]
looks = [4]
rounds = 3
pilot_rounds = 1
sample_s = 0.004
lead_in_s = 0.0
warmup_limit_s = 0.02
[[workload]]
name = "fake"
comparisons = 3
work_s = 0.004
"""
COMPARISONS = tuple(f"fake-{number}" for number in range(3))
REPLICATES = range(5)


@dataclass
class Tally:
    """What became of the kill points so far."""

    points: Counter = field(default_factory=Counter)
    too_late: int = 0
    acknowledged: int = 0
    lost: int = 0
    duplicated: int = 0
    mixed: int = 0
    superseded: int = 0
    survivors: int = 0
    incomplete: list = field(default_factory=list)

    @property
    def clean(self):
        """Whether the promise was kept."""
        return not (self.lost or self.duplicated or self.mixed or self.survivors or self.incomplete)


class Victim:
    """One run directory, and the processes that write into it."""

    def __init__(self, home, seed):
        self.home, self.out, self.side = home, home / "run", home / "acknowledged"
        (home / "fake.toml").write_text(CONFIG.format(seed=seed))
        self.mark = f"{os.getpid()}-{seed}-{home.name}"
        path = os.pathsep.join([str(FAKES), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.env = {
            **os.environ, "PYTHONPATH": path, "FAKE_ACKNOWLEDGED": str(self.side), "KILL_POINT": self.mark,
            "FRUGALBENCH_CACHE_DIR": str(home / "cache"), "FRUGALBENCH_STATE_DIR": str(home / "state"),
            "TMPDIR": str(home),
        }  # fmt: skip
        self.promised = b""

    def start(self):
        """Begin, or go on where there is something to go on with."""
        resume = ["--resume"] if (self.out / "manifest.json").exists() else []
        words = ["run", str(self.home / "fake.toml"), "--out", str(self.out), *resume]
        return subprocess.Popen(
            [sys.executable, "-m", "frugalbench.cli.main", *words], env=self.env, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def content(self):
        """The records as they are on disk."""
        file = self.out / "records.jsonl"
        return file.read_bytes() if file.exists() else b""

    def acknowledged_bytes(self):
        """Length of the records when the last fsync returned."""
        lines = self.side.read_text().split() if self.side.exists() else []
        return int(lines[-1]) if lines else 0

    def cut(self, dice, safe):
        """Cut at a random byte from ``safe`` on; maybe leave zeros or half a line of what never arrived."""
        if not (self.out / "manifest.json").exists():
            return
        content = self.content()
        torn = dice.choice([b"", b'{"schema_version":1,"comp', b"\0" * 40, b"\0" * 40 + b"\n"])
        at = dice.randint(min(safe, len(content)), len(content))
        (self.out / "records.jsonl").write_bytes(content[:at] + torn)
        self.promised = self.promised[: self.promised.rfind(b"\n", 0, at) + 1]

    def survivors(self, limit_s=10.0):
        """Processes of this run that are still there after ``limit_s``."""
        stop, mark = time.monotonic() + limit_s, f"KILL_POINT={self.mark}".encode()
        while found := [pid for pid in family.parents() if _carries(pid, mark)]:
            if time.monotonic() > stop:
                return found
            time.sleep(0.02)
        return []


def _carries(pid, mark):
    with contextlib.suppress(OSError):
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def kill_once(victim, how, after_s, dice, tally):
    """One kill point, ``after_s`` into a process's life; none when the run was faster."""
    process = victim.start()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=after_s)
        tally.too_late += 1
        return
    below = family.descendants(process.pid)
    if how == "worker" and below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(dice.choice(below), signal.SIGKILL)
    else:
        process.kill()
    process.communicate(timeout=60)
    left = victim.survivors()
    tally.survivors += len(left)
    tally.points[how] += 1
    victim.promised = victim.content()[: victim.acknowledged_bytes()]
    if how in ("power", "cut"):
        victim.cut(dice, victim.acknowledged_bytes() if how == "power" else 0)
        victim.side.write_text(f"{len(victim.promised)}\n")


def complete(victim, tally):
    """Let it finish, and count."""
    process = victim.start()
    _, said = process.communicate(timeout=120)
    found = load_run(victim.out) if process.returncode in (0, 1) else None
    if found is None or found.manifest.state != "complete" or found.problems:
        tally.incomplete.append(f"exit {process.returncode}: {said.strip()[-300:]}")
        return
    content = victim.content()
    promised = victim.promised.splitlines()
    tally.acknowledged += content.count(b"\n")
    tally.lost += len(promised) if not content.startswith(victim.promised) else 0
    tally.lost += sum((Counter(promised) - Counter(content.splitlines())).values())
    count_records(found.records, tally)
    tally.survivors += len(victim.survivors())


def count_records(records, tally):
    """Each replicate must count each arm at most once, and from one and the same attempt: neighbours in the file."""
    kept = latest(records)
    place = {id(record): number for number, record in enumerate(records)}
    keys = Counter((r.comparison, r.arm, r.case.id, r.replicate) for r in kept if counted(r))
    tally.duplicated += sum(number - 1 for number in keys.values())
    whole = [r for r in records if not r.interrupted and r.status is not Status.SKIPPED]
    tally.superseded += len(whole) - len({(r.comparison, r.arm, r.case.id, r.replicate) for r in whole})
    for name in COMPARISONS:
        wanted = 2
        for replicate in REPLICATES:
            group = [r for r in kept if (r.comparison, r.replicate) == (name, replicate) and not r.interrupted]
            places = sorted(place[id(record)] for record in group)
            if len(group) != wanted:
                tally.incomplete.append(f"{name} replicate {replicate}: {len(group)} of {wanted} records")
            elif places and places[-1] - places[0] != wanted - 1:
                tally.mixed += 1
            if replicate == 0:
                wanted -= sum(record.status is Status.FAILED for record in group)  # a worker killed in the pilot


def measure_length_s(home):
    """How long an undisturbed run takes."""
    begin = time.monotonic()
    victim = Victim(home, 0)
    process = victim.start()
    process.communicate()
    if process.returncode:
        raise SystemExit(f"an undisturbed run ends with code {process.returncode}")
    return time.monotonic() - begin


def kill_points(points, seed, progress=lambda _: None):
    """Everything; returns the :class:`Tally`."""
    dice, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory(prefix="kill-points-") as folder:
        (first := Path(folder) / "undisturbed").mkdir()
        length_s = measure_length_s(first)
        number = 0
        while sum(tally.points.values()) < points:
            number += 1
            (home := Path(folder) / str(number)).mkdir()
            victim = Victim(home, number)
            for _ in range(min(KILLS_PER_RUN, points - sum(tally.points.values()))):
                kill_once(victim, dice.choice(HOW), dice.uniform(0, 0.8 * length_s), dice, tally)
            complete(victim, tally)
            progress(f"{sum(tally.points.values())} of {points}")
    return tally


def table(tally):
    """The counts, one a line."""
    rows = {
        **{f"kill points: {how}": tally.points[how] for how in HOW},
        "too late, not counted above": tally.too_late,
        "records on disk at the end": tally.acknowledged,
        "acknowledged and lost": tally.lost,
        "counted twice": tally.duplicated,
        "counted from two attempts": tally.mixed,
        "superseded, kept on disk": tally.superseded,
        "processes left behind": tally.survivors,
        "runs that did not complete": len(tally.incomplete),
    }
    lines = [f"{name:28} {number:6}" for name, number in rows.items()]
    return "\n".join([*lines, *tally.incomplete])


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tally = kill_points(arguments.points, arguments.seed, lambda text: print(text, file=sys.stderr, flush=True))
    print(table(tally))
    return 0 if tally.clean else 1


if __name__ == "__main__":
    sys.exit(main())
