"""What the low-precision formats mean: stored codes to weights, and activations as each format rounds them.

Written in numpy from the formats' definitions, apart from the libraries that are under test.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Source = Callable[[int], np.ndarray]
"""Float32 weights (n, k) of a copy, made when asked for."""
RowsFn = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
_CHUNK = 256


@dataclass(frozen=True)
class Stored:
    """One matrix as an arm holds it."""

    rows: RowsFn
    """``rows(start, stop)``: the weights that the codes stand for, float64 (stop - start, groups, group size), and how
    far those of a group may lie from the weights they were made of (broadcastable to (stop - start, groups))."""
    arrays: tuple[np.ndarray, ...]
    """Everything stored: codes, scales, zero points, code values."""

    @property
    def size_bytes(self) -> int:
        """Bytes stored."""
        return sum(array.nbytes for array in self.arrays)

    def fingerprint(self) -> str:
        """Hash of every stored byte."""
        return fingerprint(*self.arrays)


def fingerprint(*arrays: np.ndarray) -> str:
    """Hash of the arrays' bytes, 128 bits as hexadecimal text."""
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        state.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return state.hexdigest()


def require_finite(weights_NK: np.ndarray) -> np.ndarray:
    """``weights_NK`` as they are. Raises ``RuntimeError`` where one is NaN or infinite: no scale fits such a group, and
    what a quantiser then stores differs from library to library without a word."""
    rows = np.isfinite(weights_NK).all(axis=1)
    if not rows.all():
        row = int(np.argmin(rows))
        column = int(np.argmin(np.isfinite(weights_NK[row])))
        raise RuntimeError(f"weight [{row}, {column}] is {weights_NK[row, column]}: such a matrix is not quantised")
    return weights_NK


def multiply(stored: Stored, weights_NK: np.ndarray, x_CK: np.ndarray) -> np.ndarray:
    """x @ W.T in float64 (C, N), W being what is stored.

    Raises ``RuntimeError`` when a stored weight lies farther from the weight it was made of than its format allows:
    the store is then corrupt, or was quantised wrongly.
    """
    n, k = weights_NK.shape
    result = np.empty((len(x_CK), n))
    for start in range(0, n, _CHUNK):
        stop = min(start + _CHUNK, n)
        rows, limit = stored.rows(start, stop)
        _check(rows, limit, weights_NK[start:stop], start)
        result[:, start:stop] = x_CK @ rows.reshape(stop - start, -1)[:, :k].T
    return result


def _check(rows: np.ndarray, limit: np.ndarray, weights: np.ndarray, start: int) -> None:
    excess = np.abs(rows - grouped(weights, rows.shape[-1])).max(axis=-1) - limit
    if not (worst := excess.max()) <= 0:
        row, group = np.unravel_index(int(np.argmax(excess)), excess.shape)
        raise RuntimeError(
            f"stored weight in row {start + row}, group {group} is off by {worst:.2g} more than its format allows"
        )


def grouped(values_MK: np.ndarray, group: int) -> np.ndarray:
    """(m, groups, group), filled up with zeros."""
    m, k = values_MK.shape
    padded = np.pad(values_MK, ((0, 0), (0, -k % group))) if k % group else values_MK
    return padded.reshape(m, -1, group)


# --- stored weights ---------------------------------------------------------------------------------------------


def dense_stored(values_NK: np.ndarray, unit_roundoff: float) -> Stored:
    """Floating-point weights, widened to float32 by the caller; ``unit_roundoff`` is relative (bfloat16: 2^-8)."""

    def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        chunk = values_NK[start:stop, None].astype(np.float64)
        return chunk, np.full((stop - start, 1), unit_roundoff * 8 / np.sqrt(values_NK.shape[1]))

    return Stored(rows, (values_NK,))


