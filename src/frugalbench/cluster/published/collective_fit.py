"""Constants of the closed form out of published tables: one fit of all tables at once, in logarithms.

Every constant of a table is a factor around that of its group (one family on one device), and that around its family's;
the spreads below pull tables with few rows towards what their kin have, and a table never seen takes its group's or
family's constants as they are. At most half of a table's rows are used: every second one by size.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalbench.cluster import pipelined as p
from frugalbench.cluster.published import collective
from frugalbench.cluster.published.collective import Scene
from frugalbench.cluster.published.points import Point
from frugalbench.schema import Frozen

Array = NDArray[np.float64]
MOST_ROUNDING = 0.05
"""Rows whose printed digits hide more than this are not fitted on."""
NOISE = 0.05
"""Spread of one row (natural logarithm), as weight against the priors."""
START = {"latency": (0.0, 1.0), "pipelining": (0.0, 0.7), "efficiency": (math.log(0.8), 0.3)}
GROUP_SPREAD = {"latency": 0.4, "pipelining": 0.3, "efficiency": 0.12}
TABLE_SPREAD = {"latency": 0.4, "pipelining": 0.3, "efficiency": 0.06}
"""Centre and spread of a family's constants, spread of a group's around it, and of a table's around the group's."""
NAMES = tuple(START)
HOP_START = {"up_s": (math.log(3e-6), 0.7), "net_s": (math.log(14e-6), 0.7)}
"""A hop inside a node and between nodes: centres and spreads of the two constants that all tables share."""
UNSEEN = "no table of the family"
"""Scenes of a family that no table shows: the priors' centres and spreads are all there is."""
CONGESTED = "exchange net"
"""The family whose rate falls with the number of nodes."""


class Row(Frozen, frozen=True, kw_only=True):
    """One measurement; rows that print it twice (time and rate) are one."""

    ids: tuple[str, ...]
    scene: Scene
    time_s: float


class Fit(Frozen, frozen=True, kw_only=True):
    """Fitted constants and the rows that they come from."""

    up_s: float
    net_s: float
    congestion: float
    factors: dict[str, dict[str, float]]
    """Natural logarithms by family, ``family | device`` and table: each around the level above."""
    rows: tuple[str, ...]
    """Ids of every row used."""
    most_nodes: dict[str, int]
    """Largest number of nodes fitted, by table."""

    def constants(self, scene: Scene) -> p.Constants:
        """What holds for a scene: the table's where it was seen, else the group's, else the family's."""
        return self._constants((scene.family, scene.group, scene.table))

    def family(self, family: str, device: str) -> p.Constants:
        """What holds for a family of tables on a device."""
        return self._constants((family, f"{family} | {device}"))

    def _constants(self, keys: tuple[str, ...]) -> p.Constants:
        prior = {name: START[name][0] if keys[0] not in self.factors else 0.0 for name in NAMES}
        levels = [self.factors.get(key, {}) for key in keys]
        found = {name: math.exp(prior[name] + sum(level.get(name, 0.0) for level in levels)) for name in NAMES}
        congestion = self.congestion if keys[0] == CONGESTED else 0.0
        return p.Constants(up_s=self.up_s, net_s=self.net_s, congestion=congestion, **found)

    def seen(self, scene: Scene) -> bool:
        """Whether rows of the scene's table were fitted on."""
        return scene.table in self.most_nodes


def time_s(scene: Scene, fit: Fit) -> float:
    """Seconds of a scene by the fitted constants."""
    constants = fit.constants(scene)
    hops = scene.hops()
    return p.time_s(p.start_s(hops, constants), scene.wire_s(), constants, scene.fabric.nodes, hops.parts)


def rows(points: Iterable[Point]) -> list[Row]:
    """Every measurement of a collective among the points."""
    found: dict[tuple[str, int, float], Row] = {}
    for point in points:
        scene = collective.scene(point)
        if isinstance(scene, str) or scene.ranks < 2 or not point.value:
            continue
        key = (scene.table, scene.ranks, scene.size_bytes)
        ids = (*found[key].ids, point.id) if key in found else (point.id,)
        time = found[key].time_s if key in found else collective.observed_s(point, scene)
        if point.rounding <= MOST_ROUNDING:
            found[key] = Row(ids=ids, scene=scene, time_s=time)
    return list(found.values())


def chosen(every: Sequence[Row]) -> list[Row]:
    """Rows to fit on: every second one by size within a table and number of ranks, at most half of the table."""
    found: list[Row] = []
    for _, table in itertools.groupby(sorted(every, key=_table), key=lambda row: row.scene.table):
        items = list(table)
        by_ranks = [list(g) for _, g in itertools.groupby(items, key=lambda row: row.scene.ranks)]
        groups = [items] if all(len(group) == 1 for group in by_ranks) else by_ranks
        found += [row for group in groups for row in group[len(group) % 2 :: 2]]
    return found


def fit(points: Iterable[Point]) -> Fit:
    """Constants from at most half of the rows of each table."""
    return fit_rows(chosen(rows(points)))


def fit_rows(used: Sequence[Row]) -> Fit:
    """The most probable constants: least squares on logarithms of times, with the spreads above as priors."""
    from scipy.optimize import least_squares

    design = _Design(used)
    solution = least_squares(design.residuals, design.start(), method="trf", x_scale="jac")
    return design.fit(solution.x)


