"""What `make results` derives from the stored runs is what stands in the tree: reports, and the tables of two pages."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DERIVED = sorted(file for kind in ("md", "csv") for file in (ROOT / "results").glob(f"*/report.{kind}"))
TABLES = ("README.md", "results/README.md")


@pytest.mark.parametrize("file", DERIVED, ids=lambda file: f"{file.parent.name}-{file.suffix[1:]}")
def test_a_stored_report_is_what_its_records_give(call, file, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    target = tmp_path / file.name
    assert call("report", file.parent.relative_to(ROOT), "--format", file.suffix[1:], "--output", target).code == 0
    assert target.read_bytes() == file.read_bytes(), "stale: run `make results`"


@pytest.mark.parametrize("page", TABLES)
def test_spliced_tables_are_what_the_stored_runs_give(call, page, tmp_path, monkeypatch) -> None:
    copy = tmp_path / "page.md"
    shutil.copy(ROOT / page, copy)
    monkeypatch.chdir(ROOT)
    answer = call("verdicts", "results/cpu-reference", "--splice", copy)
    assert "already up to date" in answer.out, f"{page} is stale: run `make results`"


def test_every_run_that_is_kept_is_named() -> None:
    page = (ROOT / "results" / "README.md").read_text()
    for file in (ROOT / "results").glob("*/manifest.json"):
        assert f"| `{file.parent.name}` |" in page
