"""A part of an ONNX graph as a model of its own: all that some values need, or a single node."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

Arrays = Mapping[str, np.ndarray]


def used_by(node: Any) -> list[str]:
    """Names that a node takes from its graph, those that only the graphs within it mention included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            own = {item.name for item in (*inner.input, *inner.initializer)}
            own |= {name for item in inner.node for name in item.output}
            own |= {item.values.name for item in inner.sparse_initializer}
            names += [name for item in inner.node for name in used_by(item) if name not in own]
            names += [item.name for item in inner.output if item.name not in own]
    return list(dict.fromkeys(names))


def needed(graph: Any, wanted: Iterable[str]) -> list[int]:
    """Indices of the nodes that ``wanted`` values depend on, in topological order."""
    maker = makers(graph)
    waiting, found = list(wanted), set()
    while waiting:
        index = maker.get(waiting.pop())
        if index is not None and index not in found:
            found.add(index)
            waiting += used_by(graph.node[index])
    return sorted(found)


def makers(graph: Any) -> dict[str, int]:
    """Value to the index of the node that makes it."""
    return {name: index for index, node in enumerate(graph.node) for name in node.output if name}


def types_of(model: Any) -> dict[str, int]:
    """Element type of every value that shape inference can tell; float32 is what others are taken for."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:
        inferred = model
    graph = inferred.graph
    found = {item.name: item.type.tensor_type.elem_type for item in (*graph.input, *graph.value_info, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def part(model: Any, nodes: Sequence[int], outputs: Sequence[str], values: Arrays, types: Mapping[str, int]) -> Any:
    """A model of these nodes with these outputs; what they take and no node of theirs makes becomes an input."""
    graph = model.graph
    chosen = [graph.node[index] for index in nodes]
    stored = {tensor.name: tensor for tensor in graph.initializer}
    sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    made = {name for node in chosen for name in node.output}
    taken = list(dict.fromkeys(name for node in chosen for name in used_by(node)))
    given = [name for name in taken if name not in made and name not in stored and name not in sparse]
    new = helper.make_graph(
        chosen,
        "part",
        [_info(name, values, types) for name in given],
        [_info(name, values, types) for name in outputs],
        [stored[name] for name in taken if name in stored],
        sparse_initializer=[sparse[name] for name in taken if name in sparse],
    )
    return helper.make_model(
        new, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    )


def _info(name: str, values: Arrays, types: Mapping[str, int]) -> Any:
    shape = [f"{name}.{axis}" for axis in range(values[name].ndim)]
    return helper.make_tensor_value_info(name, types.get(name) or TensorProto.FLOAT, shape)


def as_declared(name: str, value: np.ndarray, types: Mapping[str, int]) -> np.ndarray:
    """An exact value in the type that the graph gives it."""
    return value.astype(helper.tensor_dtype_to_np_dtype(types.get(name) or TensorProto.FLOAT))
