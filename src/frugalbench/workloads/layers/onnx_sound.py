"""What is wrong with a parsed ONNX model, in one line, before any runtime meets it: versions, names, loops, types.

Runtimes tell such faults each in its own way, some by a crash. What only one of them might dislike is left to it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from frugalbench.untrusted import shown
from frugalbench.workloads.layers.onnx_cut import used_by
from frugalbench.workloads.onnx_safety import UnsafeModel


def require_sound(model: Any, path: Path) -> None:
    """Raise :class:`UnsafeModel` for a model that no runtime could take."""
    if not model.graph.node or not model.graph.output:
        raise UnsafeModel(f"{shown(path)}: not an ONNX model: it holds no graph with nodes and outputs")
    if fault := _version_fault(model) or _names_fault(model.graph) or _outputs_fault(model.graph):
        raise UnsafeModel(f"{shown(path)}: {fault}")


def _version_fault(model: Any) -> str:
    if model.ir_version > onnx.IR_VERSION:
        return (
            f"IR version {model.ir_version} is newer than the installed onnx {onnx.__version__} reads "
            f"({onnx.IR_VERSION}): pip install -U onnx"
        )
    known = onnx.defs.onnx_opset_version()
    newest = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if newest <= known:
        return ""
    return (
        f"opset {newest} is newer than the installed onnx {onnx.__version__} knows ({known}): pip install -U onnx, or "
        "export with an older opset"
    )


def _names_fault(graph: Any) -> str:
    """A value that is made twice, that nothing makes, or that depends on itself."""
    given = {item.name for item in graph.input} | {tensor.name for tensor in graph.initializer}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    maker: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in maker or name in given:
                first = _named(graph, maker[name]) if name in maker else "the graph's inputs or stored values"
                return f"the value '{shown(name, 100)}' is made twice, by {first} and by {_named(graph, index)}"
            maker[name] = index
    takes = [used_by(node) for node in graph.node]
    for index, names in enumerate(takes):
        if lost := next((name for name in names if name not in given and name not in maker), None):
            return f"{_named(graph, index)} takes '{shown(lost, 100)}', which nothing makes"
    for item in graph.output:
        if item.name not in given and item.name not in maker:
            return f"nothing makes its output '{shown(item.name, 100)}'"
    return _loop(graph, takes, maker)


def _loop(graph: Any, takes: Sequence[Sequence[str]], maker: Mapping[str, int]) -> str:
    """Nodes in any order are taken away once all that they wait for is gone; a loop stays."""
    waits = [{maker[name] for name in names if name in maker} for names in takes]
    users: dict[int, list[int]] = {}
    for index, others in enumerate(waits):
        for other in others:
            users.setdefault(other, []).append(index)
    ready, left = [index for index, others in enumerate(waits) if not others], [len(others) for others in waits]
    done = 0
    while ready:
        done += 1
        for user in users.get(ready.pop(), ()):
            left[user] -= 1
            ready += [user] if not left[user] else []
    if done == len(waits):
        return ""
    first = next(index for index, count in enumerate(left) if count)
    return f"its nodes run in a loop: {_named(graph, first)} waits for itself"


def _named(graph: Any, index: int) -> str:
    node = graph.node[index]
    return f"node {index + 1} ({shown(f'{node.op_type} {node.name}'.strip(), 100)})"


def _outputs_fault(graph: Any) -> str:
    for item in graph.output:
        kind = item.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            return f"its output '{shown(item.name, 100)}' is no tensor but a {_word(kind)}; only tensors are measured"
        if item.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            return f"its output '{shown(item.name, 100)}' holds text; only numbers are measured"
    return ""


def _word(kind: str) -> str:
    return kind.removesuffix("_type").replace("_", " ")


def require_fitting(feed: Mapping[str, np.ndarray], path: str, graph: Any) -> None:
    """Raise :class:`UnsafeModel` unless given inputs have the types and the fixed sizes that the graph declares."""
    for item in graph.input:
        if item.name in feed and (fault := _feed_fault(feed[item.name], item)):
            raise UnsafeModel(f"{shown(path)}: '{shown(item.name, 100)}' {fault}")


def _feed_fault(value: np.ndarray, item: Any) -> str:
    if not item.type.HasField("tensor_type"):
        return f"is a {_word(item.type.WhichOneof('value') or 'value')} in the model, which no array can stand for"
    kind = item.type.tensor_type
    wanted = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type else None
    if wanted is not None and wanted.kind not in "OV" and value.dtype != wanted:
        return f"is {value.dtype}; the model takes {wanted.name}"
    if not kind.HasField("shape"):
        return ""
    sizes = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim]
    fits = len(sizes) == value.ndim and all(
        isinstance(size, str) or size == given for size, given in zip(sizes, value.shape, strict=True)
    )
    return "" if fits else f"is of shape {_shape(value.shape)}; the model takes {_shape(sizes)}"


def _shape(sizes: Iterable[object]) -> str:
    return f"[{', '.join(shown(size, 60) for size in sizes)}]"
