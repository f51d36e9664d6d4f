"""What a call of the expert layer or of a dense twin costs, and what an arm holds in memory."""

import math
from typing import Any

from frugalbench.schema import Cost
from frugalbench.specs import accounting
from frugalbench.specs import moe_block as block
from frugalbench.specs import moe_inputs as inputs
from frugalbench.specs import moe_packed as packed
from frugalbench.specs.moe_sixteen import FP32_TWIN, value_bytes, with_twins

DENSE = ("dense-equal-total", "dense-equal-active", "dense-equal-total-native", "dense-equal-active-native")
TWINS = tuple(name for name in with_twins([*DENSE]) if name.endswith(FP32_TWIN))
"""Float32 twins of dense layers of 16 bits; they come with these, unasked."""
LLAMA = ("dense-equal-total-llama", "dense-equal-active-llama", "moe-llama")
_BYTES = 4


def dense_width(layer: dict[str, Any], variant: str) -> int:
    """Width of the dense twin: all experts side by side, or the active ones, shared ones included; 0 for MoE arms."""
    if variant not in (*DENSE, *TWINS, *LLAMA[:2]):
        return 0
    routed = layer["experts"] if "equal-total" in variant else layer["top_k"]
    return int((routed + layer["n_shared"]) * layer["d_expert"])


def copies(layer: dict[str, Any], variant: str, stream_bytes: int) -> int:
    """Distinct layers that hold at least ``stream_bytes`` together."""
    return math.ceil(stream_bytes / weight_bytes(layer, variant))


def parameters(layer: dict[str, Any], variant: str) -> int:
    """Weights held by one layer, or block."""
    attention = block.parameters(layer) if block.is_block(layer) else 0
    if width := dense_width(layer, variant):
        return attention + accounting.swiglu_ffn_parameters(layer["d_model"], width)
    shared = accounting.swiglu_ffn_parameters(layer["d_model"], layer["n_shared"] * layer["d_expert"])
    return attention + shared + accounting.moe_ffn_parameters(layer["d_model"], layer["d_expert"], layer["experts"])


def weight_bytes(layer: dict[str, Any], variant: str) -> int:
    """Stored bytes of one layer, or block."""
    if not packed.is_packed(layer):
        wide_router = packed.is_ggml(layer) and not dense_width(layer, variant)
        more_bytes = (_BYTES - value_bytes(layer)) * layer["d_model"] * layer["experts"] if wide_router else 0
        return value_bytes(layer) * parameters(layer, variant) + more_bytes
    if width := dense_width(layer, variant):
        return packed.expert_bytes(layer, width)
    experts = (layer["experts"] + layer["n_shared"]) * packed.expert_bytes(layer, layer["d_expert"])
    return int(experts + _BYTES * layer["d_model"] * layer["experts"])


def arm_bytes(layer: dict[str, Any], variant: str, tokens: dict[str, int], device: str = "cpu") -> float:
    """What the loaded arm holds: weights, as much again as one layer (gradients, say), caches.

    ``tokens`` is by regime. On a GPU gradients count only where a regime makes them, and what a call needs in between
    counts too: recorded calls keep it.
    """
    held_bytes = weight_bytes(layer, variant) * layer["copies"]
    if device == "cpu" or "training" in tokens:
        held_bytes += _BYTES * parameters(layer, variant)
    if device != "cpu":
        held_bytes += max(_between_bytes(layer, variant, count) for count in tokens.values())
    caching = block.is_block(layer) and not set(block.CACHED).isdisjoint(tokens)
    return float(held_bytes + (layer["sequences"] * block.sequence_bytes(layer) if caching else 0))


def _between_bytes(layer: dict[str, Any], variant: str, tokens: int) -> int:
    """Gate, up and hidden value of every token copy, its input and its answer: all that any arm stores in a call."""
    width = dense_width(layer, variant)
    copies = tokens if width else tokens * (layer["top_k"] + layer["n_shared"])
    values = 4 * (width or layer["d_expert"]) + 3 * layer["d_model"]
    if variant == "moe-transformers-batched":  # copies each choice's weights
        values += accounting.swiglu_ffn_parameters(layer["d_model"], layer["d_expert"])
    return int(value_bytes(layer) * copies * values)


def cost(params: dict[str, Any], variant: str, regime: str) -> Cost:
    """Cost of one call; a training step is forward and backward, gradients of weights and of inputs.

    The traffic of a mixture is that of the experts which the trace really hits, its FLOP under a capacity that of the
    choices which are kept (means over the batches). Active parameters are the gate's, whether kept or dropped. Work of
    quantised weights is integer operations, the router's is not.
    """
    flop, active, traffic = _dense(params, variant) if dense_width(params, variant) else _mixture(params)
    if block.is_block(params):
        flop += block.flop(params, regime)
        active += block.parameters(params)
        traffic += block.traffic_bytes(params, regime)
    if regime == "training":
        flop, traffic = (1 + accounting.BACKWARD_FACTOR) * flop, 3 * traffic
    op = 0.0
    if packed.is_packed(params):
        floating = (
            0
            if dense_width(params, variant)
            else accounting.router_flop(params["tokens"], params["d_model"], params["experts"])
        )
        flop, op = floating, flop - floating
    return Cost(
        token=params["tokens"],
        flop=flop,
        op=op,
        weight_bytes=weight_bytes(params, variant),
        traffic_bytes=traffic,
        parameters=parameters(params, variant),
        active_parameters=active,
    )


def _dense(params: dict[str, Any], variant: str) -> tuple[float, int, float]:
    """FLOP, active parameters and least bytes of a dense FFN's forward call."""
    tokens, D, width = params["tokens"], params["d_model"], dense_width(params, variant)
    held = accounting.swiglu_ffn_parameters(D, width)
    value = value_bytes(params)
    stored = packed.expert_bytes(params, width) if packed.is_packed(params) else value * held
    traffic = accounting.linear_traffic_bytes(tokens, D, D, stored, value)
    return accounting.swiglu_ffn_flop(tokens, D, width), held, traffic


def _mixture(params: dict[str, Any]) -> tuple[float, int, float]:
    """The same of a mixture."""
    tokens, D, F, E = params["tokens"], params["d_model"], params["d_expert"], params["experts"]
    shared, one = params["n_shared"], accounting.swiglu_ffn_parameters(D, F)
    kept = params["kept_choices"] if inputs.has_capacity(params) else tokens * params["top_k"]
    flop = accounting.router_flop(tokens, D, E) + 2 * (kept + tokens * shared) * one
    active = accounting.moe_ffn_active_parameters(D, F, E, params["top_k"]) + shared * one
    value = value_bytes(params)
    each = packed.expert_bytes(params, F) if packed.is_packed(params) else value * one
    read = (params["experts_hit"] + shared) * each
    return flop, active, read + value * (D * E + 2 * tokens * D)
