"""A whole language model with its cache, in full precision and in the low-precision formats that run on a device.

Regime ``decode`` computes one token behind ``context`` cached ones, again and again at the same place, each call with
another token; ``prefill`` reads a prompt of ``prompt_tokens`` into an empty cache. Both give the logits of the last
token, as a step of generating text needs them. They are told apart as llama-bench does, and never averaged.

A model is the shape of a published one (``data/model_shapes.csv``) with random weights, the same in every arm; its
output head is its input embedding (:mod:`frugalbench.specs.decoder_shape`). What the arms are and how far their answers
may lie off: :mod:`frugalbench.specs.decode_formats`, and on CUDA :mod:`frugalbench.specs.decode_on_device`.
"""

from dataclasses import replace
from typing import Any

from frugalbench import native_build
from frugalbench.schema import (
    SCHEMA_VERSION,
    Arm,
    Case,
    Comparison,
    Cost,
    FrugalbenchError,
    Record,
    Skipped,
    Status,
    Tier,
)
from frugalbench.specs import decode_formats as formats
from frugalbench.specs import quant_formats
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.specs.decode_formats import FORMATS, LLAMA, NATIVE, DecodeFormat
from frugalbench.specs.decode_on_device import ON_DEVICE
from frugalbench.specs.decoder_shape import EPSILON, ROTARY_BASE, DecoderShape
from frugalbench.specs.shapes import ModelShape, load_shapes

WORKLOAD = "model_decode"
SHAPES = "published-shapes"
DENSE = ("mha", "gqa")
MOST_TOKENS = 2**20
LEAST_VOCABULARY = 64

