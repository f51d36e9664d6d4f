"""Emulated networks: what was timed, beside what the model predicts from two calibration cases.

The model is :mod:`frugalbench.gloo`'s. Its two constants are fitted to the cases that their specification marks
``calibration``; every other size, number of ranks, link and collective is predicted with them as they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import msgspec

from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row, rows
from frugalbench.analysis.statistics import counted
from frugalbench.gloo import FRAMED, Costs, Network, Work, all_reduce_s, all_to_all_s, step_s

WORKLOAD = "emulated_network"
_START_MESSAGE_S = 3e-4
_MESSAGE_S, _PAYLOAD = (1e-6, 0.1), (0.5, 1.0)
"""Between which the fit looks."""
_ITEM_BYTES = 4
_MOST_RANKS, _MOST_BYTES = 64, 2**34


@dataclass(frozen=True)
class Point:
    """One case on one network."""

    scene: str
    """Variant of the case."""
    regime: str
    network: Network
    work: Work
    calibration: bool
    row: Row

    @property
    def ranks(self) -> int:
        """Their number."""
        return len(self.network.ports)

    @property
    def size_bytes(self) -> int:
        """What one rank holds."""
        return self.work.elements * _ITEM_BYTES

    @property
    def time_s(self) -> float:
        """Per call, median of replicates."""
        assert self.row.time_s is not None
        return self.row.time_s

    def predicted_s(self, costs: Costs) -> float:
        """By the model."""
        if self.work.kind == "all_to_all":
            blocks = [[_ITEM_BYTES * float(elements) for elements in row] for row in self.work.blocks]
            return all_to_all_s(self.network, blocks, costs)
        if self.work.kind == "step":
            work = self.work
            times = (work.compute_s, work.steps, work.overlap, work.shares)
            return step_s(self.network, self.size_bytes, costs, *times)
        return all_reduce_s(self.network, self.size_bytes, costs)

    def miss(self, costs: Costs) -> float:
        """Signed relative error of the prediction."""
        return self.predicted_s(costs) / self.time_s - 1


@dataclass(frozen=True)
class Emulated:
    """A run's points, and the constants fitted to its calibration cases; ``None`` without two of them."""

    points: tuple[Point, ...]
    costs: Costs | None

    @property
    def misses(self) -> list[float]:
        """Absolute relative errors of what took no part in the fit, ascending."""
        costs = self.costs
        return sorted(abs(point.miss(costs)) for point in self.points if not point.calibration) if costs else []

    @property
    def median_miss(self) -> float | None:
        """Of the points that were predicted."""
        return median(self.misses) if self.misses else None


def emulated(run: Run) -> Emulated:
    """Every measured case of an emulated network, in the order of the records."""
    params = {r.case.id: r.case.params for r in run.records if r.case.workload == WORKLOAD and counted(r)}
    found = [_point(row, params[row.case]) for row in rows(run) if row.case in params and row.time_s]
    points = tuple(point for point in found if point is not None)
    return Emulated(points, fit([point for point in points if point.calibration]))


def _point(row: Row, params: dict[str, Any]) -> Point | None:
    """``None`` where a record's parameters describe no network that can be computed."""
    try:
        network = msgspec.convert(params.get("network"), Network)
        work = msgspec.convert(params.get("work"), Work)
    except msgspec.ValidationError:
        return None
    point = Point(row.variant, row.regime, network, work, params.get("calibration") is True, row)
    return point if _sane(point) else None


def _sane(point: Point) -> bool:
    ports, wan, work = point.network.ports, point.network.wan, point.work
    rates = [port.rate_bytes_per_s for port in ports] + ([wan.rate_bytes_per_s] if wan else [])
    square = work.kind != "all_to_all" or [len(row) for row in work.blocks] == [point.ranks] * point.ranks
    amounts = [value for row in work.blocks for value in row]
    return (
        2 <= point.ranks <= _MOST_RANKS
        and 0 < point.size_bytes <= _MOST_BYTES
        and all(0 < rate < math.inf for rate in rates)
        and (wan is None or 0 <= wan.delay_s < math.inf)
        and all(0 <= value <= _MOST_BYTES for value in amounts)
        and all(0 <= port.pace < math.inf for port in ports)
        and 0 <= work.compute_s * work.steps < math.inf
        and len(work.shares) in (0, point.ranks)
        and all(0 <= part < math.inf for part in work.shares)
        and square
    )


def fit(points: Sequence[Point]) -> Costs | None:
    """Constants with the least squared relative errors; ``None`` with fewer than two sizes."""
    if len({point.size_bytes for point in points}) < 2:
        return None
    from scipy.optimize import least_squares

    def errors(found: Sequence[float]) -> list[float]:
        costs = Costs(message_s=math.exp(found[0]), payload=found[1])
        return [math.log(point.predicted_s(costs) / point.time_s) for point in points]

    (least_s, most_s), (least, most) = _MESSAGE_S, _PAYLOAD
    bounds = ([math.log(least_s), least], [math.log(most_s), most])
    message, payload = least_squares(errors, [math.log(_START_MESSAGE_S), FRAMED], bounds=bounds).x
    return Costs(message_s=math.exp(float(message)), payload=float(payload))
