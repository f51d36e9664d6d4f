"""A short stretch of the fuzzer with a fixed seed; ``tests/fuzz/fuzz.py`` goes on for as long as one likes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from frugalbench.analysis import load
from fuzz import fuzz

COUNT = 60


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FRUGALBENCH_STATE_DIR", str(tmp_path / "state"))


def test_damaged_configs(tmp_path) -> None:
    tally = fuzz.Tally()
    fuzz.configs(COUNT, 1, tmp_path, tally)
    assert not tally.bad, "\n".join(tally.bad)
    assert sum(tally.codes.values()) == COUNT and tally.codes["plan 2"] and tally.codes["plan 0"]


def test_damaged_runs(tmp_path) -> None:
    tally = fuzz.Tally()
    fuzz.runs(COUNT, 1, tmp_path, tally)
    assert not tally.bad, "\n".join(tally.bad)
    for verb in ("verdicts", "report", "compare"):
        assert tally.codes[f"{verb} 0"] and tally.codes[f"{verb} 2"]


HANGS = """
import sys
from pathlib import Path

from frugalbench.analysis import load
from fuzz import fuzz

tally, run = fuzz.Tally(), str(fuzz.made_up(Path(sys.argv[1]) / "run"))
fuzz.LIMIT_S = 1
load.decode_manifest = lambda _: [None for _ in iter(int, 1)]
fuzz.call(["verdicts", run], tally, "hangs")
print(tally.hangs[0])
"""
"""In a process of its own: an alarm kills one in which some of the low-precision runtimes have computed."""


def test_the_fuzzer_sees_a_traceback_and_a_control_character(tmp_path, monkeypatch) -> None:
    tally = fuzz.Tally()
    run = str(fuzz.made_up(tmp_path / "run"))
    monkeypatch.setattr(load, "decode_manifest", lambda _: 1 / 0)
    fuzz.call(["verdicts", run], tally, "raises")
    monkeypatch.setattr(fuzz, "frugalbench", lambda _: print("\x1b[2J") or 0)
    fuzz.call(["verdicts", run], tally, "prints")
    assert "ZeroDivisionError" in tally.tracebacks[0] and "control characters" in tally.wrong[0]


def test_the_fuzzer_sees_a_hang(tmp_path) -> None:
    program = [sys.executable, "-c", HANGS, str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(program, env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert "hangs" in done.stdout
