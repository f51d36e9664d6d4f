"""One expert feed-forward layer of a real MoE model, beside dense layers of equal total and equal active parameters.

Tensors carry shape suffixes: T tokens, D model width, F expert width, E experts, K experts per token.
All arms see the same token trace; the MoE arms hold the same weights. On a CPU the widths D and F are multiplied
by ``scale``, which keeps the number of experts, the experts per token and the ratio of dense to active work; the
factor is part of the case id and of ``params``.

Shared experts follow the routed ones in the weights: every token takes them with weight 1, and they count as held and
as active. Weights stream from memory: every arm holds ``copies`` distinct layers that together exceed the last-level
cache. ``view = "block"`` puts the model's attention before the layer, the same in all arms (``specs/moe_block.py``);
``capacity_factor`` bounds what an expert takes of a batch (:func:`frugalbench.specs.routing.kept`). Quantised
``weights``: ``specs/moe_packed.py``; those of 16 bits: ``specs/moe_sixteen.py``.
"""

from collections.abc import Iterator
from typing import Any

from frugalbench import native_build
from frugalbench.schema import Arm, Case, Comparison, FrugalbenchError, Skipped
from frugalbench.specs import moe_block as block
from frugalbench.specs import moe_packed as packed
from frugalbench.specs import moe_sixteen as sixteen
from frugalbench.specs import routing
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.specs.moe_cost import DENSE, LLAMA, TWINS, arm_bytes, copies, cost, dense_width
from frugalbench.specs.moe_inputs import (
    BATCHES,
    dense_weights,
    expert_weights,
    experts_hit,
    generator,
    has_capacity,
    probe,
    router_weights,
    token_batches,
    trace,
    uniform,
    upstream,
)
from frugalbench.specs.moe_shape import OWN_KEYS, OWN_SHAPE, label_of, layer_of, layer_params

__all__ = [
    "BATCHES", "DENSE", "LLAMA", "MOE", "NATIVE", "ON_GPU", "REGIMES", "TRANSFORMERS", "USUAL", "VARIANTS", "WORKLOAD",
    "cost", "dense_weights", "dense_width", "expand", "expert_weights", "experts_hit", "generator", "layer_params",
    "probe", "rotation", "router_weights", "token_batches", "uniform", "upstream",
]  # fmt: skip

WORKLOAD = "moe_ffn"
NATIVE = (*(name for name in (*DENSE, *TWINS) if "-native" in name), "moe-native")
TRANSFORMERS = {
    "moe-transformers": None,
    "moe-transformers-eager": "eager",
    "moe-transformers-batched": "batched_mm",
    "moe-transformers-grouped": "grouped_mm",
}
"""Variant to the experts implementation that it asks of transformers; ``None`` leaves the choice to transformers."""
ON_GPU = ("moe-triton", "moe-vllm")
"""Mixtures whose kernels run on an NVIDIA GPU alone."""
MOE = (*TRANSFORMERS, "moe-loop", "moe-grouped", "moe-sorted", "moe-compiled", "moe-native", *ON_GPU)
VARIANTS = (*DENSE, *MOE, *LLAMA)
USUAL = (*DENSE, "moe-transformers", "moe-sorted", "moe-native")
GRAPH = "graph"
LAUNCHES = (GRAPH, "eager")
REGIMES = ("decode", "batch", "prefill", "training")

_MIB = 2**20
_QWEN3 = "transformers.models.qwen3_moe.modeling_qwen3_moe"
_VLLM = ("torch", "vllm.model_executor.layers.fused_moe")
_COMPILE = ("frugalbench.backends.torch_compile", "torch", "torch._dynamo", "torch._inductor.compile_fx")
_TOLERANCE = 1e-4
"""Float32 sums of a few hundred to some ten thousand terms stay below this; a wrong weight or expert does not."""
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
    "heads": 16,
    "kv_heads": 4,
    "head_dim": 64,
    "view": "layer",
    "context": block.DEFAULT_CONTEXT,
    "weights": sixteen.FLOAT32,
    "capacity_factor": 0.0,
    "routing": routing.ROUTER,
    "variants": list(USUAL),
    "regimes": list(REGIMES),
    "decode_tokens": [4],
    "batch_tokens": [16],
    "prefill_tokens": [256],
    "training_tokens": [64],
    "stream_bytes": 0,
    "launch": GRAPH,
}
"""``d_model`` to ``n_shared`` describe the layer of ``shape = "own"``, ``heads`` to ``head_dim`` its block. ``context``
tokens lie in each sequence's cache before the one that a block decodes. ``launch`` counts on a GPU, forward: calls are
recorded once and replayed as a ``graph``, or ``eager``. A ``capacity_factor`` of 0 drops nothing.
Several numbers of tokens in a regime make as many comparisons: the first of each regime, then the second of each."""


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """A comparison of the arms named in ``variants``, with a case per regime, for each number of tokens."""
    options = take(settings, DEFAULTS)
    _check(settings, options)
    layer = layer_of(settings, options)
    stream = options["stream_bytes"] or _stream_bytes(settings.device, machine)
    label = label_of(layer, options)
    made = [
        _comparison(settings, machine, options, layer, label, stream, tokens, number)
        for number, tokens in enumerate(_grids(options))
    ]
    return Expansion(
        comparisons=tuple(comparison for comparison, _ in made),
        skipped=tuple(skip for _, skips in made for skip in skips),
    )


