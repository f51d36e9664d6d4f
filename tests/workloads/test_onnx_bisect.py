"""A wrong node is found and named: an injected error, a wrong operator, and a graph that a runtime refuses."""

import numpy as np
import onnx
import pytest
from onnx import helper

from frugalbench.workloads import onnx_bisect
from frugalbench.workloads.onnx_bisect import bisect
from frugalbench.workloads.onnx_safety import UnsafeModel
from onnx_files import WIDTH, chain, made, save, weights

pytestmark = pytest.mark.real


def ask(path, tmp_path, **more):
    request = {
        "path": str(path), "backend": "onnxruntime", "dims": {}, "feed": None, "tolerance": None, "against": None,
        "device": "cpu", "threads": 1, "seed": 1, "cache": str(tmp_path),
    }  # fmt: skip
    return bisect({**request, **more})


def test_an_injected_error_of_one_percent_is_named(tmp_path):
    right = save(chain(), tmp_path / "right.onnx")
    altered = weights()["w2"] * np.float32(1.01)
    wrong = save(chain(w2=altered), tmp_path / "wrong.onnx")
    found = ask(wrong, tmp_path, against=str(right))
    assert (found["verdict"], found["node"]["name"], found["node"]["operator"]) == ("diverges", "second", "MatMul")
    assert found["before"] < found["tolerance"] < 5e-3 < found["after"]
    assert found["alone"] == pytest.approx(found["after"], rel=0.1)


def test_a_wrong_operator_is_named(tmp_path):
    right = save(chain(), tmp_path / "right.onnx")
    found = ask(save(chain(squash="Softsign"), tmp_path / "wrong.onnx"), tmp_path, against=str(right))
    assert (found["node"]["name"], found["node"]["operator"], found["output"]) == ("squash", "Softsign", "y")


def test_a_right_model_agrees_after_one_run(tmp_path):
    found = ask(save(chain(), tmp_path / "right.onnx"), tmp_path)
    assert (found["verdict"], found["runs"]) == ("agrees", 1)
    assert found["error"] < found["tolerance"]


def test_a_refused_graph_names_the_first_node_that_is_not_taken(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="bend"),
        helper.make_node("DeformConv", ["b", "w1", "w2"], ["c"], name="rare"),
        helper.make_node("Relu", ["c"], ["y"], name="last"),
    ]
    model = made(nodes, {name: weights()[name] for name in ("w1", "w2")})
    trials = onnx_bisect.Trials(
        model, {name: np.zeros((2, WIDTH)) for name in "abcy"}, {"x": np.ones((2, WIDTH), np.float32)},
        {"backend": "onnxruntime", "threads": 1, "device": "cpu", "cache": str(tmp_path)}, tmp_path,
    )  # fmt: skip
    found = onnx_bisect._search(trials, 1e-5)
    assert (found["verdict"], found["node"]["name"]) == ("refuses", "rare")


def test_values_within_a_branch_count_as_taken():
    inner = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["inside"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", onnx.TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner)
    assert onnx_bisect.used_by(node) == ["flag", "a"]


def test_inputs_that_the_model_does_not_take_are_refused(tmp_path):
    np.savez(tmp_path / "feed.npz", z=np.zeros(3))
    with pytest.raises(UnsafeModel, match="holds z; the model takes x"):
        ask(save(chain(), tmp_path / "right.onnx"), tmp_path, feed=str(tmp_path / "feed.npz"))
