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
    excess = np.abs(rows - _grouped(weights, rows.shape[-1])).max(axis=-1) - limit
    if not (worst := excess.max()) <= 0:
        row, group = np.unravel_index(int(np.argmax(excess)), excess.shape)
        raise RuntimeError(
            f"stored weight in row {start + row}, group {group} is off by {worst:.2g} more than its format allows"
        )


def _grouped(values_MK: np.ndarray, group: int) -> np.ndarray:
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


def int8_matrix(codes_NK: np.ndarray, scale: float, zero_point: int) -> Stored:
    """One scale and zero point per matrix: w = scale (code - zero point)."""

    def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return (codes_NK[start:stop, None].astype(np.float64) - zero_point) * scale, np.array(0.51 * scale)

    return Stored(rows, (codes_NK, np.array([scale]), np.array([zero_point])))


def int8_rows(codes_NK: np.ndarray, absmax_N: np.ndarray) -> Stored:
    """LLM.int8: w = code absmax / 127, one absmax per output. Weights pass through float16 first (2^-11 relative)."""
    scale = absmax_N.astype(np.float64)[:, None] / 127

    def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        part = scale[start:stop]
        return codes_NK[start:stop, None] * part[..., None], part * (0.51 + 127 * 2.0**-11)

    return Stored(rows, (codes_NK, absmax_N))


def nf4_blocks(packed: np.ndarray, absmax_B: np.ndarray, code_16: np.ndarray, k: int) -> Stored:
    """NF4: w = value[code] absmax, blocks of consecutive weights, two codes per byte, the first in the upper half.

    ``k`` must be a multiple of the block. A weight lies at most half the widest gap between code values off, and
    scales may have been rounded to bfloat16 since (2^-8).
    """
    block = packed.size * 2 // absmax_B.size
    values = code_16.astype(np.float64)
    pairs = np.stack([np.repeat(values, 16), np.tile(values, 16)], axis=-1)
    slack = 0.51 * float(np.diff(values).max()) + 2.0**-8

    def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        scale = absmax_B.reshape(-1)[start * k // block : stop * k // block].astype(np.float64)
        scale = scale.reshape(stop - start, -1)
        result = pairs[packed.reshape(-1)[start * k // 2 : stop * k // 2]].reshape(*scale.shape, block)
        result *= scale[..., None]
        return result, scale * slack

    return Stored(rows, (packed, absmax_B, code_16))


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
    blocks = _grouped(rows, group)
    low = np.minimum(blocks.min(axis=-1), 0)
    scales = (np.maximum(blocks.max(axis=-1), 0) - low) / top
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    zeros = np.clip(np.rint(-low * inverse), 0, top)
    codes = blocks * inverse[..., None]
    codes += zeros[..., None]
    codes = np.clip(np.rint(codes, out=codes), 0, top, out=codes).astype(np.uint8)
    return pack(codes, bits), scales, pack(zeros.astype(np.uint8), bits)


# --- activations ------------------------------------------------------------------------------------------------


def plain(x_MK: np.ndarray) -> np.ndarray:
    """Activations as they are, float64."""
    return x_MK.astype(np.float64)


def grouped_int8(x_MK: np.ndarray, group: int) -> np.ndarray:
    """ONNX Runtime, accuracy level 4: int8 with scale absmax / 127 per token and group of inputs."""
    m, k = x_MK.shape
    blocks = _grouped(x_MK, group)
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


def bfloat16(x_MK: np.ndarray) -> np.ndarray:
    """Rounded to 8 significant bits, ties to even, in float64."""
    bits = np.ascontiguousarray(x_MK, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return np.asarray(rounded.astype(np.uint32).view(np.float32), np.float64)