def _stream_bytes(device: str, machine: MachineView) -> int:
    """Four times the last-level cache, between 64 and 512 MiB; the latter where a GPU's cache is not known."""
    cache_bytes = machine.last_level_cache_bytes if device == "cpu" else machine.gpu_l2_bytes or 512 * _MIB
    return min(max(4 * cache_bytes, 64 * _MIB), 512 * _MIB)


def _check(settings: Settings, options: dict[str, Any]) -> None:
    """Raise :class:`FrugalbenchError` for values that no layer can have."""
    for key in ("variants", "regimes"):
        if not options[key]:
            raise FrugalbenchError(f"{settings.where}: '{key}' is empty; leave it out for the default")
    for variant in options["variants"]:
        choose(settings, "variant", variant, VARIANTS)
    if options["shape"] != OWN_SHAPE and (given := [key for key in OWN_KEYS if options[key] != DEFAULTS[key]]):
        raise FrugalbenchError(
            f"{settings.where}: '{given[0]}' belongs to shape = \"own\"; a layer of {options['shape']} has its own"
        )
    for regime in options["regimes"]:
        choose(settings, "regime", regime, REGIMES)
        if not (tokens := options[f"{regime}_tokens"]) or min(tokens) < 1:
            raise FrugalbenchError(f"{settings.where}: '{regime}_tokens' must hold numbers of at least 1, not {tokens}")
    if options["stream_bytes"] < 0:
        raise FrugalbenchError(f"{settings.where}: 'stream_bytes' must not be negative (0 is automatic)")
    choose(settings, "view", options["view"], block.VIEWS)
    choose(settings, "launch", options["launch"], LAUNCHES)
    if options["capacity_factor"] < 0:
        raise FrugalbenchError(f"{settings.where}: 'capacity_factor' must not be negative (0 drops nothing)")
    if not 0 < options["scale"] <= 1:
        raise FrugalbenchError(f"{settings.where}: 'scale' must lie between 0 and 1, not {options['scale']}")
    try:
        routing.check(options["routing"])
    except ValueError as problem:
        raise FrugalbenchError(f"{settings.where}: 'routing' {problem}") from None


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
    variants = options["variants"]
    for variant in sixteen.with_twins(variants) if sixteen.is_sixteen(layer) else variants:
        held = _held(layer, variant, stream, settings.threads, tokens)
        cases = []
        for regime, count in tokens.items():
            case = _case(
                settings, variant, label, regime, {**held, "tokens": count, **_launch(settings, options, regime)}
            )
            if reason := _why_not(case, settings.device, machine):
                skipped.append(Skipped(case=case, reason=reason))
            else:
                cases.append(case)
        if cases:
            arms.append(_arm(variant, label, held, tuple(cases), settings.device))
    name = f"{WORKLOAD}/{label}" if number == 0 else f"{WORKLOAD}/{label}/{'-'.join(map(str, tokens.values()))}"
    return Comparison(id=name, workload=WORKLOAD, arms=tuple(arms), estimate_s=7.0 / 4 * len(arms)), skipped


def _launch(settings: Settings, options: dict[str, Any], regime: str) -> dict[str, str]:
    """How a case's calls are launched; on the processor there is nothing to say."""
    if settings.device == "cpu":
        return {}
    return {"launch": "eager" if regime == "training" else options["launch"]}


def _held(
    layer: dict[str, Any], variant: str, stream_bytes: int, threads: int, tokens: dict[str, int]
) -> dict[str, Any]:
    """The layer with what an arm holds of it: copies, the dense twin's width, cached sequences."""
    layer = {**layer, "held": sixteen.FLOAT32} if variant.endswith(sixteen.FP32_TWIN) else layer
    layer = {**layer, "layout": packed.GGML} if variant in LLAMA else layer
    held = {**layer, "copies": copies(layer, variant, stream_bytes), "threads": threads}
    if block.is_block(layer):
        most = max((count for regime, count in tokens.items() if regime in block.CACHED), default=0)
        held["sequences"] = block.cached_sequences(layer, stream_bytes, most)
    return {**held, "d_ff": dense_width(layer, variant)}


