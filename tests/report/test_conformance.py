"""From stored counts to tables, verdicts and the gate of ``compare``."""

import json
from pathlib import Path
from typing import Any

import pytest

from factory import make_fact, make_record, make_run
from frugalbench.analysis.claims import evaluate, load_claims
from frugalbench.analysis.conformance import standings
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import load_run
from frugalbench.cli.main import main
from frugalbench.report.conformance import conformance_tables
from frugalbench.report.render import render
from frugalbench.schema import CaseOutcome, Outcome

WORKLOAD = "onnx_conformance"


def record(backend: str = "onnxruntime", lost: tuple[str, ...] = (), core: str = "core", **details: Any) -> Any:
    """Twenty cases: 17 pass less those lost, one refusal, one crash, one mismatch; 16 of 17 core cases pass."""
    passed = [f"test_{i}" for i in range(17) if f"test_{i}" not in lost]
    ended: dict[str, dict[str, str]] = {outcome.value: {} for outcome in CaseOutcome if outcome.value != "passed"}
    ended["unsupported"] = {"test_17": "no kernel"}
    ended["crash"] = {"test_18": "SIGSEGV"}
    ended["mismatch"] = {"test_19": "1 of 2 values differ", **dict.fromkeys(lost, "changed")}
    counts = {name: float(len(cases)) for name, cases in ended.items()} | {"passed": float(len(passed)), "cases": 20.0}
    counts |= {f"{core}_cases": 17.0, f"{core}_passed": 16.0, "common_cases": 10.0, "common_passed": 9.0}
    facts = {name: make_fact(value, "case") for name, value in counts.items()} | {"census_s": make_fact(3.0, "s")}
    told = {
        "suite": "onnx 1.23.2", "version": "1.31.1", "opsets": [7, 26], "opsets_declared": backend == "onnxruntime",
        "passed": passed, "not_passed": ended, "operators": {"Add": [5, 5], "Attention": [10, 7]},
        "by_opset": {"13": [12, 12], "9": [8, 5]},
    } | details  # fmt: skip
    fields = {"backend": backend, "shape": "onnx-1.23.2", "cost": None, "tolerance": None, "peaks": ()}
    return make_record(
        backend, "all", WORKLOAD, time_s=None, case_fields=fields, facts=facts, details=told, comparison=backend
    )


def run(path: Path, *records: Any) -> Any:
    return load_run(make_run(path, records))


def test_outcomes_add_up_and_both_counts_are_shown(tmp_path: Path) -> None:
    stored = run(tmp_path / "a", record(), record("tract"))
    first, second = standings(stored)
    assert sum(first.counts.values()) == first.cases == 20
    assert first.opsets == "7 to 26" and second.opsets == "7 to 26, assumed"
    outcomes, scoreboard, worst, opsets = conformance_tables([stored])
    cells = dict(zip((name for name, _ in outcomes.columns), (cell.text for cell in outcomes.rows[0]), strict=True))
    assert (cells["passed"], cells["crash"], cells["all"], cells["core"]) == ("17", "1", "85.0%", "94.1%")
    assert [cell.text for cell in scoreboard.rows[0]][2:] == ["17", "85.0%", "18", "90.0%", "19", "95.0%"]
    assert [row[0].text for row in worst.rows] == ["Attention"] and worst.rows[0][1].text == "7 of 10"
    assert [row[0].text for row in opsets.rows] == ["9", "13"]


@pytest.mark.parametrize("fmt", ["terminal", "md", "html"])
def test_every_format_has_the_tables(tmp_path: Path, fmt: str) -> None:
    text = str(render([run(tmp_path / "a", record())], (), fmt))
    assert "Conformance (smoke)" in text and "Attention" in text and "1265" in text
    if fmt == "terminal":
        assert max(map(len, text.splitlines())) <= 80


def verdicts(stored: Any) -> list[Any]:
    claims = [claim for claim in load_claims() if claim.id == "onnx.conformance"]
    return list(evaluate(evidence_of(stored), claims))


def test_one_verdict_per_runtime_with_its_counts(tmp_path: Path) -> None:
    stored = run(tmp_path / "a", record(), record("tract"), record("onnx-reference"))
    found = verdicts(stored)
    assert [(row.candidate, row.verdict) for row in found] == [
        ("onnxruntime", Outcome.REFUTED),
        ("tract", Outcome.REFUTED),
    ]
    assert found[0].ratio == pytest.approx(16 / 17) and "16 of 17 core cases" in found[0].reason
    assert "1 unsupported" in found[0].reason and "1 crash" in found[0].reason


def test_a_sample_decides_nothing_and_says_so(tmp_path: Path) -> None:
    stored = run(tmp_path / "a", record(core="sampled_core", not_judged="a sample: 20 cases"))
    (row,) = verdicts(stored)
    assert row.verdict is Outcome.NOT_TESTED and row.reason == "a sample: 20 cases"


def test_compare_fails_on_a_case_that_no_longer_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, same, worse = (tmp_path / name for name in ("base", "same", "worse"))
    run(base, record(), record("tract"))
    run(same, record())
    run(worse, record(lost=("test_3",)))
    assert main(["compare", str(base), str(same), "--json"]) == 0
    capsys.readouterr()
    assert main(["compare", str(base), str(worse), "--json"]) == 1
    (text,) = json.loads(capsys.readouterr().out)["regressions"]
    assert "test_3 passed → mismatch (changed)" in text
    assert main(["compare", str(worse), str(base), "--json"]) == 0


def test_details_of_any_shape_are_survived(tmp_path: Path) -> None:
    odd = record(passed=3, not_passed=[1], operators={"Add": "x"}, by_opset={"x" * 9: [1]}, opsets=["a"], version=None)
    stored = run(tmp_path / "a", odd)
    assert standings(stored)[0].operators == {} and conformance_tables([stored])[0].rows
