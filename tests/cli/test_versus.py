"""``frugalbench versus`` from the command line: what it answers, in which words, with which exit code."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from factory import make_record, make_run
from frugalbench.analysis.load import Run, load_run
from frugalbench.cli import session
from frugalbench.schema import Plan, Record, Status

FILE = """
import os
def fast(): return sum(range(100))
def slow(): return sum(range(1000))
def raises(): raise ValueError("it breaks")
def leaves(): raise SystemExit("gone")
def dies(): os._exit(4)
def hangs():
    while True: pass
def prints():
    print("noise")
    os.write(1, b"raw noise")
    return 1
def early(): pass
print("noise while importing")
def add(x, y=0): return x + y
def one(): return 40
def two(): return 40, 2
def broken_setup(): raise OSError("cannot prepare")
"""
QUICK = ("--replicates", 2)


@pytest.fixture
def file() -> Path:
    """In the working directory of the test."""
    Path("mine.py").write_text(FILE)
    Path("broken.py").write_text("def f(:\n")
    Path("needs.py").write_text("import no_such_module\ndef f(): ...\n")
    return Path("mine.py")


def no_traceback(answer: Any) -> Any:
    assert "Traceback" not in answer.out + answer.err
    return answer


def problems(answer: Any) -> dict[str, str]:
    return {item["arm"]: item["problem"] for item in answer.json["arms"]}


# Real runs

real = pytest.mark.real


@real
def test_three_arms_in_json_with_a_run_directory(call, file) -> None:  # noqa: ARG001
    arms = ("mine.py:slow", "mine.py:fast", "json:JSONDecoder")
    answer = no_traceback(call("versus", *arms, *QUICK, "--json", "--out", "kept", "--seed", 3))
    assert answer.code == 0, answer.err
    found = answer.json
    assert set(found) >= {
        "state", "machine", "sentence", "arms", "pairs", "energy", "floor", "void_share", "steady_load",
    }  # fmt: skip
    assert [item["arm"] for item in found["arms"]] == list(arms) and found["state"] == "complete"
    assert all(item["time_s"] > 0 and item["replicates"] == 2 and item["calls"] > 0 for item in found["arms"])
    assert [(p["baseline"], p["candidate"]) for p in found["pairs"]] == [
        (arms[0], arms[1]), (arms[0], arms[2]), (arms[1], arms[2]),
    ]  # fmt: skip
    assert 3 < found["pairs"][0]["ratio"] < 60 and found["pairs"][0]["replicates"] == 2
    kept = load_run("kept")
    assert kept.manifest.seed == 3 and kept.manifest.floor == found["floor"] and len(kept.records) == 6
    assert any("never self-tested" in note for note in kept.manifest.notes)
    assert call("report", "kept", "--format", "csv").out.count("versus/") >= 3
    assert not list(Path.cwd().glob("runs")), "nothing else is left behind"


@real
def test_whoever_wins_the_exit_code_is_0(call, file) -> None:  # noqa: ARG001
    answer = no_traceback(call("versus", "mine.py:fast", "mine.py:slow", "--replicates", 4))
    assert answer.code == 0 and "mine.py:slow" in answer.out.splitlines()[0]
    assert answer.out.count("mine.py:fast") >= 2 and "widened by 3.00%" in answer.out
    assert "replicate 1" in answer.err, "progress goes to stderr"


@real
def test_the_same_arm_twice_is_two_arms(call, file) -> None:  # noqa: ARG001
    found = call("versus", "mine.py:fast", "mine.py:fast", *QUICK, "--json").json
    assert [item["arm"] for item in found["arms"]] == ["mine.py:fast", "mine.py:fast #2"]
    assert 0.2 < found["pairs"][0]["ratio"] < 5


BROKEN = {
    "mine.py:raises": "ValueError: it breaks",
    "mine.py:leaves": "gone",
    "mine.py:dies": "exited with code 4",
    "needs.py:f": "no_such_module",
    "json:nothing": "json has no 'nothing'",
    "mine.py:add": "missing 1 required positional argument",
}


@real
def test_arms_that_cannot_run_say_why_and_the_others_go_on(call, file) -> None:  # noqa: ARG001
    answer = no_traceback(call("versus", "mine.py:fast", *BROKEN, "mine.py:slow", *QUICK, "--json"))
    assert answer.code == 1
    found = problems(answer)
    assert found["mine.py:fast"] == found["mine.py:slow"] == ""
    assert [arm for arm, says in BROKEN.items() if says not in found[arm]] == [], found
    (pair,) = answer.json["pairs"]
    assert (pair["baseline"], pair["candidate"]) == ("mine.py:fast", "mine.py:slow")


@real
def test_nothing_to_compare_is_said(call, file) -> None:  # noqa: ARG001
    answer = no_traceback(call("versus", "mine.py:raises", "mine.py:raises", *QUICK))
    assert answer.code == 1 and answer.out.startswith("Nothing to compare: mine.py:raises: ValueError: it breaks")


@real
def test_what_arms_print_does_not_reach_stdout(child, file) -> None:  # noqa: ARG001
    answer = no_traceback(child("versus", "mine.py:prints", "mine.py:fast", "--replicates", "2", "--json"))
    assert answer.code == 0 and "noise" not in answer.out and len(answer.json["pairs"]) == 1


@real
def test_setups_once_for_all_and_one_for_each(call, file) -> None:  # noqa: ARG001
    each = ("--setup", "mine.py:one", "--setup", "mine.py:two")
    answer = call("versus", "mine.py:add", "mine.py:add", *each, "--check", *QUICK, "--json")
    assert answer.code == 1 and "wrong answer" in problems(answer)["mine.py:add #2"], "40 is not 42"
    shared = call("versus", "mine.py:add", "mine.py:add", "--setup", "mine.py:two", "--check", *QUICK, "--json")
    assert shared.code == 0, shared.err
    failed = no_traceback(call("versus", "mine.py:add", "mine.py:add", "--setup", "mine.py:broken_setup", *QUICK))
    assert failed.code == 1 and "OSError: cannot prepare" in failed.out


@real
def test_check_stops_what_answers_otherwise(call, file) -> None:  # noqa: ARG001
    answer = no_traceback(call("versus", "mine.py:fast", "mine.py:slow", "--check", *QUICK, "--json"))
    assert answer.code == 1 and answer.json["pairs"] == []
    assert "wrong answer" in problems(answer)["mine.py:slow"]
    assert answer.json["arms"][1]["time_s"] is None, "no number for a wrong answer"


@real
def test_commands_with_quotes_and_with_a_shell(call, tmp_path) -> None:
    log = tmp_path / "a b"
    arms = (f"touch '{log}'", "true", 'echo "it\'s" | cat > /dev/null')
    answer = no_traceback(call("versus", "--command", *arms, *QUICK, "--json"))
    assert answer.code == 0, answer.err
    assert [item["arm"] for item in answer.json["arms"]] == list(arms) and log.exists()
    assert all(item["time_s"] > 1e-4 for item in answer.json["arms"])


@real
def test_a_failing_command(call) -> None:
    answer = no_traceback(call("versus", "--command", "true", "false", *QUICK, "--json"))
    assert answer.code == 1 and "--ignore-failure" in problems(answer)["false"]
    assert call("versus", "--command", "true", "false", "--ignore-failure", *QUICK, "--json").code == 0


@real
@pytest.mark.parametrize(
    "arms",
    [("mine.py:hangs", "mine.py:fast"), ("--command", f"sleep 9{os.getpid()}", "true")],
    ids=["callable", "command"],
)
def test_what_never_ends_is_ended_with_the_time_budget(call, file, arms) -> None:  # noqa: ARG001
    answer = no_traceback(call("versus", *arms, "--time-budget", 2, "--json"))
    assert answer.code == 1 and answer.json["pairs"] == []
    assert any("time budget of 2 s" in text for text in problems(answer).values())
    assert f"9{os.getpid()}".encode() not in b" ".join(command_lines()), "nor is it left behind"


def command_lines() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"sleep"):
            found.append(b" ".join(words))
    return found


# Wrong requests


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mine.py:fast",), "at least two"),
        (("mine.py:fast", "none.py:f"), "no file none.py"),
        (("mine.py:fast", "mine.py:none"), "defines no 'none'"),
        (("mine.py:fast", "broken.py:f"), "broken.py: not valid Python"),
        (("mine.py:fast", "no_such_module:f"), "no module 'no_such_module'"),
        (("mine.py:fast", "mine.py"), "file.py:function"),
        (("mine.py:fast", "mine.py:slow", "--setup", "f"), "--setup"),
        (("mine.py:fast", "mine.py:slow", *["--setup", "mine.py:one"] * 3), "3 times"),
        (("--command", "true", "false", "--setup", "mine.py:one"), "callables only"),
        (("--command", "true", "no-such-command"), "not on the path"),
        (("--command", "true", "echo 'x"), "quotes"),
        (("--command", "true", ""), "empty command"),
        (("mine.py:fast", "mine.py:slow", "--replicates", 1), "--replicates: must be at least 2"),
        (("mine.py:fast", "mine.py:slow", "--time-budget", 0), "--time-budget"),
        (("mine.py:fast", "mine.py:slow", "--time-budget", "nan"), "--time-budget"),
        (("mine.py:fast", "mine.py:slow", "--threads", 0), "--threads"),
        (("mine.py:fast", "mine.py:slow", "--seed", -1), "--seed"),
        (("mine.py:fast", "mine.py:slow", "--fail-above", -0.1), "--fail-above"),
        (("mine.py:fast", "mine.py:slow", "--out", "mine.py"), "mine.py"),
    ],
)
def test_a_wrong_request_is_a_sentence(call, file, arguments, says) -> None:  # noqa: ARG001
    before = sorted(os.listdir())  # noqa: PTH208
    assert says in call("versus", *arguments).is_problem().err
    assert call("versus", *arguments, "--json").out == ""
    assert sorted(os.listdir()) == before  # noqa: PTH208


def test_an_existing_run_directory_is_kept(call, file, tmp_path) -> None:  # noqa: ARG001
    run = make_run(tmp_path / "old", [make_record()])
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    call("versus", "mine.py:fast", "mine.py:slow", "--out", run).is_problem()
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


# What is made of a measured run


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Make ``versus`` see a stored run instead of measuring; arms are planned as named."""

    def prepare(records: list[Record], state: str = "complete", floor: float = 0.0) -> None:
        def measure(config: Any, plan: Plan, machine: Any, path: Path, *_: object) -> Run:  # noqa: ARG001
            made = make_run(
                path if path.parent.exists() else tmp_path / "made", records, plan=plan, state=state, floor=floor,
                config=msgspec.to_builtins(config),
            )  # fmt: skip
            return load_run(made)

        monkeypatch.setattr(session, "measure", measure)

    return prepare


