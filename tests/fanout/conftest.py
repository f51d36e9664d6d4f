"""The command line as users type it, away from this user's own state."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fanned import PLUGIN
from frugalbench.cli.main import main


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., list[str]]:
    """The command line that fans the plugin's config out into ``tmp_path / "out"``."""

    def line(*words: str, config: object = PLUGIN) -> list[str]:
        start = [sys.executable, "-m", "frugalbench.cli.main", "run", str(config), "--allow-code"]
        return [*start, "--out", str(tmp_path / "out"), *words]

    return line


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    """Environment of a command: no state of this user is read or written."""
    return {**os.environ, "FRUGALBENCH_STATE_DIR": str(tmp_path / "state"), "PYTHONWARNINGS": "ignore"}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The same in this process: exit code and standard error."""

    def run(folder: Path, *words: str) -> tuple[int, str]:
        code = main(["run", str(PLUGIN), "--allow-code", "--out", str(folder / "out"), *words])
        errors = capsys.readouterr().err
        assert "Traceback" not in errors
        return code, errors

    return run
