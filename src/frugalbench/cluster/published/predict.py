"""A prediction with intervals for every row of a file, or why there is none."""

import math
from collections.abc import Iterable, Sequence

import msgspec

from frugalbench.cluster.published import (
    collective,
    collective_fit,
    device_rows,
    exchange_rows,
    serving_rows,
    training_rows,
    wan_rows,
)
from frugalbench.cluster.published.constants import Constants, interval, shipped
from frugalbench.cluster.published.guess import Guess
from frugalbench.cluster.published.points import Point
from frugalbench.schema import Frozen

NO_KIND = "no model for this kind of row: it is neither a collective, an exchange, a device's rate nor a training run"
_REASONS = (
    ("error", "another simulator's error, not a figure of a system"),
    ("alignment", "another simulator's error, not a figure of a system"),
    ("count in", "failures are not in the closed form"),
    ("variation", "changes over the day are not in the closed form"),
    ("per second", "the speed of a simulator"),
    ("time to train", "tokens until the target are not published"),
    ("power", "power is an input, not a prediction"),
    ("gain", "caching and mixed devices are not in the closed form"),
    ("ems", "caching is not in the closed form"),
    ("model load", "loading is not in the closed form"),
    ("theoretical bound", "mixed devices are not in the closed form"),
    ("prefill", "serving is modelled of DeepSeek-V3's shape on CloudMatrix 384 and GB200 NVL72 only"),
    ("utilisation", "utilisation of single kernels is not in the closed form"),
    ("ratio", "memory cards are not in the closed form"),
    ("weak scaling efficiency", "the layout of this run is not published"),
)


class Prediction(Frozen, frozen=True, kw_only=True):
    """One row: published figure, prediction, intervals, all in the row's own unit; ``None`` where none is made."""

    id: str
    value: float
    unit: str
    predicted: float | None
    error: float | None
    """``predicted / value - 1``; ``None`` also for a published zero."""
    low_80: float | None
    high_80: float | None
    low_95: float | None
    high_95: float | None
    fitted_on: bool
    """A constant of the model rests on this row."""
    reason: str
    """What the prediction rests on, or why there is none."""
    system: str
    work: str
    metric: str


def predict(points: Sequence[Point], constants: Constants | None = None) -> list[Prediction]:
    """One prediction per row, in the order of the rows. ``constants``: the shipped ones unless given."""
    known = constants or shipped()
    scenes: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        scenes.setdefault((point.system, point.work), []).append(point)
    used = known.fitted_on()
    return [_prediction(p, _guess(p, scenes[p.system, p.work], known), known, p.id in used) for p in points]


def guess(point: Point, constants: Constants, siblings: Sequence[Point] = ()) -> Guess | str:
    """The prediction of one row in SI units, or the reason why there is none. ``siblings``: other rows of its scene."""
    return _guess(point, siblings, constants)


def _guess(point: Point, scene: Sequence[Point], known: Constants) -> Guess | str:
    siblings = [other for other in scene if other.id != point.id]
    for found in _tries(point, siblings, known):
        if found:
            return found
    text = f"{point.metric} {point.work}".lower()
    return next((reason for word, reason in _REASONS if word in text), NO_KIND)


def _tries(point: Point, siblings: Sequence[Point], known: Constants) -> Iterable[Guess | str]:
    yield wan_rows.guess(point, siblings, known.wan)
    yield exchange_rows.guess(point, known.exchange, known.collective)
    yield serving_rows.guess(point)
    yield device_rows.guess(point, known.device)
    yield _collective(point, known)
    yield training_rows.guess(point, known.training, known.collective)


def _collective(point: Point, known: Constants) -> Guess | str:
    scene = collective.scene(point)
    if isinstance(scene, str):
        return scene
    if scene.ranks < 2:
        return "a collective needs two devices"
    fit = known.collective
    scene = _tuned(point, scene, fit)
    time_s = _within_the_wire_s(scene, fit)
    most = fit.most_nodes.get(scene.table, max(fit.most_nodes.values()))
    return Guess(
        si=collective.metric(point, scene, time_s),
        pool=collective_fit.pool(scene, fit),
        basis=f"{scene.algorithm} {scene.operation}, {scene.family}; {collective_fit.level(scene, fit)}",
        doublings=max(math.log2(scene.fabric.nodes / most), 0.0),
    )


def _within_the_wire_s(scene: collective.Scene, fit: collective_fit.Fit) -> float:
    """Constants of other tables can pass the data sheet's rate by a few percent; only a table of its own shows that."""
    time_s = collective_fit.time_s(scene, fit)
    return time_s if fit.seen(scene) else max(time_s, scene.wire_s())


def _tuned(point: Point, scene: collective.Scene, fit: collective_fit.Fit) -> collective.Scene:
    """The faster of ring and tree, as a library's tuner chooses, where no table shows it and the row names neither."""
    named = "ring" in point.text() or scene.algorithm != "ring" or scene.operation != "all_reduce"
    if named or scene.fabric.nodes < 2 or fit.seen(scene):
        return scene
    tree = msgspec.structs.replace(scene, algorithm="tree")
    return min(scene, tree, key=lambda item: collective_fit.time_s(item, fit))


def _prediction(point: Point, found: Guess | str, known: Constants, used: bool) -> Prediction:
    common = {
        "id": point.id, "value": point.value, "unit": point.unit, "system": point.system, "work": point.work,
        "metric": point.metric,
    }  # fmt: skip
    if isinstance(found, str) or not math.isfinite(found.si) or found.si <= 0:
        reason = found if isinstance(found, str) else "a figure that the prediction needs is missing"
        nothing = dict.fromkeys(("predicted", "error", "low_80", "high_80", "low_95", "high_95"))
        return Prediction(**common, **nothing, fitted_on=used, reason=reason)  # type: ignore[arg-type]
    value = found.si / point.factor
    low_80, high_80, low_95, high_95 = interval(known, found, point.rounding)
    most = 100.0 if point.unit.strip() == "%" and "error" not in point.metric else math.inf
    return Prediction(
        **common,  # type: ignore[arg-type]
        predicted=value,
        error=value / point.value - 1 if point.value else None,
        low_80=value * low_80,
        high_80=min(value * high_80, most),
        low_95=value * low_95,
        high_95=min(value * high_95, most),
        fitted_on=used or found.fitted,
        reason=found.basis,
    )
