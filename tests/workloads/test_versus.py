"""Callables and commands as a worker runs them: found, set up, called as often as asked, answers made comparable."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.run.worker import load_arrays, relative_error, save_arrays
from frugalbench.schema import Arm
from frugalbench.specs.versus import Options, plan
from frugalbench.workloads import versus
from frugalbench.workloads.base import Bound, Context

CONTEXT = Context(seed=1, threads=2, device="cpu", cache_dir=Path(), scratch_dir=Path())
FILE = """
import neighbour
calls = []
def f(*arguments):
    calls.append(arguments)
    return len(calls)
def nothing(): return None
def one(): return 7
def pair(): return 1, 2
def empty(): return ()
def listed(): return [1, 2]
def fails(): raise ValueError("it breaks")
async def later(): ...
def lazy(): yield 1
async def both(): yield 1
number = 3
class Kind:
    @staticmethod
    def method(): return neighbour.value
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's, forgotten after the test."""
    (tmp_path / "own_code.py").write_text(FILE)
    (tmp_path / "neighbour.py").write_text("value = 42\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("own_code", "neighbour"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "own_code.py"


def arm(*texts: str, **options: Any) -> Arm:
    usual = {"commands": False, "setups": (), "check": False, "ignore_failure": False, "threads": 2, "seed": 1}
    return plan([*texts, texts[0]], Options(**{**usual, **options})).comparisons[0].arms[0]


def bound(text: str, **options: Any) -> Bound:
    made = arm(text, **options)
    return versus.load(made, CONTEXT).bind(made.cases[0])


# Callables


@given(st.integers(0, 50), st.integers(0, 10**9))
def test_a_batch_makes_exactly_the_calls_asked_for(calls: int, first: int) -> None:
    seen: list[tuple[object, ...]] = []
    for arguments in ((), (1,), (1, "two")):
        del seen[:]
        call = lambda *given: seen.append(given)  # noqa: E731
        batch = versus._with(call, arguments) if arguments else versus._plain(call)
        batch(first, calls)
        assert seen == [arguments] * calls


@pytest.mark.parametrize(
    ("setup", "arguments"),
    [(None, ()), ("nothing", ()), ("one", (7,)), ("pair", (1, 2)), ("empty", ()), ("listed", ([1, 2],))],
)
def test_what_a_setup_returns_is_passed_on(file: Path, setup: str | None, arguments: tuple[object, ...]) -> None:
    found = bound(f"{file}:f", setups=(f"{file}:{setup}",) if setup else ())
    module = sys.modules["own_code"]
    assert module.calls == [], "loading calls nothing but the set-up"
    assert found.batch is not None
    found.call(0)
    found.batch(0, 3)
    assert module.calls == [arguments] * 4
    assert found.output(0)["number 0"] == 5.0


def test_a_module_of_a_file_is_loaded_once_and_sees_its_neighbours(file: Path) -> None:
    assert versus.find(str(file), "f") is versus.find(str(file), "f")
    assert versus.find(str(file), "Kind.method")() == 42
    assert versus.find("os.path", "join") is os.path.join


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", "has no 'missing'"),
        ("Kind.missing", "has no 'Kind.missing'"),
        ("number", "cannot be called"),
        ("later", "computes nothing yet"),
        ("lazy", "computes nothing yet"),
        ("both", "computes nothing yet"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_a_sentence(file: Path, name: str, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        versus.find(str(file), name)


def test_what_the_callable_raises_comes_through(file: Path) -> None:
    found = bound(f"{file}:fails")
    assert found.batch is not None
    for call in (lambda: found.call(0), lambda: found.batch and found.batch(0, 1), lambda: found.output(0)):
        with pytest.raises(ValueError, match="it breaks"):
            call()


# Answers that can be compared

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(-1e6, 1e6) | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(VALUES)
def test_any_plain_value_equals_itself(value: object) -> None:
    assert relative_error(versus._arrays(value), versus._arrays(value)) == 0.0


@given(VALUES, VALUES)
def test_values_of_another_form_are_told_apart(one: object, other: object) -> None:
    first, second = versus._arrays(one), versus._arrays(other)
    if not np.array_equal(first["form"], second["form"]):
        assert relative_error(second, first) > 1e-5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2), ([1, 2], [1, 3]), ([1, 2], [1, 2, 3]), ({"a": 1}, {"b": 1}), ({"a": 1}, {"a": 2}), ("ab", "ac"),
        (None, 0), ([1, "x"], [1, "y"]), ((1, (2, None)), (1, (2, 0))), (np.ones(3), np.ones(4)), (True, False),
        (1.0, float("nan")), ("", None), ([], {}), ({"a": 1}, {"a": 1, "b": 2}), ({"a": 1, "b": 2}, {"a": 1}),
        (10**400, 10**400 + 1), (1j, 2j), ("1", 1), (b"a", "a"), ({"small": 1e-9, "large": 1e9},
        {"small": 2e-9, "large": 1e9}),
    ],
)  # fmt: skip
def test_different_answers_are_told_apart(one: object, other: object) -> None:
    assert relative_error(versus._arrays(other), versus._arrays(one)) > 1e-5
    assert relative_error(versus._arrays(one), versus._arrays(one)) == 0.0


