"""Outcomes from records, and the laws of performance portability."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import make_fact, make_record, make_replicates, make_run
from frugalbench.analysis.load import load_run
from frugalbench.analysis.portability import OUTCOMES, Latency, cells, outcome_of, portabilities
from frugalbench.report.portability import portability_tables, time_text
from frugalbench.schema import Status

REASONS = {
    "ExportError: torch.onnx.export(dynamo=True): x": "export error",
    "LoadError: ONNX Runtime cannot load the model: x": "load error",
    "SilentFallback: ONNX Runtime was asked for x": "fallback",
    "RunError: Non-zero status code": "run error",
    "wrong answer: error 0.1, allowed 2e-05 (2 of 2)": "wrong",
    "answer changed between calls: right at first": "wrong",
    "no float64 reference could be computed: x": "no reference",
    "no answer within 180 s; killed": "timeout",
    "worker killed by SIGSEGV": "crash",
    "memory limit: this worker holds 5 GiB": "crash",
    "something nobody thought of": "run error",
}


@pytest.mark.parametrize("reason", REASONS)
def test_every_failure_has_one_outcome(reason):
    found = outcome_of(make_record("x", workload="onnx_graphs", status=Status.FAILED, reason=reason))
    assert found == REASONS[reason]
    assert found in OUTCOMES


def test_slow_is_no_failure_and_skipped_was_not_run():
    assert outcome_of(make_record("x", workload="onnx_graphs", status=Status.CAPPED, reason="slow")) == "pass"
    assert outcome_of(make_record("x", workload="onnx_graphs", status=Status.SKIPPED, reason="absent")) == "not run"


def stored(tmp_path, times, failed=()):
    facts = {"ran_as_asked": make_fact(1.0)}
    records = []
    for name, time_s in times.items():
        more = {"case_fields": {"backend": name, "shape": "graph"}, "facts": facts}
        records += make_replicates(name, time_s, 3, workload="onnx_graphs", regime="batch-1", **more)
    for name, reason in dict(failed).items():
        fields = {"backend": name, "shape": "graph"}
        records.append(
            make_record(name, "batch-1", "onnx_graphs", status=Status.FAILED, reason=reason, case_fields=fields)
        )
    return load_run(make_run(tmp_path, records))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=4))
def test_phi_is_the_harmonic_mean_of_efficiencies(tmp_path_factory, times):
    named = {f"b{number}": time_s for number, time_s in enumerate(times)}
    (found,) = portabilities(stored(tmp_path_factory.mktemp("phi") / "run", named))
    want = len(times) / sum(time_s / min(times) for time_s in times)
    assert found.phi == pytest.approx(want, rel=0.1)
    assert found.running == found.phi
    assert 0 < found.phi <= 1.1


def test_a_failure_makes_phi_zero_and_the_rest_is_shown_apart(tmp_path):
    run = stored(tmp_path / "run", {"a": 0.01, "b": 0.02}, {"c": "LoadError: no such operator"})
    (found,) = portabilities(run)
    assert (found.phi, found.passed, found.backends) == (0.0, 2, 3)
    assert found.running == pytest.approx(2 / 3, rel=0.1)
    assert {cell.backend: cell.outcome for cell in cells(run)} == {"a": "pass", "b": "pass", "c": "load error"}


def test_native_arms_set_the_pace_but_are_no_backend(tmp_path):
    run = stored(tmp_path / "run", {"torch-eager": 0.01, "a": 0.04})
    (found,) = portabilities(run)
    assert found.backends == 1
    assert found.phi == pytest.approx(0.25, rel=0.1)


def test_bounds_of_a_time_show_a_unit_only_where_it_is_another_one():
    assert time_text(Latency("r", 0.0169, 0.0118, 0.0276, 1.0)) == "16.9 ms [11.8, 27.6]"
    assert time_text(Latency("r", 0.00102, 0.0009, 0.002, 1.0)) == "1.02 ms [900 µs, 2.00]"
    assert time_text(Latency("r", 0.5, None, None, 1.0)) == "500 ms"


def test_the_matrix_shows_outcomes_and_keeps_the_reason(tmp_path):
    run = stored(tmp_path / "run", {"a": 0.01}, {"c": "LoadError: no such operator"})
    matrix, phi = portability_tables([run])
    assert [title for title, _ in matrix.columns] == ["graph", "a", "c"]
    ((graph, good, bad),) = matrix.rows
    assert (graph.text, bad.text, bad.hint) == ("graph", "load error", "LoadError: no such operator")
    assert good.text.endswith(", 1.0")
    assert phi.rows[0][2].text == "0"


def test_runs_without_graphs_have_no_such_table(tmp_path):
    run = load_run(make_run(tmp_path / "run", [make_record("x", workload="onnx_model")]))
    assert portability_tables([run]) == []