class _Design:
    """Where each constant sits in the vector that is fitted."""

    def __init__(self, used: Sequence[Row]) -> None:
        self.used = used
        keys: dict[str, int] = {}
        for row in used:
            for level, key in enumerate((row.scene.family, row.scene.group, row.scene.table)):
                keys.setdefault(key, level)
        self.keys = list(keys)
        self.levels = list(keys.values())
        place = {key: i for i, key in enumerate(self.keys)}
        triples = [(place[r.scene.family], place[r.scene.group], place[r.scene.table]) for r in used]
        self.index = np.array(triples, dtype=int).reshape(-1, 3)
        hops = [row.scene.hops() for row in used]
        self.up, self.net = np.array([h.up for h in hops]), np.array([h.net for h in hops])
        self.parts = np.array([float(h.parts) for h in hops])
        self.wire_s = np.array([row.scene.wire_s() for row in used])
        self.observed = np.log([row.time_s for row in used])
        crowd = [max(row.scene.fabric.nodes / 4, 1.0) for row in used]
        self.crowd = np.log(crowd) * np.array([row.scene.family == CONGESTED for row in used])
        self.centre, self.spread = self._priors()

    def _priors(self) -> tuple[Array, Array]:
        by_level: tuple[dict[str, Any], ...] = (START, GROUP_SPREAD, TABLE_SPREAD)
        pairs = [
            by_level[level][name] if level == 0 else (0.0, by_level[level][name])
            for name in NAMES
            for level in self.levels
        ]
        pairs += [HOP_START["up_s"], HOP_START["net_s"], (0.0, 0.05)]
        return np.array([c for c, _ in pairs]), np.array([s for _, s in pairs])

    def start(self) -> Array:
        return self.centre.copy()

    def residuals(self, x: Array) -> Array:
        count = len(self.keys)
        parts = {name: x[i * count : (i + 1) * count][self.index].sum(axis=1) for i, name in enumerate(NAMES)}
        up_s, net_s, congestion = np.exp(x[-3]), np.exp(x[-2]), x[-1]
        start_s = np.exp(parts["latency"]) * (self.up * up_s + self.net * net_s)
        load_s = self.wire_s / np.exp(parts["efficiency"] - congestion * self.crowd)
        modelled = start_s + np.exp(parts["pipelining"]) * np.sqrt(start_s / self.parts * load_s) + load_s
        misses: Array = np.concatenate([(np.log(modelled) - self.observed) / NOISE, (x - self.centre) / self.spread])
        return misses

    def vector(self, fit: Fit) -> Array:
        """The constants of a fit in the order of the vector."""
        parts = [fit.factors[key][name] for name in NAMES for key in self.keys]
        return np.array([*parts, math.log(fit.up_s), math.log(fit.net_s), fit.congestion])

    def fit(self, x: Array) -> Fit:
        count = len(self.keys)
        factors = {
            key: {name: _digits(x[i * count + k]) for i, name in enumerate(NAMES)} for k, key in enumerate(self.keys)
        }
        most: dict[str, int] = {}
        for row in self.used:
            most[row.scene.table] = max(most.get(row.scene.table, 0), row.scene.fabric.nodes)
        return Fit(
            up_s=_digits(math.exp(x[-3])),
            net_s=_digits(math.exp(x[-2])),
            congestion=_digits(float(x[-1])),
            factors=factors,
            rows=tuple(sorted(name for row in self.used for name in row.ids)),
            most_nodes=most,
        )


def _digits(value: float) -> float:
    """Six digits: what a fit of such data can claim at the very most."""
    return float(f"{value:.6g}")


def _table(row: Row) -> tuple[str, int, float]:
    return row.scene.table, row.scene.ranks, row.scene.size_bytes


def level(scene: Scene, fit: Fit) -> str:
    """How close the fitted tables are: ``table seen``, ``device seen`` or ``family only``."""
    if scene.table in fit.most_nodes:
        return "table seen"
    if scene.family not in fit.factors:
        return UNSEEN
    return "device seen" if scene.group in fit.factors else "family only"


def pool(scene: Scene, fit: Fit) -> str:
    """Rows whose residuals are comparable: alike in :func:`level` and in whether bytes or start-up take more time."""
    if level(scene, fit) == UNSEEN:
        return UNSEEN
    load_s = scene.wire_s() / fit.constants(scene).efficiency
    return f"{level(scene, fit)}, {'bytes' if load_s >= time_s(scene, fit) / 2 else 'start-up'}"


def left_out(used: Sequence[Row], fit: Fit) -> list[tuple[str, float]]:
    """Pool and logarithmic miss of every fitted row, scaled to what a new row in its place would miss by.

    With leverage ``h`` a residual has the variance ``s^2 (1 - h)``, a new row's miss ``s^2 (1 + h)``.
    """
    design = _Design(used)
    x = design.vector(fit)
    jacobian = _jacobian(design, x)
    hat = np.einsum("ij,ji->i", jacobian, np.linalg.pinv(jacobian))
    leverage = np.clip(hat[: len(used)], 0.0, 0.95)
    misses = design.residuals(x)[: len(used)] * NOISE * np.sqrt((1 + leverage) / (1 - leverage))
    return [(pool(row.scene, fit), float(miss)) for row, miss in zip(used, misses, strict=True)]


def _jacobian(design: _Design, x: Array) -> Array:
    columns = []
    for i in range(len(x)):
        near = x.copy()
        near[i] += 1e-6
        columns.append((design.residuals(near) - design.residuals(x)) / 1e-6)
    return np.array(columns).T
