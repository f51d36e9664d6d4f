"""The linear layer as OpenVINO offers it: float32, and weights compressed to 8 or 4 bits as its own tools write them.

8 bits have a scale and zero point per output, 4 bits one per group of inputs (the defaults of NNCF's weight
compression). Results are asked for in float32, whatever the processor's native type; where it has VNNI, OpenVINO rounds
activations to int8 in groups of 32 by itself, and is asked to.
"""

from typing import Any

import numpy as np

from frugalbench.backends import openvino as backend
from frugalbench.schema import Artefact, Case
from frugalbench.specs.quant_formats import OPENVINO_GROUP
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers.quant_copies import Copies, Parts
from frugalbench.workloads.layers.quant_nbits import nbits_groups, pack, quantise_nbits, unpack
from frugalbench.workloads.layers.quant_stored import (
    Source,
    Stored,
    dense_stored,
    grouped_int8,
    plain,
)


def make(case: Case, source: Source, context: Context) -> "OpenVinoLinear":
    """The layer of a case."""
    return OpenVinoLinear(case, source, context)


class OpenVinoLinear:
    """One compiled model per copy; the constants are OpenVINO's own, in memory that it owns."""

    def __init__(self, case: Case, source: Source, context: Context) -> None:
        import openvino

        p = case.params
        self._ov, self._threads = openvino, context.threads
        self._n, self._k, self._bits = p["n"], p["k"], p["bits"]
        self._group = p["group_size"] or 0
        self._rounded = p["activations"] == "group"
        self.lossy = p["scheme"] != "float32"
        name = f"openvino-b{self._bits}-g{self._group}-{self._n}x{self._k}-seed{p['seed']}"
        folder = context.cache_dir / "quantized_linear" / name if self.lossy else None
        self._codes = Copies(source, self._n, self._quantise, folder)
        self._core = openvino.Core()
        self._requests = [self._ready(copy) for copy in range(p["copies"])]
        self.artefacts: tuple[Artefact, ...] = self._codes.artefacts("codes for OpenVINO") if self.lossy else ()
        self._codes.release()
        self.kernel = self._kernel()
        self.details = {"dynamic_quantization_group": self._property("DYNAMIC_QUANTIZATION_GROUP_SIZE")}

    def _ready(self, copy: int) -> Any:
        """A request that has run once: the first call lays the weights out for its kernel, which is part of loading."""
        request = self.compiled(self._codes.parts(copy)).create_infer_request()
        request.infer({0: np.ones((1, self._k), np.float32)})
        return request

    def _quantise(self, weights_NK: np.ndarray) -> Parts:
        if not self.lossy:
            return (weights_NK,)
        return quantise_nbits(weights_NK, self._bits, self._group)

    def compiled(self, parts: Parts) -> Any:
        """The model of one matrix, for the CPU."""
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self._threads,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": OPENVINO_GROUP if self._rounded else 0,
        }
        return self._core.compile_model(self._model(parts), "CPU", settings)

    def _model(self, parts: Parts) -> Any:
        from openvino import opset13 as op

        x = op.parameter([-1, self._k], np.float32, name="x")
        weights = self._compressed(op, parts) if self.lossy else op.constant(parts[0])
        return self._ov.Model([op.matmul(x, weights, False, True)], [x], "quantized_linear")

    def _compressed(self, op: Any, parts: Parts) -> Any:
        """The pattern that OpenVINO fuses: scale (code - zero point)."""
        codes, scales, zeros = parts
        groups = scales.shape[1]
        per_group = (self._n, 1) if groups == 1 else (self._n, groups, 1)
        shape = (self._n, self._k) if groups == 1 else (self._n, groups, self._group)
        difference = op.subtract(
            op.convert(self._constant(op, codes, shape), np.float32),
            op.convert(self._constant(op, self._packed(zeros, groups), per_group), np.float32),
        )
        scaled = op.multiply(difference, op.constant(scales.reshape(per_group)))
        if groups == 1:
            return scaled
        return op.reshape(scaled, op.constant(np.array([self._n, self._k], np.int64)), False)

    def _packed(self, zeros: np.ndarray, groups: int) -> np.ndarray:
        """Zero points without the padding at the end of each row."""
        flat = np.ascontiguousarray(unpack(zeros, self._bits)[:, :groups]).reshape(-1)
        return pack(flat, self._bits)

    def _constant(self, op: Any, packed: np.ndarray, shape: tuple[int, ...]) -> Any:
        kind = self._ov.Type.u8 if self._bits == 8 else self._ov.Type.u4
        tensor = self._ov.Tensor(kind, self._ov.Shape(shape))
        tensor.data.reshape(-1)[:] = packed.reshape(-1)
        return op.constant(tensor, shared_memory=False)

    def prepare(self, x_MK: np.ndarray) -> Any:
        """Inputs as they are; they are shared, not copied."""
        return {0: x_MK}

    def run(self, copy: int, x: Any) -> Any:
        """One layer call."""
        return self._requests[copy].infer(x, share_inputs=True, share_outputs=True)

    def to_numpy(self, y: Any) -> np.ndarray:
        """Result as float32 (m, n)."""
        return np.array(y[0])

    def stored(self, copy: int) -> Stored:
        """What the model of ``copy`` was compiled from."""
        parts = self._codes.parts(copy)
        if not self.lossy:
            return dense_stored(parts[0], 0.0)
        codes, scales, zeros = parts
        meaning = nbits_groups(codes, scales, zeros, self._bits)
        return Stored(meaning.rows, (codes, scales, self._packed(zeros, scales.shape[1])))

    def stored_bytes(self) -> int:
        """Bytes of the constants that the compiled model of one matrix holds."""
        constants = [node for node, facts in self._runtime_nodes() if facts["layerType"] == "Const"]
        return sum(_constant_bytes(node) for node in constants)

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """Inputs as the arm rounds them, float64."""
        return grouped_int8(x_MK, OPENVINO_GROUP) if self._rounded else plain(x_MK)

    def threads(self) -> int:
        """Threads that the compiled model computes with."""
        return int(self._property("INFERENCE_NUM_THREADS"))

    def _property(self, name: str) -> Any:
        return self._requests[0].get_compiled_model().get_property(name)

    def _runtime_nodes(self) -> list[tuple[Any, dict[str, str]]]:
        return backend.runtime_nodes(self._requests[0].get_compiled_model())

    def _kernel(self) -> str:
        """Nodes that run, their kernels and what they read, as the compiled model names them."""
        ran = [facts for _, facts in self._runtime_nodes() if facts["layerType"] not in backend.NOT_RUN]
        names = [f"{facts['layerType']} {facts['primitiveType']} {facts['runtimePrecision']}" for facts in ran]
        return " + ".join(names) + (f", activations int8 per {OPENVINO_GROUP}" if self._rounded else "")

    def synchronize(self) -> None:
        """Inference is synchronous."""

    def close(self) -> None:
        """Let the models go."""
        self._requests = []


def _constant_bytes(node: Any) -> int:
    output = node.output(0)
    kind, shape = output.get_element_type(), output.get_partial_shape()
    return 0 if kind.is_dynamic() else -(-kind.bitwidth * int(np.prod(shape.to_shape())) // 8)
