"""What GGML's block formats mean: stored bytes to weights, and activations as its kernels round them.

From the definitions in ``ggml-common.h`` (GGML, MIT licence), apart from the library that is under test.
"""

from collections.abc import Callable

import numpy as np

from frugalbench.workloads.layers.quant_stored import Stored

Decoded = tuple[np.ndarray, np.ndarray]
"""Weights float64 (rows, groups, group size), and how far each group's may lie from what it was made of."""


def ggml_stored(kind: str, rows: np.ndarray) -> Stored:
    """Rows of bytes (n, bytes) of type ``kind``: ``f16``, ``q8_0``, ``q4_0`` or ``q4_k``."""
    decode = _DECODERS[kind]
    return Stored(lambda start, stop: decode(rows[start:stop]), (rows,))


def _f16(rows: np.ndarray) -> Decoded:
    values = rows.view(np.float16).astype(np.float64)[:, None]
    return values, np.abs(values).max(axis=-1) * 2.0**-11


def _blocks(rows: np.ndarray, size_bytes: int) -> np.ndarray:
    return np.ascontiguousarray(rows).reshape(len(rows), -1, size_bytes)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte ``at`` of each block."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16).astype(np.float64)


def _q8_0(rows: np.ndarray) -> Decoded:
    """32 weights: float16 scale d, 32 int8 codes; w = d code. Half a step, and the scale's own rounding."""
    blocks = _blocks(rows, 34)
    scale = _half(blocks, 0)
    return scale * blocks[..., 2:].view(np.int8), np.abs(scale[..., 0]) * 0.58


def _q4_0(rows: np.ndarray) -> Decoded:
    """32 weights: float16 scale d, 16 bytes with weight i in the lower half of byte i and weight i + 16 in the upper;
    w = d (code - 8). Codes reach from -8 to 7, so the end of the range may cost a whole step."""
    blocks = _blocks(rows, 18)
    scale = _half(blocks, 0)
    codes = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1).astype(np.float64)
    return scale * (codes - 8), np.abs(scale[..., 0]) * 1.02


def _q4_k(rows: np.ndarray) -> Decoded:
    """256 weights: float16 d and dmin, eight 6-bit scales and minima in 12 bytes, 128 bytes of codes;
    w = d scale code - dmin minimum per 32 weights. The scale is fitted, not set by the extremes: up to two steps."""
    blocks = _blocks(rows, 144)
    scales, minima = _six_bits(blocks[..., 4:16].astype(np.float64).astype(np.uint8))
    step = _half(blocks, 0) * scales
    lowest = _half(blocks, 2) * minima
    pairs = blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32)
    codes = np.stack([pairs & 15, pairs >> 4], axis=-2).reshape(*blocks.shape[:2], 8, 32)
    values = codes * step[..., None] - lowest[..., None]
    n = len(rows)
    return values.reshape(n, -1, 32), (2 * np.abs(step) + np.abs(_half(blocks, 0)) * 8).reshape(n, -1)


def _six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima (..., 8) from 12 bytes: the first four of each take the lower six bits of bytes 0 to 3 and 4 to
    7, the last four the half bytes of 8 to 11 and, on top, the upper two bits of the first eight."""
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=-1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=-1)
    return scales.astype(np.float64), minima.astype(np.float64)


_DECODERS: dict[str, Callable[[np.ndarray], Decoded]] = {"f16": _f16, "q8_0": _q8_0, "q4_0": _q4_0, "q4_k": _q4_k}


def q8_0_activations(x_MK: np.ndarray) -> np.ndarray:
    """int8 with scale absmax / 127 per token and 32 inputs, the scale kept in float16 after the codes were found."""
    blocks = x_MK.reshape(len(x_MK), -1, 32)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    codes = np.rint(blocks * np.where(scale > 0, np.float32(1) / np.where(scale > 0, scale, 1), np.float32(0)))
    return np.asarray((codes.astype(np.float64) * scale.astype(np.float16)).reshape(x_MK.shape))


def q8_k_activations(x_MK: np.ndarray) -> np.ndarray:
    """int8 per token and 256 inputs: the value of largest magnitude becomes -127, whatever its sign."""
    blocks = x_MK.reshape(len(x_MK), -1, 256)
    at = np.abs(blocks).argmax(axis=-1)[..., None]
    extreme = np.take_along_axis(blocks, at, axis=-1)
    inverse = np.divide(np.float32(-127), extreme, out=np.zeros_like(extreme), where=extreme != 0)
    codes = np.minimum(np.rint(blocks * inverse), 127).astype(np.float64)
    scale = np.divide(np.float32(1), inverse, out=np.zeros_like(inverse), where=inverse != 0)
    return np.asarray((codes * scale).reshape(x_MK.shape))
