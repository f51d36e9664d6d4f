"""Models that no runtime could take, told in one line; what is odd and right passes."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from frugalbench.schema import FrugalbenchError
from frugalbench.specs.graph_inputs import bind
from frugalbench.workloads import onnx_bisect
from frugalbench.workloads.layers import onnx_inspect
from frugalbench.workloads.layers.onnx_sound import require_fitting, require_sound
from frugalbench.workloads.onnx_safety import UnsafeModel, check_model
from onnx_files import WIDTH, chain, made, spoilt, with_type

NUMBER = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
PATH = Path("m.onnx")


def emptied():
    model = chain()
    del model.graph.node[:]
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (emptied(), "no graph with nodes and outputs"),
        (spoilt(0, takes="d"), r"its nodes run in a loop: node 1 \(MatMul first\) waits for itself"),
        (spoilt(2, makes="a"), r"'a' is made twice, by node 1 \(MatMul first\) and by node 3 \(MatMul second\)"),
        (spoilt(2, makes="w1"), r"'w1' is made twice, by the graph's inputs or stored values and by node 3"),
        (spoilt(2, takes="void"), r"node 3 \(MatMul second\) takes 'void', which nothing makes"),
        (spoilt(5, makes="z"), "nothing makes its output 'y'"),
        (with_type("output", helper.make_map_type_proto(TensorProto.INT64, NUMBER)), "'y' is no tensor but a map"),
        (with_type("output", helper.make_sequence_type_proto(NUMBER)), "'y' is no tensor but a sequence"),
        (with_type("output", helper.make_tensor_type_proto(TensorProto.STRING, [2])), "'y' holds text"),
    ],
)
def test_what_no_runtime_could_take_is_one_line(model, said):
    with pytest.raises(UnsafeModel, match=f"m.onnx: .*{said}") as problem:
        require_sound(model, PATH)
    assert "\n" not in str(problem.value)


def test_any_order_of_nodes_and_names_from_outside_a_branch_are_sound():
    model = chain()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    require_sound(model, PATH)
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["inner"])], "branch", [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )  # fmt: skip
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    stored = {"w": np.ones(WIDTH, np.float32)}
    both = made([choice], stored)
    both.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    require_sound(both, PATH)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.ones((2, WIDTH)), "'x' is float64; the model takes float32"),
        (np.ones((2, 3), np.float32), rf"'x' is of shape \[2, 3\]; the model takes \[batch, {WIDTH}\]"),
        (np.ones(WIDTH, np.float32), rf"'x' is of shape \[{WIDTH}\]"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_told_before_it_runs(value, said):
    require_fitting({"x": np.ones((5, WIDTH), np.float32)}, "feed.npz", chain().graph)
    with pytest.raises(UnsafeModel, match=f"feed.npz: {said}"):
        require_fitting({"x": value}, "feed.npz", chain().graph)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (helper.make_tensor_type_proto(TensorProto.STRING, [2]), "'x' holds text; give it with --input"),
        (helper.make_sequence_type_proto(NUMBER), r"'x' is no tensor \(a sequence, map or optional\)"),
        (helper.make_map_type_proto(TensorProto.INT64, NUMBER), r"'x' is no tensor \(a sequence, map or optional\)"),
    ],
)
def test_inputs_that_cannot_be_made_are_told(kind, said):
    found = onnx_inspect.describe(with_type("input", kind))
    with pytest.raises(FrugalbenchError, match=said):
        bind(found["inputs"], {}, "m.onnx")


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UnsafeModel, match="is a folder; name the file of the model"):
        check_model(tmp_path)
    path = tmp_path / "closed.onnx"
    path.write_bytes(b"x")

    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UnsafeModel, match=r"closed.onnx: cannot be read: Permission denied$"):
        check_model(path)


def test_values_without_place_in_memory_are_not_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_inspect.os, "sysconf", lambda _name: 100)
    path = tmp_path / "m.onnx"
    path.write_bytes(chain().SerializeToString())
    assert onnx_inspect.inspect({"path": str(path)})["no_exact"] == "float64 evaluation would take 40.5 KiB"
    with pytest.raises(onnx_bisect.Unusable, match="more than half of this machine"):
        onnx_bisect.bisect({"path": str(path), "backend": "onnxruntime"})


def test_a_large_part_keeps_its_values_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_bisect, "_MOST_MESSAGE_BYTES", 100)
    files = onnx_bisect._saved(chain(), tmp_path / "part.onnx")
    assert [file.name for file in files] == ["part.onnx", "part.onnx.data"]
    assert check_model(files[0]) == (files[1],)
