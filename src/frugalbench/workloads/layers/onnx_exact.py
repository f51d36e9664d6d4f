"""Any ONNX graph evaluated in float64: the answer that runtimes are held against.

Every float tensor, constant and cast of the model becomes a double, and ``onnx.reference``, which computes in the type
of its arrays, evaluates the result. Integers, and so quantised codes, stay what they are. A few kernels of the package
compute in float32 whatever they get, or go wrong; those are replaced here, and MatMulNBits, which the package lacks, is
added.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv import Conv as PackageConv
from scipy.special import erf

Arrays = dict[str, np.ndarray]

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


class Erf(OpRun):  # type: ignore[misc]
    """All at once, where the package asks ``math.erf`` for each element."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (erf(x).astype(x.dtype),)


class GlobalMaxPool(OpRun):  # type: ignore[misc]
    """Over every axis behind the second, where the package takes the last of two whatever there are."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class BatchNormalization(OpRun):  # type: ignore[misc]
    """By the stored mean and variance, where the package up to opset 13 takes those of the batch."""

    op_domain = ""

    def _run(
        self, x: np.ndarray, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, var: np.ndarray,
        epsilon: float | None = None, training_mode: int | None = 0, **_ignored: Any,
    ) -> tuple[np.ndarray]:  # fmt: skip
        if training_mode or len(self.onnx_node.output) > 1:
            raise NotImplementedError("BatchNormalization in training")
        channels = (-1, *[1] * (x.ndim - 2))
        slope = scale / np.sqrt(var + (1e-5 if epsilon is None else epsilon))
        return ((x - mean.reshape(channels)) * slope.reshape(channels) + bias.reshape(channels),)


class Conv(PackageConv):  # type: ignore[misc]
    """All windows in one product, where the package copies tap after tap."""

    op_domain = ""

    def _run(
        self, x: np.ndarray, w: np.ndarray, bias: Any = None, auto_pad: str | None = None, dilations: Any = None,
        group: int | None = None, kernel_shape: Any = None, pads: Any = None, strides: Any = None,
    ) -> tuple[np.ndarray]:  # fmt: skip
        if auto_pad not in (None, "NOTSET"):
            found: tuple[np.ndarray] = super()._run(x, w, bias, auto_pad, dilations, group, kernel_shape, pads, strides)
            return found
        product = convolved(_windows(x, w.shape[2:], dilations, pads, strides), w, group or 1)
        return (product if bias is None else product + bias.reshape(-1, *[1] * (x.ndim - 2)),)


def _windows(x: np.ndarray, kernel: Sequence[int], dilations: Any, pads: Any, strides: Any) -> np.ndarray:
    """Views (N, C, place …, tap …) of ``x`` (N, C, …), padded with zeros."""
    axes = len(kernel)
    steps, gaps, edges = strides or [1] * axes, dilations or [1] * axes, pads or [0] * 2 * axes
    padded = np.pad(x, [(0, 0), (0, 0), *zip(edges[:axes], edges[axes:], strict=True)])
    extents = [(size - 1) * gap + 1 for size, gap in zip(kernel, gaps, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(padded, extents, tuple(range(2, x.ndim)))
    every = slice(None)
    return views[(every, every, *(slice(None, None, step) for step in [*steps, *gaps]))]


def convolved(views: np.ndarray, w: np.ndarray, groups: int) -> np.ndarray:
    """(N, M, place …) of :func:`_windows` and a filter (M, C / groups, tap …)."""
    axes = w.ndim - 2
    if groups == 1:
        taps = (1, *range(2 + axes, 2 + 2 * axes))
        return np.ascontiguousarray(np.moveaxis(np.tensordot(views, w, (taps, range(1, w.ndim))), -1, 1))
    places, taps_named = "xyz"[:axes], "ijk"[:axes]
    grouped = views.reshape(views.shape[0], groups, -1, *views.shape[2:])
    filters = w.reshape(groups, -1, *w.shape[1:])
    found = np.einsum(f"ngc{places}{taps_named},gmc{taps_named}->ngm{places}", grouped, filters)
    return np.asarray(found.reshape(found.shape[0], -1, *found.shape[3:]))


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


KERNELS = (Erf, GlobalMaxPool, BatchNormalization, Conv, DynamicQuantizeLinear, MatMulNBits)


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
