"""Own kernels for layers of 4, 8 and 32 bits (``kernels/cpu/quant.cpp``), on CPU tensors through ctypes.

:func:`linear` and :func:`experts` are the operators ``frugalbench::quant_linear`` and ``quant_experts``, registered
with ``torch.library``, so that ``torch.compile`` and ``torch.export`` see them; :class:`Kernel` is the same without the
operators' overhead. Shape suffixes: M tokens, N outputs, K inputs of a linear layer; T tokens, D model width, F expert
width, E experts, K experts per token of a mixture.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from frugalbench.backends import native_torch
from frugalbench.backends.native import Operation
from frugalbench.native_build import Built

SOURCE = "cpu/quant.cpp"
BITS = (4, 8, 32)


@dataclass(frozen=True)
class Packed:
    """A matrix of N x K weights in the kernel's layout."""

    data: torch.Tensor
    """uint8."""
    bits: int
    outputs: int
    inputs: int


def built(isa: str | None = None) -> Built:
    """The shared object for this processor, or for ``isa`` (``avx512_vnni``, ``avx2``, ``portable``)."""
    return native_torch.built(SOURCE, Operation.INT8, isa)


@dataclass(frozen=True)
class PackedExperts:
    """E SwiGLU experts in the kernel's layout: gate and up one after the other, expert by expert."""

    gate_up: torch.Tensor
    down: torch.Tensor
    bits: int
    experts: int
    model: int
    width: int

    def matrix(self, expert: int, name: str) -> Packed:
        """``gate``, ``up`` or ``down`` of one expert, as a view."""
        N, K = (self.model, self.width) if name == "down" else (self.width, self.model)
        data, place = (self.down, expert) if name == "down" else (self.gate_up, 2 * expert + (name == "up"))
        each = data.numel() // (self.experts if name == "down" else 2 * self.experts)
        return Packed(data[place * each : (place + 1) * each], self.bits, N, K)


@cache
def kernel(isa: str | None = None) -> "Kernel":
    """The kernel, built on first use. Raises :class:`FrugalbenchError` when it cannot be."""
    return Kernel(native_torch.library(built(isa)))


