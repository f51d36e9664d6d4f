"""``quantized_linear`` on a device: the same weights as on the CPU, drawn there, and the formats' float64 definitions.

What :mod:`frugalbench.workloads.layers.quant_stored` says in numpy is said here in torch, with float64 products of the
library's; no kernel under test takes part. At 8192 x 8192 numpy takes a minute for what takes a device a second.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from frugalbench.workloads.layers.quant_values import place, quantiles, random_words

Source = Callable[[int], torch.Tensor]
"""Float32 weights (n, k) of a copy on the device, made when asked for."""
RowsFn = Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]
_CHUNK = 1024
_FREE = frozenset(
    f"aten.{name}"
    for name in ("t", "view", "reshape", "alias", "detach", "as_strided", "transpose", "slice", "squeeze", "unsqueeze",
                 "expand", "flatten", "_unsafe_view", "empty", "empty_like", "new_empty", "_local_scalar_dense")
)  # fmt: skip
"""Operators that move no data."""


@dataclass(frozen=True)
class DeviceStored:
    """One matrix as an arm holds it on a device. ``rows`` is as in :class:`~.quant_stored.Stored`, in torch."""

    rows: RowsFn
    arrays: tuple[torch.Tensor, ...]
    """Everything stored: codes, scales, zero points, code values."""

    @property
    def size_bytes(self) -> int:
        """Bytes stored."""
        return sum(array.numel() * array.element_size() for array in self.arrays)

    def multiply(self, weights_NK: Any, x_CK: np.ndarray) -> np.ndarray:
        """x @ W.T in float64 (C, N), W being what is stored.

        Raises ``RuntimeError`` when a stored weight lies farther from the weight it was made of than its format allows.
        """
        weights_NK = torch.as_tensor(weights_NK)
        n, k = weights_NK.shape
        x = torch.from_numpy(np.ascontiguousarray(x_CK, np.float64)).to(weights_NK.device)
        result = x.new_empty((len(x), n))
        for start in range(0, n, _CHUNK):
            stop = min(start + _CHUNK, n)
            rows, limit = self.rows(start, stop)
            _check(rows, limit, weights_NK[start:stop], start)
            result[:, start:stop] = x @ rows.reshape(stop - start, -1)[:, :k].T
        return np.asarray(result.cpu().numpy())


def _check(rows: torch.Tensor, limit: torch.Tensor, weights: torch.Tensor, start: int) -> None:
    excess = (rows - grouped(weights.double(), rows.shape[-1])).abs().amax(-1) - limit
    worst = float(excess.max())
    if not worst <= 0:
        row, group = divmod(int(excess.argmax()), excess.shape[1])
        raise RuntimeError(
            f"stored weight in row {start + row}, group {group} is off by {worst:.2g} more than its format allows"
        )


def grouped(values_MK: torch.Tensor, group: int) -> torch.Tensor:
    """(m, groups, group), filled up with zeros."""
    m, k = values_MK.shape
    return torch.nn.functional.pad(values_MK, (0, -k % group)).reshape(m, -1, group)


# --- weights ----------------------------------------------------------------------------------------------------


def weights(seed: int, copy: int, n: int, k: int, device: str) -> torch.Tensor:
    """Matrix number ``copy``, float32 (n, k): bit for bit :func:`frugalbench.workloads.layers.quant_values.weights`."""
    number, shift = place(copy, n)
    words = torch.from_numpy(random_words(seed, number, n, k).view(np.int16)).to(device)
    drawn = _quantiles(k, device).index_select(0, words.to(torch.int32) & 0xFFFF).reshape(n, k)
    return torch.roll(drawn, shift, 0) if shift else drawn


def finite_weights(seed: int, n: int, k: int, device: str, copy: int) -> torch.Tensor:
    """:func:`weights`. Raises ``RuntimeError`` where one is NaN or infinite."""
    made = weights(seed, copy, n, k, device)
    if not bool(torch.isfinite(made).all()):
        row, column = divmod(int((~torch.isfinite(made)).flatten().int().argmax()), k)
        raise RuntimeError(f"weight [{row}, {column}] is {float(made[row, column])}: such a matrix is not quantised")
    return made


@cache
def _quantiles(k: int, device: str) -> torch.Tensor:
    return torch.from_numpy(quantiles(k)).to(device)


def exact(weights_NK: torch.Tensor, x_CK: np.ndarray) -> np.ndarray:
    """x @ W.T in float64 (C, N) with weights as they are."""
    return dense(weights_NK, 0.0).multiply(weights_NK, x_CK)


# --- stored weights ---------------------------------------------------------------------------------------------


def dense(values_NK: torch.Tensor, roundoff: float) -> DeviceStored:
    """Floating-point weights; ``roundoff`` is relative (bfloat16: 2^-8)."""

    def rows(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        chunk = values_NK[start:stop, None].double()
        return chunk, chunk.new_full((stop - start, 1), roundoff * 8 / values_NK.shape[1] ** 0.5)

    return DeviceStored(rows, (values_NK,))


def scaled_rows(
    codes_NK: torch.Tensor, scales_N: torch.Tensor, slack: float, arrays: tuple[torch.Tensor, ...]
) -> DeviceStored:
    """One scale per output: w = code scale. A weight may lie ``slack`` scales off: int8 half a step and what it lost
    before, float8 half of the widest step, 2^-4 of the largest code, 448."""
    scale_N1 = scales_N.double().reshape(-1, 1)

    def rows(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        part = scale_N1[start:stop]
        return codes_NK[start:stop, None].double() * part[..., None], part.abs() * slack

    return DeviceStored(rows, arrays)


def table_blocks(packed: torch.Tensor, absmax_B: torch.Tensor, code_16: torch.Tensor, k: int) -> DeviceStored:
    """NF4 and FP4: w = value[code] absmax, blocks of consecutive weights, two codes per byte, the first in the upper
    half. A weight lies at most half the widest gap between code values off; absmax may have been rounded (2^-8)."""
    block = packed.numel() * 2 // absmax_B.numel()
    values = code_16.double()
    slack = 0.51 * float(values.sort().values.diff().max()) + 2.0**-8

    def rows(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        scale = absmax_B.reshape(-1)[start * k // block : stop * k // block].double().reshape(stop - start, -1)
        codes = packed.reshape(-1)[start * k // 2 : stop * k // 2].to(torch.int32)
        pairs = torch.stack([codes >> 4, codes & 15], -1)
        return values[pairs].reshape(*scale.shape, block) * scale[..., None], scale * slack

    return DeviceStored(rows, (packed, absmax_B, code_16))


def offset_groups(
    codes: Callable[[int, int], torch.Tensor], scale_NG: torch.Tensor, middle_NG: torch.Tensor, slack: float,
    arrays: tuple[torch.Tensor, ...],
) -> DeviceStored:  # fmt: skip
    """Groups of inputs with the value of the middle code: w = scale (code - 8) + middle, codes of 4 bits.

    ``codes(start, stop)`` gives those rows' codes (rows, k), ``slack`` the scales that a weight may be off beside the
    rounding of the middle value.
    """
    groups = scale_NG.shape[1]

    def rows(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        scale, middle = (part[start:stop].double() for part in (scale_NG, middle_NG))
        values = codes(start, stop).reshape(stop - start, groups, -1).double() - 8
        return values * scale[..., None] + middle[..., None], scale.abs() * slack + middle.abs() * 2.0**-7

    return DeviceStored(rows, arrays)


def tinygemm_codes(packed: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Codes (rows, k) of torch's ``_convert_weight_to_int4pack`` on CUDA; ``start`` and ``stop`` are multiples of 8.

    ``packed`` int32 [n/8][k/128][32][4] is ordered for the matrix units: word j of lane t has row t // 4 of its eight
    and, in half byte p, input 32 j + 2 (t % 4) + 8 (p % 4) + p // 4 of its 128 (ATen, ``native/cuda/int4mm.cu``).
    """
    words = packed[start // 8 : stop // 8]
    tiles, steps = words.shape[:2]
    places = torch.stack([(words >> 4 * p) & 15 for p in range(8)], -1)
    places = places.reshape(tiles, steps, 8, 4, 4, 2, 4)  # tile, step, row, lane % 4, word, p // 4, p % 4
    return places.permute(0, 2, 1, 4, 6, 3, 5).reshape(tiles * 8, steps * 128)


def operators(call: Callable[[], object]) -> list[str]:
    """Operators that do work in a call, in order, as torch's dispatcher sees them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Watch(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func).rpartition(".")[0])
            return func(*args, **(kwargs or {}))

    with torch.inference_mode(), Watch():
        call()
    return [name for name in dict.fromkeys(seen) if name not in _FREE]
