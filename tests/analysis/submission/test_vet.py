"""Good submissions are taken, forged and damaged ones refused with the reason that fits."""

from pathlib import Path

import pytest

import forgery
from frugalbench.analysis.submission.vet import vet
from frugalbench.cli import remodel
from frugalbench.cli.replan import installed_revision
from frugalbench.cli.replay import checks, page_of, remarks
from frugalbench.specs import quant_formats


@pytest.fixture(autouse=True, scope="module")
def quick_rows():
    """Rows of the estimands that take seconds are not computed anew; those of the others are."""
    usual = remodel._usual()
    slow = {name: case for name, case in usual.items() if case.params["estimand"] in forgery.SLOW}
    for name in slow:
        del usual[name]
    yield
    usual.update(slow)


GOOD = dict(forgery.good())


@pytest.mark.parametrize("name", GOOD)
def test_good_ones_are_accepted(name: str, tmp_path: Path) -> None:
    parts, file = GOOD[name](), tmp_path / "good.zip"
    file.write_bytes(parts.packed())
    report, files = vet(file, checks(), page_of, remarks)
    assert report.refusals == () and report.accepted
    assert files.keys() >= {"manifest.json", "records.jsonl"} and report.contents["records"] == len(parts.records)


def test_forged_ones_are_refused_with_the_right_reason(tmp_path: Path) -> None:
    tried, misses = 0, []
    for name, content, expected in forgery.forged():
        tried += 1
        file = tmp_path / "forged.zip"
        file.write_bytes(content)
        report, _ = vet(file, checks(), page_of)
        found = {refusal.check for refusal in report.refusals}
        if not found & expected:
            misses.append((name, expected, report.refusals))
        assert all(refusal.reason and len(refusal.reason) < 500 for refusal in report.refusals)
    assert tried >= 190 and len(GOOD) == 20
    assert len(misses) <= 0.05 * tried, misses


def _report(parts: forgery.Parts, tmp_path: Path):
    file = tmp_path / "one.zip"
    file.write_bytes(parts.packed())
    return vet(file, checks(), page_of, remarks)[0]


def test_a_selection_that_is_told_is_taken_and_said(tmp_path: Path) -> None:
    parts = forgery.fixture()
    forgery.comparison_out(parts, forgery.random.Random(1))
    left = parts.manifest["plan"]["comparisons"][0]["id"]
    refused = _report(parts, tmp_path)
    assert {item.check for item in refused.refusals} == {"plan"} and "--only" in refused.refusals[0].reason
    parts.manifest["config"]["only"] = f"*{left}*"
    report = _report(parts, tmp_path)
    assert report.refusals == () and any(f"--only *{left}*" in remark for remark in report.remarks)


def test_what_departs_from_a_shipped_config_is_said(tmp_path: Path) -> None:
    parts = forgery.reference(forgery.PEAKS)
    parts.manifest["config"] |= {"name": "cpu"}
    parts.manifest["config"]["measure"]["alpha"] = 0.2
    said = " ".join(_report(parts, tmp_path).remarks)
    assert "not the shipped cpu" in said and "alpha is 0.2, not 0.05" in said and "lacks a [[workload]] moe_ffn" in said


def test_a_run_of_a_processor_with_other_instructions_is_taken(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(quant_formats, "own_flags", frozenset)
    assert _report(forgery.reference(forgery.PEAKS, forgery.LINEAR), tmp_path).refusals == ()


def test_modelled_rows_on_other_inputs_are_taken_with_a_remark(tmp_path: Path) -> None:
    parts = forgery.modelled()
    before = _taken_as_they_are(parts, tmp_path)
    row = next(r for r in forgery.ratios(parts, "value") if r["details"]["sources"])
    row["details"]["sources"] = {}
    row["facts"]["ratio"]["value"] *= 1.01
    assert _taken_as_they_are(parts, tmp_path) == before + 1


def _taken_as_they_are(parts: forgery.Parts, tmp_path: Path) -> int:
    report = _report(parts, tmp_path)
    assert report.refusals == ()
    return sum(int(remark.split()[0]) for remark in report.remarks if "rest on other inputs" in remark)


def test_rows_of_another_model_are_taken_with_a_remark(tmp_path: Path) -> None:
    parts = forgery.modelled()
    forgery.better_model(parts, forgery.random.Random(1))
    parts.manifest["plan"]["modelled"].pop()
    parts.records = [r for r in parts.records if r["case"] in parts.manifest["plan"]["modelled"]]
    report = _report(parts, tmp_path)
    assert report.refusals == () and any("the model of this revision computes" in remark for remark in report.remarks)
    parts.manifest["revision"] = installed_revision()
    if installed_revision():
        assert {item.check for item in _report(parts, tmp_path).refusals} >= {"modelled", "plan"}
