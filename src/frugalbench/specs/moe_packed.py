"""Experts and dense twins with weights of 8 or 4 bits, in the formats of the own kernels (``kernels/README.md``).

Activations are rounded to int8 in the call, so products are integer operations. The router stays in float32. Beside
the own kernels llama.cpp has quantised experts for a CPU, in Q8_0 and Q4_0: each library's mixture stands beside dense
twins of its own format.
"""

import math
from typing import Any

from frugalbench.schema import FrugalbenchError
from frugalbench.specs.base import Settings, choose
from frugalbench.specs.moe_sixteen import FLOAT32, SIXTEEN
from frugalbench.specs.quant_formats import stored_bytes

BITS = {"int8": 8, "int4": 4}
GGML = "ggml"
"""``params["layout"]`` of arms whose weights lie as llama.cpp stores them."""
_GGML_SCHEME = {"int8": "q8_0", "int4": "q4_0"}
_GGML_BLOCK = 32
_TIE = 0.35
"""A hidden value on a rounding tie comes out a step apart: range of its block / 127 times a weight of 1.7 / sqrt(F)."""
_FORMAT_TOLERANCE = {"int8": 0.06, "int4": 0.2}
"""Three matrices in a row lose 1.1 and 6.3% each (rms, normal weights), activations about a percent twice."""


def is_packed(params: dict[str, Any]) -> bool:
    """Whether the layer's weights are quantised to integers."""
    return params.get("weights") in BITS


def bits(params: dict[str, Any]) -> int:
    """Of a quantised weight."""
    return BITS[params["weights"]]


def check(settings: Settings, options: dict[str, Any]) -> None:
    """Raise :class:`FrugalbenchError` for weights that no arm has."""
    choose(settings, "weights", options["weights"], (FLOAT32, *SIXTEEN, *BITS))
    if options["view"] == "block":
        raise FrugalbenchError(
            f"{settings.where}: 'weights' {options['weights']} are those of the layer view; leave out view = 'block'"
        )


def why_not(native: bool, regime: str) -> str:
    """Why an arm does not take quantised weights; empty when it does. ``native``: it is an own one, or llama.cpp's."""
    if not native:
        return "quantised experts run on the own kernel and in llama.cpp only"
    return "quantised weights are measured forward only" if regime == "training" else ""


def expert_bytes(params: dict[str, Any], width: int) -> int:
    """Stored bytes of gate, up and down of one expert of ``width``."""
    scheme = _GGML_SCHEME[params["weights"]] if is_ggml(params) else "panels"
    inward = stored_bytes(scheme, width, params["d_model"], bits(params), 0)
    return 2 * inward + stored_bytes(scheme, params["d_model"], width, bits(params), 0)


def is_ggml(params: dict[str, Any]) -> bool:
    """Whether weights lie as llama.cpp stores them."""
    return params.get("layout") == GGML


def why_not_ggml(params: dict[str, Any]) -> str:
    """Why llama.cpp does not take the layer's widths; empty when it does."""
    widths = {name: params[name] for name in ("d_model", "d_expert") if params[name] % _GGML_BLOCK}
    if not is_packed(params) or not widths:
        return ""
    return f"{_GGML_SCHEME[params['weights']]} has blocks of {_GGML_BLOCK} values, which {widths} is no multiple of"


def tolerances(params: dict[str, Any]) -> tuple[float, float]:
    """Largest distance to the answer of what is stored (over its rms), and rms distance to the unquantised answer."""
    width = params["d_ff"] or params["d_expert"]
    return 1e-4 + _TIE / math.sqrt(width), _FORMAT_TOLERANCE[params["weights"]]
