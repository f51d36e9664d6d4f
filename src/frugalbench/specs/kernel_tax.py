"""One kernel written several ways on one processor: by hand, in plain C++, as ONNX operators, for torch, compiled.

``swiglu`` is a dense SwiGLU layer in fp32, ``decode`` with few tokens (weights stream from memory), ``prefill`` with
many (arithmetic decides). ``rms_norm`` is what stands before it, ``batch`` with few tokens (what a call costs decides),
``prefill`` with many; its tokens come from the layer before and lie in a cache. ``moe`` is a mixture of experts, each
of which runs on the tokens that chose it, also as plain ONNX operators. All arms hold the same ``copies`` of the
weights, cycled through. Mixtures at the shapes of real models and layers of 4-bit weights are in ``moe_ffn`` and
``quantized_linear``; the claim reads all three.
"""

import math
from typing import Any

from frugalbench import native_build
from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError, Skipped
from frugalbench.specs import accounting, routing
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.specs.quantized_linear import automatic_stream_bytes

WORKLOAD = "kernel_tax"
_COMPILE = ("frugalbench.backends.torch_compile", "torch", "torch._dynamo", "torch._inductor.compile_fx")
IMPORTS: dict[str, tuple[str, ...]] = {
    "hand-tuned": ("torch",),
    "plain-cpp": ("torch",),
    "torch-eager": ("torch",),
    "torch-compile": _COMPILE,
    "onnxruntime": ("frugalbench.backends.onnxruntime", "onnxruntime"),
    "openvino": ("frugalbench.backends.openvino", "openvino"),
}
VARIANTS = tuple(IMPORTS)
PORTABLE = ("onnxruntime", "openvino")
"""One file of ONNX operators serves them."""
_COMPILED = ("hand-tuned", "plain-cpp", "torch-compile")
_BYTES = 4
_TOLERANCE = 1e-4
"""Float32 sums of a few thousand terms stay below this; a wrong weight does not."""

SWIGLU, RMS_NORM, MOE = KERNELS = ("swiglu", "rms_norm", "moe")
REGIMES = {SWIGLU: ("decode", "prefill"), RMS_NORM: ("batch", "prefill"), MOE: ("decode", "prefill")}
EXPERTS, TOP_K = 8, 2
"""Of the mixture; an expert has a quarter of the width of the dense layer, so that all hold twice its weights."""
EPSILON = 1e-6
"""Added to the mean square."""
_NORM_COPIES = 4

DEFAULTS: dict[str, Any] = {
    "kernels": list(KERNELS),
    "d_model": 1024,
    "d_ff": 2816,
    "decode_tokens": 1,
    "batch_tokens": 16,
    "prefill_tokens": 256,
    "stream_bytes": 0,
    "variants": list(VARIANTS),
}


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison for each kernel, an arm per way of writing it, a case per number of tokens.

    Options: ``kernels``, ``d_model``, ``d_ff``, ``decode_tokens``, ``batch_tokens``, ``prefill_tokens``, ``variants``,
    and ``stream_bytes`` (distinct weight bytes per arm; 0: four times the last-level cache, 64 to 512 MiB).
    """
    options = take(settings, DEFAULTS)
    choose(settings, "device", settings.device, ("cpu",))
    for key in ("d_model", "d_ff", "decode_tokens", "batch_tokens", "prefill_tokens"):
        if options[key] < 1:
            raise FrugalbenchError(f"{settings.where}: '{key}' must be at least 1, not {options[key]}")
    empty = [f"'{key}' is empty" for key in ("variants", "kernels") if not options[key]]
    if options["stream_bytes"] < 0 or empty:
        wrong = "'stream_bytes' must not be negative" if options["stream_bytes"] < 0 else empty[0]
        raise FrugalbenchError(f"{settings.where}: {wrong}; leave it out for the default")
    stream = options["stream_bytes"] or automatic_stream_bytes(machine.last_level_cache_bytes)
    comparisons: list[Comparison] = []
    skipped: list[Skipped] = []
    for kernel in dict.fromkeys(choose(settings, "kernel", name, KERNELS) for name in options["kernels"]):
        made, left_out = _compare(settings, machine, options, kernel, stream)
        comparisons += made
        skipped += left_out
    return Expansion(comparisons=tuple(comparisons), skipped=tuple(skipped))


def _compare(
    settings: Settings, machine: MachineView, options: dict[str, Any], kernel: str, stream_bytes: int
) -> tuple[list[Comparison], list[Skipped]]:
    """One kernel's comparison, unless nothing of it runs here, and what is left out."""
    arms, skipped = [], []
    for variant in dict.fromkeys(choose(settings, "variant", name, VARIANTS) for name in options["variants"]):
        arm = _arm(settings, options, variant, kernel, stream_bytes)
        if reason := _missing(machine, variant, kernel):
            skipped += [Skipped(case=case, reason=reason) for case in arm.cases]
        else:
            arms.append(arm)
    name = f"{WORKLOAD}/{_label(options, kernel)}"
    comparison = Comparison(id=name, workload=WORKLOAD, arms=tuple(arms), estimate_s=2.0 * len(arms))
    return ([comparison] if arms else []), skipped


