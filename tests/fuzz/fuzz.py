"""Damaged configs and run directories at the command line: no traceback, no hang, exit code 2 or a correct reading.

``python tests/fuzz/fuzz.py --configs 500 --runs 500 --seed 1`` prints what came of it, and what was wrong in full.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from factory import make_reading, make_run, plausible_records
from frugalbench.cli.main import main as frugalbench
from frugalbench.paths import shipped
from fuzz import mutate

LIMIT_S = 20
"""For one command; the slowest draws charts."""
ALLOWED = {"plan": (0, 2, 3), "verdicts": (0, 2), "report": (0, 2), "compare": (0, 1, 2)}
"""Exit codes: 3 is a config of which nothing can run here, 1 a comparison in which something regressed."""
FORMATS = ("terminal", "terminal", "md", "csv", "json", "parquet", "html")
_BREAKS = ("\x1b", "\x9b", "\u202e", "\x00")
"""What may never reach a terminal."""


class Hang(BaseException):
    """A command ran into the time limit. Not an ``Exception``, so that nobody handles it on the way."""


@dataclass
class Tally:
    """What came of the examples."""

    codes: Counter[str] = field(default_factory=Counter)
    tracebacks: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """A wrong exit code, a refusal that is long or silent, control characters in what is printed."""
    slowest_s: float = 0.0

    @property
    def bad(self) -> list[str]:
        """Everything that should not be."""
        return self.tracebacks + self.hangs + self.wrong


def call(argv: Sequence[str], tally: Tally, what: str) -> None:
    """Run one command in this process and judge what it left behind."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    begin_s = time.monotonic()
    try:
        with _limited(LIMIT_S), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _own_stdout():
            code = frugalbench(argv)
    except Hang:
        tally.hangs.append(f"{what}: {' '.join(argv)}: no end after {LIMIT_S} s")
        return
    except BaseException:
        tally.tracebacks.append(f"{what}: {' '.join(argv)}\n{traceback.format_exc()}")
        return
    tally.slowest_s = max(tally.slowest_s, time.monotonic() - begin_s)
    tally.codes[f"{argv[0]} {code}"] += 1
    out.flush()
    text = out.buffer.getvalue().decode("utf-8")  # type: ignore[attr-defined]
    if reason := _wrong(argv, code, text, err.getvalue()):
        tally.wrong.append(f"{what}: {' '.join(argv)}: {reason}")


def _wrong(argv: Sequence[str], code: int, out: str, err: str) -> str | None:
    if code not in ALLOWED[argv[0]]:
        return f"exit code {code}: {err[:300]}"
    if any(character in out + err for character in _BREAKS):
        return "control characters reach the terminal"
    if code == 2 and not (1 <= len(err.strip().splitlines()) <= 5 and len(err) < 6000):
        return f"a refusal of {len(err.splitlines())} lines and {len(err)} characters: {err[:300]}"
    if code == 0 and "--json" in argv:
        json.loads(out)
    return None


@contextlib.contextmanager
def _limited(limit_s: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _own_stdout() -> Iterator[None]:
    """A command that finds standard output broken turns descriptor 1 away; put it back."""
    kept = os.dup(1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def configs(count: int, seed: int, folder: Path, tally: Tally) -> None:
    """``plan`` of ``count`` damaged versions of the shipped configs."""
    originals = [path.read_text() for path in sorted(shipped("configs").glob("*.toml"))]
    for number in range(count):
        dice = random.Random(f"config {seed} {number}")
        file = folder / "mutant.toml"
        file.write_bytes(mutate.config(dice, tomllib.loads(dice.choice(originals))))
        extra = dice.choice([[], [], ["--json"], ["--set", "measure.rounds=2"], ["--device", "cpu"]])
        call(["plan", str(file), *extra], tally, f"config {seed} {number}")


def runs(count: int, seed: int, folder: Path, tally: Tally) -> None:
    """Every reading command over ``count`` damaged versions of a made-up and of a measured run."""
    originals = [made_up(folder / "made-up"), *measured(folder / "measured")]
    for number in range(count):
        dice = random.Random(f"run {seed} {number}")
        whole, mutant = dice.choice(originals), folder / "mutant"
        shutil.copytree(whole, mutant)
        mutate.run(dice, mutant)
        target = str(folder / "written")
        commands: tuple[list[str], ...] = (
            ["verdicts", str(mutant), *dice.choice([[], ["--json"], ["--format", "md"]])],
            ["report", str(mutant), "--format", dice.choice(FORMATS), "--output", target],
            ["compare", *dice.choice([(str(whole), str(mutant)), (str(mutant), str(whole))]), "--fail-above", "5"],
        )
        for command in commands:
            call(command, tally, f"run {seed} {number}")
        shutil.rmtree(mutant)


def made_up(path: Path) -> Path:
    """Every family, with energy readings."""
    records = plausible_records(2)
    import msgspec

    with_joules = [msgspec.structs.replace(r, readings=(make_reading(round=1),)) if r.samples else r for r in records]
    return make_run(path, with_joules)


def measured(path: Path) -> list[Path]:
    """A slice of the reference run that lies in the repository, where it does."""
    whole = Path(__file__).resolve().parents[2] / "results" / "cpu-reference"
    if not (whole / "records.jsonl").exists():
        return []
    path.mkdir(parents=True)
    lines = (whole / "records.jsonl").read_bytes().splitlines(keepends=True)
    (path / "records.jsonl").write_bytes(b"".join(lines[:: max(1, len(lines) // 60)]))
    document: dict[str, Any] = json.loads((whole / "manifest.json").read_bytes())
    document["plan"]["comparisons"] = document["plan"]["comparisons"][:2]
    (path / "manifest.json").write_text(json.dumps(document))
    return [path]


def main(argv: Sequence[str] | None = None) -> int:
    """Print counts; 1 when anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--configs", type=int, default=500)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.environ["FRUGALBENCH_STATE_DIR"] = folder
        configs(arguments.configs, arguments.seed, Path(folder), tally)
        runs(arguments.runs, arguments.seed, Path(folder), tally)
    for problem in tally.bad:
        print(problem)
    print(f"{arguments.configs} configs, {arguments.runs} run directories, seed {arguments.seed}:")
    print(f"  tracebacks {len(tally.tracebacks)}, hangs {len(tally.hangs)}, otherwise wrong {len(tally.wrong)}")
    print("  exit codes " + ", ".join(f"{name}: {number}" for name, number in sorted(tally.codes.items())))
    print(f"  slowest command {tally.slowest_s:.1f} s")
    return 1 if tally.bad else 0


if __name__ == "__main__":
    sys.exit(main())
