"""Everything that was fitted, with the ids of the rows it was fitted on: ``data/network/constants.json``."""

import math
from functools import cache

import msgspec

from frugalbench import paths
from frugalbench.cluster.published.collective_fit import Fit
from frugalbench.cluster.published.guess import Guess
from frugalbench.schema import Frozen, FrugalbenchError


class Spread(Frozen, frozen=True, kw_only=True):
    """Half-widths of intervals in natural logarithms, from residuals of rows that did not decide the prediction."""

    width_80: float
    width_95: float
    residuals: int
    how: str


class Training(Frozen, frozen=True, kw_only=True):
    """Constants of the training step."""

    product: float
    """Share of the achieved rate of large products."""
    traffic: float
    """Passes over activations."""
    stack: dict[str, float]
    """Factor on the step's time by software; ``other`` is their geometric mean."""


class Trial(Frozen, frozen=True, kw_only=True):
    """A fit of the collectives without some rows, and how far it misses these."""

    left_out: str
    family: str
    rows: int
    median: float
    most: float


class Constants(Frozen, frozen=True, kw_only=True):
    """The file."""

    collective: Fit
    training: Training
    exchange: dict[str, dict[str, float]]
    wan: dict[str, float]
    device: dict[str, float]
    serving: dict[str, float]
    """``imbalance``: load of the busiest rank over the mean one's."""
    rows: dict[str, tuple[str, ...]]
    """Ids used, by part."""
    spread: dict[str, Spread]
    per_doubling: float
    """Half-width of an 80% interval per doubling of nodes beyond those fitted."""

    systems: tuple[Trial, ...] = ()
    """Each system left out whole, its fitted rows predicted."""
    scales: tuple[Trial, ...] = ()
    """Every number of nodes beyond a limit left out, all rows beyond it predicted."""

    def fitted_on(self) -> frozenset[str]:
        """Every id used anywhere."""
        return frozenset(name for ids in self.rows.values() for name in ids)


@cache
def shipped() -> Constants:
    """The constants that come with the package. Raises :class:`FrugalbenchError` for a damaged file."""
    path = paths.data("network", "constants.json")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Constants)
    except (OSError, msgspec.DecodeError) as problem:
        raise FrugalbenchError(f"{path}: cannot be read: {problem}") from None


def interval(constants: Constants, guess: Guess, rounding: float) -> tuple[float, float, float, float]:
    """Low and high at 80%, low and high at 95%, as factors on the prediction.

    ``rounding``: what the printed digits of the published figure may hide.
    """
    bounds: list[float] = []
    for name, normal in (("80", 1.2816), ("95", 1.96)):
        width = _width(constants, guess, name, normal)
        far = guess.doublings * constants.per_doubling * normal / 1.2816
        total = math.sqrt(width**2 + far**2 + min(rounding, 1.0) ** 2)
        bounds += [math.exp(-total), math.exp(total)]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _width(constants: Constants, guess: Guess, level: str, normal: float) -> float:
    if guess.spread is not None:
        return normal * guess.spread
    found: float = getattr(constants.spread[guess.pool], f"width_{level}")
    return found