@pytest.mark.parametrize(
    ("one", "other"),
    [([1, 2], (1.0, 2.0)), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), (1.0, 1.0 + 1e-9), (np.ones(2), [1, 1])],
)  # fmt: skip
def test_alike_answers_of_other_types_are_alike(one: object, other: object) -> None:
    assert relative_error(versus._arrays(other), versus._arrays(one)) <= 1e-5


def test_answers_can_be_stored_whatever_they_are_called(tmp_path: Path) -> None:
    value = {"a/b": 1, "x" * 300: [1.5, "../y"], "": {}, "\0": []}
    save_arrays(tmp_path / "kept", versus._arrays(value))
    assert relative_error(load_arrays(tmp_path / "kept"), versus._arrays(value)) == 0.0


def test_what_cannot_be_compared_is_refused_in_a_sentence() -> None:
    for value in (object(), {1, 2}, [object()]):
        with pytest.raises(RuntimeError, match="--check cannot compare a"):
            versus._arrays(value)


def test_tensors_are_taken_as_numbers() -> None:
    torch = pytest.importorskip("torch")
    plain = torch.tensor([1.5, 2.0])
    for tensor in (plain, plain.clone().requires_grad_(), plain.bfloat16(), plain.half()):
        assert versus._arrays(tensor)["number 0"].tolist() == [1.5, 2.0]
    assert len(versus._arrays((plain, {"loss": plain[0]}))) == 3


def test_the_first_arm_is_the_reference_of_all(file: Path) -> None:
    made = arm(f"{file}:one", check=True)
    found = versus.reference(made.cases[0], CONTEXT)
    assert found["number 0"].tolist() == [7.0] and found["number 0"].shape == (1,)
    assert len({versus.reference_key(arm(f"{file}:{name}").cases[0]) for name in ("one", "pair", "f")}) == 1


# Commands


def command(text: str, **options: Any) -> Bound:
    return bound(text, commands=True, **options)


def test_each_call_starts_the_command_once_and_its_output_goes_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    found = command(f"echo out; echo err >&2; cat; echo x >> '{log}'")
    for _ in range(3):
        assert found.call(0) == 0
    assert log.read_text() == "x\n" * 3 and capfd.readouterr() == ("", "")
    assert found.output(0)["exit code"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("text", "says"),
    [("false", "exited with code 1"), ("sh -c 'exit 7'", "code 7"), ("no-such | exit 4", "code 4"),
     ("kill -9 $$", "killed by signal 9")],
)  # fmt: skip
def test_a_command_that_fails_is_no_measurement_unless_that_is_wanted(text: str, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        command(text).call(0)
    assert command(text, ignore_failure=True).output(0)["exit code"][0] != 0


def test_words_reach_the_command_as_they_were_quoted(tmp_path: Path) -> None:
    script = tmp_path / "words.py"
    script.write_text("import json, sys; json.dump(sys.argv[2:], open(sys.argv[1], 'w'))")
    out = tmp_path / "a b.json"
    command(f"{sys.executable} {script} '{out}' 'two words' \"quo'te\" ''").call(0)
    assert json.loads(out.read_text()) == ["two words", "quo'te", ""]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_is_left_behind() -> None:
    found = command("true")
    before = open_files()
    for _ in range(5):
        found.call(0)
    assert open_files() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
