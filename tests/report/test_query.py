"""``frugalbench query``: right numbers, and nothing but numbers."""

import csv
import importlib
import json
import sys
from pathlib import Path

import pytest

from factory import make_record, make_run, plausible_records
from frugalbench.analysis.load import load_run
from frugalbench.analysis.metrics import rows
from frugalbench.cli.main import main
from frugalbench.report.columns import EXPORTS
from frugalbench.schema import FrugalbenchError, Status


@pytest.fixture
def two_runs(tmp_path: Path) -> list[str]:
    other = [make_record("dense", time_s=0.5), make_record("=evil\x1b[2J", status=Status.FAILED, reason="@x")]
    return [
        str(make_run(tmp_path / "one", plausible_records(2), run_id="one")),
        str(make_run(tmp_path / "two", other, run_id="two")),
    ]


needs_duckdb = pytest.mark.skipif(importlib.util.find_spec("duckdb") is None, reason="needs the extra 'query'")


@needs_duckdb
def test_every_table_over_several_runs(two_runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    runs = [load_run(path) for path in two_runs]
    for table in (*EXPORTS, "metrics"):
        name = table if isinstance(table, str) else table.name
        assert main(["query", *two_runs, f"SELECT count(*) AS n FROM {name}", "--json"]) == 0
        expected = sum(len(rows(run)) for run in runs) if isinstance(table, str) else len(list(table.lines(runs)))
        assert json.loads(capsys.readouterr().out) == [{"n": expected}]


@needs_duckdb
def test_samples_join_records(two_runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sql = """SELECT r.run, r.variant, r.replicate, median(time_s) AS t FROM samples s
             JOIN records r USING (run, record) WHERE r.variant = 'dense' GROUP BY ALL"""
    assert main(["query", *two_runs, sql, "--format", "csv"]) == 0
    (line,) = csv.DictReader(capsys.readouterr().out.splitlines())
    times = sorted(sample.time_s for sample in load_run(two_runs[1]).records[0].samples)
    assert (line["run"], line["replicate"], float(line["t"])) == ("two", "1", times[len(times) // 2])


@needs_duckdb
def test_terminal_is_harmless_and_short(two_runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", *two_runs, "SELECT variant, reason, time_s, time_s FROM metrics"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 80 and "time_s_2" in text
    assert (
        main(["query", two_runs[1], "SELECT variant, reason FROM records WHERE status='failed'", "--format", "csv"])
        == 0
    )
    assert capsys.readouterr().out.splitlines()[1] == "'=evil\\x1b[2J,'@x"


@needs_duckdb
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/*')",
        "COPY records TO '/tmp/frugalbench-stolen.csv'",
        "ATTACH '/tmp/frugalbench-stolen.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SELECT 1; SET enable_external_access = true",
        "DROP TABLE records",
        "INSERT INTO runs SELECT * FROM runs",
        "SELECT * FROM runs_and_more",
        "SELECT * FROM 'https://example.org/x.csv'",
        "SELEC 1",
        "",
    ],
)
def test_nothing_but_one_query(two_runs: list[str], sql: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", *two_runs, sql]) == 2
    found = capsys.readouterr()
    assert found.out == "" and len(found.err.strip().splitlines()) <= 2 and "root:" not in found.err
    assert not list(Path("/tmp").glob("frugalbench-stolen*"))


@needs_duckdb
def test_odd_values(two_runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sql = """SELECT [1, 2] AS l, {'a': DATE '2026-01-01'} AS s, 1.5::DECIMAL(4, 2) AS d, 'nan'::DOUBLE AS x, NULL AS n,
             'x'::BLOB AS b"""
    for fmt in ("json", "csv", "terminal"):
        assert main(["query", *two_runs, sql, "--format", fmt]) == 0
        assert "2026-01-01" in capsys.readouterr().out


def test_without_duckdb(
    two_runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert main(["query", *two_runs, "SELECT 1"]) == 2
    assert "pip install 'frugalbench[query]'" in capsys.readouterr().err


def test_object_storage(two_runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.put(two_runs[0], "/bucket/one", recursive=True)
    run = load_run("memory://bucket/one")
    assert run.records == load_run(two_runs[0]).records
    with pytest.raises(FrugalbenchError, match="memory://bucket/none: not a run directory"):
        load_run("memory://bucket/none")
    store.pipe("/bucket/one/records.jsonl", b"{}\n")
    with pytest.raises(FrugalbenchError, match=r"memory://bucket/one/records\.jsonl:1"):
        load_run("memory://bucket/one")
    with pytest.raises(FrugalbenchError, match="cannot be read"):
        load_run("nosuchscheme://bucket/one")
    monkeypatch.setattr("frugalbench.analysis.load.MOST_RECORDS_BYTES", 2)
    with pytest.raises(FrugalbenchError, match="more than the 2 bytes"):
        load_run("memory://bucket/one")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(FrugalbenchError, match="remote"):
        load_run("memory://bucket/one")
