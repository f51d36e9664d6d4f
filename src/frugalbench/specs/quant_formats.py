"""The low-precision formats of a linear layer: what each library stores and how it multiplies. No torch.

Stored bytes of N x K weights, G = K / g groups of g inputs, as :func:`stored_bytes` computes them:

============ =====================================================================================================
float32      4 NK
float16      2 NK; bfloat16 and GGML's f16 the same
int8         NK + 16: one scale (double) and zero point (int64) per matrix, as torch's per-tensor format keeps them
int8-tensor  NK + 5: one float32 scale and one int8 zero point per matrix (ONNX Runtime's ``quantize_dynamic``)
llm.int8     NK + 4 N: one float32 absmax per output (Dettmers et al. 2022, arXiv 2208.07339)
int8-rows    NK + 5 N: a float32 scale and an int8 zero point per output (torchao's ``Int8Tensor``)
nf4          NK/2 + 4 NK/64 + 64: a float32 absmax per 64 weights and the 16 code values (arXiv 2305.14314)
nbits        N ceil(K/g) (g b/8 + 4) + N ceil(ceil(K/g) b/8): packed codes, float32 scales, packed zero points
             (ONNX Runtime, contrib operator MatMulNBits, b bits in groups of g)
grouped      NK b/8 + 4 NG + NG b/8: the same without padding, as OpenVINO's compiled model holds it; 8 bits: g = K
tinygemm     NK/2 + 4 NG: a bfloat16 scale and offset per group (torch's ``_weight_int4pack_mm_for_cpu``)
tiles        the same with K filled up to whole 1024 (torch's ``_weight_int4pack_mm`` on CUDA)
fp4          as nf4, with the 16 values of a 4-bit float (bitsandbytes)
float8-rows  NK + 4 N: e4m3 codes and a float32 scale per output (OCP 8-bit floating point specification)
places       NK/2 + 4 NG with K filled up to whole 256: a 16-bit scale and middle value per group (the own Triton
             kernel, ``kernels/triton/w4a16.py``)
q4_0, q8_0   18 and 34 bytes per 32 weights: a float16 scale and 4- or 8-bit codes (GGML, ``ggml-common.h``)
panels       whole panels of 16 outputs and blocks of 128 inputs: 4, 1 or 9/16 bytes per weight, and 4 per output where
             quantised (the own kernels; kernels/README.md)
q4_k         144 bytes per 256 weights: two float16 factors, eight 6-bit scales and minima, 4-bit codes (the same)
============ =====================================================================================================
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

NF4_BLOCK = 64
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
"""What torch asks of a CPU before it takes its AVX-512 paths."""
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})
"""With either, OpenVINO rounds activations to int8 in front of compressed weights."""
_HALF = frozenset({"avx512_fp16", "amx_fp16", "fphp"})
"""With any of these, float16 is multiplied as it is; elsewhere it is widened to float32 first."""
OPENVINO_GROUP = 32
"""Inputs that share a scale when OpenVINO rounds activations: its default ``DYNAMIC_QUANTIZATION_GROUP_SIZE``."""


@dataclass(frozen=True)
class Library:
    """A runtime: the backend's name, what its template imports, and what brings it."""

    backend: str
    imports: tuple[str, ...]
    packages: tuple[str, ...]
    """Distributions, by their names on the package index."""
    extra: str = ""
    """The project's own extra that holds them; empty where they are always installed."""


_TORCH = Library("torch", ("numpy", "torch"), ("torch",))
_ORT = Library("onnxruntime", ("numpy", "onnx", "onnxruntime"), ("onnx", "onnxruntime"))
_BNB = Library("bitsandbytes", ("numpy", "torch", "bitsandbytes"), ("torch", "bitsandbytes"))
_OPENVINO = Library("openvino", ("numpy", "frugalbench.backends.openvino", "openvino"), ("openvino",), "openvino")
_TORCHAO = Library("torchao", ("numpy", "torch", "torchao.quantization"), ("torch", "torchao"), "torchao")
_LLAMA = Library("llama.cpp", ("numpy",), ("llama-cpp-python",), "llama")
_NATIVE = Library("native", ("numpy", "torch"), ("torch",))
_TRITON = Library("triton", ("numpy", "torch"), ("torch", "triton"), "triton")


