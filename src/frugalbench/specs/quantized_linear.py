"""One linear layer, y = x W^T, in full precision and in the low-precision formats that users reach for.

Regime ``decode`` multiplies a few tokens, so the weights stream from memory; ``prefill`` multiplies many, so
arithmetic decides. Both regimes of an arm share its weights: ``copies`` distinct matrices, cycled through, that
together exceed the last-level cache. The default shape is the attention output projection of Qwen3-8B and of
Llama-3.1-8B (hidden size 4096; their published configs).

Stored bytes per matrix of N x K weights, as :func:`stored_bytes` computes them:

========== =====================================================================================================
float32    4 NK
bfloat16   2 NK
int8       NK + 16: one scale (double) and zero point (int64) per matrix, as torch's per-tensor format keeps them
llm.int8   NK + 4 N: one float32 absmax per output (Dettmers et al. 2022, arXiv 2208.07339)
nf4        NK/2 + 4 NK/64 + 64: a float32 absmax per 64 weights and the 16 code values (arXiv 2305.14314)
nbits      N ceil(K/g) (g b/8 + 4) + N ceil(ceil(K/g) b/8): packed codes, float32 scales, packed zero points
           (ONNX Runtime, contrib operator MatMulNBits, b bits in groups of g)
========== =====================================================================================================
"""

import math
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError, Skipped
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.untrusted import brief

WORKLOAD = "quantized_linear"
NF4_BLOCK = 64
_MIB = 2**20
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
"""What torch asks of a CPU before it takes its AVX-512 paths."""


@dataclass(frozen=True)
class Format:
    """How one variant stores and multiplies.

    Tolerance, as max abs error / rms against the variant's own definition (unquantised arms: the reference), is
    ``rounding + tie / sqrt(K)``. ``rounding`` covers float sums (float32 over 4096 terms: below 1e-5) and results
    kept in bfloat16 (2^-8 of the largest, some five rms). ``tie`` covers one activation that lies on a rounding tie
    and comes out one integer step apart: the step (range of the activations / levels) times a large weight,
    4.5 / sqrt(K), over the rms. Flipping the top bit of a single weight code exceeds it.
    ``format_tolerance`` bounds the relative rms distance to the unquantised answer: a sanity limit, not a claim.
    """

    backend: str
    dtype: str
    scheme: str
    bits: int
    peak: str
    """The peak that bounds its arithmetic; integer dot products are counted as operations, not FLOPs."""
    rounding: float
    tie: float
    format_tolerance: float
    imports: tuple[str, ...]
    accuracy_level: int = 0
    materialises: bool = False
    """Each call writes out the float32 weights before it multiplies (bitsandbytes without a fused kernel)."""
    cuda: bool = True


_TORCH = ("numpy", "torch")
_ORT = ("numpy", "onnx", "onnxruntime")
_BNB = ("numpy", "torch", "bitsandbytes")
_FP32, _BF16, _INT8 = "fp32_flop_per_s", "bf16_flop_per_s", "int8_op_per_s"

FORMATS: dict[str, Format] = {
    "torch-fp32": Format("torch", "float32", "float32", 32, _FP32, 1e-4, 0, 1e-4, _TORCH),
    "ort-fp32": Format("onnxruntime", "float32", "float32", 32, _FP32, 1e-4, 0, 1e-4, _ORT, cuda=False),
    "torch-bf16": Format("torch", "bfloat16", "bfloat16", 16, _BF16, 2e-2, 0, 1e-2, _TORCH),
    # activations of +-9 in 127 steps
    "torch-int8-dynamic": Format("torch", "int8", "int8", 8, _INT8, 1e-4, 0.7, 0.1, _TORCH, cuda=False),
    # activations of +-1.5 (outliers apart) in 254 steps
    "bnb-int8": Format("bitsandbytes", "int8", "llm.int8", 8, _FP32, 1e-4, 0.06, 5e-2, _BNB, materialises=True),
    "bnb-nf4": Format("bitsandbytes", "nf4", "nf4", 4, _FP32, 2e-4, 0, 0.15, _BNB, materialises=True),
    "ort-int8": Format("onnxruntime", "int8", "nbits", 8, _FP32, 1e-4, 0, 2e-2, _ORT, cuda=False),
    # activations of +-9 in 254 steps, in the groups that hold an outlier
    "ort-int8-acc4": Format("onnxruntime", "int8", "nbits", 8, _INT8, 1e-4, 0.35, 3e-2, _ORT, 4, cuda=False),
    "ort-int4": Format("onnxruntime", "int4", "nbits", 4, _FP32, 1e-4, 0, 0.15, _ORT, cuda=False),
    "ort-int4-acc4": Format("onnxruntime", "int4", "nbits", 4, _INT8, 1e-4, 0.35, 0.15, _ORT, 4, cuda=False),
}