def _why_not(case: Case, device: str, machine: MachineView) -> str:
    """Why an arm cannot take a regime here; empty when it can."""
    variant, training = case.variant, case.regime == "training"
    if variant == "moe-triton" and device != "cuda":
        return "the Triton kernel needs an NVIDIA GPU; its interpreter only checks it"
    if variant == "moe-triton" and not machine.installed("triton"):
        return "triton is not installed; CUDA builds of torch bring it"
    if variant in (*ON_GPU, "moe-compiled") and training:
        return f"{variant} is measured forward only"
    if variant == "moe-compiled" and (reason := native_build.why_no_torch_compile()):
        return reason
    if variant == "moe-vllm" and (reason := _why_no_vllm(case, device, machine)):
        return reason
    if variant in NATIVE and device != "cpu":
        return "the own kernel runs on the CPU"
    if variant in NATIVE and native_build.find_compiler() is None:
        return "the own kernel needs a C++ compiler: apt-get install g++"
    if variant in LLAMA and (reason := _why_no_llama(case, device, machine)):
        return reason
    if packed.is_packed(case.params) and (reason := packed.why_not(variant in (*NATIVE, *LLAMA), case.regime)):
        return reason
    if sixteen.is_sixteen(case.params) and (reason := sixteen.why_not(variant, case.regime, device)):
        return reason
    if TRANSFORMERS.get(variant) == "batched_mm" and case.params["tokens"] > _MOST_BATCHED_TOKENS:
        return f"batched_mm copies expert weights for every token; more than {_MOST_BATCHED_TOKENS} tokens are left out"
    return _why_no_capacity(variant) if has_capacity(case.params) else ""


def _why_no_vllm(case: Case, device: str, machine: MachineView) -> str:
    if device != "cuda":
        return "vLLM's fused experts need an NVIDIA GPU"
    if not machine.installed("vllm"):
        return "vllm is not installed: pip install vllm, in an environment of its own, for it brings its own torch"
    return "" if sixteen.is_sixteen(case.params) else "vLLM's fused experts are measured in 16 bits"


def _why_no_llama(case: Case, device: str, machine: MachineView) -> str:
    if not machine.installed("llama-cpp-python"):
        return "llama-cpp-python is not installed: pip install 'frugalbench[llama]'"
    if device != "cpu" or block.is_block(case.params) or case.regime == "training":
        return "llama.cpp's experts are measured on the CPU, as a layer, forward only"
    if has_capacity(case.params) and case.variant == "moe-llama":
        return "the experts of llama.cpp know no capacity: they drop nothing"
    return packed.why_not_ggml(case.params)


def _why_no_capacity(variant: str) -> str:
    if variant in TRANSFORMERS:
        return "the experts of transformers know no capacity: they drop nothing"
    if variant == "moe-vllm":
        return "the experts of vLLM know no capacity: they drop nothing"
    if variant == "moe-compiled":
        return "a capacity keeps another number of choices in each batch; torch.compile would build for each of them"
    return ""


def _arm(variant: str, label: str, layer: dict[str, Any], cases: tuple[Case, ...], device: str) -> Arm:
    libraries = dict.fromkeys(TRANSFORMERS, ("torch", _QWEN3)) | {"moe-compiled": _COMPILE, "moe-vllm": _VLLM}
    imports = libraries.get(variant, ("torch",))
    memory = arm_bytes(layer, variant, {case.regime: case.params["tokens"] for case in cases}, device)
    return Arm(id=f"{WORKLOAD}/{label}/{variant}", cases=cases, imports=imports, memory_bytes=memory)


def _case(settings: Settings, variant: str, label: str, regime: str, params: dict[str, Any]) -> Case:
    backend = "native" if variant in NATIVE else "llama.cpp" if variant in LLAMA else "torch"
    backend = variant.removeprefix("moe-") if variant in ON_GPU else backend
    if not params["d_ff"]:
        params = {**params, **_trace(settings, params, regime)}
    tolerance, arithmetic = _TOLERANCE, "fp32_flop_per_s"
    if packed.is_packed(params):
        tolerance, allowed = packed.tolerances(params)
        params, arithmetic = {**params, "format_tolerance": allowed}, "int8_op_per_s"
    elif sixteen.held(params) != sixteen.FLOAT32:
        tolerance, arithmetic = sixteen.tolerance(params), sixteen.peak(params, variant in NATIVE)
    return Case(
        id=f"{WORKLOAD}/{label}/{variant}/{regime}-{params['tokens']}/{backend}/{settings.device}",
        workload=WORKLOAD,
        variant=variant,
        shape=label,
        regime=regime,
        backend=backend,
        device=settings.device,
        dtype=params["weights"] if packed.is_packed(params) else sixteen.held(params),
        params=params,
        cost=cost(params, variant, regime),
        tolerance=tolerance,
        peaks=(arithmetic, "read_bytes_per_s"),
    )


def _trace(settings: Settings, params: dict[str, Any], regime: str) -> dict[str, float]:
    try:
        return trace(settings.seed, params, regime)
    except FrugalbenchError as problem:
        raise FrugalbenchError(f"{settings.where}: {problem}") from None


def rotation(params: dict[str, Any], regime: str) -> int:
    """Positions that differ in weights, tokens or cached sequences."""
    return max(int(params["copies"]), BATCHES[regime], block.groups(params, regime))
