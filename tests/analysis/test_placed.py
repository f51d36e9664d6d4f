"""What a record says of where its nodes ran, in the matrix, the evidence and explain; strangers' records included."""

import pytest

from factory import make_record, make_run
from frugalbench.analysis.load import load_run
from frugalbench.analysis.metrics import rows
from frugalbench.analysis.placed import placed
from frugalbench.report.evidence import case_lines
from frugalbench.report.portability import portability_tables

DETAILS = {
    "placement": {"CUDA": {"MatMul": 7, "Add": 2, "MemcpyToHost": 1}, "CPU": {"Shape": 1}},
    "nodes": {"grain": "node", "model": 14, "absorbed": 4, "inserted": {"MemcpyToHost": 1}, "copied_bytes": 2048},
    "runtime": {"kernels": {"gemm": 7}, "threads": 2},
}


def test_counts_and_the_whole_story():
    found = placed(make_record("a", details=DETAILS))
    assert found.brief == "11 nodes, −4 +1, 2.00 KiB"
    told = ("CUDA: MatMul 7, Add 2, MemcpyToHost 1", "CPU: Shape 1", "4 of the file's 14 nodes", "gemm 7")
    counted = ("put in by the runtime: MemcpyToHost 1", "copied between host and device: 2.00 KiB a call")
    assert all(part in found.full for part in told + counted)


def test_a_runtime_that_tells_of_no_nodes_says_what_it_tells():
    details = {"placement": {"CPU": {"node": 12}}, "nodes": {"grain": "kernel", "inserted": {}, "copied_bytes": 0}}
    found = placed(make_record("a", details=details))
    assert found.brief == "12 kernels"
    assert "put in" not in found.full and "fused" not in found.full


@pytest.mark.parametrize("odd", ["odd", {}, {"CPU": "many"}, {"CPU": {"Add": -1}}, {"CPU": {"Add": 1.5}}, None, [1]])
def test_what_no_worker_writes_is_left_out(odd):
    assert placed(make_record("a", details={"placement": odd})) is None
    assert placed(make_record("a", details={**DETAILS, "nodes": odd, "runtime": odd})).executed == 11


def test_shown_in_the_matrix_and_as_evidence(tmp_path):
    record = make_record("a", "batch-1", "onnx_graphs", details=DETAILS, case_fields={"shape": "graph"})
    run = load_run(make_run(tmp_path / "run", [record]))
    table = portability_tables([run])[-1]
    assert table.title.startswith("Nodes that ran")
    ((graph, cell),) = table.rows
    assert (graph.text, cell.text) == ("graph", "11 nodes, −4 +1, 2.00 KiB")
    assert "CUDA: MatMul 7" in cell.hint
    text = next(text for name, text, *_ in case_lines(rows(run)[0], run.records) if name == "what ran where")
    assert "CUDA: MatMul 7" in text and "threads 2" in text
