"""``load_run(path).metrics()``: the same lines in whichever frame is installed."""

import sys
from pathlib import Path

import pytest

import frugalbench
from factory import make_run, plausible_records
from frugalbench.analysis.metrics import Row, rows
from frugalbench.schema import FrugalbenchError


@pytest.fixture
def run(tmp_path: Path):
    return frugalbench.load_run(make_run(tmp_path / "run", plausible_records(2)))


def test_list_of_dicts(run) -> None:
    lines = run.metrics("list")
    assert [line["time_s"] for line in lines] == [row.time_s for row in rows(run)]
    assert all(tuple(line) == Row.__struct_fields__ for line in lines)
    assert lines[0]["status"] == "ok" and type(lines[0]["status"]) is str


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_frame(run, name: str) -> None:
    package = pytest.importorskip(name)
    found = run.metrics(name)
    assert isinstance(found, package.DataFrame)
    lines = run.metrics("list")
    assert (len(found), list(found.columns)) == (len(lines), list(lines[0]))
    assert list(found["variant"]) == [line["variant"] for line in lines]
    assert found["time_s"].max() == max(line["time_s"] for line in lines if line["time_s"] is not None)


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_empty_run_keeps_its_columns(tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    found = frugalbench.load_run(make_run(tmp_path / "empty", [])).metrics(name)
    assert tuple(found.columns) == Row.__struct_fields__ and len(found) == 0


def test_missing_and_unknown(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(FrugalbenchError, match="pip install polars"):
        run.metrics("polars")
    with pytest.raises(FrugalbenchError, match="choose one of"):
        run.metrics("spark")
    monkeypatch.setattr("frugalbench.analysis.frames.find_spec", lambda _: None)
    assert isinstance(run.metrics(), list)
