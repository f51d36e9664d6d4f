"""The ONNX project's own backend test cases, every one of them on every runtime: what passes, and how the rest ends.

The suite is what the installed ``onnx`` carries (``onnx.backend.test``: node cases, small exported models, and light
image classifiers whose weights are constants); nothing is downloaded. Each case ends in exactly one
:class:`frugalbench.schema.CaseOutcome`, with the tolerances that the suite itself gives. There is nothing to time: the
record of a runtime holds counts. ``sample`` draws so many cases by the config's seed; ``folder`` takes cases of one's
own in the layout of ONNX's (``NAME/model.onnx``, ``NAME/test_data_set_0/input_0.pb``, ``output_0.pb`` ...).

Core cases use ``ai.onnx`` alone, with the element types of :data:`CORE_TYPES`, in an operator set that the runtime
declares. A case that a runtime declares as unsupported stays in every denominator.
"""

import re
from pathlib import Path
from typing import Any

from frugalbench.providers import BUILDS
from frugalbench.schema import Arm, Case, Comparison, FrugalbenchError, Skipped
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.untrusted import shown

WORKLOAD = "onnx_conformance"
SUITE = "onnx"
RUNTIMES: dict[str, tuple[str, ...]] = {
    "onnxruntime": BUILDS,
    "onnx-reference": ("onnx",),
    "openvino": ("openvino",),
    "tract": ("tract",),
}
"""Runtime to the distributions that bring it; any one of them will do."""
ON_CUDA = ("onnxruntime",)
CORE_TYPES = frozenset(("FLOAT", "INT64", "INT32", "BOOL", "UINT8", "INT8"))
"""Names of ``onnx.TensorProto.DataType``."""
COMMON_OPSETS = (7, 22)
"""Window of operator sets over which runtimes are compared whatever they declare; taken for those that declare none."""
LONGEST_CASE_S = 3600.0
_CASE_S = 0.02
_START_S = 10.0

DEFAULTS = {"backends": list(RUNTIMES), "sample": 0, "folder": "", "case_limit_s": 20.0, "batch": 200}
"""``sample``: 0 takes every case. ``batch``: cases per process; one that dies takes only its current case with it."""


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison of one arm and case per runtime; skipped with the reason where it is not installed.

    Raises :class:`FrugalbenchError` for an unknown runtime, a size that makes no sense, and a folder without cases.
    """
    options = take(settings, DEFAULTS)
    _check(settings, options)
    comparisons, skipped = [], []
    for backend in dict.fromkeys(options["backends"]):
        case = _case(settings, options, backend, machine.installed(SUITE))
        if reason := _missing(settings, machine, backend):
            skipped.append(Skipped(case=case, reason=reason))
        else:
            comparisons.append(_comparison(case, options))
    return Expansion(comparisons=tuple(comparisons), skipped=tuple(skipped))


def _check(settings: Settings, options: dict[str, Any]) -> None:
    for name in options["backends"]:
        choose(settings, "backend", name, RUNTIMES)
    if not options["backends"]:
        raise FrugalbenchError(f"{settings.where}: 'backends' is empty; leave it out for the default")
    for key, least in (("sample", 0), ("batch", 1)):
        if options[key] < least:
            raise FrugalbenchError(f"{settings.where}: '{key}' must be at least {least}, not {options[key]}")
    if not 0 < options["case_limit_s"] <= LONGEST_CASE_S:
        raise FrugalbenchError(
            f"{settings.where}: 'case_limit_s' lies above 0 and up to {LONGEST_CASE_S:g}, not {options['case_limit_s']}"
        )
    if options["folder"] and not own_cases(Path(options["folder"])):
        raise FrugalbenchError(
            f"{settings.where}: 'folder' {shown(options['folder'], 200)} holds no case: each is a folder with "
            "model.onnx and test_data_set_0/"
        )


def own_cases(folder: Path) -> list[str]:
    """Names of the cases in a folder laid out as ONNX's."""
    return sorted(path.parent.name for path in folder.glob("*/model.onnx"))


def _missing(settings: Settings, machine: MachineView, backend: str) -> str:
    if machine.installed(SUITE) is None:
        return "onnx is not installed: pip install onnx; its package carries the test cases"
    if settings.device == "cuda" and backend not in ON_CUDA:
        return f"{backend} runs on the cpu here; use --device cpu"
    if not any(machine.installed(name) for name in RUNTIMES[backend]):
        return f"{RUNTIMES[backend][0]} is not installed: pip install {RUNTIMES[backend][0]}"
    return ""


def _case(settings: Settings, options: dict[str, Any], backend: str, suite: str | None) -> Case:
    folder = Path(options["folder"]).resolve() if options["folder"] else None
    name = re.sub(r"[^\w.-]", "-", folder.name) if folder else f"{SUITE}-{suite or 'missing'}"
    shape = f"{name}-sample{options['sample']}" if options["sample"] else name
    return Case(
        id="/".join((WORKLOAD, backend, shape, settings.device)),
        workload=WORKLOAD,
        variant=backend,
        shape=shape,
        regime="all",
        backend=backend,
        device=settings.device,
        dtype="as given",
        params={
            "seed": settings.seed,
            "sample": options["sample"],
            "folder": str(folder) if folder else "",
            "case_limit_s": float(options["case_limit_s"]),
            "batch": options["batch"],
            "threads": 1,
        },
    )


def _comparison(case: Case, options: dict[str, Any]) -> Comparison:
    arm = Arm(id=f"{WORKLOAD}/{case.variant}", cases=(case,), imports=("onnx",), memory_bytes=2.0**30)
    cases = options["sample"] or 2000
    return Comparison(
        id=f"{WORKLOAD}/{case.variant}/{case.shape}/{case.device}",
        workload=WORKLOAD,
        arms=(arm,),
        estimate_s=_START_S + _CASE_S * cases,
        competes=False,
    )
