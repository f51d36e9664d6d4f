"""``frugalbench selftest`` from end to end: on banks made up with known noise, and for real within seconds."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from factory import make_record, make_run
from frugalbench.analysis.load import Run, load_run
from frugalbench.cli import floor, selfcheck
from frugalbench.machine import Machine
from frugalbench.schema import Arm, Decision, Plan, Record
from frugalbench.specs.selftest import MISTAKES

KINDS = ["compute-bound", "memory-bound", "dispatch-bound"]
FIGURES = (
    "comparisons", "false_verdict_rate", "undecided_rate", "coverage", "detection", "smallest_detectable_effect",
    "median_time_to_verdict_s",
)  # fmt: skip
BANK = 48
"""Replicates of each made-up bank."""


class Made:
    """Stands in for measuring: log times follow the units of work, with normal noise per fresh start."""

    def __init__(self, noise: float = 0.008, replicates: int = BANK, state: str = "complete") -> None:
        self.noise, self.replicates, self.state = noise, replicates, state
        self.rng = np.random.default_rng(4)
        self.seen: list[tuple[Path, float, float]] = []

    def __call__(
        self,
        config: Any,
        plan: Plan,
        machine: Any,  # noqa: ARG002
        path: Path,
        choose: Any,
        floor: float,
        show: Any,
    ) -> Run:
        self.seen.append((path, floor, config.measure.time_budget_s))
        show("measuring")
        records: list[Record] = []
        decisions: dict[str, Decision] = {}
        for comparison in plan.comparisons:
            mine: list[Record] = []
            for number in range(1, min(config.measure.looks[-1], self.replicates) + 1):
                drift = 0.1 * self.rng.standard_normal()
                mine += [self.record(arm, comparison.id, number, drift) for arm in comparison.arms]
                if number in config.measure.looks:
                    decisions[comparison.id] = choose(mine, number)
                    if decisions[comparison.id].stop:
                        break
            records += mine
        made = make_run(
            path, records, config=msgspec.to_builtins(config), plan=plan, floor=floor, state=self.state,
            decisions=decisions,
        )  # fmt: skip
        return load_run(made)

    def record(self, arm: Arm, comparison: str, number: int, drift: float) -> Record:
        (case,) = arm.cases
        time_s = 1e-4 * case.params["units"] * math.exp(drift + self.noise * self.rng.standard_normal())
        made = make_record(case=case, arm=arm.id, comparison=comparison, replicate=number, time_s=[time_s] * 2)
        moved = tuple(msgspec.structs.replace(s, start_s=number + 0.1 * s.round) for s in made.samples)
        return msgspec.structs.replace(made, samples=moved)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch):
    """Measure nothing from now on, and keep no core busy."""

    def prepare(**fields: Any) -> Made:
        found = Made(**fields)
        monkeypatch.setattr(selfcheck, "measure", found)
        monkeypatch.setattr(selfcheck, "busy_core", contextlib.nullcontext)
        return found

    return prepare


def test_a_full_self_test_in_json(call, made) -> None:
    fake = made()
    answer = call("selftest", "--json")
    assert answer.code == 0, answer.err
    found = answer.json
    for name in FIGURES:
        assert list(found[name]) == list(found["loaded"][name]) == KINDS, name
    for kind in KINDS:
        assert found["comparisons"][kind] == 2 * (BANK // 4)
        assert found["coverage"][kind]["rate"] > 0.8
        assert list(found["detection"][kind]) == ["2", "5", "10"]
        assert found["detection"][kind]["10"]["detected"]["rate"] == 1.0
        assert 0.01 < found["smallest_detectable_effect"][kind] < 0.05
        assert found["median_time_to_verdict_s"][kind] > 0
    assert 0.002 <= found["aa_floor"] < 0.03 and found["quick"] is False
    assert [path.name for path, *_ in fake.seen[:2]] == ["idle", "loaded"]
    assert [floor for _, floor, _ in fake.seen] == [0.0, 0.0] + [found["aa_floor"]] * (len(fake.seen) - 2)
    assert sum(budget_s for *_, budget_s in fake.seen[:2]) == pytest.approx(0.65 * 900)
    assert Path(found["runs"]).is_dir()


def test_live_comparisons_use_the_floor_and_end_right(call, made) -> None:
    made(noise=0.003)
    live = call("selftest", "--json").json["live"]
    assert {(item["condition"], item["kind"]) for item in live} == {
        (condition, kind) for condition in ("idle", "loaded") for kind in KINDS
    }
    assert {0.0, 5.0, 20.0} <= {item["percent"] for item in live}
    assert sum(item["right"] for item in live) >= len(live) - 1
    for item in live:
        assert item["truth"] == pytest.approx(1 / (1 + item["percent"] / 100), abs=0.011)
        assert item["low"] < item["ratio"] < item["high"]


def test_quick_is_idle_only(call, made) -> None:
    fake = made()
    found = call("selftest", "--quick", "--time-budget", 33, "--json").json
    assert found["quick"] is True and found["live"] == [] and found["loaded"]["comparisons"] == {}
    assert [(path.name, budget_s) for path, _, budget_s in fake.seen] == [("idle", 33.0)]
    assert "Quick" in call("selftest", "--quick", "--out", "again").out


def test_the_result_is_kept_and_used_afterwards(call, made) -> None:
    made()
    machine = Machine.detect().fingerprint
    assert "Never self-tested (`frugalbench selftest`)" in call("doctor").out
    assert floor.floor_of(machine) == 0.03
    found = call("selftest", "--json").json
    text = call("doctor").out
    assert found["sentence"] in text and ", quick" not in text and "Never self-tested" not in text
    assert floor.floor_of(machine) == found["aa_floor"] < 0.03
    kept = floor.self_test_file(machine, "cpu")
    assert json.loads(kept.read_text()) == found and not list(kept.parent.glob("*.partial"))
    assert found["sentence"] in call("doctor", "--json").json["self_test"]


def test_quick_is_kept_and_shown_but_narrows_nothing(call, made) -> None:
    made()
    found = call("selftest", "--quick", "--json").json
    text = call("doctor").out
    assert found["enough"] and found["sentence"] in text and ", quick" in text
    assert floor.floor_of(Machine.detect().fingerprint) == found["aa_floor"] == 0.03
    assert "only the full self-test" in " ".join(call("selftest", "--quick", "--out", "text").out.split())


def test_text_says_where_things_are(call, made) -> None:
    made()
    out = call("selftest", "--out", "here").out
    assert str(floor.self_test_file(Machine.detect().fingerprint, "cpu")) in out and "Records: here" in out
    assert {path.name for path in Path("here").iterdir()} >= {"idle", "loaded"}
    assert "live comparisons" in out and "beside a busy core" in out


@pytest.mark.parametrize("replicates", [0, 1, 2, 5, 6, 7])
def test_too_little_is_a_dash_and_keeps_the_default_floor(call, made, replicates) -> None:
    made(replicates=replicates)
    answer = call("selftest", "--quick", "--json")
    found = answer.json
    assert answer.code == int(any(found["problem"].values())) and "Traceback" not in answer.err
    assert found["aa_floor"] == pytest.approx(0.03)
    for kind in KINDS:
        assert (found["coverage"][kind]["rate"] is None) is (replicates < 4)
        assert (found["smallest_detectable_effect"][kind] is None) is (replicates < 2)
    text = call("selftest", "--quick", "--out", "text")
    assert text.code == answer.code and "too few to go lower" in text.out and "Traceback" not in text.err
    assert floor.self_test_of(Machine.detect().fingerprint) is None, "a thin result is not kept"


def test_an_interrupted_self_test_is_not_kept(call, made) -> None:
    fake = made(state="interrupted")
    answer = call("selftest", "--json")
    assert answer.code == 130 and answer.out == "" and len(fake.seen) == 1
    assert floor.self_test_of(Machine.detect().fingerprint) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--time-budget", 0), "--time-budget"),
        (("--time-budget", -5), "--time-budget"),
        (("--time-budget", "nan"), "--time-budget"),
        (("--device", "gpu"), "'gpu'"),
        (("--out", "taken"), "taken: is not an empty folder"),
        (("--out", "file"), "file: is not an empty folder"),
    ],
)
def test_a_wrong_request_measures_nothing(call, made, arguments, says) -> None:
    fake = made()
    Path("taken").mkdir()
    Path("taken/mine.txt").write_text("kept")
    Path("file").write_text("kept")
    assert says in call("selftest", *arguments).is_problem().err
    assert fake.seen == [] and Path("taken/mine.txt").read_text() == "kept"


def test_a_state_directory_that_cannot_be_written(call, made, monkeypatch, tmp_path) -> None:
    made()
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("FRUGALBENCH_STATE_DIR", str(tmp_path / "a-file" / "state"))
    answer = call("selftest", "--quick", "--out", "records", "--json")
    assert answer.code == 2 and "FRUGALBENCH_STATE_DIR" in answer.err and "Traceback" not in answer.err


@pytest.mark.real
@pytest.mark.alone
def test_for_real_within_seconds(call) -> None:
    answer = call("selftest", "--quick", "--time-budget", 10, "--json")
    found = answer.json
    assert answer.code == int(any(found["problem"].values())), answer.err
    assert all(list(found[name]) == KINDS for name in FIGURES)
    assert found["wall_s"] < 40 and found["aa_floor"] >= 0.002
    assert all(found["problem"][kind] == "" or "budget" in found["problem"][kind] for kind in KINDS), found
    run = load_run(Path(found["runs"]) / "idle")
    assert run.records and all(record.status != "failed" for record in run.records)
    assert not found["enough"] and "Never self-tested" in call("doctor").out, "ten seconds hold too little to be kept"


@pytest.mark.real
@pytest.mark.alone
def test_planted_mistakes_are_caught_on_the_simulated_device(call) -> None:
    """Through real workers. Each of these fails when the guard that it names is taken out of the worker."""
    answer = call("selftest", "--device", "sim", "--quick", "--time-budget", 1, "--json")
    found = {item["mistake"]: item for item in answer.json["planted"]}
    assert {name for name, item in found.items() if item["caught"]} == set(MISTAKES), found
    assert "does not synchronise" in found["no-synchronise"]["reason"]
    assert "device's memory delivers 50.0 GB/s at most" in found["warm-cache"]["reason"]
    assert "4.00 MiB again and again" in found["small-rotation"]["reason"]
    assert "compiled or tuned inside" in found["late-tuning"]["reason"]
    run = load_run(Path(answer.json["runs"]) / "planted")
    wrong = [record for record in run.records if record.arm in MISTAKES]
    times = [record for record in wrong if record.replicate and record.samples and record.status != "failed"]
    assert wrong and not times, "a wrong arm got a time that counts"
    assert floor.self_test_of(Machine.detect().fingerprint, "sim") is None, "it says nothing of this machine"


def test_a_missed_mistake_is_shouted_and_ends_in_1(call, made) -> None:
    made()  # its records know of no mistake, so every planted arm got its times
    answer = call("selftest", "--device", "sim", "--quick")
    assert answer.code == 1 and answer.out.count("MISSED") == len(MISTAKES)
    assert "it got its times" in " ".join(answer.out.split())
    assert "tells of the harness" in answer.out and "Intervals of later runs" not in answer.out
