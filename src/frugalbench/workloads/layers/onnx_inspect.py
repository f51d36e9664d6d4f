"""What an ONNX file says of itself, read without any runtime: ``python -m`` this module answers for one path.

Runs as a program of its own, because a stranger's file is parsed here, and evaluated once in float64 on its smallest
inputs to see whether that reference can be had. Nothing of the file is executed.
"""

import hashlib
import itertools
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from frugalbench import apart
from frugalbench.specs.graph_inputs import bind, describe_inputs, filled, make_feed
from frugalbench.units import byte_size
from frugalbench.untrusted import shown
from frugalbench.workloads.layers.onnx_exact import ExactGraph, graph_inputs, nodes_of
from frugalbench.workloads.layers.onnx_sound import require_fitting, require_sound
from frugalbench.workloads.onnx_safety import UnsafeModel, check_model

STANDARD = ("", "ai.onnx", "ai.onnx.ml")
PRODUCTS = {
    "MatMul": 1, "Gemm": 1, "Conv": 1, "ConvTranspose": 1, "Einsum": 1, "MatMulInteger": 1, "ConvInteger": 1,
    "QLinearMatMul": 1, "QLinearConv": 1, "MatMulNBits": 1, "FusedMatMul": 1, "DynamicQuantizeMatMul": 1,
    "Attention": 2, "MultiHeadAttention": 2, "GroupQueryAttention": 2, "LSTM": 4, "GRU": 4, "RNN": 4,
}  # fmt: skip
"""Operators that sum products, and how many such sums follow each other in one. A recurrent layer counts as four: what
it carries over is squashed at each step."""
_ROUNDING_ACTIVATIONS = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv")
_SAME_VALUES = ("Transpose", "DequantizeLinear", "Cast", "Identity", "Reshape", "Unsqueeze", "QuantizeLinear")
_INDEX_STEPS = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Slice")


def read(path: Path, values: bool = True) -> tuple[Any, tuple[Path, ...]]:
    """The parsed model, with its external data unless ``values`` is false, and where those lie.

    Raises :class:`UnsafeModel` in one line for what cannot be used.
    """
    files = check_model(path)
    try:
        model = onnx.load(str(path), load_external_data=values)
    except Exception as problem:
        raise UnsafeModel(f"{shown(path)}: cannot be parsed: {_brief(problem)}") from None
    require_sound(model, path)
    return model, files


def _brief(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200]


