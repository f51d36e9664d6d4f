"""The main job on a small budget, from the command line to every output format. Real runtimes, real kernels."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.alone]
BUDGET_S = 30


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    out = tmp_path_factory.mktemp("smoke") / "run"
    command = [
        sys.executable,
        "-m",
        "frugalbench.cli.main",
        "run",
        "smoke",
        "--time-budget",
        str(BUDGET_S),
        "--out",
        out,
    ]
    return out, subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


def cli(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "frugalbench.cli.main", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_ends_well_and_in_time(smoke) -> None:
    out, done = smoke
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and str(out) in done.stdout
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["harness"]["measuring_s"] <= 1.1 * BUDGET_S + 2
    assert manifest["harness"]["parent_cpu_s"] <= 0.02 * manifest["harness"]["wall_s"] + 0.5
    assert manifest["harness"]["peak_pss_bytes"] <= 4 * 2**30
    assert manifest["machine_after"]["fingerprint"] == manifest["machine_before"]["fingerprint"]


def test_no_case_failed_and_every_case_has_a_record(smoke) -> None:
    out, _ = smoke
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [r["reason"] for r in records if r["status"] == "failed"] == []
    plan = json.loads((out / "manifest.json").read_text())["plan"]
    planned = {case["id"] for item in plan["comparisons"] for arm in item["arms"] for case in arm["cases"]}
    assert planned <= {r["case"]["id"] for r in records}
    timed = [r for r in records if r["samples"]]
    assert timed and all(r["verification"]["passed"] for r in timed), "a time without a verified answer"


def test_missing_joules_are_null_and_modelled_ones_say_so(smoke) -> None:
    out, _ = smoke
    readings = [r for line in (out / "records.jsonl").read_text().splitlines() for r in json.loads(line)["readings"]]
    for reading in readings:
        assert (reading["joule"] is None) == (reading["tier"] == "modelled" or reading["error"] is not None)
    energy = [v for v in json.loads(cli("verdicts", out, "--json").stdout) if v["claim"].endswith("per_watt")]
    if all(reading["tier"] == "modelled" for reading in readings):
        assert energy and {v["verdict"] for v in energy} == {"not tested"} and {v["ratio"] for v in energy} == {None}


@pytest.mark.parametrize("fmt", ["terminal", "md", "csv", "json", "parquet", "html"])
def test_every_format(smoke, tmp_path, fmt) -> None:
    out, _ = smoke
    target = tmp_path / f"report.{fmt}"
    done = cli("report", out, "--format", fmt, "--output", target)
    assert done.returncode == 0, done.stderr
    assert target.stat().st_size > 1000
