"""Round to nearest, as plainly as it can be done: codes and scales in memory, dequantised in every call.

8 bits: one float32 scale per output, absmax / 127. 4 bits: one float16 scale per group of inputs, absmax / 7, two codes
per byte. Nothing is calibrated and no zero point is stored, so the answers do not depend on a runtime's choices.
"""

from typing import Any

import numpy as np

from frugalbench.schema import Artefact
from frugalbench.workloads.layers.quant_stored import Source, Stored, grouped, plain, require_finite

_TOP = {8: 127, 4: 7}


class RoundToNearest:
    """Matrices held at 8 or 4 bits, multiplied in float32."""

    artefacts: tuple[Artefact, ...] = ()
    lossy = True

    def __init__(self, source: Source, copies: int, bits: int, group: int, device: str) -> None:
        import torch

        self._torch, self._bits, self._group, self._device = torch, bits, group, device
        self.kernel = f"dequantise int{bits}, aten::linear"
        self._held = [self._quantise(require_finite(source(copy))) for copy in range(copies)]

    def _quantise(self, weights_NK: np.ndarray) -> tuple[Any, Any, int]:
        blocks = grouped(weights_NK, self._group) if self._bits == 4 else weights_NK[:, None]
        scales = scales_of(blocks, self._bits)
        codes = codes_of(blocks, scales, self._bits)
        return self._placed(paired(codes) if self._bits == 4 else codes, scales, weights_NK.shape[1])

    def _placed(self, codes: np.ndarray, scales: np.ndarray, k: int) -> tuple[Any, Any, int]:
        held, steps = (self._torch.from_numpy(np.ascontiguousarray(p)).to(self._device) for p in (codes, scales))
        return held, steps, k

    def prepare(self, x_MK: np.ndarray) -> Any:
        """Inputs as a float32 tensor on the device."""
        return self._torch.from_numpy(x_MK).to(self._device)

    def run(self, copy: int, x: Any) -> Any:
        """One layer call: unpack, scale, multiply."""
        codes, scales, k = self._held[copy]
        if self._bits == 4:
            low, high = (codes << 4).view(self._torch.int8) >> 4, codes.view(self._torch.int8) >> 4
            codes = self._torch.stack((low, high), dim=-1).flatten(-2)
        weights_NK = (codes * scales.float()).flatten(1)[:, :k]
        return self._torch.nn.functional.linear(x, weights_NK)

    def to_numpy(self, y: Any) -> np.ndarray:
        """Result as float32 (m, n)."""
        return np.asarray(y.float().cpu().numpy())

    def stored(self, copy: int) -> Stored:
        """Codes and scales of ``copy``."""
        codes, scales = (part.cpu().numpy() for part in self._held[copy][:2])
        return rtn_groups(codes, scales, self._bits)

    def stored_bytes(self) -> int:
        """Bytes of one stored matrix."""
        return self.stored(0).size_bytes

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """Inputs are multiplied as they are; float64."""
        return plain(x_MK)

    def threads(self) -> int:
        """Threads that the library computes with."""
        return int(self._torch.get_num_threads())

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._device != "cpu":
            self._torch.cuda.synchronize()

    def close(self) -> None:
        """Nothing outlives the process."""


def scales_of(blocks: np.ndarray, bits: int) -> np.ndarray:
    """(n, groups, group) to (n, groups, 1): what the largest weight of a group needs, in the type that is stored."""
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(_TOP[bits])
    return np.asarray(scales.astype(np.float32 if bits == 8 else np.float16))


def codes_of(blocks: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """The nearest code of each weight, int8; scales are broadcast."""
    wide = scales.astype(np.float32)
    codes = np.rint(blocks / np.where(wide > 0, wide, np.float32(1)))
    return np.asarray(np.clip(codes, -_TOP[bits], _TOP[bits]).astype(np.int8))


def paired(codes: np.ndarray) -> np.ndarray:
    """Two 4-bit codes to a byte, the first in the lower half."""
    return np.asarray((codes[..., ::2] & 15 | (codes[..., 1::2] & 15) << 4).astype(np.uint8))


def rtn_groups(codes: np.ndarray, scales: np.ndarray, bits: int) -> Stored:
    """w = code scale: codes int8 (n, 1, k), or two's complement nibbles in uint8 (n, groups, group / 2), the lower half
    first; scales (n, groups, 1). A weight lies at most half a step off, plus what a float16 scale rounds away."""

    def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        scale, part = scales[start:stop].astype(np.float64), codes[start:stop]
        if bits == 4:
            nibbles = np.stack([part & 15, part >> 4], axis=-1).reshape(*part.shape[:-1], -1).astype(np.int64)
            part = nibbles - 16 * (nibbles > 7)
        return part * scale, scale[..., 0] * (0.51 + _TOP[bits] * 2.0**-11)

    return Stored(rows, (codes, scales))
