"""The linear layer as torch offers it: float32, bfloat16, dynamic int8. On a CPU or on CUDA."""

import warnings
from typing import Any

import numpy as np

from frugalbench.schema import Artefact
from frugalbench.workloads.layers.quant_stored import (
    Source,
    Stored,
    bfloat16,
    dense_stored,
    int8_matrix,
    plain,
    tensor_uint7,
)


class TorchDense:
    """``torch.nn.functional.linear`` on ``copies`` weight tensors of one float type."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, source: Source, copies: int, dtype: str, device: str) -> None:
        import torch

        self._torch = torch
        self._dtype = getattr(torch, dtype)
        self._device = device
        self.lossy = dtype != "float32"
        self.kernel = f"aten::linear {dtype}"
        self._weights = [torch.from_numpy(source(copy)).to(device, self._dtype) for copy in range(copies)]

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

    def stored(self, copy: int) -> Stored:
        """What this arm holds for ``copy``, widened to float32."""
        return dense_stored(self._weights[copy].float().cpu().numpy(), 2.0**-8 if self.lossy else 0.0)

    def stored_bytes(self) -> int:
        """Bytes of one stored matrix."""
        weight = self._weights[0]
        return int(weight.numel() * weight.element_size())

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """Inputs as the arm rounds them, float64."""
        return bfloat16(x_MK) if self.lossy else plain(x_MK)

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

    artefacts: tuple[Artefact, ...] = ()
    lossy = True

    def __init__(self, source: Source, copies: int) -> None:
        import torch

        self._torch = torch
        self.kernel = f"quantized::linear_dynamic ({torch.backends.quantized.engine})"
        self._layers = [self._quantise(source(copy)) for copy in range(copies)]

    def _quantise(self, weights_NK: np.ndarray) -> Any:
        """Quantise and pack one matrix; its float32 weights are let go."""
        torch = self._torch
        n, k = weights_NK.shape
        linear = torch.nn.Linear(k, n, bias=False, device="meta")
        linear.weight = torch.nn.Parameter(torch.from_numpy(weights_NK), requires_grad=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.ao.quantization.quantize_dynamic(
                torch.nn.Sequential(linear).eval(), {torch.nn.Linear}, dtype=torch.qint8, inplace=True
            )
        return model[0]

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
        return int8_matrix(weight.int_repr().numpy(), weight.q_scale(), weight.q_zero_point())

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
