"""Every command answers, in text and as exactly one JSON document, with the exit code that is documented."""

import json
from pathlib import Path
from typing import Any

import pytest

from factory import make_record, make_replicates, make_run, plausible_records, scaled
from frugalbench.analysis.claims import claims_hash
from frugalbench.analysis.load import load_run
from frugalbench.cli import session
from frugalbench.report import charts
from frugalbench.schema import Status

KEYS = [
    *(
        "claim",
        "regime",
        "machine",
        "scope",
        "arm",
        "verdict",
        "metric",
        "baseline",
        "candidate",
        "ratio",
        "low",
        "high",
    ),
    *("confidence", "threshold", "tier", "replicates", "reason", "source"),
]
NUMBERS = ("ratio", "low", "high", "confidence")


# Verdicts


def test_verdicts_json_has_the_documented_keys_in_order(call, stored) -> None:
    rows = call("verdicts", stored, "--json").json
    assert rows and all(list(row) == KEYS for row in rows)
    assert {row["verdict"] for row in rows} <= {"supported", "refuted", "inconclusive", "not tested"}
    assert {row["arm"] for row in rows} <= {"as_shipped", "best", None}


def test_missing_numbers_are_null(call, stored) -> None:
    rows = call("verdicts", stored, "--json").json
    untested = [row for row in rows if row["verdict"] == "not tested"]
    assert untested and all(row["reason"] for row in rows)
    assert all(row[name] is None for row in untested for name in (*NUMBERS, "tier", "baseline", "candidate"))
    assert all(row["threshold"] is not None for row in rows)


def test_verdicts_of_several_runs_and_formats(call, stored) -> None:
    one, two = (len(call("verdicts", *runs, "--json").json) for runs in ([stored], [stored, stored]))
    assert two == 2 * one
    table = call("verdicts", stored)
    assert table.code == 0 and "moe." in table.out and table.err == ""
    assert call("verdicts", stored, "--format", "md").out.count("|") > 20


def test_other_claim_files_are_a_warning(call, tmp_path) -> None:
    run = make_run(tmp_path / "old", plausible_records(), claims_hash="0" * 16)
    answer = call("verdicts", run, "--json")
    assert answer.code == 0 and answer.json and "other claim files" in answer.err


def test_runs_that_share_an_id_are_a_warning(call, tmp_path) -> None:
    """Ids of older versions were a time and a name, which two machines may share; tables join on them."""
    paths = [make_run(tmp_path / name, plausible_records(), claims_hash=claims_hash()) for name in ("one", "two")]
    answer = call("verdicts", *paths, "--json")
    assert answer.code == 0 and "2 runs have the id 20260101T000000Z-smoke" in answer.err
    assert "have the id" not in call("verdicts", paths[0], "--json").err


def test_splice(call, stored, tmp_path) -> None:
    readme = tmp_path / "README.md"
    begin = f"<!-- BEGIN frugalbench verdicts {stored} --format md -->"
    readme.write_text(f"# Title\n{begin}\nold\n<!-- END frugalbench verdicts -->\nafter\n")
    assert "updated" in call("verdicts", stored, "--splice", readme).out
    text = readme.read_text()
    assert "old" not in text and text.startswith(f"# Title\n{begin}\n") and text.endswith("-->\nafter\n")
    assert call("verdicts", stored, "--format", "md").out.strip() in text
    assert "up to date" in call("verdicts", stored, "--splice", readme).out
    assert readme.read_text() == text


