"""One expert feed-forward layer of a real MoE model, beside dense layers of equal total and equal active parameters.

Tensors carry shape suffixes: T tokens, D model width, F expert width, E experts, K experts per token.
All arms see the same token trace; the MoE arms hold the same weights. On a CPU the widths D and F are multiplied
by ``scale``, which keeps the number of experts, the experts per token and the ratio of dense to active work; the
factor is part of the case id and of ``params``.

Weights stream from memory: every arm holds ``copies`` distinct layers that together exceed the last-level cache.
"""

import math
from typing import Any

import numpy as np

from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError
from frugalbench.specs import accounting
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.specs.shapes import load_shapes

WORKLOAD = "moe_ffn"
VARIANTS = ("dense-equal-total", "dense-equal-active", "moe-transformers", "moe-sorted")
REGIMES = ("decode", "batch", "prefill", "training")
BATCHES = {"decode": 8, "batch": 4, "prefill": 2, "training": 2}
"""Distinct token batches that a regime cycles through."""

_MIB = 2**20
_TRANSFORMERS = "transformers.models.qwen3_moe.modeling_qwen3_moe"
_BYTES = 4
_TOLERANCE = 1e-4
"""Float32 sums of a few hundred to some ten thousand terms stay below this; a wrong weight or expert does not."""
_TIE_MARGIN = 1e-3
"""Tokens whose last chosen and first rejected expert lie closer than this (in logits) are drawn again: rounding
must not decide which expert computes."""

