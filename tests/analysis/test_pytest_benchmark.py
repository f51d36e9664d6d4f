"""pytest-benchmark's JSON through ``compare`` and ``report``: files are processes, and strangers write them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from frugalbench.analysis.pytest_benchmark import load_any
from frugalbench.cli.main import main
from frugalbench.schema import FrugalbenchError

BENCH = "def test_sum(benchmark):\n    benchmark.pedantic(lambda: sum(range(1000)), rounds=5, iterations=3)\n"


def folder(path: Path, time_s: float, processes: int, seed: int, node: str = "here") -> Path:
    path.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(processes):
        level = time_s * np.exp(0.005 * rng.standard_normal())
        data = list(level * np.exp(0.01 * rng.standard_normal(20)))
        (path / f"{number:04}.json").write_text(json.dumps(document(data, node)))
    return path


def document(data: list[float], node: str = "here") -> dict[str, object]:
    stats = {"median": float(np.median(data)), "data": data, "iterations": 2}
    return {
        "machine_info": {"node": node, "machine": "x86_64", "cpu": {"brand_raw": "Test CPU", "count": 2}},
        "commit_info": {"id": "abc"}, "datetime": "2026-01-01T00:00:00", "version": "5.1.0",
        "benchmarks": [{"fullname": "test_it.py::test_sum", "stats": stats, "extra": 1}],
    }  # fmt: skip


def test_processes_are_replicates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, new = folder(tmp_path / "base", 0.01, 6, 1), folder(tmp_path / "new", 0.012, 6, 2)
    assert main(["compare", str(base), str(new), "--fail-above", "5", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["changes"][0]["outcome"] == "regressed" and found["changes"][0]["replicates"] == [6, 6]
    assert found["changes"][0]["base"] == pytest.approx(0.01, rel=0.02)
    assert main(["compare", str(base), str(base), "--fail-above", "5"]) == 0


def test_one_file_shows_a_ratio_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, new = folder(tmp_path / "base", 0.01, 1, 1), folder(tmp_path / "new", 0.02, 1, 2)
    assert main(["compare", str(base / "0000.json"), str(new / "0000.json"), "--fail-above", "5", "--json"]) == 0
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert change["ratio"] == pytest.approx(2, rel=0.05) and change["low"] is None and "one replicate" in change["note"]


@pytest.mark.parametrize("fmt", ["terminal", "md", "csv", "json", "latex", "html"])
def test_every_report_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str], fmt: str) -> None:
    if fmt == "html":
        pytest.importorskip("vl_convert")
    base = folder(tmp_path / "base", 0.01, 6, 1)
    assert main(["report", str(base), "--format", fmt]) == 0
    assert "test_sum" in capsys.readouterr().out.replace("\\_", "_")


def test_a_case_has_the_files_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = folder(tmp_path / "base", 0.01, 6, 1)
    assert main(["report", str(base), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (case,) = found["cases"]
    assert case["replicates"] == 6 and case["time_s"] == pytest.approx(0.01, rel=0.02)
    assert {item["verdict"] for item in found["verdicts"]} == {"not tested"}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"benchmarks": 1}', "[" * 5000, json.dumps(document([1e300])), json.dumps(document([-1.0]))]
)
def test_strangers_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(FrugalbenchError, match=r"x\.json"):
        load_any(tmp_path / "x.json")


def test_machines_are_not_mixed(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", 0.01, 1, 1)
    (path / "other.json").write_text(json.dumps(document([0.01], "elsewhere")))
    with pytest.raises(FrugalbenchError, match="2 machines"):
        load_any(path)


@pytest.mark.real
def test_a_file_that_pytest_benchmark_wrote(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(BENCH)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--benchmark-json=out.json",
        "test_it.py",
    ]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST_")}
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60, env=alone)
    (record,) = load_any(tmp_path / "out.json").records
    assert record.case.id == "test_it.py::test_sum" and record.samples[0].calls == 3 and len(record.samples) == 5
