"""Which rows the constants come from, and what the fits share."""

from frugalbench.cluster.published.constants import Training
from frugalbench.cluster.published.guess import Guess

STEP_ROWS = ("P0452", "P0454", "P0458")
"""Iteration times for the two constants of the training step: one of each model, both kinds of recomputation."""
STACK_ROWS = {
    "megatron 2021": "P0472", "mlperf gpt3": "P0501", "torchtitan": "P0506", "torchtitan compile": "P0507",
    "torchtitan compile float8": "P0508", "torchtitan large": "P0514", "megatron core": "P0468", "llama 3": "P0443",
}  # fmt: skip
"""One row for each software's factor; the others of its table test the scaling."""
TWINS = {"P0452": ("P0453",), "P0458": ("P0459",), "P0501": ("P0500",), "P0443": ("P0444",)}
"""The same measurement in another metric."""
EXCHANGE_ROWS = {
    "deepep low-latency": ("P0349", "P0351"),
    "cann": ("P0399", "P0401", "P0409"),
    "deepep february 2025": ("P0419", "P0420", "P0425"),
}
EXCHANGE_TWINS = ("P0350", "P0352", "P0400", "P0402", "P0410")
BALANCE_ROWS = ("P0431", "P0432")
"""Prefill with experts balanced perfectly and by default: their ratio is the load of the busiest rank."""
WAN_ROWS = {"continental": ("P0604",), "intercontinental": ("P0626",)}
SHARE_ROWS = {
    "bf16_share": ("P0155", "P0157", "P0159", "P0161"), "fp8_share": ("P0149", "P0163", "P0165"),
    "fp4_share": ("P0151",), "memory_share": ("P0154",),
}  # fmt: skip
ACCESS_ROWS = {"bandwidth": ("P0379", "P0385", "P0389", "P0391"), "latency": ("P0380", "P0386", "P0390", "P0392")}
"""Four of the eight combinations of direction, partner and distance, enough for one factor each."""


def step_constants(product: float, traffic: float) -> Training:
    """Constants of a step with no software's factor."""
    return Training(product=product, traffic=traffic, stack={"megatron 2022": 1.0, "other": 1.0})


def si(found: Guess | str) -> float:
    """The value of a prediction that must exist."""
    if isinstance(found, str):
        raise ValueError(f"a row to fit on has no prediction: {found}")
    return found.si


def six(value: float) -> float:
    """Six digits: what a fit of such data can claim at the very most."""
    return float(f"{value:.6g}")
