"""One expert feed-forward layer of a real MoE model, beside dense layers of equal total and equal active parameters.

Tensors carry shape suffixes: T tokens, D model width, F expert width, E experts, K experts per token.
All arms see the same token trace; the MoE arms hold the same weights. On a CPU the widths D and F are multiplied
by ``scale``, which keeps the number of experts, the experts per token and the ratio of dense to active work; the
factor is part of the case id and of ``params``.

Shared experts follow the routed ones in the weights: every token takes them with weight 1, and they count as held and
as active. Weights stream from memory: every arm holds ``copies`` distinct layers that together exceed the last-level
cache.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np

from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError, Skipped
from frugalbench.specs import accounting, routing
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.specs.shapes import load_shapes

WORKLOAD = "moe_ffn"
DENSE = ("dense-equal-total", "dense-equal-active", "dense-equal-total-native", "dense-equal-active-native")
NATIVE = ("dense-equal-total-native", "dense-equal-active-native", "moe-native")
TRANSFORMERS = {
    "moe-transformers": None,
    "moe-transformers-eager": "eager",
    "moe-transformers-batched": "batched_mm",
    "moe-transformers-grouped": "grouped_mm",
}
"""Variant to the experts implementation that it asks of transformers; ``None`` leaves the choice to transformers."""
MOE = (*TRANSFORMERS, "moe-loop", "moe-grouped", "moe-sorted", "moe-compiled", "moe-native", "moe-triton")
VARIANTS = (*DENSE, *MOE)
USUAL = (*DENSE, "moe-transformers", "moe-sorted", "moe-native")
REGIMES = ("decode", "batch", "prefill", "training")
BATCHES = {"decode": 8, "batch": 4, "prefill": 2, "training": 2}
"""Distinct token batches that a regime cycles through."""
OWN_SHAPE = "own"
_MOST_DRAWN = 2**23
"""Values of a batch of tokens, of its logits or of a router that planning draws to count the experts hit; enough for
4096 tokens of width 2048."""

_MIB = 2**20
_QWEN3 = "transformers.models.qwen3_moe.modeling_qwen3_moe"
_BYTES = 4
_TOLERANCE = 1e-4
"""Float32 sums of a few hundred to some ten thousand terms stay below this; a wrong weight or expert does not."""
_TIE_MARGIN = 1e-3
"""Tokens whose last chosen and first rejected expert lie closer than this (in logits) are drawn again: rounding
must not decide which expert computes."""
_MOST_BATCHED_TOKENS = 64
"""``batched_mm`` copies the weights of every chosen expert for every token: in fp32, 256 tokens x 8 experts x 3 x 2048
x 1024 values are 52 GB at the full widths of OLMoE."""

DEFAULTS: dict[str, Any] = {
    "shape": "qwen3-30b-a3b",
    "scale": 0.25,
    "d_model": 1024,
    "d_expert": 512,
    "experts": 32,
    "top_k": 2,
    "n_shared": 0,
    "routing": routing.ROUTER,
    "variants": list(USUAL),
    "regimes": list(REGIMES),
    "decode_tokens": [4],
    "batch_tokens": [16],
    "prefill_tokens": [256],
    "training_tokens": [64],
    "stream_bytes": 0,
}
"""``d_model`` to ``n_shared`` describe the layer of ``shape = "own"``. Several numbers of tokens in a regime make as
many comparisons: the first of each regime, then the second of each."""


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """A comparison of the arms named in ``variants``, with a case per regime, for each number of tokens."""
    options = take(settings, DEFAULTS)
    _check(settings, options)
    layer = _layer(settings, options)
    stream = options["stream_bytes"] or min(max(4 * machine.last_level_cache_bytes, 64 * _MIB), 512 * _MIB)
    label = _label(layer, options)
    made = [
        _comparison(settings, machine, options, layer, label, stream, tokens, number)
        for number, tokens in enumerate(_grids(options))
    ]
    return Expansion(
        comparisons=tuple(comparison for comparison, _ in made),
        skipped=tuple(skip for _, skips in made for skip in skips),
    )


def _check(settings: Settings, options: dict[str, Any]) -> None:
    """Raise :class:`FrugalbenchError` for values that no layer can have."""
    for key in ("variants", "regimes"):
        if not options[key]:
            raise FrugalbenchError(f"{settings.where}: '{key}' is empty; leave it out for the default")
    for variant in options["variants"]:
        choose(settings, "variant", variant, VARIANTS)
    for regime in options["regimes"]:
        choose(settings, "regime", regime, REGIMES)
        if not (tokens := options[f"{regime}_tokens"]) or min(tokens) < 1:
            raise FrugalbenchError(f"{settings.where}: '{regime}_tokens' must hold numbers of at least 1, not {tokens}")
    if options["stream_bytes"] < 0:
        raise FrugalbenchError(f"{settings.where}: 'stream_bytes' must not be negative (0 is automatic)")
    if not 0 < options["scale"] <= 1:
        raise FrugalbenchError(f"{settings.where}: 'scale' must lie between 0 and 1, not {options['scale']}")
    try:
        routing.check(options["routing"])
    except ValueError as problem:
        raise FrugalbenchError(f"{settings.where}: 'routing' {problem}") from None


def _layer(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    """Dimensions, gate and routing of the layer that the options name."""
    if options["shape"] == OWN_SHAPE:
        layer = {key: options[key] for key in ("d_model", "d_expert", "experts", "top_k", "n_shared")}
        layer |= {"scale": 1.0, "model": OWN_SHAPE, **asdict(routing.Gate())}
    else:
        shapes = {name: shape for name, shape in load_shapes().items() if shape.n_experts}
        choose(settings, "shape", options["shape"], {**shapes, OWN_SHAPE: None})
        layer = layer_params(shapes[options["shape"]], options["scale"])
    if min(layer["d_model"], layer["d_expert"]) < 1:
        raise FrugalbenchError(f"{settings.where}: 'scale' {options['scale']} leaves a layer of no width")
    if not 1 <= layer["top_k"] <= layer["experts"]:
        raise FrugalbenchError(
            f"{settings.where}: 'top_k' {layer['top_k']} must lie between 1 and the {layer['experts']} experts"
        )
    if layer["n_shared"] < 0:
        raise FrugalbenchError(f"{settings.where}: 'n_shared' must not be negative")
    return {**layer, "routing": options["routing"]}


def layer_params(shape: Any, scale: float) -> dict[str, Any]:
    """Dimensions of the scaled layer, and its gate."""
    return {
        "d_model": round(shape.d_model * scale),
        "d_expert": round(shape.d_ff_expert * scale),
        "experts": shape.n_experts,
        "top_k": shape.top_k,
        "n_shared": shape.n_shared,
        "scale": scale,
        "model": shape.model,
        **asdict(routing.GATES.get(shape.model, routing.Gate())),
    }


def _label(layer: dict[str, Any], options: dict[str, Any]) -> str:
    name = f"{options['shape']}@{options['scale']:g}"
    if layer["model"] == OWN_SHAPE:
        shared = f"+{layer['n_shared']}" if layer["n_shared"] else ""
        name = f"{layer['d_model']}x{layer['d_expert']}-e{layer['experts']}{shared}-k{layer['top_k']}"
    chosen = options["routing"].split(":")[0]
    return name if chosen == routing.ROUTER else f"{name}-{chosen}"


def _grids(options: dict[str, Any]) -> Iterator[dict[str, int]]:
    """Regime to tokens, for each comparison."""
    lists = {regime: options[f"{regime}_tokens"] for regime in options["regimes"]}
    for number in range(max(map(len, lists.values()))):
        yield {regime: tokens[number] for regime, tokens in lists.items() if number < len(tokens)}


def _comparison(
    settings: Settings, machine: MachineView, options: dict[str, Any], layer: dict[str, Any], label: str, stream: int,
    tokens: dict[str, int], number: int,
) -> tuple[Comparison, list[Skipped]]:  # fmt: skip
    arms, skipped = [], []
    for variant in options["variants"]:
        held = _with_copies(layer, variant, stream, settings.threads)
        cases = []
        for regime, count in tokens.items():
            case = _case(settings, variant, label, regime, {**held, "tokens": count})
            if reason := _why_not(variant, regime, count, settings.device, machine):
                skipped.append(Skipped(case=case, reason=reason))
            else:
                cases.append(case)
        if cases:
            arms.append(_arm(variant, label, held, tuple(cases)))
    name = f"{WORKLOAD}/{label}" if number == 0 else f"{WORKLOAD}/{label}/{'-'.join(map(str, tokens.values()))}"
    return Comparison(id=name, workload=WORKLOAD, arms=tuple(arms), estimate_s=7.0 / 4 * len(arms)), skipped


def _why_not(variant: str, regime: str, tokens: int, device: str, machine: MachineView) -> str:
    """Why an arm cannot take a regime here; empty when it can."""
    if variant == "moe-triton" and device != "cuda":
        return "the Triton kernel needs an NVIDIA GPU; its interpreter only checks it"
    if variant == "moe-triton" and not machine.installed("triton"):
        return "triton is not installed; CUDA builds of torch bring it"
    if variant in ("moe-triton", "moe-compiled") and regime == "training":
        return f"{variant} is measured forward only"
    if variant in NATIVE and device != "cpu":
        return "the own kernel runs on the CPU"
    if TRANSFORMERS.get(variant) == "batched_mm" and tokens > _MOST_BATCHED_TOKENS:
        return f"batched_mm copies expert weights for every token; more than {_MOST_BATCHED_TOKENS} tokens are left out"
    return ""


def _with_copies(layer: dict[str, Any], variant: str, stream_bytes: int, threads: int) -> dict[str, Any]:
    copies = math.ceil(stream_bytes / (_BYTES * _parameters(layer, variant)))
    return {**layer, "copies": copies, "threads": threads, "d_ff": dense_width(layer, variant)}


def dense_width(layer: dict[str, Any], variant: str) -> int:
    """Width of the dense twin: all experts side by side, or the active ones, shared ones included; 0 for MoE arms."""
    if variant not in DENSE:
        return 0
    routed = layer["experts"] if "equal-total" in variant else layer["top_k"]
    return int((routed + layer["n_shared"]) * layer["d_expert"])


def _parameters(layer: dict[str, Any], variant: str) -> int:
    if width := dense_width(layer, variant):
        return accounting.swiglu_ffn_parameters(layer["d_model"], width)
    shared = accounting.swiglu_ffn_parameters(layer["d_model"], layer["n_shared"] * layer["d_expert"])
    return accounting.moe_ffn_parameters(layer["d_model"], layer["d_expert"], layer["experts"]) + shared


def _arm(variant: str, label: str, layer: dict[str, Any], cases: tuple[Case, ...]) -> Arm:
    imports = ("torch", _QWEN3) if variant in TRANSFORMERS else ("torch",)
    memory = _BYTES * _parameters(layer, variant) * (layer["copies"] + 1)
    return Arm(id=f"{WORKLOAD}/{label}/{variant}", cases=cases, imports=imports, memory_bytes=memory)


def _case(settings: Settings, variant: str, label: str, regime: str, params: dict[str, Any]) -> Case:
    backend = "native" if variant in NATIVE else "triton" if variant == "moe-triton" else "torch"
    if not params["d_ff"]:
        params = {**params, "experts_hit": experts_hit(settings.seed, params, regime)}
    return Case(
        id=f"{WORKLOAD}/{label}/{variant}/{regime}-{params['tokens']}/{backend}/{settings.device}",
        workload=WORKLOAD,
        variant=variant,
        shape=label,
        regime=regime,
        backend=backend,
        device=settings.device,
        dtype="float32",
        params=params,
        cost=cost(params, variant, regime),
        tolerance=_TOLERANCE,
        peaks=("fp32_flop_per_s", "read_bytes_per_s"),
    )


def cost(params: dict[str, Any], variant: str, regime: str) -> Cost:
    """Cost of one call; a training step is forward and backward, gradients of weights and of inputs.

    The traffic of a mixture is that of the experts which the trace really hits (their mean over the batches).
    """
    tokens, D = params["tokens"], params["d_model"]
    parameters = _parameters(params, variant)
    if width := dense_width(params, variant):
        flop = accounting.swiglu_ffn_flop(tokens, D, width)
        active = parameters
        traffic: float = accounting.linear_traffic_bytes(tokens, D, D, _BYTES * parameters)
    else:
        F, E, K, shared = params["d_expert"], params["experts"], params["top_k"], params["n_shared"]
        one = accounting.swiglu_ffn_parameters(D, F)
        flop = accounting.moe_ffn_flop(tokens, D, F, E, K) + accounting.swiglu_ffn_flop(tokens, D, shared * F)
        active = accounting.moe_ffn_active_parameters(D, F, E, K) + shared * one
        read = (params["experts_hit"] + shared) * one + D * E
        traffic = _BYTES * (read + 2 * tokens * D)
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


def experts_hit(seed: int, params: dict[str, Any], regime: str) -> float:
    """Distinct routed experts that a batch of the trace hits, mean over its batches.

    Of batches too large to draw while planning it is the expectation under uniform routing: all experts, nearly.
    """
    T, D, E = params["tokens"], params["d_model"], params["experts"]
    if max(T * D, T * E, E * D) > _MOST_DRAWN:
        return accounting.expected_distinct_experts(T, E, params["top_k"])
    keys = ("model", "d_model", "experts", "top_k", "routing", "tokens")
    return _experts_hit(seed, json.dumps({key: params[key] for key in keys}), regime)


@lru_cache(maxsize=256)
def _experts_hit(seed: int, params: str, regime: str) -> float:
    wanted = json.loads(params)
    batches = token_batches(seed, wanted, regime)
    router_ED = router_weights(seed, wanted)
    return float(np.mean([len(np.unique(_ranked(x_TD, router_ED, wanted["top_k"]))) for x_TD in batches]))


def _ranked(x_TD: np.ndarray, router_ED: np.ndarray, chosen: int) -> np.ndarray:
    logits_TE = x_TD.astype(np.float64) @ router_ED.astype(np.float64).T
    return np.argpartition(-logits_TE, chosen - 1, axis=1)[:, :chosen]


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
    """``gate_up`` (E x 2F x D) and ``down`` (E x D x F) of the experts, shared ones last and counted in E."""
    D, F, E = params["d_model"], params["d_expert"], params["experts"] + params["n_shared"]
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
    wanted = BATCHES[regime] * T
    source = generator(seed, "tokens", regime)
    if params["routing"] != routing.ROUTER:
        return _steered_batches(seed, params, regime)
    router_ED = router_weights(seed, params).astype(np.float64)
    kept = np.empty((0, D), dtype=np.float32)
    while len(kept) < wanted:
        x_TD = source.standard_normal((wanted, D), dtype=np.float32)
        ranked = np.sort(x_TD.astype(np.float64) @ router_ED.T, axis=1)[:, ::-1]
        clear = np.ones(wanted, bool) if params["experts"] == K else ranked[:, K - 1] - ranked[:, K] > _TIE_MARGIN
        kept = np.concatenate([kept, x_TD[clear]])
    return kept[:wanted].reshape(BATCHES[regime], T, D)


def _steered_batches(seed: int, params: dict[str, Any], regime: str) -> np.ndarray:
    """Tokens that take the routing which ``params`` asks for; every batch but a trace's is drawn anew."""
    router_ED, source = router_weights(seed, params), generator(seed, "tokens", regime)
    T, batches = params["tokens"], []
    for _ in range(BATCHES[regime]):
        chosen_TK = routing.drawn(params["routing"], T, params["experts"], params["top_k"], source)
        plain_TD = source.standard_normal((T, params["d_model"]), dtype=np.float32)
        batches.append(routing.steered(plain_TD, router_ED, chosen_TK))
    return np.stack(batches)


def upstream(seed: int, params: dict[str, Any]) -> np.ndarray:
    """T x D gradient that reaches the layer's output in a training step."""
    return generator(seed, "upstream").standard_normal((params["tokens"], params["d_model"]), dtype=np.float32)


def probe(seed: int, width: int) -> np.ndarray:
    """A fixed random vector; weight gradients are compared through their products with it."""
    return generator(seed, "probe", width).standard_normal(width)


def rotation(params: dict[str, Any], regime: str) -> int:
    """Positions that differ in weights or tokens."""
    return max(int(params["copies"]), BATCHES[regime])