@dataclass(frozen=True)
class Format:
    """How one variant stores and multiplies.

    Tolerance, as max abs error / rms against the variant's own definition (unquantised arms: the reference), is
    ``rounding + tie / sqrt(K)``. ``rounding`` covers float sums (float32 over 4096 terms: below 1e-5) and results
    kept in bfloat16 or float16 (2^-8 or 2^-11 of the largest, some five rms). ``tie`` covers one activation that lies
    on a rounding tie and comes out one integer step apart: the step (range of the activations / levels) times a large
    weight, 4.5 / sqrt(K), over the rms. Flipping the top bit of a single weight code exceeds it.
    ``format_tolerance`` bounds the relative rms distance to the unquantised answer: a sanity limit, not a claim.
    """

    library: Library
    dtype: str
    scheme: str
    bits: int
    peak: str
    """The peak that bounds its arithmetic; integer dot products are counted as operations, not FLOPs."""
    rounding: float
    tie: float
    format_tolerance: float
    activations: str = "plain"
    """What shares a scale when activations are rounded in the call: ``tensor``, ``token`` or ``group``; ``static`` has
    a scale that was chosen before; ``plain`` multiplies them as they are."""
    values: str = "float32"
    """Type of inputs and outputs."""
    accuracy_level: int = 0
    materialises: int = 0
    """Bytes per weight that each call writes out before it multiplies (no fused kernel)."""
    cpu: bool = True
    cuda: bool = False
    least_tokens: int = 1
    """Fewer have no kernel of this library."""
    lacking: str = ""
    """Why no device of this harness has the format yet."""

    @property
    def backend(self) -> str:
        """Name of the library."""
        return self.library.backend

    @property
    def value_bytes(self) -> int:
        """Bytes of an input or output value."""
        return 4 if self.values == "float32" else 2


_FP32, _FP16, _BF16, _INT8 = "fp32_flop_per_s", "fp16_flop_per_s", "bf16_flop_per_s", "int8_op_per_s"
_FP8 = "fp8_flop_per_s"
_BLACKWELL = "block-scaled 4-bit floats need a GPU of compute capability 10.0 (Blackwell) and no kernel for it is here"