def int8_matrix(codes_NK: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> Stored:
    """One scale and zero point per matrix, arrays of one value: w = scale (code - zero point)."""
    step, zero = float(scale.item()), float(zero_point.item())

    def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return (codes_NK[start:stop, None].astype(np.float64) - zero) * step, np.array(0.51 * step)

    return Stored(rows, (codes_NK, scale, zero_point))


def int8_rows(codes_NK: np.ndarray, scales_N: np.ndarray, roundoff: float, arrays: tuple[np.ndarray, ...]) -> Stored:
    """One scale per output: w = code scale. ``roundoff`` is what weights lost, relative, before they were quantised
    (LLM.int8 takes them through float16: 2^-11); ``arrays`` is everything that is stored."""
    scale = scales_N.astype(np.float64).reshape(-1, 1)

    def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        part = scale[start:stop]
        return codes_NK[start:stop, None] * part[..., None], part * (0.51 + 127 * roundoff)

    return Stored(rows, arrays)


def offset_groups(codes: np.ndarray, scales: np.ndarray, offsets: np.ndarray, arrays: tuple[np.ndarray, ...]) -> Stored:
    """Groups of inputs with the value of the middle code: w = scale (code - 8) + offset, codes of 4 bits.

    ``codes`` uint8 (n, k), ``scales`` and ``offsets`` float32 (n, groups), kept in bfloat16 like the weights that they
    were made of: each of the three is off by up to 2^-8 of the group's largest weight, 8 steps.
    """
    groups = scales.shape[1]

    def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        scale, offset = (part[start:stop].astype(np.float64) for part in (scales, offsets))
        values = codes[start:stop].reshape(stop - start, groups, -1).astype(np.float64) - 8
        return values * scale[..., None] + offset[..., None], scale * 1.01 + np.abs(offset) * 2.0**-7

    return Stored(rows, arrays)


def nf4_blocks(packed: np.ndarray, absmax_B: np.ndarray, code_16: np.ndarray, k: int) -> Stored:
    """NF4, FP4: w = value[code] absmax, blocks of consecutive weights, two codes per byte, the first in the upper half.

    ``k`` must be a multiple of the block. A weight lies at most half the widest gap between code values off, and
    scales may have been rounded to bfloat16 since (2^-8).
    """
    block = packed.size * 2 // absmax_B.size
    values = code_16.astype(np.float64)
    pairs = np.stack([np.repeat(values, 16), np.tile(values, 16)], axis=-1)
    slack = 0.51 * float(np.diff(np.sort(values)).max()) + 2.0**-8

    def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        scale = absmax_B.reshape(-1)[start * k // block : stop * k // block].astype(np.float64)
        scale = scale.reshape(stop - start, -1)
        result = pairs[packed.reshape(-1)[start * k // 2 : stop * k // 2]].reshape(*scale.shape, block)
        result *= scale[..., None]
        return result, scale * slack

    return Stored(rows, (packed, absmax_B, code_16))


# --- activations ------------------------------------------------------------------------------------------------


def plain(x_MK: np.ndarray) -> np.ndarray:
    """Activations as they are, float64."""
    return x_MK.astype(np.float64)


def grouped_int8(x_MK: np.ndarray, group: int) -> np.ndarray:
    """ONNX Runtime, accuracy level 4: int8 with scale absmax / 127 per token and group of inputs."""
    m, k = x_MK.shape
    blocks = grouped(x_MK, group)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    codes = np.rint(blocks / np.where(scale > 0, scale, np.float32(1)))
    return np.asarray((codes.astype(np.float64) * scale).reshape(m, -1)[:, :k])


def tensor_uint7(x_MK: np.ndarray) -> np.ndarray:
    """torch's dynamic int8 linear: one scale and zero point for all, 7 bits (``reduce_range``), range including 0."""
    low, high = min(float(x_MK.min()), 0.0), max(float(x_MK.max()), 0.0)
    scale = np.float32((high - low) / 127)
    zero = float(np.rint(-low / scale))
    shifted = x_MK.astype(np.float64) * float(np.float32(1) / scale) + zero  # as a fused multiply-add rounds: once
    codes = np.clip(np.rint(shifted.astype(np.float32)), 0, 127)
    return (codes.astype(np.float64) - zero) * float(scale)


def tensor_uint8(x_MK: np.ndarray) -> np.ndarray:
    """ONNX's DynamicQuantizeLinear: one scale and zero point for all, 8 bits, range including 0."""
    low, high = min(float(x_MK.min()), 0.0), max(float(x_MK.max()), 0.0)
    scale = np.float32(np.float32(high - low) / np.float32(255))
    zero_point = int(np.clip(np.rint(-low / scale), 0, 255))
    return static_uint8(x_MK, scale, zero_point)


def static_uint8(x_MK: np.ndarray, scale: np.float32, zero_point: int) -> np.ndarray:
    """ONNX's QuantizeLinear to 8 bits, with a scale and zero point that were chosen before."""
    codes = np.clip(np.rint(x_MK / scale) + zero_point, 0, 255)
    return np.asarray((codes.astype(np.float64) - zero_point) * float(scale))


def token_int8_all(x_MK: np.ndarray) -> np.ndarray:
    """torchao: int8 with scale absmax / 127.5 per token, outliers included, codes from -128 to 127."""
    scale = np.abs(x_MK).max(axis=1, keepdims=True) / np.float32(127.5)
    codes = np.clip(np.rint(x_MK * (np.float32(1) / scale)), -128, 127)
    return np.asarray(codes.astype(np.float64) * scale)


def token_int8(x_MK: np.ndarray, threshold: float) -> np.ndarray:
    """LLM.int8: int8 with scale absmax / 127 per token, over what lies below ``threshold``.

    An input channel that reaches the threshold in any token is an outlier channel and stays in floating point.
    """
    half = x_MK.astype(np.float16).astype(np.float32)
    is_outlier = np.abs(half) >= threshold
    regular = np.where(is_outlier, np.float32(0), half)
    absmax = np.abs(regular).max(axis=1, keepdims=True)
    codes = np.rint(regular * (np.float32(1) / absmax * np.float32(127))).astype(np.float64)
    return np.where(is_outlier.any(axis=0), x_MK, codes * (absmax / 127.0))


def float16(x_MK: np.ndarray) -> np.ndarray:
    """Rounded to float16, in float64."""
    return np.asarray(x_MK.astype(np.float16), np.float64)


def bfloat16(x_MK: np.ndarray) -> np.ndarray:
    """Rounded to 8 significant bits, ties to even, in float64."""
    bits = np.ascontiguousarray(x_MK, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return np.asarray(rounded.astype(np.uint32).view(np.float32), np.float64)
