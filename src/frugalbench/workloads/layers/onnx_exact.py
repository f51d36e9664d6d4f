"""Any ONNX graph evaluated in float64: the answer that runtimes are held against.

Every float tensor, constant and cast of the model becomes a double, and ``onnx.reference``, which computes in the type
of its arrays, evaluates the result. Integers, and so quantised codes, stay what they are. A few kernels of the package
compute in float32 whatever they get; those are replaced here, and MatMulNBits, which the package lacks, is added.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from scipy.special import erf

Arrays = dict[str, np.ndarray]

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


class Erf(OpRun):  # type: ignore[misc]
    """All at once, where the package asks ``math.erf`` for each element."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (erf(x).astype(x.dtype),)


class DynamicQuantizeLinear(OpRun):  # type: ignore[misc]
    """To uint8 over the range of the values and 0; scale and zero point by the operator's definition, in double."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
        scale = (high - low) / 255 or 1.0
        zero = np.clip(np.rint(-low / scale), 0, 255)
        codes = np.clip(np.rint(x / scale) + zero, 0, 255)
        return codes.astype(np.uint8), np.array(scale, x.dtype), np.array(zero, np.uint8)


class MatMulNBits(OpRun):  # type: ignore[misc]
    """x (..., K) times the transposed weights that ``bits``-wide codes, scales and zero points stand for."""

    op_domain = "com.microsoft"

    def _run(
        self, x: np.ndarray, codes: np.ndarray, scales: np.ndarray, zeros: Any = None, group_index: Any = None,
        bias: Any = None, K: int = 0, N: int = 0, bits: int = 4, block_size: int = 32, **_ignored: Any,
    ) -> tuple[np.ndarray]:  # fmt: skip
        if group_index is not None and group_index.size:
            raise NotImplementedError("MatMulNBits with a group index")
        groups = -(-K // block_size)
        values = unpacked(codes.reshape(N * groups, -1), bits).reshape(N, groups, -1)
        zero = np.full((N, groups), float(1 << (bits - 1)))
        if zeros is not None and zeros.size:
            packed = np.issubdtype(zeros.dtype, np.integer)
            zero = unpacked(zeros.reshape(N, -1), bits)[:, :groups] if packed else zeros.reshape(N, groups)
        weights_NK = ((values - zero[..., None]) * scales.reshape(N, groups, 1)).reshape(N, -1)[:, :K]
        product = x @ weights_NK.T
        return (product if bias is None else product + bias,)


def unpacked(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (rows, bytes) of ``bits`` bits, lowest first in each byte, as float64 (rows, bytes * 8 / bits)."""
    parts = [(codes >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(len(codes), -1).astype(np.float64)


KERNELS = (Erf, DynamicQuantizeLinear, MatMulNBits)


class ExactGraph:
    """A model in double precision. Raises when an operator has no implementation; the text names it."""

    def __init__(self, model: Path | Any) -> None:
        self.model = onnx.load(str(model)) if isinstance(model, Path) else model
        self.inputs = graph_inputs(self.model.graph)
        self.outputs = [item.name for item in self.model.graph.output]
        promote(self.model)
        self._evaluator = ReferenceEvaluator(self.model, new_ops=list(KERNELS))

    def run(self, feed: Arrays) -> Arrays:
        """Outputs by name; float inputs may come in any precision."""
        values = self._evaluator.run(None, {name: _double(feed[name]) for name in self.inputs})
        return dict(zip(self.outputs, values, strict=True))

    def everything(self, feed: Arrays) -> Arrays:
        """Outputs and every intermediate value of the outer graph, by name."""
        found = self._evaluator.run(None, {name: _double(feed[name]) for name in self.inputs}, intermediate=True)
        return {name: np.asarray(value) for name, value in found.items() if isinstance(value, np.ndarray | np.generic)}


def graph_inputs(graph: Any) -> list[str]:
    """Names of the inputs that a caller must give: those without an initialiser."""
    stored = {tensor.name for tensor in graph.initializer}
    return [item.name for item in graph.input if item.name not in stored]


def _double(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float64) if value.dtype.kind == "f" or value.dtype.name == "bfloat16" else value


def promote(model: Any) -> None:
    """Turn every float type of ``model`` into double, in place."""
    _promote_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            _promote_node(node)


def _promote_graph(graph: Any) -> None:
    for tensor in graph.initializer:
        _promote_tensor(tensor)
    for sparse in graph.sparse_initializer:
        _promote_tensor(sparse.values)
    for item in (*graph.input, *graph.output, *graph.value_info):
        if item.type.HasField("tensor_type") and item.type.tensor_type.elem_type in FLOATS:
            item.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        _promote_node(node)


def _promote_node(node: Any) -> None:
    for attribute in node.attribute:
        if attribute.name in _TYPE_ATTRIBUTES and attribute.i in FLOATS:
            attribute.i = TensorProto.DOUBLE
        elif attribute.HasField("t"):
            _promote_tensor(attribute.t)
        elif attribute.HasField("g"):
            _promote_graph(attribute.g)
        for graph in attribute.graphs:
            _promote_graph(graph)
    if node.op_type == "Constant" and not node.domain:
        _promote_constant(node)
    if node.op_type == "ConstantOfShape" and not node.attribute:
        zero = numpy_helper.from_array(np.zeros(1))
        node.attribute.append(helper.make_attribute("value", zero))


def _promote_constant(node: Any) -> None:
    for attribute in list(node.attribute):
        if attribute.name in ("value_float", "value_floats"):
            value = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            node.attribute.remove(attribute)
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.array(value, np.float64))))


def _promote_tensor(tensor: Any) -> None:
    if tensor.data_type in FLOATS:
        value = numpy_helper.to_array(tensor).astype(np.float64)
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(value, name))


def nodes_of(graph: Any) -> Iterator[Any]:
    """Every node of a graph and of the graphs within it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from nodes_of(inner)
