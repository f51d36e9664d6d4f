"""What a file says of itself: stored values wherever they stand, and the longest sum over them."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from frugalbench.workloads.layers.onnx_inspect import describe
from onnx_files import WIDTH, made


def constant(name, value):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, "inside"))


def test_weights_in_nodes_count_like_initialisers():
    wide = np.ones((WIDTH, 300), np.float32)
    nodes = [
        constant("w", wide), constant("v", wide.T),
        helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]  # fmt: skip
    inside, outside = describe(made(nodes, {})), describe(made(nodes[2:], {"w": wide, "v": wide.T.copy()}))
    for key in ("reduction", "depth", "initialisers"):
        assert inside[key] == outside[key]
    assert (inside["reduction"], inside["initialisers"]["float"]["values"]) == (300, 2 * 300 * WIDTH)


def test_a_branch_is_looked_into_and_a_recurrent_layer_sums_over_its_width_alone():
    weights = np.ones((1, 4 * 80, 100), np.float32)
    lstm = helper.make_node("LSTM", ["x", "w", "r"], ["all"], hidden_size=80)
    branch = helper.make_graph(
        [constant("w", weights), constant("r", weights[:, :, :80].copy()), lstm], "branch", [],
        [helper.make_tensor_value_info("all", TensorProto.FLOAT, None)],
    )  # fmt: skip
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    found = describe(made([choice], {"yes": np.array(True)}))
    assert (found["reduction"], found["depth"]) == (100, 4)
    assert found["initialisers"]["float"]["values"] == 2 * 4 * 80 * 180
