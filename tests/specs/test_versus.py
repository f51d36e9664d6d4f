"""What the command line of ``versus`` names becomes a plan, or a sentence that says what is wrong with it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.schema import Comparison, FrugalbenchError
from frugalbench.specs.versus import Options, plan

FILE = """
import math, json as text
import beside
from os import path
from . import nothing
def f(): ...
async def later(): ...
class Kind:
    def method(self): ...
g = h = lambda: 1
if True:
    def inside(): ...
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "beside.py").write_text("def k(): ...\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(*arms: str, **options: object) -> Comparison:
    usual: dict[str, object] = {
        "commands": False, "setups": (), "check": False, "ignore_failure": False, "threads": 2, "seed": 1,
    }  # fmt: skip
    (comparison,) = plan(list(arms), Options(**{**usual, **options})).comparisons  # type: ignore[arg-type]
    return comparison


def params(*arms: str, **options: object) -> list[dict[str, object]]:
    return [arm.cases[0].params for arm in planned(*arms, **options).arms]


# Callables


def test_one_comparison_of_arms_named_as_the_user_named_them(here: Path) -> None:
    found = planned("mine.py:f", "mine.py:g", "os.path:join")
    assert [arm.id for arm in found.arms] == ["mine.py:f", "mine.py:g", "os.path:join"]
    assert not found.competes, "no pilot: nothing has to be chosen"
    assert found.arms[0].cases[0].params == {"threads": 2, "call": [str(here / "mine.py"), "f"]}
    assert found.arms[2].cases[0].params["call"] == ["os.path", "join"]
    assert all(arm.cases[0].tolerance is None for arm in found.arms)


@pytest.mark.parametrize("name", ["f", "later", "Kind", "Kind.method", "g", "h", "inside", "path", "text", "math.sin"])
def test_whatever_a_file_defines_can_be_named(name: str) -> None:
    assert params(f"mine.py:{name}", "mine.py:f")[0]["call"][1] == name  # type: ignore[index]


def test_libraries_but_not_neighbours_may_be_imported_beforehand() -> None:
    (first, _) = planned("mine.py:f", "beside.py:k").arms
    assert set(first.imports) == {"math", "json", "os"}


def test_an_arm_named_again_gets_a_number() -> None:
    assert [arm.id for arm in planned(*["mine.py:f"] * 3).arms] == ["mine.py:f", "mine.py:f #2", "mine.py:f #3"]


@given(st.lists(st.sampled_from(["true", "true #2", "true #2 #2", "echo 'a b'"]), min_size=2, max_size=6))
def test_names_are_never_shared(arms: list[str]) -> None:
    found = [arm.id for arm in planned(*arms, commands=True).arms]
    assert len(set(found)) == len(arms)
    assert all(name.startswith(text) for name, text in zip(found, arms, strict=True))


def test_setups_go_to_all_arms_or_one_to_each() -> None:
    assert [item.get("setup") for item in params("mine.py:f", "mine.py:g")] == [None, None]
    shared = params("mine.py:f", "mine.py:g", setups=("beside.py:k",))
    assert [item["setup"][1] for item in shared] == ["k", "k"]  # type: ignore[index]
    own = params("mine.py:f", "mine.py:g", setups=("beside.py:k", "mine.py:h"))
    assert [item["setup"][1] for item in own] == ["k", "h"]  # type: ignore[index]


def test_checking_gives_every_arm_the_tolerance() -> None:
    assert {arm.cases[0].tolerance for arm in planned("mine.py:f", "mine.py:g", check=True).arms} == {1e-5}


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        (["mine.py:f"], "at least two"),
        (["mine.py", "mine.py:f"], "file.py:function or module:function"),
        (["mine:f()", "mine.py:f"], "file.py:function"),
        (["mine.py:", "mine.py:f"], "file.py:function"),
        (["none.py:f", "mine.py:f"], "no file none.py"),
        (["mine.py:missing", "mine.py:f"], "defines no 'missing'"),
        (["broken.py:f", "mine.py:f"], "not valid Python"),
        (["binary.py:f", "mine.py:f"], "not valid Python"),
        (["no_such_module:f", "mine.py:f"], "no module 'no_such_module'"),
        ([".mine:f", "mine.py:f"], "no module '.mine'"),
        ([":f", "mine.py:f"], "no module ''"),
    ],
)
def test_a_callable_that_cannot_be_found(here: Path, arms: list[str], says: str) -> None:
    (here / "broken.py").write_text("def f(:\n")
    (here / "binary.py").write_bytes(b"\x00\xff\xfe")
    with pytest.raises(FrugalbenchError) as caught:
        planned(*arms)
    assert says in str(caught.value) and str(caught.value).count("\n") == 0


def test_setups_that_do_not_fit() -> None:
    with pytest.raises(FrugalbenchError, match="given 2 times"):
        planned("mine.py:f", "mine.py:f", "mine.py:f", setups=("mine.py:g",) * 2)
    with pytest.raises(FrugalbenchError, match="callables only"):
        planned("true", "true", setups=("mine.py:g",), commands=True)
    with pytest.raises(FrugalbenchError, match="--setup"):
        planned("mine.py:f", "mine.py:f", setups=("g",))


def test_a_star_import_may_define_anything(here: Path) -> None:
    (here / "stars.py").write_text("from math import *\n")
    assert params("stars.py:sin", "stars.py:cos")


def test_nothing_of_the_user_runs_while_planning(here: Path) -> None:
    (here / "danger.py").write_text("raise SystemExit(9)\ndef f(): ...\n")
    assert planned("danger.py:f", "danger.py:f")


# Commands


def test_plain_commands_start_without_a_shell() -> None:
    first, second = params("echo 'a b' c", "true", commands=True)
    assert first["command"] == ["echo", "a b", "c"] and second["command"] == ["true"]
    assert first["ignore_failure"] is False


@pytest.mark.parametrize("text", ["echo a | cat", "echo $HOME", "true && true", "echo *", "(true)", "true > /dev/null"])
def test_all_start_through_a_shell_when_one_needs_it(text: str) -> None:
    """Otherwise the shell's own start would be part of one arm only."""
    assert [item["command"] for item in params("true", text, commands=True)] == [
        ["/bin/sh", "-c", "true"], ["/bin/sh", "-c", text],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        (["no-such-command --x", "true"], "'no-such-command' is not on the path"),
        (["echo 'a", "true"], "quotes"),
        (["", "true"], "empty command"),
        (["   ", "true"], "empty command"),
    ],
)
def test_a_command_that_cannot_be_started(arms: list[str], says: str) -> None:
    with pytest.raises(FrugalbenchError, match=says):
        planned(*arms, commands=True)
