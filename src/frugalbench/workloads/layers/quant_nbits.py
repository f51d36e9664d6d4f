"""Codes of 4 or 8 bits in groups of inputs, each with a float32 scale and a zero point, as ONNX Runtime stores them."""

import numpy as np

from frugalbench.workloads.layers.quant_stored import Stored, grouped

_CHUNK = 256


def nbits_groups(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int) -> Stored:
    """ONNX Runtime's MatMulNBits: w = scale (code - zero point) per group of inputs.

    ``codes`` uint8 (n, groups, group * bits / 8) and ``zeros`` uint8 (n, ...), lower half byte first at 4 bits;
    ``scales`` float32 (n, groups). Clipping at the end of the range may cost a whole step, rounding half of one.
    """
    groups = scales.shape[1]

    def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        scale = scales[start:stop].astype(np.float64)
        values = unpack(codes[start:stop], bits).astype(np.float64)
        values -= unpack(zeros[start:stop], bits)[:, :groups, None]
        values *= scale[..., None]
        return values, scale * 1.01

    return Stored(rows, (codes, scales, zeros))


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes of ``bits`` 4 or 8, one per element, along the last axis."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of :func:`unpack`; an odd last axis is filled up with a zero code."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    return np.asarray(codes[..., ::2] | (codes[..., 1::2] << 4))


def quantise_nbits(weights_NK: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round to nearest with a scale and zero point per group, as ONNX Runtime's default weight-only quantiser does.

    Returns codes (n, groups, group * bits / 8), scales (n, groups) and zero points, as :func:`nbits_groups` takes
    them. The range of a group always includes 0; scale = range / (2^bits - 1). K is filled up with zeros.
    """
    parts = [
        _quantise_rows(weights_NK[start : start + _CHUNK], bits, group) for start in range(0, len(weights_NK), _CHUNK)
    ]
    codes, scales, zeros = (np.concatenate(column) for column in zip(*parts, strict=True))
    return codes, scales, zeros


def _quantise_rows(rows: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    top = np.float32(2**bits - 1)
    blocks = grouped(rows, group)
    low = np.minimum(blocks.min(axis=-1), 0)
    scales = (np.maximum(blocks.max(axis=-1), 0) - low) / top
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    zeros = np.clip(np.rint(-low * inverse), 0, top)
    codes = blocks * inverse[..., None]
    codes += zeros[..., None]
    codes = np.clip(np.rint(codes, out=codes), 0, top, out=codes).astype(np.uint8)
    return pack(codes, bits), scales, pack(zeros.astype(np.uint8), bits)
