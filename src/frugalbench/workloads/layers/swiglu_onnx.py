"""A SwiGLU layer written as ONNX operators: one file that every portable runtime reads."""

from pathlib import Path

import numpy as np

INPUT, OUTPUT = "x", "y"
OPSET = 20


def graph(gate_up: np.ndarray, down: np.ndarray) -> object:
    """y = down(silu(gate(x)) · up(x)) for x of (tokens, D); ``gate_up`` is 2F x D, ``down`` D x F, fp32."""
    from onnx import TensorProto, helper, numpy_helper

    gate, up = np.split(gate_up, 2)
    weights = {"gate_w": gate.T, "up_w": up.T, "down_w": down.T}
    nodes = [
        helper.make_node("MatMul", [INPUT, "gate_w"], ["gate"]),
        helper.make_node("MatMul", [INPUT, "up_w"], ["up"]),
        helper.make_node("Sigmoid", ["gate"], ["opened"]),
        helper.make_node("Mul", ["gate", "opened"], ["silu"]),
        helper.make_node("Mul", ["silu", "up"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "down_w"], [OUTPUT]),
    ]
    shape = ["tokens", gate_up.shape[1]]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (INPUT, OUTPUT)]
    held = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()]
    return helper.make_graph(nodes, "swiglu", ends[:1], ends[1:], held)


def write(gate_up: np.ndarray, down: np.ndarray, path: Path) -> None:
    """The graph as a file that appears whole."""
    import onnx
    from onnx import helper

    model = helper.make_model(graph(gate_up, down), opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    temporary = path.with_suffix(".part")
    onnx.save(model, temporary)
    temporary.replace(path)
