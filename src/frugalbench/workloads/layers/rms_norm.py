"""RMS norm, y = x / sqrt(mean(x²) + epsilon) · gain, for torch: its own, and two C++ kernels of one interface."""

import ctypes
from functools import cache

import torch
from torch.nn import functional

from frugalbench.backends import native_moe, native_torch
from frugalbench.backends.native import Operation
from frugalbench.specs.kernel_tax import EPSILON
from frugalbench.workloads.layers.ffn import Layer


class TorchNorm(Layer):
    """torch's operator."""

    implementation = "torch: rms_norm"

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        return _norm(x_TD, self.weights["gain"])


def _norm(x_TD: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x_TD, gain.shape, gain, EPSILON)


@cache
def _library(source: str) -> ctypes.CDLL:
    library = native_torch.library(native_torch.built(source, Operation.FMA))
    library.fb_rms_norm.argtypes = [ctypes.c_int, *[ctypes.c_int64] * 2, ctypes.c_float, *[ctypes.c_void_p] * 3]
    return library


class NativeNorm(Layer):
    """The tuned kernel: explicit vectors, several sums, threads only where they pay."""

    source = "cpu/rms_norm.cpp"

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__(weights)
        self._function = _library(self.source).fb_rms_norm
        self.implementation = f"native: own {native_moe.kernel().path} kernel"

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        gain = self.weights["gain"]
        native_torch.contiguous(x_TD, gain)
        y_TD = torch.empty_like(x_TD)
        pointers = (tensor.data_ptr() for tensor in (x_TD, gain, y_TD))
        native_torch.check("fb_rms_norm", self._function(torch.get_num_threads(), *x_TD.shape, EPSILON, *pointers))
        return y_TD


class PlainNorm(NativeNorm):
    """The plain kernel."""

    source = "cpu/plain_rms_norm.cpp"

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__(weights)
        self.implementation = "plain C++ without intrinsics, vectorised by the compiler"
