"""The linear layer as torch offers it: float32, bfloat16, float16, dynamic int8. On a CPU or on CUDA."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.schema import Artefact, Case
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers.quant_copies import Copies, Parts
from frugalbench.workloads.layers.quant_stored import (
    Source,
    Stored,
    bfloat16,
    dense_stored,
    float16,
    int8_matrix,
    plain,
    tensor_uint7,
)
from frugalbench.workloads.layers.quant_values import ROW_BLOCK

_ROUNDED = {"float32": plain, "bfloat16": bfloat16, "float16": float16}
_ROUNDOFF = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def make(case: Case, source: Callable[[int], Any], context: Context) -> Any:
    """The layer of a case. Raises ``RuntimeError`` for a scheme that torch does not have."""
    p = case.params
    if p["scheme"] == "float8-rows":
        from frugalbench.workloads.layers import quant_cuda

        return quant_cuda.make(case, source, context)
    if p["scheme"] == "int8":
        folder = context.cache_dir / "quantized_linear" / f"torch-int8-{p['n']}x{p['k']}-seed{p['seed']}"
        return TorchDynamicInt8(source, p["copies"], p["n"], folder)
    if p["scheme"] not in _ROUNDED:
        raise RuntimeError(f"no torch layer stores weights as {p['scheme']}")
    return TorchDense(source, p["copies"], p["scheme"], context.device)


class TorchDense:
    """``torch.nn.functional.linear`` on ``copies`` weight tensors of one float type."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, source: Callable[[int], Any], copies: int, dtype: str, device: str) -> None:
        import torch

        self._torch = torch
        self._name, self._dtype = dtype, getattr(torch, dtype)
        self._device = device
        self.lossy = dtype != "float32"
        self.kernel = f"aten::linear {dtype}"
        self._weights = [torch.as_tensor(source(copy)).to(device, self._dtype) for copy in range(copies)]

    def prepare(self, x_MK: np.ndarray) -> Any:
        """Inputs on the device and in the type that the layer is fed with."""
        return self._torch.from_numpy(x_MK).to(self._device, self._dtype)

    def run(self, copy: int, x: Any) -> Any:
        """One layer call."""
        with self._torch.inference_mode():
            return self._torch.nn.functional.linear(x, self._weights[copy])

    def to_numpy(self, y: Any) -> np.ndarray:
        """Result as float32 (m, n)."""
        return np.asarray(y.float().cpu().numpy())

    def stored(self, copy: int) -> Any:
        """What this arm holds for ``copy``, on a CPU widened to float32."""
        weights_NK = self._weights[copy]
        if self._device == "cpu":
            return dense_stored(weights_NK.float().numpy(), _ROUNDOFF[self._name])
        from frugalbench.workloads.layers import quant_device

        return quant_device.dense(weights_NK, _ROUNDOFF[self._name])

    def stored_bytes(self) -> int:
        """Bytes of one stored matrix."""
        weight = self._weights[0]
        return int(weight.numel() * weight.element_size())

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """Inputs as the arm rounds them, float64."""
        return _ROUNDED[self._name](x_MK)

    def threads(self) -> int:
        """Threads that the library computes with."""
        return int(self._torch.get_num_threads())

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._device != "cpu":
            self._torch.cuda.synchronize()

    def close(self) -> None:
        """Nothing outlives the process."""


class TorchDynamicInt8:
    """``torch.ao.quantization.quantize_dynamic``: int8 weights per matrix, activations rounded in every call."""

    lossy = True

    def __init__(self, source: Source, copies: int, n: int, folder: Path) -> None:
        import torch

        self._torch = torch
        self.kernel = f"quantized::linear_dynamic ({torch.backends.quantized.engine})"
        made = Copies(source, n, self._quantise, folder)
        self._layers = [self._layer(*made.parts(copy)) for copy in range(copies)]
        self.artefacts: tuple[Artefact, ...] = made.artefacts("int8 codes for torch")

    def _layer(self, codes_NK: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> Any:
        """A layer that holds these codes, packed as the engine wants them."""
        torch = self._torch
        n, k = codes_NK.shape
        weight = torch._make_per_tensor_quantized_tensor(
            torch.from_numpy(codes_NK), float(scale.item()), int(zero_point.item())
        )
        layer = torch.ao.nn.quantized.dynamic.Linear(ROW_BLOCK, ROW_BLOCK, bias_=False)
        layer.in_features, layer.out_features = k, n
        layer.set_weight_bias(weight, None)
        return layer

    def _quantise(self, weights_NK: np.ndarray) -> Parts:
        """Codes, scale and zero point, as ``quantize_dynamic`` chooses them."""
        torch = self._torch
        n, k = weights_NK.shape
        linear = torch.nn.Linear(k, n, bias=False, device="meta")
        linear.weight = torch.nn.Parameter(torch.from_numpy(weights_NK), requires_grad=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.ao.quantization.quantize_dynamic(
                torch.nn.Sequential(linear).eval(), {torch.nn.Linear}, dtype=torch.qint8, inplace=True
            )
        weight = model[0].weight()
        return weight.int_repr().numpy(), np.array([weight.q_scale()]), np.array([weight.q_zero_point()])

    def prepare(self, x_MK: np.ndarray) -> Any:
        """Inputs as a float32 tensor."""
        return self._torch.from_numpy(x_MK)

    def run(self, copy: int, x: Any) -> Any:
        """One layer call."""
        with self._torch.inference_mode():
            return self._layers[copy](x)

    def to_numpy(self, y: Any) -> np.ndarray:
        """Result as float32 (m, n)."""
        return np.asarray(y.numpy())

    def stored(self, copy: int) -> Stored:
        """Codes, scale and zero point, unpacked from the engine's own layout."""
        weight = self._layers[copy].weight()
        return int8_matrix(weight.int_repr().numpy(), np.array([weight.q_scale()]), np.array([weight.q_zero_point()]))

    def stored_bytes(self) -> int:
        """Bytes of one stored matrix."""
        return self.stored(0).size_bytes

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """Inputs as the arm rounds them, float64."""
        return tensor_uint7(x_MK)

    def threads(self) -> int:
        """Threads that the library computes with."""
        return int(self._torch.get_num_threads())

    def synchronize(self) -> None:
        """A CPU call returns when it is done."""

    def close(self) -> None:
        """Nothing outlives the process."""
