"""The ``frugal`` fixture inside a user's own tests: a pytest of its own, in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = ("-p", "frugalbench.pytest_plugin", "-p", "no:cacheprovider", "-q")
USER = """
import pytest
from frugalbench.schema import FrugalbenchError

def little(): return sum(range(100))
def much(): return sum(range(3000))
def raises(): raise ValueError("it breaks")
def data(): return list(range(100))
OPTIONS = {"replicates": 3, "threads": 1}

def test_ratio(frugal):
    found = frugal(little, against=much, energy=True, tokens=4, **OPTIONS)
    assert found.ratio > 4 and found.faster is True and found.low < found.ratio < found.high
    assert found.mine.time_s < found.other.time_s and "little is fastest" in found.sentence
    joules = found.mine.joule_per_token
    assert joules is None or joules > 0

def test_time_with_setup(frugal):
    timing = frugal.time(sorted, setup=data, **OPTIONS)
    assert 0 < timing.time_s < 0.01 and timing.replicates == 3
    assert timing.joule_per_token is None and timing.token_per_joule is None

def test_what_cannot_be_measured(frugal):
    with pytest.raises(FrugalbenchError, match="fresh process"):
        frugal.time(lambda: 1)
    with pytest.raises(FrugalbenchError, match="it breaks"):
        frugal(raises, against=little, **OPTIONS)
    with pytest.raises(FrugalbenchError, match="no option 'rounds'"):
        frugal.time(little, rounds=3)
"""
UNUSED = """
import sys
def test_nothing_is_imported():
    assert not {"numpy", "torch", "msgspec", "frugalbench.cli.fixture", "frugalbench.schema"} & set(sys.modules)
"""


def user_tests(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_user.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGIN, "-p", "no:hypothesispytest", "-p", "no:benchmark", "test_user.py"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip


def test_it_costs_nothing_when_unused(tmp_path: Path) -> None:
    found = user_tests(tmp_path, UNUSED)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.real
def test_a_function_against_another_and_alone(tmp_path: Path) -> None:
    found = user_tests(tmp_path, USER)
    assert found.returncode == 0 and "3 passed" in found.stdout, found.stdout + found.stderr
