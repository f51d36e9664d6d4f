"""The graphs of a linear layer for ONNX Runtime: one product, its weights in a file beside the graph."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from frugalbench.schema import Case
from frugalbench.workloads.layers.quant_copies import Parts
from frugalbench.workloads.layers.quant_nbits import quantise_nbits
from frugalbench.workloads.layers.quant_values import LARGEST_INPUT

_LAYOUT = 2
"""Changes whenever the bytes in the cached files would."""
_PAGE = 4096
STATIC_SCALE = np.float32(2 * LARGEST_INPUT / 255)
STATIC_ZERO_POINT = 128
"""What calibration over the layer's inputs finds: their range is known, and symmetric."""


@dataclass(frozen=True)
class Spec:
    """What to build: matrices of N x K stored as ``scheme`` says."""

    n: int
    k: int
    scheme: str
    bits: int
    group: int
    activations: str
    accuracy_level: int
    seed: int

    @classmethod
    def of(cls, case: Case) -> "Spec":
        """The spec of a case's arm."""
        p = case.params
        group, rounded = p["group_size"] or 0, p["activations"]
        return cls(p["n"], p["k"], p["scheme"], p["bits"], group, rounded, p["accuracy_level"], p["seed"])

    @property
    def name(self) -> str:
        """Folder of the cached weights: everything that determines them."""
        grouped = f"-g{self.group}" if self.scheme == "nbits" else ""
        return f"{self.scheme}-b{self.bits}{grouped}-{self.n}x{self.k}-seed{self.seed}-v{_LAYOUT}"

    @property
    def graph_name(self) -> str:
        """What tells graphs over the same weights apart."""
        return f"{self.activations}{self.accuracy_level}"

    def parts(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shape and type of each stored tensor, in file order."""
        if self.scheme == "float32":
            return {"w": ((self.n, self.k), np.float32)}
        if self.scheme == "int8-tensor":
            return {"q": ((self.k, self.n), np.int8), "s": ((1,), np.float32), "z": ((1,), np.int8)}
        groups = -(-self.k // self.group)
        return {
            "q": ((self.n, groups, self.group * self.bits // 8), np.uint8),
            "s": ((self.n, groups), np.float32),
            "z": ((self.n, -(-groups * self.bits // 8)), np.uint8),
        }

    def offsets(self) -> dict[str, int]:
        """Where each tensor starts in its file: on a page, as memory mapping wants it."""
        at, result = 0, {}
        for part, (shape, kind) in self.parts().items():
            result[part] = at
            at += -(-int(np.prod(shape)) * np.dtype(kind).itemsize // _PAGE) * _PAGE
        return result

    def quantise(self, weights_NK: np.ndarray) -> Parts:
        """What the file holds of these weights, outputs on the first axis."""
        if self.scheme == "float32":
            return (weights_NK,)
        if self.scheme == "nbits":
            return quantise_nbits(weights_NK, self.bits, self.group)
        return quantise_tensor(weights_NK)

    def content(self, parts: Parts) -> bytes:
        """The file of one matrix. Where all of it shares one scale, inputs come first, as MatMulInteger wants them."""
        arrays = (parts[0].T, *parts[1:]) if self.scheme == "int8-tensor" else parts
        blobs = [np.ascontiguousarray(array).tobytes() for array in arrays]
        return b"".join(blob + bytes(-len(blob) % _PAGE) for blob in blobs)


def quantise_tensor(weights_NK: np.ndarray) -> Parts:
    """int8 with one scale for all, absmax / 127, as ONNX Runtime's ``quantize_dynamic`` and ``quantize_static`` do.

    Returns codes (n, k), scale (1) and zero point (1), which is 0.
    """
    scale = np.abs(weights_NK).max() / np.float32(127)
    codes = np.rint(weights_NK / (scale or np.float32(1))).astype(np.int8)
    return codes, np.array([scale], np.float32), np.zeros(1, np.int8)


def graph(spec: Spec, copy: int) -> bytes:
    """A model with input ``x`` (tokens, K) and output ``y`` (tokens, N), the weights of ``copy`` external."""
    from onnx import TensorProto, helper

    nodes, constants = _nodes(spec)
    made = helper.make_graph(
        nodes,
        "quantized_linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", spec.k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", spec.n])],
        [*_external(spec, copy), *constants],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(made, opset_imports=domains, ir_version=10)
    return bytes(model.SerializeToString())


def _nodes(spec: Spec) -> tuple[list[Any], list[Any]]:
    from onnx import helper

    if spec.activations == "static":
        return _static_nodes()
    if spec.activations == "tensor":
        return _dynamic_nodes()
    inputs = ["x", *spec.parts()]
    if spec.scheme == "float32":
        return [helper.make_node("Gemm", inputs, ["y"], transB=1)], []
    level = {"accuracy_level": spec.accuracy_level} if spec.accuracy_level else {}
    node = helper.make_node(
        "MatMulNBits", inputs, ["y"], domain="com.microsoft",
        K=spec.k, N=spec.n, bits=spec.bits, block_size=spec.group, **level,
    )  # fmt: skip
    return [node], []


def _dynamic_nodes() -> tuple[list[Any], list[Any]]:
    """As ``quantize_dynamic`` writes a MatMul; the runtime fuses them into one node."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "q", "xz", "z"], ["yq"]),
        helper.make_node("Cast", ["yq"], ["yf"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "s"], ["ys"]),
        helper.make_node("Mul", ["yf", "ys"], ["y"]),
    ]
    return nodes, []


def _static_nodes() -> tuple[list[Any], list[Any]]:
    """As ``quantize_static`` writes a MatMul (QDQ), its output left in float32."""
    from onnx import helper, numpy_helper

    constants = [
        numpy_helper.from_array(np.array(STATIC_SCALE), "xs"),
        numpy_helper.from_array(np.array(STATIC_ZERO_POINT, np.uint8), "xz"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["wd"], axis=0),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    return nodes, constants


def _external(spec: Spec, copy: int) -> list[Any]:
    from onnx import TensorProto, helper

    tensors = []
    for part, (shape, kind) in spec.parts().items():
        whole = part in "sz" and spec.scheme == "int8-tensor"
        tensor = TensorProto(name=part, dims=() if whole else shape, data_location=TensorProto.EXTERNAL)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        length = int(np.prod(shape)) * np.dtype(kind).itemsize
        at = {"location": f"copy{copy}.bin", "offset": spec.offsets()[part], "length": length}
        for key, value in at.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    return tensors