def _label(options: dict[str, Any], kernel: str) -> str:
    if kernel == RMS_NORM:
        return f"rms-norm-{options['d_model']}"
    if kernel == MOE:
        return f"moe-{options['d_model']}x{_expert_width(options)}-e{EXPERTS}-k{TOP_K}"
    return f"swiglu-{options['d_model']}x{options['d_ff']}"


def _missing(machine: MachineView, variant: str, kernel: str) -> str:
    if kernel == MOE and variant == "plain-cpp":
        return "there is no plain C++ of a mixture of experts: its routing and sorting would be another kernel's text"
    package = variant if variant in PORTABLE else "torch"
    if machine.installed(package) is None:
        extra = "'frugalbench[openvino]'" if variant == "openvino" else package
        return f"{package} is not installed: pip install {extra}"
    if variant in _COMPILED and not native_build.find_compiler():
        return f"{variant} needs a C++ compiler: apt-get install g++"
    return native_build.why_no_torch_compile() if variant == "torch-compile" else ""


def _arm(settings: Settings, options: dict[str, Any], variant: str, kernel: str, stream_bytes: int) -> Arm:
    label, each = _label(options, kernel), _BYTES * _parameters(options, kernel)
    copies = _NORM_COPIES if kernel == RMS_NORM else max(2, math.ceil(stream_bytes / each))
    sizes = {"d_model": options["d_model"], **_sizes(options, kernel)}
    cases = tuple(
        _case(settings, variant, regime, label, {
            "kernel": kernel, **sizes, "tokens": options[f"{regime}_tokens"], "copies": copies,
            "threads": settings.threads,
        })
        for regime in REGIMES[kernel]
    )  # fmt: skip
    return Arm(
        id=f"{WORKLOAD}/{label}/{variant}", cases=cases, imports=IMPORTS[variant],
        memory_bytes=3.0 * copies * each if variant in PORTABLE else 1.2 * copies * each,
    )  # fmt: skip


def _expert_width(options: dict[str, Any]) -> int:
    return max(1, int(options["d_ff"]) // 4)


def _sizes(options: dict[str, Any], kernel: str) -> dict[str, Any]:
    """What a kernel has beside the width of the model; of a mixture all that its layers and inputs ask for."""
    if kernel == RMS_NORM:
        return {}
    if kernel == SWIGLU:
        return {"d_ff": options["d_ff"]}
    return {
        "d_expert": _expert_width(options), "experts": EXPERTS, "top_k": TOP_K, "n_shared": 0, "gate": "softmax",
        "normalise": True, "routed_scale": 1.0, "routing": routing.ROUTER,
    }  # fmt: skip


def _parameters(options: dict[str, Any], kernel: str) -> int:
    d_model = int(options["d_model"])
    if kernel == RMS_NORM:
        return d_model
    if kernel == MOE:
        return accounting.moe_ffn_parameters(d_model, _expert_width(options), EXPERTS)
    return accounting.swiglu_ffn_parameters(d_model, options["d_ff"])


def _case(settings: Settings, variant: str, regime: str, label: str, params: dict[str, Any]) -> Case:
    return Case(
        id=f"{WORKLOAD}/{label}/{variant}/{regime}-{params['tokens']}/{settings.device}",
        workload=WORKLOAD,
        variant=variant,
        shape=label,
        regime=regime,
        backend="native" if variant in ("hand-tuned", "plain-cpp") else variant,
        device=settings.device,
        dtype="float32",
        params=params,
        cost=_cost(params),
        tolerance=_TOLERANCE,
        peaks=("fp32_flop_per_s", "read_bytes_per_s"),
    )


def _cost(params: dict[str, Any]) -> Cost:
    tokens, d_model, kernel = params["tokens"], params["d_model"], params["kernel"]
    if kernel == MOE:
        return _moe_cost(tokens, d_model, params["d_expert"])
    weights = d_model if kernel == RMS_NORM else accounting.swiglu_ffn_parameters(d_model, params["d_ff"])
    norm_flop = 4 * tokens * d_model
    return Cost(
        token=tokens,
        flop=norm_flop if kernel == RMS_NORM else accounting.swiglu_ffn_flop(tokens, d_model, params["d_ff"]),
        weight_bytes=_BYTES * weights,
        traffic_bytes=_BYTES * (weights + 2 * tokens * d_model),
        parameters=weights,
        active_parameters=weights,
    )


def _moe_cost(tokens: int, d_model: int, width: int) -> Cost:
    weights = accounting.moe_ffn_parameters(d_model, width, EXPERTS)
    return Cost(
        token=tokens,
        flop=accounting.moe_ffn_flop(tokens, d_model, width, EXPERTS, TOP_K),
        weight_bytes=_BYTES * weights,
        traffic_bytes=accounting.moe_ffn_traffic_bytes(tokens, d_model, width, EXPERTS, TOP_K),
        parameters=weights,
        active_parameters=accounting.moe_ffn_active_parameters(d_model, width, EXPERTS, TOP_K),
    )