def arm(name: str, time_s: float, replicates: int = 6, noise: float = 0.0) -> list[Record]:
    rng = np.random.default_rng(list(name.encode()))
    return [
        make_record(name, "calls", "versus", comparison="versus", replicate=number,
                    time_s=[time_s * math.exp(noise * rng.standard_normal())] * 3)
        for number in range(1, replicates + 1)
    ]  # fmt: skip


def two(b_s: float, noise: float = 0.0) -> list[Record]:
    return [*arm("mine.py:fast", 0.01, noise=noise), *arm("mine.py:slow", b_s, noise=noise)]


ARMS = ("versus", "mine.py:fast", "mine.py:slow")


@pytest.mark.parametrize(
    ("b_s", "limit", "code"),
    [
        (0.0125, 24.9, 1), (0.0125, 25.1, 0), (0.0125, 0, 1), (0.01, 0, 0), (0.0075, 0, 0), (0.0075, 100, 0),
        (0.0125, None, 0),
    ],
)  # fmt: skip
def test_fail_above_is_about_the_first_arm(call, file, measured, b_s, limit, code) -> None:  # noqa: ARG001
    measured(two(b_s))
    answer = call(*ARMS, *(() if limit is None else ("--fail-above", limit)))
    assert answer.code == code and ("is slower than mine.py:fast" in answer.err) is bool(code)
    assert "mine.py" in answer.out
    assert call(*ARMS, *(() if limit is None else ("--fail-above", limit)), "--json").code == code


