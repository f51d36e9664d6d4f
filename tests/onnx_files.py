"""Small ONNX files that tests make, and ways to spoil them."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 24


def weights(seed=0):
    random = np.random.default_rng(seed)
    return {name: random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 5 for name in ("w1", "w2", "w3")}


def chain(**changes):
    """relu(x w1) w2, tanh, w3: nodes ``first`` to ``last``; ``changes`` replace an operator or a weight by name."""
    stored = {**weights(), **{name: value for name, value in changes.items() if isinstance(value, np.ndarray)}}
    operators = {"bend": "Relu", "squash": "Tanh", **{k: v for k, v in changes.items() if isinstance(v, str)}}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node(operators["bend"], ["a"], ["b"], name="bend"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="second"),
        helper.make_node(operators["squash"], ["c"], ["d"], name="squash"),
        helper.make_node("MatMul", ["d", "w3"], ["e"], name="third"),
        helper.make_node("Sigmoid", ["e"], ["y"], name="last"),
    ]
    return made(nodes, stored)


def made(nodes, stored, x=("batch", WIDTH), opset=20, domains=()):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def save(model, path: Path) -> Path:
    onnx.save(model, str(path))
    return path


def spoilt(index, takes=None, makes=None):
    """The chain with another first input or output of one node."""
    model = chain()
    node = model.graph.node[index]
    node.input[0], node.output[0] = takes or node.input[0], makes or node.output[0]
    return model


def with_type(side, kind):
    """The chain with another type of its ``input`` or ``output``."""
    model = chain()
    getattr(model.graph, side)[0].type.CopyFrom(kind)
    return model