FORMATS: dict[str, Format] = {
    "torch-fp32": Format(_TORCH, "float32", "float32", 32, _FP32, 1e-4, 0, 1e-4, cuda=True),
    "ort-fp32": Format(_ORT, "float32", "float32", 32, _FP32, 1e-4, 0, 1e-4),
    "openvino-fp32": Format(_OPENVINO, "float32", "float32", 32, _FP32, 1e-4, 0, 1e-4),
    "torch-bf16": Format(_TORCH, "bfloat16", "bfloat16", 16, _BF16, 2e-2, 0, 1e-2, values="bfloat16", cuda=True),
    "torch-fp16": Format(_TORCH, "float16", "float16", 16, _FP16, 5e-3, 0, 2e-3, values="float16", cuda=True),
    "llama-f16": Format(_LLAMA, "float16", "float16", 16, _FP16, 1e-4, 0, 2e-3),
    # activations of +-9 in 127 steps
    "torch-int8-dynamic": Format(_TORCH, "int8", "int8", 8, _INT8, 1e-4, 0.7, 0.1, "tensor"),
    # activations of +-1.5 (outliers apart) in 254 steps
    "bnb-int8": Format(_BNB, "int8", "llm.int8", 8, _FP32, 1e-4, 0.06, 5e-2, "token", materialises=4, cuda=True),
    "bnb-nf4": Format(_BNB, "nf4", "nf4", 4, _FP32, 2e-4, 0, 0.15, materialises=4, cuda=True),
    "bnb-fp4": Format(_BNB, "fp4", "fp4", 4, _FP32, 2e-4, 0, 0.2, materialises=4, cuda=True),
    "ort-int8": Format(_ORT, "int8", "nbits", 8, _FP32, 1e-4, 0, 2e-2),
    # from here on activations of +-9 in 254 steps, in the groups or tokens that hold an outlier
    "ort-int8-acc4": Format(_ORT, "int8", "nbits", 8, _INT8, 1e-4, 0.35, 3e-2, "group", accuracy_level=4),
    "ort-int8-dynamic": Format(_ORT, "int8", "int8-tensor", 8, _INT8, 1e-4, 0.35, 5e-2, "tensor"),
    "ort-int8-qdq": Format(_ORT, "int8", "int8-tensor", 8, _INT8, 1e-4, 0.35, 5e-2, "static"),
    "ort-int4": Format(_ORT, "int4", "nbits", 4, _FP32, 1e-4, 0, 0.15),
    "ort-int4-acc4": Format(_ORT, "int4", "nbits", 4, _INT8, 1e-4, 0.35, 0.15, "group", accuracy_level=4),
    "openvino-int8": Format(_OPENVINO, "int8", "grouped", 8, _INT8, 1e-4, 0.35, 3e-2, "group"),
    "openvino-int4": Format(_OPENVINO, "int4", "grouped", 4, _INT8, 1e-4, 0.35, 0.15, "group"),
    # product and scale are rounded to bfloat16 one after the other
    "torchao-int8": Format(
        _TORCHAO, "int8", "int8-rows", 8, _BF16, 3e-2, 0, 2e-2, materialises=2, values="bfloat16", cuda=True
    ),
    "torchao-int8-dynamic": Format(_TORCHAO, "int8", "int8-rows", 8, _INT8, 1e-4, 0.35, 5e-2, "token", cuda=True),
    "torchao-int4": Format(_TORCHAO, "int4", "tinygemm", 4, _FP32, 2e-2, 0, 0.15, values="bfloat16", cuda=True),
    # e4m3: steps of 1/8 where they are widest; sums that the matrix units keep in some 14 bits
    "torchao-fp8": Format(
        _TORCHAO, "float8", "float8-rows", 8, _FP8, 6e-2, 0.6, 6e-2, "token", "bfloat16", cpu=False, cuda=True
    ),
    "torch-fp8": Format(
        _TORCH, "float8", "float8-rows", 8, _FP8, 6e-2, 0.6, 6e-2, "token", "bfloat16", cpu=False, cuda=True
    ),
    # weights rounded to bfloat16 on the way to the matrix units, results too
    "triton-w4a16": Format(_TRITON, "int4", "places", 4, _BF16, 3e-2, 0, 0.15, values="bfloat16", cpu=False, cuda=True),
    "torchao-mxfp4": Format(_TORCHAO, "mxfp4", "mxfp4", 4, _FP8, 6e-2, 0, 0.2, lacking=_BLACKWELL),
    "torchao-nvfp4": Format(_TORCHAO, "nvfp4", "nvfp4", 4, _FP8, 6e-2, 0, 0.2, lacking=_BLACKWELL),
    "llama-q8_0": Format(_LLAMA, "q8_0", "q8_0", 8, _INT8, 1e-4, 0.35, 3e-2, "group"),
    "llama-q4_0": Format(_LLAMA, "q4_0", "q4_0", 4, _INT8, 1e-4, 0.35, 0.15, "group"),
    "llama-q4_k": Format(_LLAMA, "q4_k", "q4_k", 4, _INT8, 1e-4, 0.35, 0.15, "group"),
    "native-fp32": Format(_NATIVE, "float32", "panels", 32, _FP32, 1e-4, 0, 1e-4),
    "native-w8a8": Format(_NATIVE, "int8", "panels", 8, _INT8, 1e-4, 0.35, 3e-2, "group"),
    "native-w4a8": Format(_NATIVE, "int4", "panels", 4, _INT8, 1e-4, 0.35, 0.15, "group"),
}


