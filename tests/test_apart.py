"""A module run as a program: its answer, its refusal, its death and its silence are told apart."""

import sys

import pytest

from frugalbench.apart import ask

PROGRAM = """
import os, sys, time
from frugalbench import apart
def work(request):
    if request["do"] == "refuse":
        raise RuntimeError("not\\nthis one")
    if request["do"] == "die":
        print("last words", file=sys.stderr, flush=True)
        os.abort()
    if request["do"] == "sleep":
        time.sleep(60)
    return {"got": request}
apart.serve(work)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    (tmp_path / "apart_program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))
    return "apart_program"


def test_an_answer(program):
    assert ask(program, {"do": "x", "n": [1, None]}, 30).value == {"got": {"do": "x", "n": [1, None]}}


def test_a_refusal_is_one_line(program):
    found = ask(program, {"do": "refuse"}, 30)
    assert (found.outcome, found.reason) == ("refused", "not this one")


def test_a_death_is_told_with_its_last_words(program):
    found = ask(program, {"do": "die"}, 30)
    assert found.outcome == "crash"
    assert "SIGABRT" in found.reason and "last words" in found.reason


def test_silence_ends_at_the_limit(program):
    assert ask(program, {"do": "sleep"}, 1.0).outcome == "timeout"
