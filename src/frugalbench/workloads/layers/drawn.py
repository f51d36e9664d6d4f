"""Weights of the expert layer and its dense twins, drawn where they are held.

On the processor they are numpy's, the same bytes everywhere (``specs/moe_inputs.py``). A GPU draws the same
distribution itself: hundreds of millions of values would take the processor longer than everything that is measured.
Those are the same for all arms and the reference of one kind of GPU and version of torch; another may give others.
"""

import hashlib
import math
from typing import Any

import torch

from frugalbench.specs import moe_inputs as inputs
from frugalbench.specs import moe_sixteen

_AT_ONCE = 2**25
"""Values drawn together; bounds the float32 values beside the weights to 128 MiB."""


def where_drawn(device: str) -> str:
    """For the record."""
    return "numpy SFC64 on the processor" if device == "cpu" else f"torch.Generator on {device}"


def weights(
    seed: int, params: dict[str, Any], copy: int, device: str, held: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """``gate_up`` and ``down`` of one copy, rounded to the layer's format and held in ``held`` (default: that format,
    or float32)."""
    rounded = _format(params)
    held = rounded if held is None else held
    if device == "cpu":
        arrays = (inputs.dense_weights if params["d_ff"] else inputs.expert_weights)(seed, params, copy)
        return {name: torch.from_numpy(array).to(held) for name, array in arrays.items()}
    places = (inputs.dense_places if params["d_ff"] else inputs.expert_places)(params, copy)
    return {name: drawn(seed, place, device, rounded, held) for name, place in places.items()}


def _format(params: dict[str, Any]) -> torch.dtype:
    """To which values are rounded; float32 is as drawn."""
    found: torch.dtype = getattr(torch, params["weights"]) if moe_sixteen.is_sixteen(params) else torch.float32
    return found


def drawn(seed: int, place: inputs.Place, device: str, rounded: torch.dtype, held: torch.dtype) -> torch.Tensor:
    """Uniform with variance 1 / fan-in, as :func:`frugalbench.specs.moe_inputs.uniform` draws on the processor."""
    shape, fan_in, where = place
    source = torch.Generator(device).manual_seed(_stream(seed, where))
    values = torch.empty(shape, dtype=held, device=device)
    for part in values.view(-1).split(_AT_ONCE):
        fresh = torch.rand(len(part), generator=source, device=device).sub_(0.5).mul_(2 * math.sqrt(3 / fan_in))
        part.copy_(fresh.to(rounded))
    return values


def _stream(seed: int, where: tuple[object, ...]) -> int:
    """A seed of its own for each place, below 2^63."""
    text = "/".join(map(str, (seed, *where))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