def inspect(request: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that planning needs to know of ``request['path']``.

    ``request['dims']`` and ``request['feed']`` (an ``.npz``) settle the inputs on which the float64 reference is tried.
    """
    path = Path(request["path"])
    model, files = read(path, values=False)
    found = describe(model) | {
        "path": str(path.resolve()),
        "file_bytes": path.stat().st_size,
        "external_bytes": sum(file.stat().st_size for file in files),
        "external_files": [file.name for file in files],
        "sha256": file_hash(path, *files),
    }
    if request.get("feed"):
        feed = load_feed(request["feed"], [item["name"] for item in found["inputs"]])
        require_fitting(feed, request["feed"], model.graph)
    return found | {"no_exact": too_large(found) or _no_exact(read(path)[0] if files else model, found, request)}


def too_large(found: Mapping[str, Any]) -> str:
    """Why a float64 copy of all that a model stores has no place in memory; empty when it has."""
    values = sum(
        entry["values"] for kind, entry in found["initialisers"].items() if "float" in kind or kind == "double"
    )
    needed = 3.0 * 8 * values
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    return f"float64 evaluation would take {byte_size(needed)}" if needed > most else ""


def file_hash(*paths: Path) -> str:
    """Of the contents, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while part := stream.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def _no_exact(model: Any, found: dict[str, Any], request: Mapping[str, Any]) -> str:
    """Why no float64 reference can be had; empty when one can."""
    if not request.get("evaluate", True):
        return "float64 evaluation takes too long"
    try:
        exact = ExactGraph(model)
        feed = load_feed(request["feed"]) if request.get("feed") else None
        if feed is None:
            inputs = [filled(item, request.get("fills", {})) for item in found["inputs"]]
            points = bind(inputs, request.get("dims", {}), str(request["path"]))
            feed = make_feed(describe_inputs(inputs, points[0].sizes), seed=0)
        answer = exact.run(feed)
    except Exception as problem:
        return f"{type(problem).__name__}: {_brief(problem)}" if not isinstance(problem, RuntimeError) else str(problem)
    rounded = [name for name, value in answer.items() if value.dtype.kind == "f" and value.dtype != np.float64]
    return f"{', '.join(rounded)} came out in less than float64" if rounded else ""


def load_feed(path: str, names: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Inputs by name from an ``.npz`` file, just ``names`` where given; nothing in it is unpickled."""
    if Path(path).is_file() and not zipfile.is_zipfile(path):
        raise UnsafeModel(f"{shown(path)}: not an .npz file, as numpy.savez writes it")
    try:
        with np.load(path, allow_pickle=False) as stored:
            feed = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as problem:
        raise UnsafeModel(f"{shown(path)}: cannot be read as .npz: {_brief(problem)}") from None
    if names and set(feed) != set(names):
        raise UnsafeModel(f"{shown(path)}: holds {_list(feed)}; the model takes {_list(names)}")
    return feed


def _list(names: Iterable[str]) -> str:
    return ", ".join(shown(name, 60) for name in names) or "nothing"


def describe(model: Any) -> dict[str, Any]:
    """Versions, inputs, outputs, operators and sizes of a parsed model."""
    graph = model.graph
    nodes = [*nodes_of(graph), *(node for function in model.functions for node in function.node)]
    local = {(function.domain, function.name) for function in model.functions}
    custom = [n for n in nodes if n.domain not in STANDARD and (n.domain, n.op_type) not in local]
    given = set(graph_inputs(graph))
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ir_version": model.ir_version,
        "producer": shown(f"{model.producer_name} {model.producer_version}".strip(), 80),
        "nodes": len(nodes),
        "operators": dict(Counter(node.op_type for node in nodes).most_common()),
        "custom_operators": dict(Counter(f"{node.domain}.{node.op_type}" for node in custom).most_common()),
        "inputs": [_value(item, _bounds(graph)) for item in graph.input if item.name in given],
        "outputs": [_value(item, {}) for item in graph.output],
        "initialisers": _initialisers(model),
        "reduction": _reduction(graph),
        "depth": _depth(graph),
        "rounds_activations": any(n.op_type in _ROUNDING_ACTIVATIONS or _rounds_inside(n) for n in nodes),
    }


def _rounds_inside(node: Any) -> bool:
    """MatMulNBits may round its input to 8 bits where its accuracy level allows it."""
    return any(attribute.name == "accuracy_level" and attribute.i == 4 for attribute in node.attribute)


def _value(item: Any, bounds: dict[str, int]) -> dict[str, Any]:
    kind = item.type.tensor_type
    known = item.type.HasField("tensor_type")
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name if known and kind.elem_type else "no tensor"
    shape = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{item.name}.{axis}"
        for axis, dim in enumerate(kind.shape.dim)
    ]
    return {"name": item.name, "dtype": dtype, "shape": shape, "below": bounds.get(item.name)}


def _stored(graph: Any) -> Iterator[tuple[str, Any]]:
    """Name and tensor of what a graph and the graphs within it store, as initialisers or in nodes of their own."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                yield node.output[0], attribute.t
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _stored(inner)


def _initialisers(model: Any) -> dict[str, dict[str, int]]:
    """Type to number of values and bytes that are stored for it."""
    found: dict[str, dict[str, int]] = {}
    for _, tensor in _stored(model.graph):
        name = TensorProto.DataType.Name(tensor.data_type).lower()
        count = int(np.prod(tensor.dims, dtype=np.int64))
        width = 0 if name == "string" else helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        entry = found.setdefault(name, {"values": 0, "bytes": 0})
        entry["values"] += count
        entry["bytes"] += len(tensor.raw_data) or count * width
    return found


def _bounds(graph: Any) -> dict[str, int]:
    """Integer inputs that pick rows of a stored table, and how many rows it has."""
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    origin = {item.name: item.name for item in graph.input}
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _INDEX_STEPS and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        if node.op_type == "Gather" and node.input[1] in origin and node.input[0] in sizes:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            name, rows = origin[node.input[1]], sizes[node.input[0]][axis]
            found[name] = min(found.get(name, rows), rows)
    return found


def _reduction(graph: Any) -> int:
    """Longest sum of products over a stored matrix or filter; 64, a usual head, where none is stored."""
    sizes: dict[str, tuple[list[int], bool]] = {name: (list(tensor.dims), False) for name, tensor in _stored(graph)}
    longest = 64
    for node in nodes_of(graph):
        if node.op_type in _SAME_VALUES and node.input and node.input[0] in sizes:
            shape, turned = sizes[node.input[0]]
            sizes[node.output[0]] = (shape, turned ^ (node.op_type == "Transpose"))
        longest = max([longest, *(_summed(node, *sizes[name]) for name in node.input if name in sizes)])
    return longest


def _summed(node: Any, shape: list[int], turned: bool) -> int:
    """How many products ``node`` sums for one output over a stored tensor of ``shape``."""
    if len(shape) < 2 or node.op_type not in PRODUCTS:
        return 1
    if "Conv" in node.op_type:
        return int(np.prod(shape[1:]))
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return shape[-1]
    if node.op_type == "MatMulNBits":
        return next((int(attribute.i) for attribute in node.attribute if attribute.name == "K"), 1)
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return shape[-1] if transposed ^ turned else shape[-2]


def _depth(graph: Any) -> int:
    """Most sums of products that follow each other on a way from an input to an output; at least 1."""
    reached: dict[str, int] = {}
    for node in graph.node:
        before = max((reached.get(name, 0) for name in node.input), default=0)
        inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        own = PRODUCTS.get(node.op_type, 0) + max((_depth(sub) for sub in inner), default=0)
        reached.update(dict.fromkeys(node.output, before + own))
    return max([1, *itertools.chain(reached.values())])


if __name__ == "__main__":
    apart.serve(inspect)
