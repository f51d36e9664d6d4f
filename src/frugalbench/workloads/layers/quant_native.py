"""The linear layer on the own kernels: weights of 32, 8 or 4 bits, activations in int8 where weights are quantised."""

from typing import Any

import numpy as np
import torch

from frugalbench.backends import native_quant
from frugalbench.schema import Artefact, Case
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers.quant_stored import Source, Stored, dense_stored, grouped_int8, int8_rows, plain

ROWS, BLOCK, QUAD, GROUP = 16, 128, 4, 16
"""Outputs of a panel, inputs of a block, inputs of one instruction, inputs that share a 4-bit scale and offset."""
_ZERO, _LARGEST, _OFFSET_STEP = 128, 127, 3
_HALF_BYTES = 64 + 512


def make(case: Case, source: Source, context: Context) -> "NativeLinear":  # noqa: ARG001
    """The layer of a case."""
    return NativeLinear(source, case.params["copies"], case.params["bits"])


class NativeLinear:
    """``copies`` packed matrices."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, source: Source, copies: int, bits: int) -> None:
        self._kernel = native_quant.kernel()
        self._packed = [self._kernel.pack(torch.from_numpy(source(copy)), bits) for copy in range(copies)]
        self._layers = [self._kernel.layer(packed) for packed in self._packed]
        self.lossy = bits < 32
        threads = "" if self._kernel.parallel else ", built without OpenMP: one thread"
        self.kernel = f"own {self._kernel.path} kernel, {'float32' if bits == 32 else f'W{bits}A8'}{threads}"

    def prepare(self, x_MK: np.ndarray) -> Any:
        """Inputs as a float32 tensor."""
        return torch.from_numpy(x_MK)

    def run(self, copy: int, x: Any) -> Any:
        """One layer call."""
        return self._layers[copy](x)

    def to_numpy(self, y: Any) -> np.ndarray:
        """Result as float32 (m, n)."""
        return np.asarray(y.numpy())

    def stored(self, copy: int) -> Stored:
        """The weights of ``copy``, read from the packed bytes."""
        return decode(self._packed[copy])

    def stored_bytes(self) -> int:
        """Bytes of one packed matrix."""
        return int(self._packed[0].data.numel())

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """Inputs as the arm rounds them, float64."""
        return grouped_int8(x_MK, BLOCK) if self.lossy else plain(x_MK)

    def threads(self) -> int:
        """Threads that the kernel computes with."""
        return torch.get_num_threads() if self._kernel.parallel else 1

    def synchronize(self) -> None:
        """A CPU call returns when it is done."""

    def close(self) -> None:
        """Nothing outlives the process."""


def decode(packed: native_quant.Packed) -> Stored:
    """What the packed bytes say, by the layout in ``kernels/README.md``; written apart from the kernel.

    A 4-bit weight may lie half its group's scale and half an offset step off, and more where clipping pays.
    """
    N, K = packed.outputs, packed.inputs
    data = packed.data.numpy()
    panels, depths = -(-N // ROWS), -(-K // BLOCK)
    if packed.bits == 32:
        values = data.view(np.float32).reshape(panels, depths * BLOCK, ROWS)
        return dense_stored(values.transpose(0, 2, 1).reshape(panels * ROWS, -1)[:N, :K], 0.0)
    block_bytes = ROWS * BLOCK if packed.bits == 8 else 2 * _HALF_BYTES
    ends = panels * depths * block_bytes
    scales_N = data[ends:].view(np.float32)[:N]
    blocks = data[:ends].reshape(panels, depths, block_bytes)
    units = _bytes(blocks) if packed.bits == 8 else _nibbles(blocks)
    units_NK = units.reshape(panels * ROWS, -1)[:N]
    if packed.bits == 8:
        return int8_rows(units_NK[:, :K].astype(np.float64), scales_N, 0.0, (data,))
    return _grouped(units_NK[:, : -(-K // GROUP) * GROUP], scales_N, data)


def _bytes(blocks: np.ndarray) -> np.ndarray:
    """Panels x rows x inputs, in units of the row's scale."""
    panels, depths, _ = blocks.shape
    codes = blocks.reshape(panels, depths, BLOCK // QUAD, ROWS, QUAD).astype(np.int32) - _ZERO
    return np.asarray(codes.transpose(0, 3, 1, 2, 4))


def _nibbles(blocks: np.ndarray) -> np.ndarray:
    """The same of 4-bit blocks: code · scale + offset of its group."""
    panels, depths, _ = blocks.shape
    halves = blocks.reshape(panels, depths, 2, _HALF_BYTES)
    fields = halves[..., :64].reshape(panels, depths, 2, 4, ROWS).astype(np.int32)
    scale = (fields & 15) + 1
    offset = -8 * scale + scale // 2 + _OFFSET_STEP * ((fields >> 4) - 8)
    pairs = halves[..., 64:].reshape(panels, depths, 2, 4, 2, ROWS, QUAD)
    codes = np.stack([pairs & 15, pairs >> 4], axis=5).astype(np.int32)
    units = codes * scale[..., None, None, :, None] + offset[..., None, None, :, None]
    return np.asarray(units.transpose(0, 6, 1, 2, 3, 4, 5, 7))


def _grouped(units_NK: np.ndarray, scales_N: np.ndarray, data: np.ndarray) -> Stored:
    """Groups of inputs; the limit allows a code at the end of its range to be clipped by as much again."""
    scale_N1 = scales_N.astype(np.float64)[:, None]
    groups = units_NK.reshape(len(units_NK), -1, GROUP)

    def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        part = groups[start:stop].astype(np.float64) * scale_N1[start:stop, :, None]
        return part, scale_N1[start:stop] * np.full((1, groups.shape[1]), _LARGEST / 4)

    return Stored(rows, (data,))
