"""A decoder-only language model on the own kernels (``kernels/cpu/decoder.cpp``): one C call per step.

RMS norm, grouped-query attention with rotary positions and a float16 cache, SwiGLU, tied embedding. Every matrix is
held in the packed formats of :mod:`frugalbench.backends.native_quant`.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from frugalbench.backends import native_quant, native_torch
from frugalbench.backends.native import Operation
from frugalbench.native_build import Built

SOURCE = "cpu/decoder.cpp"
MATRICES = ("projection", "merge", "gate", "up", "down")


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a model, all counts."""

    layers: int
    model: int
    heads: int
    kv_heads: int
    head: int
    width: int
    vocabulary: int
    context: int
    epsilon: float = 1e-6
    base: float = 1e6
    """Of the rotary angles: position · base^(-2 i / head)."""


def built(isa: str | None = None) -> Built:
    """The shared object for this processor, or for ``isa`` (``avx512_vnni``, ``avx2``, ``portable``)."""
    return native_torch.built(SOURCE, Operation.INT8, isa)


@cache
def _library(isa: str | None) -> ctypes.CDLL:
    library = native_torch.library(built(isa))
    library.fb_decoder_path.restype = ctypes.c_char_p
    library.fb_decoder_workspace.restype = ctypes.c_int64
    library.fb_decoder_workspace.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64]
    numbers: list[Any] = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_float, ctypes.c_float]
    library.fb_decoder_step.argtypes = [ctypes.c_void_p, *numbers, *[ctypes.c_void_p] * 6, ctypes.c_int64]
    return library


@dataclass(frozen=True)
class Cache:
    """Keys and values of one sequence, float16: layers x key-value heads x context x head."""

    keys: torch.Tensor
    values: torch.Tensor


class Decoder:
    """A model in memory, with the cache of one sequence."""

    def __init__(self, dimensions: Dimensions, bits: int, isa: str | None = None) -> None:
        """Weights are given layer by layer with :meth:`add_layer`, then the end with :meth:`finish`."""
        self.dimensions, self.bits = dimensions, bits
        self._library = _library(isa)
        self._packer = native_quant.kernel(isa)
        self.path: str = self._library.fb_decoder_path().decode()
        self.layers: list[dict[str, native_quant.Packed | torch.Tensor]] = []
        self.end: dict[str, native_quant.Packed | torch.Tensor] = {}
        d = dimensions
        numbers = (bits, d.layers, d.model, d.heads, d.kv_heads, d.head, d.width, d.vocabulary, d.context)
        self._shape = (ctypes.c_int64 * 9)(*numbers)
        self._spaces: dict[tuple[int, int], int] = {}
        self._table: Any = None
        self.cache = self.new_cache()

    def new_cache(self) -> "Cache":
        """Room for the keys and values of one sequence."""
        d = self.dimensions
        return Cache(*(torch.zeros((d.layers, d.kv_heads, d.context, d.head), dtype=torch.float16) for _ in range(2)))

    def add_layer(self, weights: Mapping[str, "torch.Tensor | native_quant.Packed"]) -> None:
        """``norm`` and ``ffn_norm`` (D), and the matrices (outputs x inputs): ``projection`` (queries, keys and values
        one below the other), ``merge``, ``gate``, ``up``, ``down``; those that are packed already stay as they are."""
        packed = {name: self._packed(weights[name]) for name in MATRICES}
        self.layers.append({"norm": _plain(weights["norm"]), "ffn_norm": _plain(weights["ffn_norm"]), **packed})

    def _packed(self, matrix: "torch.Tensor | native_quant.Packed") -> native_quant.Packed:
        return self._packer.pack(matrix, self.bits) if isinstance(matrix, torch.Tensor) else matrix

    def finish(self, norm: torch.Tensor, head: "torch.Tensor | native_quant.Packed") -> None:
        """The last gain (D) and the output head (vocabulary x D), which is the input embedding too."""
        if len(self.layers) != self.dimensions.layers:
            raise RuntimeError(f"the model has {len(self.layers)} layers of {self.dimensions.layers}")
        self.end = {"norm": _plain(norm), "head": self._packed(head)}
        self._check_sizes()
        order = ("norm", "projection", "merge", "ffn_norm", "gate", "up", "down")
        held = [layer[name] for layer in self.layers for name in order] + [self.end["norm"], self.end["head"]]
        self._table = (ctypes.c_void_p * len(held))(*map(_pointer, held))

    def stored_bytes(self) -> int:
        """Bytes of all weights as packed, gains included."""
        held = [*self.end.values(), *(value for layer in self.layers for value in layer.values())]
        return sum(int(_data(item).nbytes) for item in held)

    def _check_sizes(self) -> None:
        """The kernel trusts these: it sees addresses alone."""
        d = self.dimensions
        queries, keys = d.heads * d.head, d.kv_heads * d.head
        wanted = {
            "projection": (queries + 2 * keys, d.model), "merge": (d.model, queries), "gate": (d.width, d.model),
            "up": (d.width, d.model), "down": (d.model, d.width), "head": (d.vocabulary, d.model),
        }  # fmt: skip
        for held in (*self.layers, self.end):
            for name, item in held.items():
                if isinstance(item, torch.Tensor):
                    fits = item.shape == (d.model,)
                else:
                    fits = (item.outputs, item.inputs) == wanted[name] and item.bits == self.bits
                if not fits:
                    raise RuntimeError(f"{name} does not have the size that the model's dimensions ask for")

    def step(self, tokens: torch.Tensor, position: int, cache: "Cache | None" = None) -> torch.Tensor:
        """Logits (vocabulary) after ``tokens`` (int32), which enter the cache (the model's own by default) at
        ``position``. Raises ``RuntimeError`` for a token or a position that does not exist."""
        threads, count, d, held = torch.get_num_threads(), len(tokens), self.dimensions, cache or self.cache
        if tokens.dtype is not torch.int32 or self._table is None:
            raise RuntimeError("the model is not finished, or its tokens are not int32")
        if (threads, count) not in self._spaces:
            found = self._library.fb_decoder_workspace(self._shape, threads, count)
            self._spaces[threads, count] = native_torch.known("fb_decoder_workspace", found)
        size_bytes = self._spaces[threads, count]
        space, logits = native_torch.space("decoder", -(-size_bytes // 4)), torch.empty(d.vocabulary)
        tensors = (held.keys, held.values, logits, space)
        status = self._library.fb_decoder_step(
            self._shape, threads, count, position, d.epsilon, d.base, tokens.data_ptr(), self._table,
            *(tensor.data_ptr() for tensor in tensors), size_bytes,
        )  # fmt: skip
        native_torch.check("fb_decoder_step", status)
        return logits


def _plain(gain: "torch.Tensor | native_quant.Packed") -> torch.Tensor:
    if not isinstance(gain, torch.Tensor):
        raise RuntimeError("a gain is a plain vector")
    native_torch.contiguous(gain)
    return gain


def _data(item: native_quant.Packed | torch.Tensor) -> torch.Tensor:
    return item if isinstance(item, torch.Tensor) else item.data


def _pointer(item: native_quant.Packed | torch.Tensor) -> int:
    return int(_data(item).data_ptr())
