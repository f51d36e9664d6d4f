"""One kernel written several ways on one processor: by hand, in plain C++, as ONNX operators, for torch, compiled.

The kernel is a dense SwiGLU layer in fp32, ``decode`` with few tokens (weights stream from memory), ``prefill`` with
many (arithmetic decides). All arms hold the same ``copies`` of the weights, cycled through. Mixtures of experts and
layers of 4-bit weights, portable and by hand, are in ``moe_ffn`` and ``quantized_linear``; the claim reads all three.
"""

import math
from typing import Any

from frugalbench import native_build
from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError, Skipped
from frugalbench.specs import accounting
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

DEFAULTS: dict[str, Any] = {
    "d_model": 1024,
    "d_ff": 2816,
    "decode_tokens": 1,
    "prefill_tokens": 256,
    "stream_bytes": 0,
    "variants": list(VARIANTS),
}


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison, an arm per way of writing it, a case per number of tokens.

    Options: ``d_model``, ``d_ff``, ``decode_tokens``, ``prefill_tokens``, ``variants``, and ``stream_bytes`` (distinct
    weight bytes per arm; 0: four times the last-level cache, 64 to 512 MiB).
    """
    options = take(settings, DEFAULTS)
    choose(settings, "device", settings.device, ("cpu",))
    for key in ("d_model", "d_ff", "decode_tokens", "prefill_tokens"):
        if options[key] < 1:
            raise FrugalbenchError(f"{settings.where}: '{key}' must be at least 1, not {options[key]}")
    if options["stream_bytes"] < 0 or not options["variants"]:
        wrong = "'stream_bytes' must not be negative" if options["stream_bytes"] < 0 else "'variants' is empty"
        raise FrugalbenchError(f"{settings.where}: {wrong}; leave it out for the default")
    stream = options["stream_bytes"] or automatic_stream_bytes(machine.last_level_cache_bytes)
    arms, skipped = [], []
    for variant in dict.fromkeys(choose(settings, "variant", name, VARIANTS) for name in options["variants"]):
        arm = _arm(settings, options, variant, stream)
        if reason := _missing(machine, variant):
            skipped += [Skipped(case=case, reason=reason) for case in arm.cases]
        else:
            arms.append(arm)
    name = f"{WORKLOAD}/{_label(options)}"
    comparison = Comparison(id=name, workload=WORKLOAD, arms=tuple(arms), estimate_s=2.0 * len(arms))
    return Expansion(comparisons=(comparison,) if arms else (), skipped=tuple(skipped))


def _label(options: dict[str, Any]) -> str:
    return f"swiglu-{options['d_model']}x{options['d_ff']}"


def _missing(machine: MachineView, variant: str) -> str:
    package = variant if variant in PORTABLE else "torch"
    if machine.installed(package) is None:
        extra = "'frugalbench[openvino]'" if variant == "openvino" else package
        return f"{package} is not installed: pip install {extra}"
    if variant in _COMPILED and not native_build.find_compiler():
        return f"{variant} needs a C++ compiler: apt-get install g++"
    return ""


def _arm(settings: Settings, options: dict[str, Any], variant: str, stream_bytes: int) -> Arm:
    d_model, d_ff = options["d_model"], options["d_ff"]
    each = _BYTES * accounting.swiglu_ffn_parameters(d_model, d_ff)
    copies = max(2, math.ceil(stream_bytes / each))
    cases = tuple(
        _case(settings, variant, regime, _label(options), {
            "d_model": d_model, "d_ff": d_ff, "tokens": options[f"{regime}_tokens"], "copies": copies,
            "threads": settings.threads,
        })
        for regime in ("decode", "prefill")
    )  # fmt: skip
    return Arm(
        id=f"{WORKLOAD}/{_label(options)}/{variant}", cases=cases, imports=IMPORTS[variant],
        memory_bytes=3.0 * copies * each if variant in PORTABLE else 1.2 * copies * each,
    )  # fmt: skip


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
    tokens, d_model, d_ff = params["tokens"], params["d_model"], params["d_ff"]
    weights = accounting.swiglu_ffn_parameters(d_model, d_ff)
    return Cost(
        token=tokens,
        flop=accounting.swiglu_ffn_flop(tokens, d_model, d_ff),
        weight_bytes=_BYTES * weights,
        traffic_bytes=_BYTES * (weights + 2 * tokens * d_model),
        parameters=weights,
        active_parameters=weights,
    )
