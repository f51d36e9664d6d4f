"""Numbers that are known only to lie between two bounds, and the arithmetic of independent ones."""

import itertools
from collections.abc import Callable, Iterable, Mapping

from frugalbench.schema import Frozen, FrugalbenchError, Quantity, Tier

MOST_WIDE = 16
"""Inputs with width; each doubles the number of corners."""


class Range(Frozen, frozen=True, kw_only=True):
    """A central value and the bounds that its inputs allow. All three are equal for an exact number."""

    value: float
    low: float
    high: float

    def __mul__(self, other: "Range") -> "Range":
        """Product of two independent positive ranges."""
        return Range(value=self.value * other.value, low=self.low * other.low, high=self.high * other.high)

    def __truediv__(self, other: "Range") -> "Range":
        """Quotient of two independent positive ranges."""
        return Range(value=self.value / other.value, low=self.low / other.high, high=self.high / other.low)

    def quantity(self, unit: str, source: str, tier: Tier = Tier.MODELLED) -> Quantity:
        """The stored form."""
        return Quantity(value=self.value, low=self.low, high=self.high, unit=unit, tier=tier, source=source)


def exact(value: float) -> Range:
    """A range without width."""
    return Range(value=value, low=value, high=value)


def spanning(value: float, others: Iterable[float]) -> Range:
    """``value`` with the smallest range that also holds ``others``."""
    every = [value, *others]
    return Range(value=value, low=min(every), high=max(every))


def propagate(model: Callable[[dict[str, float]], list[float]], inputs: Mapping[str, Range]) -> list[Range]:
    """Evaluate ``model`` at the central inputs and at every corner of their box.

    The bounds are exact where a result is monotone in each input, which holds for times, rates and their ratios here.
    Inputs without width add no corners; the cost is 2 to the power of the number of the others, so there is a limit:
    raises :class:`FrugalbenchError` beyond it.
    """
    centre = {name: item.value for name, item in inputs.items()}
    wide = [name for name, item in inputs.items() if item.low < item.high]
    if len(wide) > MOST_WIDE:
        raise FrugalbenchError(
            f"{len(wide)} inputs of the clusters are ranges; {MOST_WIDE} are the most whose corners can all be tried. "
            "Give some of them without 'low' and 'high'."
        )
    ends = [(inputs[name].low, inputs[name].high) for name in wide]
    corners = [model({**centre, **dict(zip(wide, corner, strict=True))}) for corner in itertools.product(*ends)]
    return [spanning(value, others) for value, *others in zip(model(centre), *corners, strict=True)]
