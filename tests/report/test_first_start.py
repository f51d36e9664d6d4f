"""Steps of a first start, from stored records to the matrix, the evidence and the table of records."""

import json

from factory import make_record, make_replicates, make_run
from frugalbench.analysis.first_start import starts_of
from frugalbench.analysis.load import load_run
from frugalbench.analysis.metrics import rows
from frugalbench.cli.main import main
from frugalbench.report.evidence import Cases, Texts
from frugalbench.report.first_start import first_start_tables, steps_text
from frugalbench.schema import FirstStart, Status

CASE = {"workload": "onnx_graphs", "regime": "batch-1", "case_fields": {"shape": "graph"}}


def run_of(tmp_path, starts, **more):
    """One replicate a start, of one backend."""
    records = [
        make_record("a", replicate=number, first_start=start, **CASE, **more) for number, start in enumerate(starts)
    ]
    return load_run(make_run(tmp_path / "run", records))


def only(run):
    ((_, start),) = starts_of(run).items()
    return start


def test_every_start_counts_and_gives_the_interval(tmp_path):
    run = run_of(tmp_path, [FirstStart(load_s=s, first_inference_s=s / 10, note="why") for s in (0.04, 0.01, 0.02)])
    start = only(run)
    assert (start.load.time_s, start.load.starts, start.compile) == (0.02, 3, None)
    assert start.load.low_s < 0.02 < start.load.high_s
    assert steps_text(start) == "20.0 + – + 2.00 ms"


def test_too_few_or_too_unlike_starts_have_no_interval(tmp_path):
    for times in ((0.01, 0.02), (0.001, 0.1, 5.0)):
        found = only(run_of(tmp_path / str(len(times)), [FirstStart(load_s=time_s) for time_s in times]))
        assert (found.load.low_s, found.load.high_s, found.load.starts) == (None, None, len(times))


def test_a_cached_build_never_passes_for_compiling(tmp_path):
    built = FirstStart(load_s=0.1, compile_s=9.0, first_inference_s=0.2)
    cached = FirstStart(load_s=0.1, compile_s=9.0, first_inference_s=0.2, cached=True, cached_compile_s=1.5)
    mixed = only(run_of(tmp_path, [built, cached, cached]))
    assert (mixed.compile.time_s, mixed.compile.starts, mixed.cached_starts) == (9.0, 1, 2)
    assert (mixed.cached_compile.time_s, mixed.cached_compile.starts) == (1.5, 2)
    always = only(run_of(tmp_path / "always", [cached, cached]))
    assert (always.compile.time_s, always.compile.starts, always.compile.low_s) == (9.0, 0, None)
    assert steps_text(always) == "0.100 + (9.00) + 0.200 s"


def test_a_wrong_answer_has_no_start(tmp_path):
    run = run_of(tmp_path, [FirstStart(load_s=1.0)], status=Status.FAILED, reason="wrong answer: x")
    assert starts_of(run) == {}
    assert first_start_tables([run]) == []


def test_matrix_and_evidence_say_the_same(tmp_path):
    run = run_of(tmp_path, [FirstStart(load_s=0.01, compile_s=0.03, first_inference_s=0.002, note="how")] * 2)
    (table,) = first_start_tables([run])
    ((graph, cell),) = table.rows
    assert (graph.text, cell.text) == ("graph", "10.0 + 30.0 + 2.00 ms")
    assert "compilation 30.0 ms" in cell.hint and "steady" in cell.hint
    cases = Cases([run], rows(run), texts := Texts())
    place = cases.place(0, run.records[0].case.id)
    known = list(texts.known)
    lines = {known[name]: known[text] for name, text, *_ in cases.told[place]["lines"]}
    assert lines["first load"].startswith("10.0 ms") and lines["first inference"].startswith("2.00 ms")


def test_old_records_and_other_workloads_have_none(tmp_path):
    run = load_run(make_run(tmp_path / "run", make_replicates("dense", 0.01, 2)))
    assert first_start_tables([run]) == []


def test_exported_at_the_end_of_the_records(tmp_path, capsys):
    run = run_of(tmp_path, [FirstStart(load_s=0.5, compile_s=2.0, first_inference_s=0.1)])
    assert main(["report", str(run.path), "--format", "json", "--output", f"{tmp_path}/json/"]) == 0
    capsys.readouterr()
    (line,) = json.loads((tmp_path / "json/records.json").read_text())
    assert list(line)[-5:] == ["first_load_s", "compile_s", "first_inference_s", "compile_cached", "cached_compile_s"]
    assert list(line.values())[-5:] == [0.5, 2.0, 0.1, False, None]
