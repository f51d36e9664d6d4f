"""At how many tokens a low-precision format of one linear layer stops paying. Descriptive, beside the verdicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from frugalbench.analysis.quantized import Product


@dataclass(frozen=True)
class BreakEven:
    """A format of one shape, over all numbers of tokens at which it was measured."""

    shape: str
    variant: str
    measured: tuple[int, ...]
    """Numbers of tokens with an interval."""
    pays: tuple[int, ...]
    """Where the whole interval of the speed over the fastest unquantised arm is at least 1."""
    loses: tuple[int, ...]
    """Where it is below 1."""
    tokens: float | None
    """Where the ratio is 1, between the last of ``pays`` and the first of ``loses``; ``None`` where they are not in
    this order, or one of them is missing."""


def break_evens(found: Sequence[Product]) -> list[BreakEven]:
    """One per shape and quantised format with two numbers of tokens or more."""
    points: dict[tuple[str, str], list[Product]] = {}
    for item in found:
        ratio = item.over_unquantised
        if ratio and ratio.low is not None and ratio.high is not None and item.tokens > 0 and item.is_quantised:
            points.setdefault((item.shape, item.row.variant), []).append(item)
    several = {key: items for key, items in points.items() if len({item.tokens for item in items}) > 1}
    return [_break_even(*key, sorted(items, key=lambda item: item.tokens)) for key, items in several.items()]


def _break_even(shape: str, variant: str, items: Sequence[Product]) -> BreakEven:
    ratios = {item.tokens: item.over_unquantised for item in items if item.over_unquantised}
    pays = tuple(tokens for tokens, ratio in ratios.items() if ratio.low is not None and ratio.low >= 1)
    loses = tuple(tokens for tokens, ratio in ratios.items() if ratio.high is not None and ratio.high < 1)
    tokens = None
    if pays and loses and pays[-1] < loses[0]:
        tokens = _crossing(pays[-1], ratios[pays[-1]].ratio, loses[0], ratios[loses[0]].ratio)
    return BreakEven(shape, variant, tuple(ratios), pays, loses, tokens)


def _crossing(first: int, above: float, last: int, below: float) -> float:
    """Straight between two points of log ratio over log tokens."""
    part = math.log(above) / (math.log(above) - math.log(below))
    return float(math.exp(math.log(first) + part * math.log(last / first)))
