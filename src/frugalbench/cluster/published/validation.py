"""How well the model does: per published table, fitted and test rows apart, every large miss explained."""

import statistics
from collections.abc import Iterable, Sequence
from functools import cache

import msgspec

from frugalbench import paths
from frugalbench.cluster.hardware import convert, read_toml
from frugalbench.cluster.published.points import Point
from frugalbench.cluster.published.predict import Prediction
from frugalbench.schema import Frozen

LARGE_MISS = 0.15
LARGE_BYTES = 64 * 2.0**20
UNEXPLAINED = "unexplained"


class Score(Frozen, frozen=True, kw_only=True):
    """Errors of a set of rows, absolute and relative; ``None`` where no row has a prediction."""

    name: str
    rows: int
    predicted: int
    median: float | None
    p95: float | None
    most: float | None
    held_80: float | None
    """Share of the predicted rows inside the 80% interval."""
    held_95: float | None


class Miss(Frozen, frozen=True, kw_only=True):
    """A row missed by more than :data:`LARGE_MISS`."""

    prediction: Prediction
    why: str


class _Explained(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    ids: tuple[str, ...]
    why: str


class _Explanations(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    miss: tuple[_Explained, ...]


@cache
def explanations() -> dict[str, str]:
    """Why a row is missed, by id."""
    found = convert(read_toml(paths.data("network", "misses.toml")), _Explanations, "misses.toml")
    return {name: item.why for item in found.miss for name in item.ids}


def misses(predictions: Iterable[Prediction]) -> list[Miss]:
    """Every row whose error exceeds 15%, the largest first."""
    large = [p for p in predictions if p.error is not None and abs(p.error) > LARGE_MISS]
    large.sort(key=lambda p: -abs(p.error or 0.0))
    return [Miss(prediction=p, why=explanations().get(p.id, UNEXPLAINED)) for p in large]


def score(name: str, predictions: Sequence[Prediction]) -> Score:
    """The errors of some rows."""
    held = [p for p in predictions if p.error is not None]
    sizes = sorted(abs(p.error) for p in held if p.error is not None)
    return Score(
        name=name,
        rows=len(predictions),
        predicted=len(sizes),
        median=statistics.median(sizes) if sizes else None,
        p95=sizes[min(int(0.95 * len(sizes)), len(sizes) - 1)] if sizes else None,
        most=sizes[-1] if sizes else None,
        held_80=_held(held, "80"),
        held_95=_held(held, "95"),
    )


def overall(points: Sequence[Point], predictions: Sequence[Prediction]) -> list[Score]:
    """Fitted and test rows, and of the test rows those of collectives, small and large."""
    test = [p for p in predictions if not p.fitted_on]
    size = {point.id: point.size_bytes for point in points}
    rates = [p for p in test if _collective(p)]
    return [
        score("all rows fitted on", [p for p in predictions if p.fitted_on]),
        score("all test rows", test),
        score("test rows of collectives", rates),
        score("… of at least 64 MiB", [p for p in rates if (size[p.id] or 0) >= LARGE_BYTES]),
        score("… of less", [p for p in rates if 0 < (size[p.id] or 0) < LARGE_BYTES]),
        score("other test rows", [p for p in test if not _collective(p)]),
    ]


def tables(points: Sequence[Point], predictions: Sequence[Prediction]) -> list[tuple[str, Score, Score]]:
    """Fitted and test rows of every published table: one source and one system."""
    groups: dict[str, list[Prediction]] = {}
    for point, found in zip(points, predictions, strict=True):
        groups.setdefault(f"{point.system} ({point.source})" if point.source else point.system, []).append(found)
    return [
        (name, score("fit", [p for p in rows if p.fitted_on]), score("test", [p for p in rows if not p.fitted_on]))
        for name, rows in groups.items()
    ]


def unpredicted(predictions: Iterable[Prediction]) -> dict[str, list[str]]:
    """Reason to the ids of the rows without a prediction."""
    found: dict[str, list[str]] = {}
    for p in predictions:
        if p.predicted is None:
            found.setdefault(p.reason, []).append(p.id)
    return found


def _held(predictions: Sequence[Prediction], level: str) -> float | None:
    inside = [getattr(p, f"low_{level}") <= p.value <= getattr(p, f"high_{level}") for p in predictions]
    return sum(inside) / len(inside) if inside else None


def _collective(p: Prediction) -> bool:
    return p.predicted is not None and ("table seen" in p.reason or "device seen" in p.reason or "family" in p.reason)
