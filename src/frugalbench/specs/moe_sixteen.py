"""Expert layers and dense twins with weights, inputs and outputs of 16 bits.

Values are drawn in float32 and rounded to the format before anything sees them: arms, trace and float64 reference hold
the same numbers. A format never makes a weak baseline: beside each dense twin of 16 bits stands the same layer (the
same rounded numbers) held and computed in float32, which some processors and libraries multiply faster. No GPU with
tensor cores does, so there the float32 twin is left out, with that reason.
"""

import math
from typing import Any

import numpy as np

from frugalbench.specs.quant_formats import cpu_flags

FLOAT32 = "float32"
SIXTEEN = ("bfloat16", "float16")
FP32_TWIN = "-fp32"
"""Ends the name of a dense twin that holds the rounded values in float32."""
_STEP = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Unit roundoff: 8 significant bits (bfloat16 is the upper half of a binary32) and 11 (IEEE 754-2019, table 3.5)."""
_ROUNDINGS = 16
"""Steps, over the rms of the answer, that a right answer may be away. Libraries round logits, gate, up, hidden value
and each expert's share; the largest of some ten thousand values is five times their rms, and its last rounding alone
takes up to five steps. A wrong expert or row is hundreds away."""
_LARGEST = 6.5
"""The largest of ten million values over their rms, in a prefill at full width."""
_LARGEST_LOGIT = 8.0
"""Logits have variance 1; rounding them must not decide who is chosen."""


def is_sixteen(params: dict[str, Any]) -> bool:
    """Whether values are rounded to 16 bits, in a float32 twin too."""
    return params.get("weights") in SIXTEEN


def held(params: dict[str, Any]) -> str:
    """Format in which the arm holds weights, inputs and outputs."""
    return str(params.get("held", params["weights"] if is_sixteen(params) else FLOAT32))


def value_bytes(params: dict[str, Any]) -> int:
    """Of one weight, input or output as the arm holds it."""
    return 4 if held(params) == FLOAT32 else 2


def peak(params: dict[str, Any], native: bool) -> str:
    """The compute peak of an arm's arithmetic; the own kernel multiplies floats where the processor has no better."""
    narrow = held(params) == "bfloat16" and "avx512_bf16" in cpu_flags()
    if native and not narrow:
        return "fp32_flop_per_s"
    return {"bfloat16": "bf16_flop_per_s", "float16": "fp16_flop_per_s"}[held(params)]


def why_not(variant: str, regime: str, device: str) -> str:
    """Why an arm does not take 16 bits; empty when it does."""
    if variant.endswith(FP32_TWIN) and device != "cpu":
        return (
            "tensor cores multiply 16 bits many times faster than float32: the layer of 16 bits is the strong baseline"
        )
    return "16-bit weights are measured forward only" if regime == "training" else ""


def with_twins(variants: list[str]) -> list[str]:
    """The variants, each dense one but llama.cpp's followed by its float32 twin."""
    twinned = {one for one in variants if one.startswith("dense") and not one.endswith("-llama")}
    return [name for one in variants for name in ((one, one + FP32_TWIN) if one in twinned else (one,))]


def rounded(values: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """Float32 values to the nearest ones of the layer's format, to the even one of two; as they are without one."""
    if not is_sixteen(params):
        return values
    if params["weights"] == "float16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def tolerance(params: dict[str, Any]) -> float:
    """Largest distance of an arm that computes in 16 bits, over the rms of the answer.

    Libraries that add up a token's experts in 16 bits round once for each; such roundings are independent, so they grow
    as the square root of their number. Seen on an H100 (8 experts, 8 million values, 2026-11-22): .10 in bfloat16,
    where this allows .12; arms that add up in float32 stay at .056.
    """
    added = math.sqrt(params.get("top_k", 1) + params.get("n_shared", 0)) + 2
    return max(_ROUNDINGS, _LARGEST * added) * _STEP[held(params)]


def tie_margin(params: dict[str, Any], least: float) -> float:
    """Difference in logits below which two choices count as tied: two roundings of the largest logit to be expected."""
    return _LARGEST_LOGIT * _STEP[params["weights"]] if is_sixteen(params) else least
