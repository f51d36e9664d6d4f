"""The SwiGLU layer of ``kernels/cpu/plain_ffn.cpp``: plain C++, compiled for this processor with the flags that the
hand-tuned kernel gets."""

import ctypes
from functools import cache

import torch

from frugalbench.backends import native_torch
from frugalbench.backends.native import Operation
from frugalbench.workloads.layers.ffn import Layer

SOURCE = "cpu/plain_ffn.cpp"


@cache
def _library() -> ctypes.CDLL:
    library = native_torch.library(native_torch.built(SOURCE, Operation.FMA))
    library.fb_plain_ffn.argtypes = [ctypes.c_int, *[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 5]
    return library


class PlainFfn(Layer):
    """Two loops over dot products."""

    implementation = "plain C++ without intrinsics, vectorised by the compiler"

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__(weights)
        self._function = _library().fb_plain_ffn

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        gate_up, down = self.weights["gate_up"], self.weights["down"]
        native_torch.contiguous(x_TD, gate_up, down)
        tokens, d_model = x_TD.shape
        d_ff = down.shape[1]
        y_TD, hidden = torch.empty_like(x_TD), native_torch.space("plain_ffn", tokens * d_ff)
        pointers = (x_TD, gate_up, down, y_TD, hidden)
        status = self._function(
            torch.get_num_threads(), tokens, d_model, d_ff, *(tensor.data_ptr() for tensor in pointers)
        )
        native_torch.check("fb_plain_ffn", status)
        return y_TD