def test_fail_above_asks_for_certainty(call, file, measured) -> None:  # noqa: ARG001
    measured(two(0.0125, noise=0.2))
    assert call(*ARMS, "--fail-above", 5).code == 0, "25% slower, but not surely 5%"
    measured(two(0.0125), floor=0.3)
    assert call(*ARMS, "--fail-above", 0).code == 0, "the floor counts against a difference too"


def test_fail_above_with_three_arms_names_those_that_are_slower(call, file, measured) -> None:  # noqa: ARG001
    third = [*two(0.02), *arm("mine.py:add", 0.005)]
    measured(third)
    answer = call(*ARMS, "mine.py:add", "--fail-above", 10)
    assert answer.code == 1 and "mine.py:slow is slower" in answer.err and "mine.py:add is slower" not in answer.err
    assert "100.0%" in answer.err


@pytest.mark.parametrize(
    ("state", "code"), [("complete", 0), ("out of time", 0), ("interrupted", 130)], ids=["complete", "late", "stopped"]
)
def test_the_state_of_the_run_is_told(call, file, measured, state, code) -> None:  # noqa: ARG001
    measured(two(0.02), state=state)
    answer = call(*ARMS, "--json")
    assert answer.code == code and answer.json["state"] == state and answer.json["pairs"]