class Kernel:
    """The C functions. A call computes on torch's own OpenMP pool, with as many threads as torch is set to.

    All methods raise ``RuntimeError`` with one sentence when the kernel refuses.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        sizes: list[Any] = [ctypes.c_int64, ctypes.c_int64]
        library.fb_quant_path.restype = ctypes.c_char_p
        library.fb_quant_bytes.restype = library.fb_quant_workspace.restype = ctypes.c_int64
        library.fb_quant_bytes.argtypes = [ctypes.c_int, *sizes]
        library.fb_quant_pack.argtypes = [ctypes.c_int, ctypes.c_int, *sizes, ctypes.c_void_p, ctypes.c_void_p]
        library.fb_quant_workspace.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, *sizes]
        product: list[Any] = [
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int64,
            *sizes,
            *[ctypes.c_void_p] * 4,
            ctypes.c_int64,
        ]
        library.fb_quant_linear.argtypes = product
        library.fb_quant_moe_workspace.restype = ctypes.c_int64
        library.fb_quant_moe_workspace.argtypes = [ctypes.c_int, ctypes.c_int, *[ctypes.c_int64] * 5]
        library.fb_quant_moe.argtypes = [
            ctypes.c_int, ctypes.c_int, *[ctypes.c_int64] * 5, *[ctypes.c_void_p] * 7, ctypes.c_int64
        ]  # fmt: skip
        self._library = library
        self.path: str = library.fb_quant_path().decode()
        self.parallel = bool(library.fb_quant_parallel())

    def pack(self, weights_NK: torch.Tensor, bits: int) -> Packed:
        """Round the weights to ``bits`` (32: keep them) and lay them out. Refuses weights that are not finite."""
        N, K = weights_NK.shape
        return Packed(self._packed(weights_NK[None], bits), bits, N, K)

    def pack_experts(self, gate_up: torch.Tensor, down: torch.Tensor, bits: int) -> PackedExperts:
        """The same for ``gate_up`` (E x 2F x D) and ``down`` (E x D x F)."""
        E, D, F = down.shape
        if gate_up.shape != (E, 2 * F, D):
            raise RuntimeError(f"shapes do not fit: {tuple(gate_up.shape)}, {tuple(down.shape)}")
        halves = gate_up.reshape(2 * E, F, D)
        return PackedExperts(self._packed(halves, bits), self._packed(down, bits), bits, E, D, F)

    def _packed(self, weights_ENK: torch.Tensor, bits: int) -> torch.Tensor:
        count, N, K = weights_ENK.shape
        native_torch.contiguous(weights_ENK)
        each = native_torch.known("fb_quant_bytes", self._library.fb_quant_bytes(bits, N, K))
        data = _aligned(count * each)
        for place in range(count):
            pointers = weights_ENK[place].data_ptr(), data.data_ptr() + place * each
            status = self._library.fb_quant_pack(bits, torch.get_num_threads(), N, K, *pointers)
            native_torch.check("fb_quant_pack", status)
        return data

    def layer(self, packed: Packed) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function of x (M x K, float32) that returns x W^T (M x N); the packed weights must stay where they are."""
        weights, N, K = packed.data.data_ptr(), packed.outputs, packed.inputs
        spaces: dict[tuple[int, int], int] = {}

        def call(x_MK: torch.Tensor) -> torch.Tensor:
            native_torch.contiguous(x_MK)
            threads, M = torch.get_num_threads(), len(x_MK)
            if x_MK.shape != (M, K):
                raise RuntimeError(f"shapes do not fit: inputs {tuple(x_MK.shape)}, weights {N} x {K}")
            y_MN = x_MK.new_empty((M, N))
            sizes = (packed.bits, threads, M, N, K)
            if (threads, M) not in spaces:
                found = self._library.fb_quant_workspace(*sizes)
                spaces[threads, M] = native_torch.known("fb_quant_workspace", found)
            size_bytes = spaces[threads, M]
            space = native_torch.space("quant", -(-size_bytes // 4))
            status = self._library.fb_quant_linear(
                *sizes, x_MK.data_ptr(), weights, y_MN.data_ptr(), space.data_ptr(), size_bytes
            )
            native_torch.check("fb_quant_linear", status)
            return y_MN

        return call

    def experts(
        self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, packed: PackedExperts
    ) -> torch.Tensor:
        """Sum over the K chosen experts of weight · down(silu(gate x) · up x), T x D. ``expert_TK`` is int32."""
        native_torch.contiguous(x_TD, weight_TK)
        T, K = expert_TK.shape
        if expert_TK.dtype is not torch.int32 or x_TD.shape != (T, packed.model) or weight_TK.shape != (T, K):
            raise RuntimeError(f"shapes do not fit: {tuple(x_TD.shape)}, {tuple(expert_TK.shape)} {expert_TK.dtype}")
        sizes = (packed.bits, torch.get_num_threads(), T, packed.model, packed.width, packed.experts, K)
        size_bytes = native_torch.known("fb_quant_moe_workspace", self._library.fb_quant_moe_workspace(*sizes))
        space, y_TD = native_torch.space("quant", -(-size_bytes // 4)), torch.empty_like(x_TD)
        tensors = (x_TD, expert_TK.contiguous(), weight_TK, packed.gate_up, packed.down, y_TD, space)
        status = self._library.fb_quant_moe(*sizes, *(tensor.data_ptr() for tensor in tensors), size_bytes)
        native_torch.check("fb_quant_moe", status)
        return y_TD


def _aligned(size_bytes: int, line: int = 64) -> torch.Tensor:
    """Memory that begins with a cache line."""
    raw = torch.empty(size_bytes + line, dtype=torch.uint8)
    skip = -raw.data_ptr() % line
    return raw[skip : skip + size_bytes]


@torch.library.custom_op("frugalbench::quant_linear", mutates_args=(), device_types="cpu")  # type: ignore[untyped-decorator]
def _linear(x_MK: torch.Tensor, data: torch.Tensor, bits: int, outputs: int) -> torch.Tensor:
    return kernel().layer(Packed(data, bits, outputs, x_MK.shape[1]))(x_MK.contiguous())


@_linear.register_fake  # type: ignore[untyped-decorator]
def _(x_MK: torch.Tensor, data: torch.Tensor, bits: int, outputs: int) -> torch.Tensor:
    del data, bits
    return x_MK.new_empty((x_MK.shape[0], outputs))


def linear(x_MK: torch.Tensor, packed: Packed) -> torch.Tensor:
    """x W^T (M x N, float32) for ``x_MK`` M x K."""
    y_MN: torch.Tensor = _linear(x_MK, packed.data, packed.bits, packed.outputs)
    return y_MN


@torch.library.custom_op("frugalbench::quant_experts", mutates_args=(), device_types="cpu")  # type: ignore[untyped-decorator]
def _experts(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
    bits: int, experts: int, width: int,
) -> torch.Tensor:  # fmt: skip
    packed = PackedExperts(gate_up, down, bits, experts, x_TD.shape[1], width)
    return kernel().experts(x_TD.contiguous(), expert_TK, weight_TK.contiguous(), packed)


@_experts.register_fake  # type: ignore[untyped-decorator]
def _(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
    bits: int, experts: int, width: int,
) -> torch.Tensor:  # fmt: skip
    del expert_TK, weight_TK, gate_up, down, bits, experts, width
    return torch.empty_like(x_TD)


def experts(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, packed: PackedExperts
) -> torch.Tensor:
    """As :meth:`Kernel.experts`."""
    sizes = packed.bits, packed.experts, packed.width
    y_TD: torch.Tensor = _experts(x_TD, expert_TK, weight_TK, packed.gate_up, packed.down, *sizes)
    return y_TD