def resolve(variant: str, device: str, flags: frozenset[str], group: int = 32) -> Format:
    """The format as this processor executes it; ``flags`` are the CPU's as Linux lists them.

    bitsandbytes has fused paths on CUDA and, on a CPU, for LLM.int8 with AVX-512 (torch's int8 product) and for NF4
    and FP4 with AVX-512 BF16 (activations, scales and results in bfloat16); elsewhere it dequantises and multiplies
    floats.
    OpenVINO multiplies integers where the processor has VNNI and whole groups of activations fit those of the weights.
    """
    fmt = FORMATS[variant]
    if device == "cuda":
        return _on_cuda(fmt)
    if fmt.scheme == "llm.int8" and flags >= _AVX512:
        return replace(fmt, peak=_INT8, materialises=0)
    if fmt.scheme in ("nf4", "fp4") and "avx512_bf16" in flags:
        return replace(fmt, peak=_BF16, materialises=0, rounding=2.5e-2)
    if fmt.scheme == "float16" and not flags & _HALF:
        return replace(fmt, peak=_FP32)
    if fmt.scheme == "grouped" and not (flags & _VNNI and (fmt.bits == 8 or group % OPENVINO_GROUP == 0)):
        return replace(fmt, peak=_FP32, activations="plain", tie=0)
    return fmt


_CUDA: dict[str, dict[str, Any]] = {
    "llm.int8": {"peak": _INT8, "materialises": 0, "values": "float16", "rounding": 1e-2},
    "nf4": {"peak": _BF16, "materialises": 0, "values": "bfloat16", "rounding": 3e-2},
    "fp4": {"peak": _BF16, "materialises": 0, "values": "bfloat16", "rounding": 3e-2},
    "tinygemm": {"peak": _BF16, "scheme": "tiles", "rounding": 3e-2},
}
_CUDA_INT8_DYNAMIC: dict[str, Any] = {"values": "bfloat16", "rounding": 3e-2, "materialises": 1, "least_tokens": 17}


def _on_cuda(fmt: Format) -> Format:
    """Fed with 16-bit values, as transformers does; results are rounded to them.

    torchao's int8 product turns the weights round in every call, and torch's own refuses fewer than 17 tokens, for
    which torchao would multiply float32 copies instead.
    """
    dynamic = fmt.library is _TORCHAO and fmt.peak == _INT8
    return replace(fmt, **(_CUDA_INT8_DYNAMIC if dynamic else _CUDA.get(fmt.scheme, {})))


_TOLD: ContextVar[frozenset[str] | None] = ContextVar("instruction sets of another machine", default=None)
_COME_ALONG = {"avx512bw": ("avx512dq", "avx512vl"), "asimddp": ("fphp",)}
"""Instruction sets that no processor has one without the other, and of which a machine's description lists one."""


@contextmanager
def as_on(flags: Iterable[str]) -> Iterator[None]:
    """Plan for another machine, whose description lists ``flags``."""
    told = set(flags)
    also = {other for flag in told for other in _COME_ALONG.get(flag, ())}
    token = _TOLD.set(frozenset(told | also))
    try:
        yield
    finally:
        _TOLD.reset(token)


def cpu_flags() -> frozenset[str]:
    """Instruction sets, by Linux's names, of the CPU that is planned for: this one unless :func:`as_on` says other."""
    told = _TOLD.get()
    return own_flags() if told is None else told