DEFAULTS: dict[str, Any] = {
    "shape": "4096x4096",
    "decode_tokens": 1,
    "prefill_tokens": 256,
    "stream_bytes": 0,
    "variants": list(FORMATS),
    "group_size": 32,
}


def resolve(variant: str, device: str, flags: frozenset[str]) -> Format:
    """The format as this processor executes it; ``flags`` are the CPU's as Linux lists them.

    bitsandbytes has fused paths on CUDA and, on a CPU, for LLM.int8 with AVX-512 (torch's int8 product) and for NF4
    with AVX-512 BF16 (activations, scales and results in bfloat16); elsewhere it dequantises and multiplies floats.
    """
    fmt = FORMATS[variant]
    if fmt.scheme == "llm.int8" and (device == "cuda" or flags >= _AVX512):
        return replace(fmt, peak=_INT8, materialises=False)
    if fmt.scheme == "nf4" and device == "cuda":
        return replace(fmt, materialises=False)
    if fmt.scheme == "nf4" and "avx512_bf16" in flags:
        return replace(fmt, peak=_BF16, materialises=False, rounding=2.5e-2)
    return fmt


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets of this CPU by Linux's names; empty where ``/proc/cpuinfo`` does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(line[1].split()) if line else frozenset()


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison of every variant that can run here; each of the others is skipped with its reason.

    Options: ``shape`` ("NxK": outputs x inputs), ``decode_tokens``, ``prefill_tokens``, ``stream_bytes`` (distinct
    weight bytes per arm; 0: four times the last-level cache, 64 to 512 MiB), ``variants``, ``group_size`` (of the
    n-bit formats). Raises :class:`FrugalbenchError` for a value that makes no sense.
    """
    options = take(settings, DEFAULTS)
    choose(settings, "device", settings.device, ("cpu", "cuda"))
    n, k = _shape(settings, options["shape"])
    _check(settings, options)
    stream = options["stream_bytes"] or automatic_stream_bytes(machine.last_level_cache_bytes)
    arms: list[Arm] = []
    skipped: list[Skipped] = []
    for name in dict.fromkeys(options["variants"]):
        choose(settings, "variant", name, FORMATS)
        arm = _arm(settings, options, name, n, k, stream)
        if reason := _missing(settings, FORMATS[name], machine):
            skipped += [Skipped(case=case, reason=reason) for case in arm.cases]
        else:
            arms.append(arm)
    return Expansion(comparisons=_comparisons(f"{WORKLOAD}/{n}x{k}", tuple(arms)), skipped=tuple(skipped))


def automatic_stream_bytes(last_level_cache_bytes: int) -> int:
    """Distinct bytes to cycle through: four last-level caches, but 64 to 512 MiB."""
    return min(max(4 * last_level_cache_bytes, 64 * _MIB), 512 * _MIB)


def stored_bytes(scheme: str, n: int, k: int, bits: int, group: int) -> int:
    """Bytes that one N x K matrix takes when stored, scales and zero points included (formulas: see the module)."""
    if scheme in ("float32", "bfloat16"):
        return n * k * bits // 8
    if scheme == "int8":
        return n * k + 16
    if scheme == "llm.int8":
        return n * k + 4 * n
    if scheme == "nf4":
        return math.ceil(n * k / 2) + 4 * math.ceil(n * k / NF4_BLOCK) + 64
    blocks = math.ceil(k / group)
    return n * blocks * (group * bits // 8 + 4) + n * math.ceil(blocks * bits / 8)


def count_copies(fmt: Format, n: int, k: int, group: int, stream_bytes: int) -> int:
    """Matrices to cycle through so that ``stream_bytes`` distinct bytes pass before one comes round again.

    Where every call also writes out float32 weights, those bytes pass through the cache as well and count.
    """
    each = stored_bytes(fmt.scheme, n, k, fmt.bits, group)
    each += 4 * n * k if fmt.materialises else 0
    return max(2, math.ceil(stream_bytes / each))


def _arm(settings: Settings, options: dict[str, Any], variant: str, n: int, k: int, stream: int) -> Arm:
    fmt = resolve(variant, settings.device, cpu_flags())
    tokens = {"decode": options["decode_tokens"], "prefill": options["prefill_tokens"]}
    copies = count_copies(fmt, n, k, options["group_size"], stream)
    cases = tuple(
        _case(settings, variant, fmt, regime, (m, n, k), options["group_size"], copies) for regime, m in tokens.items()
    )
    each = stored_bytes(fmt.scheme, n, k, fmt.bits, options["group_size"])
    work = 4 * n * k + 8 * max(tokens.values()) * (n + k) * 4
    return Arm(
        id=f"{WORKLOAD}/{variant}/{n}x{k}/{settings.device}",
        cases=cases,
        imports=fmt.imports,
        memory_bytes=float(copies * each + work),
    )


def _case(
    settings: Settings, variant: str, fmt: Format, regime: str, mnk: tuple[int, int, int], group_size: int, copies: int
) -> Case:
    m, n, k = mnk
    group = _group(fmt, k, group_size)
    return Case(
        id="/".join((WORKLOAD, variant, f"{n}x{k}", regime, fmt.backend, settings.device)),
        workload=WORKLOAD,
        variant=variant,
        shape=f"{n}x{k}",
        regime=regime,
        backend=fmt.backend,
        device=settings.device,
        dtype=fmt.dtype,
        params={
            "n": n, "k": k, "m": m, "copies": copies, "scheme": fmt.scheme, "bits": fmt.bits, "group_size": group,
            "accuracy_level": fmt.accuracy_level, "seed": settings.seed,
            "format_tolerance": fmt.format_tolerance,
        },
        cost=_cost(fmt, m, n, k, group_size),
        tolerance=fmt.rounding + fmt.tie / math.sqrt(k),
        peaks=(fmt.peak, "read_bytes_per_s"),
    )  # fmt: skip


def _cost(fmt: Format, m: int, n: int, k: int, group: int) -> Cost:
    weight_bytes = stored_bytes(fmt.scheme, n, k, fmt.bits, group)
    width = 2 if fmt.dtype == "bfloat16" else 4
    executed = 2.0 * m * n * k
    integer = fmt.peak == _INT8
    return Cost(
        token=m,
        flop=0.0 if integer else executed,
        op=executed if integer else 0.0,
        weight_bytes=weight_bytes,
        traffic_bytes=weight_bytes + width * m * (n + k),
        parameters=n * k,
        active_parameters=n * k,
    )


def _group(fmt: Format, k: int, group_size: int) -> int | None:
    """Weights that share a scale; ``None`` where all of a matrix do."""
    return {"nbits": group_size, "nf4": NF4_BLOCK, "llm.int8": k}.get(fmt.scheme)


def _missing(settings: Settings, fmt: Format, machine: MachineView) -> str | None:
    if settings.device == "cuda" and not fmt.cuda:
        return f"{fmt.backend} has no CUDA kernel for this format in this harness; use --device cpu"
    if settings.device == "cuda" and not machine.has_cuda():
        return "no NVIDIA device here; use --device cpu"
    for package in fmt.imports:
        if machine.installed(package) is None:
            return f"{package} is not installed: pip install {package}"
    return None


def _shape(settings: Settings, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,7})x([1-9][0-9]{0,7})", text)
    if match is None:
        raise FrugalbenchError(
            f"{settings.where}: 'shape' must be NxK (outputs x inputs, at most 8 digits each) like '4096x4096', "
            f"not {brief(text)}"
        )
    n, k = int(match[1]), int(match[2])
    if n % 32 or k % NF4_BLOCK:
        raise FrugalbenchError(
            f"{settings.where}: 'shape' {text}: N must be a multiple of 32, K of {NF4_BLOCK} (blocks of NF4)"
        )
    return n, k


def _check(settings: Settings, options: dict[str, Any]) -> None:
    for key, least in (("decode_tokens", 1), ("prefill_tokens", 1), ("stream_bytes", 0)):
        if options[key] < least:
            raise FrugalbenchError(f"{settings.where}: '{key}' must be at least {least}, not {options[key]}")
    group = options["group_size"]
    if group not in (16, 32, 64, 128, 256):
        raise FrugalbenchError(f"{settings.where}: 'group_size' must be 16, 32, 64, 128 or 256, not {group}")


def _comparisons(name: str, arms: tuple[Arm, ...]) -> tuple[Comparison, ...]:
    """The estimate is rough: a fixed start per arm, weights filled and quantised at 1 GB/s, and the timed turns."""
    estimate_s = sum(0.8 + arm.memory_bytes / 1e9 + 0.2 * len(arm.cases) for arm in arms)
    return (Comparison(id=name, workload=WORKLOAD, arms=arms, estimate_s=estimate_s),) if arms else ()