def test_a_failed_arm_is_exit_code_1_in_any_format(call, file, measured) -> None:  # noqa: ARG001
    failed = make_record(
        "mine.py:slow", "calls", "versus", comparison="versus", status=Status.FAILED, reason="ValueError: it breaks"
    )
    measured([*arm("mine.py:fast", 0.01), failed])
    assert call(*ARMS).code == call(*ARMS, "--json").code == 1
    assert "ValueError: it breaks" in call(*ARMS).out


def test_missing_figures_are_null(call, file, measured) -> None:  # noqa: ARG001
    measured([*arm("mine.py:fast", 0.01, 1), *arm("mine.py:slow", 0.02, 1)])
    answer = call(*ARMS, "--json")
    (pair,) = answer.json["pairs"]
    assert [pair[name] for name in ("low", "high", "detectable", "candidate_faster")] == [None] * 4
    assert pair["ratio"] == 0.5 and answer.code == 0
    measured([])
    empty = call(*ARMS, "--json")
    assert empty.json["pairs"] == [] and empty.json["arms"][0]["time_s"] is None


def test_the_floor_of_a_self_test_is_used(call, file, tmp_path, monkeypatch) -> None:  # noqa: ARG001
    """What the machine's own self-test found widens the intervals; without one it is the default."""
    from frugalbench.machine import Machine

    seen = []
    monkeypatch.setattr(session, "measure", lambda *given: seen.append(given[5]) or _stop())
    call(*ARMS)
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / f"selftest-{Machine.detect().fingerprint}.json").write_text(json.dumps({"aa_floor": 0.0042}))
    call(*ARMS)
    assert seen == [0.03, 0.0042]


def _stop() -> Run:
    raise KeyboardInterrupt


# Two installed versions


@pytest.fixture
def versions(file) -> tuple[str, str]:  # noqa: ARG001
    """One package in two versions, in a --target folder and in a virtual environment; a third lies in this folder."""
    here = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    for folder, work in (("base", 100), (f"head/{here}", 2000), (".", 30000)):
        package = Path(folder) / "thing"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"def work(): return sum(range({work}))\n")
    Path("bench.py").write_text("import thing\ndef run(): return thing.work()\ndef other(): return 1\n")
    Path("lazy.py").write_text("def run():\n    import thing\n    return thing.work()\ndef none(): return 1\n")
    return "base", "head"


@real
@pytest.mark.parametrize("arm", ["thing:work", "bench.py:run", "lazy.py:run"])
def test_base_against_head_in_one_job(call, versions, arm) -> None:
    answer = no_traceback(call("versus", arm, "--env", versions[0], "--env", versions[1], *QUICK, "--json"))
    assert answer.code == 0, answer.err
    (pair,) = answer.json["pairs"]
    assert (pair["baseline"], pair["candidate"]) == (f"{arm} @ base", f"{arm} @ head")
    assert 0.02 < pair["ratio"] < 0.3, "20 times the work, and neither is the version that lies in this folder"


@real
def test_an_arm_that_uses_nothing_of_its_environment_fails(call, versions) -> None:
    found = call("versus", "lazy.py:none", "--env", versions[0], "--env", versions[1], *QUICK, "--json")
    assert found.code == 1 and all("nothing was imported from" in text for text in problems(found).values())


def test_environments_that_cannot_be_used(call, versions) -> None:
    Path("old/lib/python3.1/site-packages").mkdir(parents=True)
    for arguments, says in (
        (("bench.py:run", "--env", "nowhere", "--env", "base"), "no such folder"),
        (("bench.py:run", "--env", "old", "--env", "base"), "made for python3.1"),
        (("bench.py:run", "bench.py:other", "--env", versions[0]), "given 1 times for 2 arms"),
        (("--command", "true", "false", "--env", "base"), "its own interpreter"),
    ):
        assert says in call("versus", *arguments).is_problem().err