DEFAULTS: dict[str, Any] = {
    "shape": "qwen3-0.6b",
    "layers": 0,
    "vocabulary": 0,
    "prompt_tokens": 128,
    "context": 256,
    "variants": list(FORMATS),
    "launch": "graph",
}
LAUNCHES = ("graph", "eager")
KNOWN = {**ON_DEVICE, **FORMATS}


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison of every arm that can run here; the others are skipped, with reasons.

    Options: ``shape`` (a dense model of ``model_shapes.csv``), ``layers`` and ``vocabulary`` (0: the model's own),
    ``prompt_tokens``, ``context`` (tokens in the cache when decoding), ``variants`` (by default those of the device),
    ``launch`` (on CUDA: ``graph`` or ``eager``). Raises :class:`FrugalbenchError` for a model with experts or latent
    attention, and for a value that makes no sense.
    """
    options = take(settings, DEFAULTS)
    if "variants" not in settings.options:
        options["variants"] = list(_formats(settings))
    model = _model(settings, options["shape"])
    _check(settings, options, model)
    shape = DecoderShape.of_model(model, options["layers"], options["vocabulary"])
    name = _label(model, shape)
    arms: list[Arm] = []
    skipped: list[Skipped] = []
    for variant in dict.fromkeys(options["variants"]):
        arm = _arm(settings, options, variant, shape, name)
        if reason := _why_not(settings, variant, shape, machine):
            skipped += [Skipped(case=case, reason=reason) for case in arm.cases]
        else:
            arms.append(arm)
    shapes = (_shapes_case(name, options["context"]),) if arms else ()
    return Expansion(comparisons=_comparison(f"{WORKLOAD}/{name}", arms), skipped=tuple(skipped), modelled=shapes)


def _formats(settings: Settings) -> dict[str, DecodeFormat]:
    """The arms of the device."""
    return FORMATS if settings.device == "cpu" else ON_DEVICE


def _format(settings: Settings, variant: str) -> DecodeFormat:
    """Of an arm that the device has not, what it is elsewhere: its case is skipped."""
    return _formats(settings).get(variant, KNOWN[variant])


def _model(settings: Settings, name: str) -> ModelShape:
    """The published shape, if this workload can compute it."""
    shapes = load_shapes()
    dense = {key: found for key, found in shapes.items() if not found.n_experts and found.attn in DENSE}
    if name in shapes and name not in dense:
        kind = "experts" if shapes[name].n_experts else f"{shapes[name].attn} attention"
        raise FrugalbenchError(
            f"{settings.where}: 'shape' {name} has {kind}; {WORKLOAD} computes dense models: {', '.join(dense)}"
        )
    choose(settings, "shape", name, dense)
    return dense[name]


def _check(settings: Settings, options: dict[str, Any], model: ModelShape) -> None:
    bounds = {
        "layers": (0, model.n_layers),
        "vocabulary": (0, model.vocab_size),
        "prompt_tokens": (1, MOST_TOKENS),
        "context": (1, MOST_TOKENS),
    }
    for key, (least, most) in bounds.items():
        if not least <= options[key] <= most:
            raise FrugalbenchError(f"{settings.where}: '{key}' must be {least} to {most}, not {options[key]}")
    if 0 < options["vocabulary"] < LEAST_VOCABULARY:
        raise FrugalbenchError(f"{settings.where}: 'vocabulary' must be 0 or at least {LEAST_VOCABULARY}")
    if not options["variants"]:
        raise FrugalbenchError(f"{settings.where}: 'variants' is empty; leave it out for the default")
    for variant in options["variants"]:
        choose(settings, "variant", variant, KNOWN)
    choose(settings, "launch", options["launch"], LAUNCHES)


def _shapes_case(name: str, context: int) -> Case:
    """Not measured: the published models, for what is modelled from the arms' speed."""
    return Case(
        id="/".join((WORKLOAD, SHAPES, name, f"decode-{context}")), workload=WORKLOAD, variant=SHAPES, shape=name,
        regime="shapes", backend="model", device="published", dtype="bf16",
    )  # fmt: skip


def model(case: Case) -> Record:
    """What is known of the published models: all and active parameters, bytes of the cache per token in bf16."""
    facts = {
        name: {
            "parameters": shape.parameters, "active_parameters": shape.active_parameters,
            "kv_bytes_per_token": shape.kv_bytes_per_token(), "recalled": shape.read_or_recalled != "read",
        }
        for name, shape in load_shapes().items()
    }  # fmt: skip
    return Record(
        schema_version=SCHEMA_VERSION, comparison="plan", arm=SHAPES, case=case, replicate=1, status=Status.OK,
        tier=Tier.PUBLISHED, details={"shapes": facts},
    )  # fmt: skip


def _label(model: ModelShape, shape: DecoderShape) -> str:
    """The model's name; with what was taken away from it."""
    layers = f"-{shape.layers}of{model.n_layers}layers" if shape.layers != model.n_layers else ""
    vocabulary = f"-v{shape.vocabulary}" if shape.vocabulary != model.vocab_size else ""
    return f"{model.model}{layers}{vocabulary}"


def _arm(settings: Settings, options: dict[str, Any], variant: str, shape: DecoderShape, name: str) -> Arm:
    fmt = _resolved(_format(settings, variant))
    points = (("decode", 1, options["context"]), ("prefill", options["prompt_tokens"], 0))
    cases = tuple(_case(settings, options, variant, fmt, shape, name, *point) for point in points)
    return Arm(
        id="/".join((WORKLOAD, variant, name, settings.device)),
        cases=cases,
        imports=fmt.library.imports,
        memory_bytes=_memory_bytes(fmt, shape, options),
    )


def _resolved(fmt: DecodeFormat) -> DecodeFormat:
    """As this processor executes it: where it does not multiply float16, that is widened first."""
    if fmt.scheme != "f16":
        return fmt
    return replace(fmt, peaks=(quant_formats.resolve("llama-f16", "cpu", quant_formats.cpu_flags()).peak,))


def _case(
    settings: Settings, options: dict[str, Any], variant: str, fmt: DecodeFormat, shape: DecoderShape, name: str,
    regime: str, tokens: int, position: int,
) -> Case:  # fmt: skip
    place = f"{regime}-{position or tokens}"
    return Case(
        id="/".join((WORKLOAD, variant, name, place, fmt.library.backend, settings.device)),
        workload=WORKLOAD,
        variant=variant,
        shape=name,
        regime=regime,
        backend=fmt.library.backend,
        device=settings.device,
        dtype=fmt.dtype,
        params={
            **shape.params(), "model": options["shape"], "tokens": tokens, "position": position,
            "context": options["context"], "prompt_tokens": options["prompt_tokens"], "epsilon": EPSILON,
            "rotary_base": ROTARY_BASE, "scheme": fmt.scheme, "bits": fmt.bits, "seed": settings.seed,
            "format_tolerance": fmt.format_tolerance(shape.layers),
            **({"launch": options["launch"]} if settings.device == "cuda" else {}),
        },
        cost=_cost(fmt, shape, tokens, position),
        tolerance=fmt.tolerance(shape.layers),
        peaks=(*fmt.peaks, "read_bytes_per_s"),
    )  # fmt: skip


def _cost(fmt: DecodeFormat, shape: DecoderShape, tokens: int, position: int) -> Cost:
    """Of one call. Traffic: weights and cached keys and values read once, new ones and logits written once."""
    products, attention = float(shape.matrix_flop(tokens)), float(shape.attention_flop(tokens, position))
    cache_bytes = shape.cache_bytes(position + tokens, fmt.cache_value_bytes)
    return Cost(
        token=tokens,
        flop=attention if fmt.integer else products + attention,
        op=products if fmt.integer else 0.0,
        weight_bytes=formats.stored_bytes(fmt, shape),
        traffic_bytes=formats.read_bytes(fmt, shape) + cache_bytes + 4 * shape.vocabulary,
        parameters=shape.parameters,
        active_parameters=shape.parameters,
    )


def _memory_bytes(fmt: DecodeFormat, shape: DecoderShape, options: dict[str, Any]) -> float:
    """Weights, the caches of both regimes, a layer on its way in, and a look-up table beside a head laid out anew."""
    held = formats.stored_bytes(fmt, shape) + 4 * max(shape.layer_weights, shape.table_weights // 4)
    caches = shape.cache_bytes(options["context"] + options["prompt_tokens"] + 512, fmt.cache_value_bytes)
    table = shape.table_weights * fmt.bits // 8 if fmt.library is LLAMA and fmt.lossy else 0
    return float(held + caches + table + 16 * options["prompt_tokens"] * (shape.d_ff + shape.queries))


def _why_not(settings: Settings, variant: str, shape: DecoderShape, machine: MachineView) -> str:
    """Why an arm cannot run here as far as that is known without its library; empty when it can."""
    fmt = _format(settings, variant)
    if variant not in _formats(settings):
        return (
            f"{variant} has no arm for {settings.device}; use --device {'cuda' if settings.device == 'cpu' else 'cpu'}"
        )
    if settings.device == "cuda" and not machine.has_cuda():
        return "this machine has no CUDA device; use device = 'cpu'"
    for package in fmt.library.packages:
        if machine.installed(package) is None:
            wanted = f"'frugalbench[{fmt.library.extra}]'" if fmt.library.extra else package
            return f"{package} is not installed: pip install {wanted}"
    if fmt.library is NATIVE and native_build.find_compiler() is None:
        return "the own kernel needs a C++ compiler: apt-get install g++"
    return formats.misfit(fmt, shape)


def _comparison(name: str, arms: list[Arm]) -> tuple[Comparison, ...]:
    estimate_s = sum(_estimate_s(arm) for arm in arms)
    return (Comparison(id=name, workload=WORKLOAD, arms=tuple(arms), estimate_s=estimate_s),) if arms else ()


def _estimate_s(arm: Arm) -> float:
    """Rough: a start, weights read and laid out at 0.5 GB/s, arithmetic at 100 GFLOP/s; a GPU does both in a second or
    two, and its start takes longer."""
    if arm.cases[0].device != "cpu":
        return 4.0 + arm.memory_bytes / 1e10
    return 1.0 + arm.memory_bytes / 5e8 + 3 * _work(arm) / 1e11


def _work(arm: Arm) -> float:
    return sum(case.cost.flop + case.cost.op for case in arm.cases if case.cost)