def test_splice_without_markers_changes_nothing(call, stored, tmp_path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n")
    call("verdicts", stored, "--splice", readme).is_problem()
    assert readme.read_text() == "# Title\n"
    call("verdicts", stored, "--splice", tmp_path / "none.md").is_problem()


# Reports


@pytest.mark.parametrize("fmt", ["terminal", "md", "csv", "json"])
def test_report_to_stdout(call, stored, fmt) -> None:
    answer = call("report", stored, "--format", fmt)
    assert answer.code == 0 and "moe_ffn" in answer.out


@pytest.mark.parametrize("fmt", ["terminal", "md", "csv", "json", "html", "parquet"])
def test_report_to_a_file(call, stored, tmp_path, fmt) -> None:
    target = tmp_path / f"report.{fmt}"
    answer = call("report", stored, "--format", fmt, "--output", target)
    assert answer.code == 0 and str(target) in answer.out
    content = target.read_bytes()
    starts = {"parquet": b"PAR1", "html": b"<!doctype html", "json": b"{"}
    assert content.lower().startswith(starts.get(fmt, b"").lower())
    assert len(content) > 500


def test_report_json_is_one_document(call, stored) -> None:
    found = call("report", stored, "--json").json
    assert set(found) == {"runs", "verdicts", "cases", "noise"}
    assert all(list(row) == KEYS for row in found["verdicts"])
    timed = [row for row in found["cases"] if row["status"] == "failed"]
    assert timed and all(row["time_s"] is None for row in timed)


def test_report_json_to_a_file_still_answers_in_json(call, stored, tmp_path) -> None:
    answer = call("report", stored, "--json", "--output", tmp_path / "report.json")
    assert answer.code == 0 and answer.json


def test_splice_with_json_still_answers_in_json(call, stored, tmp_path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"<!-- BEGIN frugalbench verdicts {stored} -->\n<!-- END frugalbench verdicts -->\n")
    assert call("verdicts", stored, "--splice", readme, "--json").json is not None


def test_parquet_needs_a_file(call, stored) -> None:
    assert "--output" in call("report", stored, "--format", "parquet").is_problem().err


def test_parquet_and_csv_hold_the_same_cases(call, stored, tmp_path) -> None:
    import pyarrow.parquet as pq

    target = tmp_path / "cases.parquet"
    call("report", stored, "--format", "parquet", "--output", target)
    lines = call("report", stored, "--format", "csv").out.splitlines()
    table = pq.read_table(target)
    assert table.num_rows == len(lines) - 1
    assert table.column_names == lines[0].split(",")


@pytest.mark.parametrize("where", ["stored/records.jsonl/x.md", "nowhere/x.md", "."])
def test_report_to_an_unwritable_place(call, stored, where) -> None:
    target = stored.parent / where
    assert str(target) in call("report", stored, "--format", "md", "--output", target).is_problem().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_report_on_a_full_disk(call, stored) -> None:
    assert "No space left" in call("report", stored, "--format", "md", "--output", "/dev/full").is_problem().err


# Compare


@pytest.fixture
def pair(tmp_path):
    """Two runs of one case; the second is 20% slower."""
    base = make_replicates("dense", 0.01, 6, seed=1)
    new = [scaled(r, 1.2) for r in make_replicates("dense", 0.01, 6, seed=2)]
    return make_run(tmp_path / "base", base), make_run(tmp_path / "new", new)


@pytest.mark.parametrize(("limit", "code"), [((), 0), (("--fail-above", "5"), 1), (("--fail-above", "40"), 0)])
def test_compare(call, pair, limit, code) -> None:
    answer = call("compare", *pair, *limit)
    assert answer.code == code and "regressed" in answer.out
    found = call("compare", *pair, *limit, "--json")
    assert found.code == code
    assert bool(found.json["regressions"]) is bool(code)
    assert found.json["changes"][0]["ratio"] == pytest.approx(1.2, rel=0.05)


def test_compare_with_itself_is_no_regression(call, pair) -> None:
    assert call("compare", pair[0], pair[0], "--fail-above", "0.1").code == 0


def test_a_junit_file_that_cannot_be_written_is_no_regression(call, pair, tmp_path) -> None:
    """Exit code 1 would tell a job that something became slower."""
    assert "cannot be written" in call("compare", *pair, "--junit", tmp_path / "no" / "x.xml").is_problem().err


def test_a_case_that_now_fails_is_a_regression(call, tmp_path) -> None:
    base = make_run(tmp_path / "base", make_replicates("dense", 0.01))
    new = make_run(tmp_path / "new", [make_record("dense", status=Status.FAILED, reason="wrong answer")])
    assert call("compare", base, new).code == 1


# What needs no run


def test_claims(call) -> None:
    found = call("claims", "--json").json
    assert {"moe.compute", "quant.memory", "onnx.parity", "net.decay"} <= {item["id"] for item in found}
    text = call("claims").out
    assert "quant.memory" in text and max(map(len, text.splitlines())) <= 80


def test_doctor(call) -> None:
    found = call("doctor", "--json").json
    assert {"machine", "capabilities", "probes", "self_test"} <= set(found)
    assert found["machine"]["logical_cores"] >= 1 and found["capabilities"]
    assert "Never self-tested" in call("doctor").out


def test_plan(call) -> None:
    found = call("plan", "smoke", "--json").json
    assert found["comparisons"] and found["modelled"] and found["seed"] == 1
    assert call("plan", "smoke", "--json", "--seed", "9").json["seed"] == 9
    only = call("plan", "smoke", "--json", "--only", "moe_ffn*").json
    assert {item["workload"] for item in only["comparisons"]} == {"moe_ffn"}
    assert "moe_ffn" in call("plan", "smoke").out


@pytest.mark.parametrize("cluster", ["uniform", "fragmented"])
def test_simulate(call, cluster) -> None:
    rows = call("simulate", cluster, "--json").json
    assert rows and all(row["token_per_s"]["low"] <= row["token_per_s"]["high"] for row in rows)
    assert "modelled" in call("simulate", cluster).out


def test_simulate_cuts_of_a_model(call) -> None:
    asked = ("simulate", "uniform", "--model", "kimi-k2", "--tp", "8", "--pp", "16", "--dp", "8")
    rows = call(*asked, "--json").json
    assert {(row["tensor"], row["pipeline"], row["data"]) for row in rows} == {(8, 16, 8)}
    assert len({row["expert"] for row in rows}) > 1
    shown = call(*asked).out
    assert "MFU" in shown and max(map(len, shown.splitlines())) <= 80
    assert "the nearest that does is 8" in call(*asked, "--ep", "7").is_problem().err
    assert "--model" in call("simulate", "uniform", "--tp", "8").is_problem().err


@pytest.mark.parametrize("scene", ["two-jobs", "uniform"])
def test_simulate_events(call, scene) -> None:
    options = ("--events", "--steps", "3", "--stragglers", "0.05", "--seed", "2")
    played = call("simulate", scene, *options, "--json").json
    assert played["tier"] == "modelled" and played["links"] and played["ranks"] and played["seed"] == 2
    for job in played["jobs"]:
        assert job["steps"] == 3 and job["step_s"]["median_s"] < job["step_s"]["longest_s"]
        assert job["device_j"] is None and 0 < job["kept"] <= 1
    shown = call("simulate", scene, *options).out
    assert "modelled" in shown and "Links" in shown and "Ranks" in shown and "kept" in shown
    single = call("simulate", scene, "--events", "--devices", "1024", "--unfolded", "--json").json
    assert single["leaves"] == 1024 == len(single["ranks"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mixed",), "simulate mixed --events"),
        (("uniform", "--stragglers", "0.1"), "--stragglers belongs to --events"),
        (("mixed", "--events", "--tp", "8"), "--tp means nothing to --events"),
        (("--against", "shipped", "--model", "kimi-k2"), "--model means nothing to --against"),
        (("uniform", "--format", "md"), "--format belongs to --against"),
        (("mixd", "--events"), "did you mean 'mixed'"),
        (("uniform", "--events", "--devices", "12"), "8 and 16"),
        (("uniform", "--events", "--stragglers", "-1"), "spread of 0 to 3"),
        (("uniform", "--events", "--steps", "0"), "'steps' must be 1"),
    ],
)
def test_simulate_events_names_what_is_wrong(call, arguments, message) -> None:
    problem = call("simulate", *arguments)
    assert problem.code == 2 and message in problem.err and problem.err.count("\n") <= 2


# Run: what the command makes of a finished session


def finished(monkeypatch, path, **manifest: Any) -> None:
    monkeypatch.setattr(session, "run", lambda *_, **__: load_run(make_run(path, **{"records": [], **manifest})))


@pytest.mark.parametrize(
    ("records", "state", "code"),
    [
        (make_replicates("moe-sorted", 0.01), "complete", 0),
        ([make_record("bnb-nf4", status=Status.CAPPED, reason="slow")], "complete", 0),
        ([make_record("cuda", status=Status.SKIPPED, reason="no device")], "complete", 0),
        ([make_record("openvino", status=Status.FAILED, reason="died")], "complete", 1),
        (make_replicates("moe-sorted", 0.01), "out of time", 0),
        (make_replicates("moe-sorted", 0.01), "interrupted", 130),
    ],
    ids=["ok", "capped", "skipped", "failed", "out of time", "interrupted"],
)
def test_exit_code_of_a_run(call, monkeypatch, tmp_path, records, state, code) -> None:
    finished(monkeypatch, tmp_path / "done", records=records, state=state, claims_hash=claims_hash())
    answer = call("run", "smoke", "--json")
    assert answer.code == code
    assert answer.json["state"] == state and answer.json["run"] == str(tmp_path / "done")
    assert all(list(row) == KEYS for row in answer.json["verdicts"])
    assert ("--resume" in answer.err) is (code == 130)


def test_a_run_says_where_it_is_and_how_to_open_it(call, monkeypatch, tmp_path) -> None:
    finished(monkeypatch, tmp_path / "done", records=plausible_records(), claims_hash=claims_hash())
    out = call("run", "smoke").out
    assert str(tmp_path / "done") in out and "frugalbench report" in out


def test_ctrl_c_is_130(call, monkeypatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "run", stop)
    answer = call("run", "smoke")
    assert answer.code == 130 and "interrupted" in answer.err and "Traceback" not in answer.err


def test_a_modelled_config_runs_for_real(call, tmp_path) -> None:
    out = tmp_path / "net-run"
    answer = call("run", "smoke", "--only", "cluster_model", "--out", out, "--json")
    assert answer.code == 0, answer.err
    rows = [row for row in answer.json["verdicts"] if row["claim"] == "net.supernode"]
    assert any(row["verdict"] != "not tested" and row["tier"] == "modelled" for row in rows)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["state"] == "complete" and manifest["machine_after"]
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    call("run", "smoke", "--only", "cluster_model", "--out", out).is_problem()
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.skipif(not charts.available(), reason="altair and vl-convert are not installed")
def test_simulate_draws_what_ifs_beside_each_other(call, tmp_path) -> None:
    page, picture = tmp_path / "what-if.html", tmp_path / "what-if.svg"
    found = call("simulate", "uniform", "islands", "--chart", str(page), "--json")
    assert {row["cluster"] for row in found.json} == {"uniform", "islands"} and f"wrote {page}" in found.err
    text = page.read_text()
    assert text.count('<svg role="img"') == 6 and "default-src 'none'" in text
    for words in ("Marginal throughput, strong scaling (modelled)", "islands, strong scaling", "between sites.alpha_s"):
        assert words in text, words
    assert "between sites.alpha_s" in call("simulate", "uniform", "islands", "--chart", str(picture)).out
    assert picture.read_text().startswith("<svg") and "#ffffff" in picture.read_text()


@pytest.mark.skipif(not charts.available(), reason="altair and vl-convert are not installed")
def test_simulate_draws_the_fastest_cut_over_sizes(call, tmp_path) -> None:
    page = tmp_path / "cut.html"
    call("simulate", "uniform", "--model", "kimi-k2", "--devices", "512", "--chart", str(page))
    text = page.read_text()
    assert "Throughput of kimi-k2, fastest cut (modelled)" in text and "MFU of kimi-k2" in text
    assert all(part in text for part in ("frugalbench simulate uniform", "--model kimi-k2", "--devices 512", "--chart"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("uniform", "--chart", "x.png"), "ends in .html"),
        (("uniform", "--events", "--chart", "x.svg"), "leave --events out"),
        (("--against", "shipped", "--chart", "x.svg"), "leave --against out"),
        (("uniform", "islands", "--events"), "one scene at a time"),
        (("uniform", "mixed"), "simulate mixed --events"),
        (("uniform", "--chart", "no/such/folder/x.svg"), "cannot be written"),
    ],
)
def test_simulate_names_what_it_cannot_draw(call, arguments, message) -> None:
    problem = call("simulate", *arguments)
    assert problem.code == 2 and message in problem.err
