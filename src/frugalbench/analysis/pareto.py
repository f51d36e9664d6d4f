"""Which schemes of a model nobody beats in everything: right answers, tokens per second, stored bytes, joules.

Accuracy and speed stand in one row only where they are of the same weights: those of ``quantized_model`` come with the
time of its own small batches, and ``model_decode``, whose weights are random, has no accuracy. Descriptive: points are
compared by their values; regimes are never averaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from frugalbench.analysis import noninferiority
from frugalbench.analysis.load import Run
from frugalbench.analysis.matched import Bounds
from frugalbench.analysis.metrics import Row, rows
from frugalbench.analysis.statistics import latest

WHOLE, DECODED = "quantized_model", "model_decode"
REGIMES = ("decode", "prefill")


@dataclass(frozen=True)
class Point:
    """One scheme of one model, in one regime."""

    model: str
    task: str
    """Empty where nothing was answered."""
    regime: str
    """``decode`` or ``prefill``; a batch of a task is read as a prompt is."""
    scheme: str
    accuracy: Bounds | None
    token_per_s: float
    stored_bytes: float
    joule_per_token: float | None
    front: bool = False
    """Whether no other scheme of the model is at least as good in everything and better in something."""


def points(run: Run, baseline: str) -> list[Point]:
    """Every timed scheme, by model, task and regime, the fastest first."""
    found = [*_answered(run, baseline), *_decoded(run)]
    return [point for group in grouped(found).values() for point in _marked(group)]


def grouped(found: Sequence[Point]) -> dict[tuple[str, str, str], list[Point]]:
    """Points by model, task and regime."""
    groups: dict[tuple[str, str, str], list[Point]] = {}
    for point in found:
        groups.setdefault((point.model, point.task, point.regime), []).append(point)
    return groups


def _answered(run: Run, baseline: str) -> list[Point]:
    timed = {row.case: row for row in rows(run) if row.workload == WHOLE}
    return [
        point
        for item in noninferiority.findings(latest(run.records), WHOLE, baseline)
        if item.accuracy and (row := timed.get(item.case.case.id))
        if (point := _point(row, row.regime, "prefill", item.accuracy))
    ]


def _decoded(run: Run) -> list[Point]:
    mine = [row for row in rows(run) if row.workload == DECODED and row.regime in REGIMES]
    return [point for row in mine if (point := _point(row, "", row.regime, None))]


def _point(row: Row, task: str, regime: str, accuracy: Bounds | None) -> Point | None:
    stored = row.facts.get("weight_bytes")
    if not row.token_per_s or stored is None or not stored.value:
        return None
    joule = 1 / row.token_per_joule if row.token_per_joule else None
    return Point(row.shape, task, regime, row.variant, accuracy, row.token_per_s, stored.value, joule)


def _marked(group: Sequence[Point]) -> list[Point]:
    joules = all(point.joule_per_token is not None for point in group)
    goods = {id(point): _goods(point, joules) for point in group}
    made = [
        Point(**{**vars(point), "front": not any(_beats(goods[id(other)], goods[id(point)]) for other in group)})
        for point in group
    ]
    return sorted(made, key=lambda point: -point.token_per_s)


def _goods(point: Point, joules: bool) -> tuple[float, ...]:
    """The more of each the better."""
    found = [point.token_per_s, -point.stored_bytes]
    found += [point.accuracy.value] if point.accuracy else []
    return tuple([*found, -(point.joule_per_token or 0.0)] if joules else found)


def _beats(ours: tuple[float, ...], theirs: tuple[float, ...]) -> bool:
    return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))
