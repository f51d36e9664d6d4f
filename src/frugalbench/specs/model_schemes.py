"""The schemes in which a whole model can be held, and the bytes of a layer under each. No torch.

============== ===========================================================================================
torch-fp32     the unquantised model that all others are held against
torch-bf16     everything in bfloat16
rtn-int8       round to nearest, one float32 scale per output, int8 codes; multiplied in float32
rtn-int4       round to nearest, one float16 scale per ``group_size`` inputs, 4-bit codes; multiplied in float32
gptq-int4      the format of rtn-int4, codes chosen on calibration text (arXiv 2210.17323)
awq-int4       the same with inputs scaled by calibrated factors, one float16 per input more (arXiv 2306.00978)
kv-int8        weights as they are; keys and values of a language model rounded to 8 bits per token and head
kv-int4        the same to 4 bits
others         layer by layer as :mod:`frugalbench.specs.quant_formats` describes them
============== ===========================================================================================
"""

import math
from dataclasses import dataclass

from frugalbench.specs import quant_formats as formats

BASELINE = "torch-fp32"
LAYERWISE = tuple(
    name
    for name, fmt in formats.FORMATS.items()
    if fmt.bits in (4, 8) and fmt.activations != "static" and fmt.cpu and not fmt.lacking
)
"""Formats of single layers that can be put into whole models: all but those whose scale was chosen for drawn inputs."""


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
    extra: str = ""
    kv_bits: int = 0
    layerwise: bool = False
    calibrated: bool = False
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
        extra=fmt.library.extra,
        layerwise=True,
        cuda=fmt.cuda,
    )


SCHEMES: dict[str, Scheme] = {
    BASELINE: Scheme("torch", "float32", 32, 1e-3, 1e-3),
    "torch-bf16": Scheme("torch", "bfloat16", 16, 2e-2, 0.1),
    "rtn-int8": Scheme("torch", "int8", 8, 1e-4, 0.1),
    "rtn-int4": Scheme("torch", "int4", 4, 1e-4, 0.8),
    "gptq-int4": Scheme("torch", "int4", 4, 1e-4, 0.8, calibrated=True),
    "awq-int4": Scheme("torch", "int4", 4, 1e-4, 0.8, calibrated=True),
    **{name: _from_format(name) for name in LAYERWISE},
    "kv-int8": Scheme("torch", "float32", 32, 2e-2, 0.2, kv_bits=8),
    "kv-int4": Scheme("torch", "float32", 32, 0.3, 0.8, kv_bits=4),
}


def layer_bytes(variant: str, n: int, k: int, group: int) -> int:
    """Bytes of one linear layer's weights; see the table above."""
    if SCHEMES[variant].layerwise:
        fmt = formats.FORMATS[variant]
        return formats.stored_bytes(fmt.scheme, n, k, fmt.bits, group)
    if variant == "rtn-int8":
        return n * k + 4 * n
    if variant in ("rtn-int4", "gptq-int4", "awq-int4"):
        groups = -(-k // group)
        return n * groups * (group // 2 + 2) + (2 * k if variant == "awq-int4" else 0)
    return 4 * n * k