DEFAULTS: dict[str, Any] = {
    "shape": "qwen3-30b-a3b",
    "scale": 0.25,
    "variants": list(VARIANTS),
    "regimes": list(REGIMES),
    "decode_tokens": 4,
    "batch_tokens": 16,
    "prefill_tokens": 256,
    "training_tokens": 64,
    "stream_bytes": 0,
}


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison: the arms named in ``variants``, each with a case per regime."""
    options = take(settings, DEFAULTS)
    _check(settings, options)
    for variant in options["variants"]:
        choose(settings, "variant", variant, VARIANTS)
    for regime in options["regimes"]:
        choose(settings, "regime", regime, REGIMES)
    shapes = {name: shape for name, shape in load_shapes().items() if shape.n_experts and not shape.n_shared}
    choose(settings, "shape", options["shape"], shapes)
    stream = options["stream_bytes"] or min(max(4 * machine.last_level_cache_bytes, 64 * _MIB), 512 * _MIB)
    layer = layer_params(shapes[options["shape"]], options["scale"])
    if min(layer["d_model"], layer["d_expert"]) < 1:
        raise FrugalbenchError(f"{settings.where}: 'scale' {options['scale']} leaves a layer of no width")
    label = f"{options['shape']}@{options['scale']:g}"
    arms = [
        _arm(settings, variant, label, _with_copies(layer, variant, stream, settings.threads), options)
        for variant in options["variants"]
    ]
    return Expansion(
        comparisons=(Comparison(id=f"{WORKLOAD}/{label}", workload=WORKLOAD, arms=tuple(arms), estimate_s=7.0),)
    )


def _check(settings: Settings, options: dict[str, Any]) -> None:
    """Raise :class:`FrugalbenchError` for values that no layer can have."""
    for key in ("variants", "regimes"):
        if not options[key]:
            raise FrugalbenchError(f"{settings.where}: '{key}' is empty; leave it out for the default")
    for key in ("decode_tokens", "batch_tokens", "prefill_tokens", "training_tokens"):
        if options[key] < 1:
            raise FrugalbenchError(f"{settings.where}: '{key}' must be at least 1, not {options[key]}")
    if options["stream_bytes"] < 0:
        raise FrugalbenchError(f"{settings.where}: 'stream_bytes' must not be negative (0 is automatic)")
    if not 0 < options["scale"] <= 1:
        raise FrugalbenchError(f"{settings.where}: 'scale' must lie between 0 and 1, not {options['scale']}")


def layer_params(shape: Any, scale: float) -> dict[str, Any]:
    """Dimensions of the scaled layer."""
    return {
        "d_model": round(shape.d_model * scale),
        "d_expert": round(shape.d_ff_expert * scale),
        "experts": shape.n_experts,
        "top_k": shape.top_k,
        "scale": scale,
        "model": shape.model,
    }


def _with_copies(layer: dict[str, Any], variant: str, stream_bytes: int, threads: int) -> dict[str, Any]:
    copies = math.ceil(stream_bytes / (_BYTES * _parameters(layer, variant)))
    return {**layer, "copies": copies, "threads": threads, "d_ff": dense_width(layer, variant)}


def dense_width(layer: dict[str, Any], variant: str) -> int:
    """Width of the dense twin: all experts side by side, or the active ones; 0 for MoE arms."""
    factor = {"dense-equal-total": layer["experts"], "dense-equal-active": layer["top_k"]}.get(variant, 0)
    return int(factor * layer["d_expert"])


def _parameters(layer: dict[str, Any], variant: str) -> int:
    if width := dense_width(layer, variant):
        return accounting.swiglu_ffn_parameters(layer["d_model"], width)
    return accounting.moe_ffn_parameters(layer["d_model"], layer["d_expert"], layer["experts"])


def _arm(settings: Settings, variant: str, label: str, layer: dict[str, Any], options: dict[str, Any]) -> Arm:
    imports = ("torch", _TRANSFORMERS) if variant == "moe-transformers" else ("torch",)
    cases = tuple(
        _case(settings, variant, label, regime, {**layer, "tokens": options[f"{regime}_tokens"]})
        for regime in options["regimes"]
    )
    memory = _BYTES * _parameters(layer, variant) * (layer["copies"] + 1)
    return Arm(id=f"{WORKLOAD}/{label}/{variant}", cases=cases, imports=imports, memory_bytes=memory)


def _case(settings: Settings, variant: str, label: str, regime: str, params: dict[str, Any]) -> Case:
    return Case(
        id=f"{WORKLOAD}/{label}/{variant}/{regime}-{params['tokens']}/torch/{settings.device}",
        workload=WORKLOAD,
        variant=variant,
        shape=label,
        regime=regime,
        backend="torch",
        device=settings.device,
        dtype="float32",
        params=params,
        cost=cost(params, variant, regime),
        tolerance=_TOLERANCE,
        peaks=("fp32_flop_per_s", "read_bytes_per_s"),
    )


def cost(params: dict[str, Any], variant: str, regime: str) -> Cost:
    """Cost of one call; a training step is forward and backward, gradients of weights and of inputs."""
    tokens, D = params["tokens"], params["d_model"]
    parameters = _parameters(params, variant)
    if width := dense_width(params, variant):
        flop = accounting.swiglu_ffn_flop(tokens, D, width)
        active = parameters
        traffic: float = accounting.linear_traffic_bytes(tokens, D, D, _BYTES * parameters)
    else:
        F, E, K = params["d_expert"], params["experts"], params["top_k"]
        flop = accounting.moe_ffn_flop(tokens, D, F, E, K)
        active = accounting.moe_ffn_active_parameters(D, F, E, K)
        traffic = accounting.moe_ffn_traffic_bytes(tokens, D, F, E, K)
    if regime == "training":
        flop, traffic = accounting.training_flop(flop), 3 * traffic
    return Cost(
        token=tokens,
        flop=flop,
        weight_bytes=_BYTES * parameters,
        traffic_bytes=traffic,
        parameters=parameters,
        active_parameters=active,
    )


def generator(seed: int, *where: object) -> np.random.Generator:
    """A stream of its own for each place; the same on every machine."""
    text = "/".join(map(str, where)).encode()
    return np.random.Generator(np.random.SFC64([seed, *text]))


def uniform(seed: int, shape: tuple[int, ...], fan_in: int, *where: object) -> np.ndarray:
    """Float32 weights, uniform with variance 1 / ``fan_in``; never zero as a whole, cheap to draw."""
    values = generator(seed, *where).random(shape, dtype=np.float32)
    values -= 0.5
    values *= 2 * math.sqrt(3 / fan_in)
    return values


def dense_weights(seed: int, params: dict[str, Any], copy: int) -> dict[str, np.ndarray]:
    """``gate_up`` (2F x D) and ``down`` (D x F) of a dense layer."""
    D, F = params["d_model"], params["d_ff"]
    return {
        "gate_up": uniform(seed, (2 * F, D), D, "dense", F, copy, "gate_up"),
        "down": uniform(seed, (D, F), F, "dense", F, copy, "down"),
    }


def expert_weights(seed: int, params: dict[str, Any], copy: int) -> dict[str, np.ndarray]:
    """``gate_up`` (E x 2F x D) and ``down`` (E x D x F) of the experts."""
    D, F, E = params["d_model"], params["d_expert"], params["experts"]
    return {
        "gate_up": uniform(seed, (E, 2 * F, D), D, "moe", copy, "gate_up"),
        "down": uniform(seed, (E, D, F), F, "moe", copy, "down"),
    }


def router_weights(seed: int, params: dict[str, Any]) -> np.ndarray:
    """E x D; the same for every copy, so that the token trace is the same."""
    return uniform(seed, (params["experts"], params["d_model"]), params["d_model"], "router")


def token_batches(seed: int, params: dict[str, Any], regime: str) -> np.ndarray:
    """Batches x T x D float32 tokens, the trace that every arm sees; no token lies on a routing tie."""
    T, D, K = params["tokens"], params["d_model"], params["top_k"]
    router_ED = router_weights(seed, params).astype(np.float64)
    wanted = BATCHES[regime] * T
    source = generator(seed, "tokens", regime)
    kept = np.empty((0, D), dtype=np.float32)
    while len(kept) < wanted:
        x_TD = source.standard_normal((wanted, D), dtype=np.float32)
        ranked = np.sort(x_TD.astype(np.float64) @ router_ED.T, axis=1)[:, ::-1]
        clear = np.ones(wanted, bool) if params["experts"] == K else ranked[:, K - 1] - ranked[:, K] > _TIE_MARGIN
        kept = np.concatenate([kept, x_TD[clear]])
    return kept[:wanted].reshape(BATCHES[regime], T, D)


def upstream(seed: int, params: dict[str, Any]) -> np.ndarray:
    """T x D gradient that reaches the layer's output in a training step."""
    return generator(seed, "upstream").standard_normal((params["tokens"], params["d_model"]), dtype=np.float32)


def probe(seed: int, width: int) -> np.ndarray:
    """A fixed random vector; weight gradients are compared through their products with it."""
    return generator(seed, "probe", width).standard_normal(width)


def rotation(params: dict[str, Any], regime: str) -> int:
    """Positions that differ in weights or tokens."""
    return max(int(params["copies"]), BATCHES[regime])
