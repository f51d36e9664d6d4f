"""The list of executed nodes, from made-up records: what a runtime tells, what it does not, what a forger writes."""

import pytest

from factory import make_case, make_record, make_run
from frugalbench.analysis.load import load_run
from frugalbench.backends.base import MOST_LISTED, Placement
from frugalbench.report.nodes import listed, nodes_tables
from frugalbench.report.terminal import table_terminal

TOLD = Placement(
    "cpu", {"a": "cpu", "b + c": "cpu"}, {"cast": "cpu"}, {"cast": "Cast", "a": "MatMul", "b + c": "Relu"},
    time_s={"a": 3e-6, "b + c": 1e-6}, inserted=frozenset({"cast"}), kernels={"a": "gemm"}, dtypes={"a": "float"},
    origins={"b + c": ("b", "c")},
)  # fmt: skip


def run_of(tmp_path, *lists):
    records = [
        make_record(case=make_case(f"runtime{number}", "batch-1", "onnx_graphs"), details={"node_list": found})
        for number, found in enumerate(lists)
    ]
    return load_run(make_run(tmp_path / "run", records))


def test_a_node_says_what_its_runtime_tells_in_the_order_of_running(tmp_path):
    run = run_of(tmp_path, TOLD.listing())
    (nodes,) = listed(run).values()
    assert [(node.node, node.operator) for node in nodes] == [("cast", "Cast"), ("a", "MatMul"), ("b + c", "Relu")]
    assert [node.time_share for node in nodes] == [None, 0.75, 0.25]
    assert (nodes[0].inserted, nodes[1].kernel, nodes[1].origins, nodes[2].origins) == (True, "gemm", None, ("b", "c"))
    (table,) = nodes_tables(run)
    text = table_terminal(table, width=100)
    for part in ("runtime0: 3 nodes", "+ Cast", "cpu gemm", "3.00 µs 75%", "made of", "b, c"):
        assert part in text


def test_a_runtime_that_tells_of_a_graph_alone_has_no_empty_columns(tmp_path):
    (table,) = nodes_tables(run_of(tmp_path, Placement("cpu", {"graph": "cpu"}, grain="graph").listing()))
    assert [title for title, _ in table.columns] == ["ran on", "node"]
    assert "no times" in table.notes[1]


def test_records_without_a_list_have_no_table_and_a_long_list_is_cut(tmp_path):
    assert nodes_tables(run_of(tmp_path, None)) == []
    long = Placement("cpu", {f"{'n' * 500}{number}": "cpu" for number in range(MOST_LISTED + 9)}).listing()
    assert len(long) == MOST_LISTED and len(long[0]["node"]) == 200


@pytest.mark.parametrize("odd", ["text", [1, None], [{"time_s": "x", "from": 3, "operator": 9}], [{"time_s": -1}]])
def test_a_stranger_s_list_is_no_traceback(tmp_path, odd):
    for table in nodes_tables(run_of(tmp_path, odd)):
        assert table_terminal(table, width=80)
