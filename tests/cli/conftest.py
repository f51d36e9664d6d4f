"""What the tests of the command line share: a stored run, and a way to call it and look at what came out."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from factory import make_run, plausible_records
from frugalbench.analysis.claims import claims_hash
from frugalbench.cli.main import main


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be exactly one JSON document."""
        return json.loads(self.out)

    def is_problem(self, code: int = 2) -> "Answer":
        """Asserts a short message on stderr, nothing on stdout, and no traceback."""
        assert self.code == code, self.err
        assert self.out == ""
        assert 1 <= len(self.err.strip().splitlines()) <= 3 and "Traceback" not in self.err
        assert "frugalbench" in self.err
        return self


Call = Callable[..., Answer]


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No self-test of this machine, no run directory outside of the test's own folder."""
    monkeypatch.setenv("FRUGALBENCH_STATE_DIR", str(tmp_path / "state"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process."""

    def run(*arguments: object) -> Answer:
        try:
            code = main([str(item) for item in arguments])
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else 1
        found = capsys.readouterr()
        return Answer(code, found.out, found.err)

    return run


def in_child(*arguments: str, **options: Any) -> Answer:
    """Run a command in a fresh process."""
    made = subprocess.run(
        [sys.executable, "-m", "frugalbench.cli.main", *arguments],
        text=True, timeout=60, check=False, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )  # fmt: skip
    return Answer(made.returncode, made.stdout or "", made.stderr or "")


@pytest.fixture
def child() -> Call:
    """Run a command in a fresh process."""
    return in_child


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A complete run directory with every family."""
    return make_run(tmp_path / "stored", plausible_records(), claims_hash=claims_hash())