@cache
def own_flags() -> frozenset[str]:
    """Those of this CPU; empty where ``/proc/cpuinfo`` does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(line[1].split()) if line else frozenset()


def multiplies_bf16(flags: frozenset[str]) -> bool:
    """Whether the own kernels can multiply bfloat16 as fast as this CPU does: they know AVX-512, no matrix units."""
    return "avx512_bf16" in flags and "amx_bf16" not in flags


def group_of(fmt: Format, k: int, group_size: int) -> int | None:
    """Inputs whose weights share a scale; ``None`` where all of a matrix do, or each weight has its own."""
    if fmt.scheme == "grouped":
        return group_size if fmt.bits == 4 else k
    fixed = {
        "nf4": NF4_BLOCK,
        "fp4": NF4_BLOCK,
        "llm.int8": k,
        "int8-rows": k,
        "float8-rows": k,
        "q4_0": 32,
        "q8_0": 32,
        "q4_k": 32,
    }
    if fmt.scheme == "panels":
        return {4: 16, 8: k}.get(fmt.bits)
    return group_size if fmt.scheme in ("nbits", *_CHOSEN_GROUPS) else fixed.get(fmt.scheme)


def misfit(fmt: Format, k: int, group_size: int) -> str:
    """Why matrices with K inputs cannot be stored in a format; empty when they can."""
    wholes = {"grouped": group_size if fmt.bits == 4 else 1, "q4_k": 256} | dict.fromkeys(_CHOSEN_GROUPS, group_size)
    whole = wholes.get(fmt.scheme, 1)
    if k % whole:
        return f"{fmt.backend} stores {fmt.dtype} in whole groups of {whole} inputs, which do not divide {k}"
    if fmt.scheme in _CHOSEN_GROUPS and group_size not in (32, 64, 128):
        return f"{fmt.backend}'s int4 has groups of 32, 64 or 128 inputs, not {group_size}"
    return ""


_CHOSEN_GROUPS = ("tinygemm", "tiles", "places")

_STORED: dict[str, Callable[[int, int, int, int], int]] = {
    "int8": lambda n, k, _bits, _group: n * k + 16,
    "int8-tensor": lambda n, k, _bits, _group: n * k + 5,
    "llm.int8": lambda n, k, _bits, _group: n * k + 4 * n,
    "int8-rows": lambda n, k, _bits, _group: n * k + 5 * n,
    "nf4": lambda n, k, _bits, _group: math.ceil(n * k / 2) + 4 * math.ceil(n * k / NF4_BLOCK) + 64,
    "nbits": lambda n, k, bits, group: (
        n * -(-k // group) * (group * bits // 8 + 4) + n * math.ceil(-(-k // group) * bits / 8)
    ),
    "grouped": lambda n, k, bits, group: (
        n * k * bits // 8 + n * _groups(k, bits, group) * 4 + math.ceil(n * _groups(k, bits, group) * bits / 8)
    ),
    "fp4": lambda n, k, _bits, _group: math.ceil(n * k / 2) + 4 * math.ceil(n * k / NF4_BLOCK) + 64,
    "float8-rows": lambda n, k, _bits, _group: n * k + 4 * n,
    "tinygemm": lambda n, k, _bits, group: _with_offsets(n, k, group),
    "tiles": lambda n, k, _bits, group: _with_offsets(n, -(-k // 1024) * 1024, group),
    "places": lambda n, k, _bits, group: _with_offsets(n, -(-k // 256) * 256, group),
    "mxfp4": lambda n, k, _bits, _group: n * k // 2 + n * k // 32,
    "nvfp4": lambda n, k, _bits, _group: n * k // 2 + n * k // 16 + 4,
    "q4_0": lambda n, k, _bits, _group: n * k // 32 * 18,
    "q8_0": lambda n, k, _bits, _group: n * k // 32 * 34,
    "q4_k": lambda n, k, _bits, _group: n * k // 256 * 144,
    "panels": lambda n, k, bits, _group: (
        -(-n // 16) * (-(-k // 128) * 2048 * (9 if bits == 4 else 2 * bits) // 16 + (64 if bits < 32 else 0))
    ),
}


def _with_offsets(n: int, k: int, group: int) -> int:
    return n * k // 2 + 4 * n * (k // group)


def _groups(k: int, bits: int, group: int) -> int:
    return 1 if bits == 8 else k // group


def stored_bytes(scheme: str, n: int, k: int, bits: int, group: int) -> int:
    """Bytes that one N x K matrix takes when stored, scales and zero points included (formulas: see the module)."""
    if scheme in ("float32", "float16", "bfloat16"):
        return n * k * bits // 8
    return _STORED[scheme](n, k, bits, group)


def count_copies(fmt: Format, n: int, k: int, group: int, stream_bytes: int) -> int:
    """Matrices to cycle through so that ``stream_bytes`` distinct bytes pass before one comes round again.

    Where every call also writes out wider weights, those bytes pass through the cache as well and count.
    """
    each = stored_bytes(fmt.scheme, n, k, fmt.bits, group) + fmt.materialises * n * k
    return max(2, math.ceil(stream_bytes / each))
