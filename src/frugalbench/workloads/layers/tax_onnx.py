"""The kernels of ``kernel_tax`` written as ONNX operators: one file each that every portable runtime reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.specs.kernel_tax import EPSILON, TOP_K

INPUT, OUTPUT = "x", "y"
OPSET = 20


def swiglu(gate_up: np.ndarray, down: np.ndarray) -> object:
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


def rms_norm(gain: np.ndarray) -> object:
    """y = x / sqrt(mean(x²) + epsilon) · gain for x of (tokens, D), in operators that every opset since 18 has."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Mul", [INPUT, INPUT], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["mean"], keepdims=1),
        helper.make_node("Add", ["mean", "epsilon"], ["above_zero"]),
        helper.make_node("Sqrt", ["above_zero"], ["rms"]),
        helper.make_node("Div", [INPUT, "rms"], ["normal"]),
        helper.make_node("Mul", ["normal", "gain"], [OUTPUT]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", len(gain)]) for name in (INPUT, OUTPUT)]
    weights = {"gain": gain, "epsilon": np.array(EPSILON, np.float32), "axes": np.array([-1], np.int64)}
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    return helper.make_graph(nodes, "rms_norm", ends[:1], ends[1:], held)


def moe(router: np.ndarray, gate_up: np.ndarray, down: np.ndarray) -> object:
    """A mixture of SwiGLU experts: each runs on the tokens that chose it, and adds to their rows of the output.

    ``router`` is E x D, ``gate_up`` E x 2F x D, ``down`` E x D x F; a token takes its TOP_K best experts, whose softmax
    scores are scaled to add up to 1.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("MatMul", [INPUT, "router"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
        helper.make_node("TopK", ["scores", "top_k"], ["best", "chosen"], axis=-1),
        helper.make_node("ReduceSum", ["best", "last"], ["whole"], keepdims=1),
        helper.make_node("Div", ["best", "whole"], ["mixing"]),
        helper.make_node("Shape", [INPUT], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["sum0"]),
    ]
    weights = {
        "router": router.T, "top_k": np.array([TOP_K]), "last": np.array([-1]), "first": np.array([0]),
        "none": np.array(0, np.float32),
    }  # fmt: skip
    for e in range(len(router)):
        gate, up = np.split(gate_up[e], 2)
        weights |= {f"e{e}": np.array(e), f"gate{e}": gate.T, f"up{e}": up.T, f"down{e}": down[e].T}
        sums = (f"sum{e}", f"sum{e + 1}" if e + 1 < len(router) else OUTPUT)
        nodes += [helper.make_node(kind, ins, outs, **more) for kind, ins, outs, more in _expert(e, *sums)]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", router.shape[1]]) for name in (INPUT, OUTPUT)
    ]
    held = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()]
    return helper.make_graph(nodes, "moe", ends[:1], ends[1:], held)


def _expert(e: int, before: str, after: str) -> list[tuple[str, list[str], list[str], dict[str, Any]]]:
    """Operators, inputs, outputs and attributes of one expert: find its tokens, compute, add."""
    return [
        ("Equal", ["chosen", f"e{e}"], [f"here{e}"], {}),
        ("Where", [f"here{e}", "mixing", "none"], [f"share{e}"], {}),
        ("ReduceSum", [f"share{e}", "last"], [f"weight{e}"], {"keepdims": 0}),
        ("NonZero", [f"weight{e}"], [f"found{e}"], {}),
        ("Squeeze", [f"found{e}", "first"], [f"rows{e}"], {}),
        ("Gather", [INPUT, f"rows{e}"], [f"x{e}"], {}),
        ("MatMul", [f"x{e}", f"gate{e}"], [f"g{e}"], {}),
        ("MatMul", [f"x{e}", f"up{e}"], [f"u{e}"], {}),
        ("Sigmoid", [f"g{e}"], [f"opened{e}"], {}),
        ("Mul", [f"g{e}", f"opened{e}"], [f"silu{e}"], {}),
        ("Mul", [f"silu{e}", f"u{e}"], [f"hidden{e}"], {}),
        ("MatMul", [f"hidden{e}", f"down{e}"], [f"y{e}"], {}),
        ("Gather", [f"weight{e}", f"rows{e}"], [f"mix{e}"], {}),
        ("Unsqueeze", [f"mix{e}", "last"], [f"column{e}"], {}),
        ("Mul", [f"y{e}", f"column{e}"], [f"part{e}"], {}),
        ("Unsqueeze", [f"rows{e}", "last"], [f"places{e}"], {}),
        ("ScatterND", [before, f"places{e}", f"part{e}"], [after], {"reduction": "add"}),
    ]


PARTS: dict[Callable[..., object], tuple[Callable[..., object], ...]] = {moe: (moe, _expert)}
"""Functions that write a graph together."""


def write(graph: object, path: Path) -> None:
    """The graph as a file that appears whole."""
    import onnx
    from onnx import helper

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    temporary = path.with_suffix(".part")
    onnx.save(model, temporary)
    temporary.replace(path)
