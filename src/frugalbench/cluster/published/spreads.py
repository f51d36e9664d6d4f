"""How far the model misses what did not decide it: fitted rows scaled for leverage, systems and scales left out."""

import itertools
import math
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from frugalbench.cluster.published import collective_fit as c
from frugalbench.cluster.published import device_rows, training_rows, wan_rows
from frugalbench.cluster.published.constants import Constants, Spread, Trial
from frugalbench.cluster.published.fitted_rows import SHARE_ROWS, STEP_ROWS, si, six, step_constants
from frugalbench.cluster.published.points import Point

SCALES = (2, 4)
"""Nodes of the largest rows fitted where four and eight times as many are predicted."""
EXTRAPOLATED = 4
"""Nodes of the largest rows fitted when the cost of extrapolation is found."""


def with_spreads(made: Constants, points: Sequence[Point]) -> Constants:
    """The same with the spread of residuals of every kind of prediction."""
    by_id = {point.id: point for point in points}
    used = c.chosen(c.rows(points))
    pools = _collective_misses(used, made.collective)
    spread = {name: _spread(misses, "fitted rows or systems left out") for name, misses in sorted(pools.items())}
    spread = _never_narrower(spread)
    every = [miss for misses in pools.values() for miss in misses]
    seen = [miss for name, misses in pools.items() if name.startswith("table seen") for miss in misses]
    stacks = [math.log(value / made.training.stack["other"]) for value in made.training.stack.values()]
    shares = _share_misses(by_id)
    spread |= {
        "exchange rows": _spread(seen, "collectives of tables that were seen"),
        "bulk exchange": _spread(every, "collectives, systems left out included"),
        "training": _spread(_step_misses(by_id, made.collective), "iteration times left out"),
        "training elsewhere": _spread(stacks, "one software's factor against the others'"),
        "matrix product": _spread(shares, "shares of peak left out"),
        "memory": _spread(shares, "shares of peak left out"),
        "access": spread["table seen, bytes"],
        "system": _spread(shares, "shares of peak left out"),
        c.UNSEEN: _prior_spread(),
        "wan ring": Spread(width_80=math.log(2.5), width_95=math.log(6.0), residuals=0, how="assumed: paths differ"),
        "grid": Spread(
            width_80=wan_rows.STEP * math.log(10) / 2, width_95=wan_rows.STEP * math.log(10) * 1.5, residuals=0,
            how="half a step and one and a half steps of the published grid",
        ),
    }  # fmt: skip
    return msgspec.structs.replace(
        made,
        spread=spread,
        per_doubling=six(_per_doubling(used)),
        systems=tuple(_systems(used)),
        scales=tuple(_scales(used, c.rows(points))),
    )


NEARNESS = ("table seen", "device seen", "family only")


def _never_narrower(spread: dict[str, Spread]) -> dict[str, Spread]:
    """What rests on tables further away is at least as wide as what rests on nearer ones."""
    found = dict(spread)
    for part in ("bytes", "start-up"):
        names = [f"{near}, {part}" for near in NEARNESS if f"{near}, {part}" in found]
        for near, far in itertools.pairwise(names):
            widths = {key: max(getattr(found[near], key), getattr(found[far], key)) for key in ("width_80", "width_95")}
            found[far] = msgspec.structs.replace(found[far], **widths)
    return found


def _prior_spread() -> Spread:
    """Of the achieved share, as the priors of family, device and table have it together."""
    spreads = (c.START["efficiency"][1], c.GROUP_SPREAD["efficiency"], c.TABLE_SPREAD["efficiency"])
    width = math.hypot(*spreads)
    return Spread(width_80=six(1.2816 * width), width_95=six(1.96 * width), residuals=0, how="the priors' spread")


def _collective_misses(used: Sequence[c.Row], fit: c.Fit) -> dict[str, list[float]]:
    pools: dict[str, list[float]] = {}
    for name, miss in c.left_out(used, fit):
        pools.setdefault(name, []).append(miss)
    for _, inside, without in _without_each_system(used):
        for row in inside:
            pools.setdefault(c.pool(row.scene, without), []).append(_miss(row, without))
    return pools


def _without_each_system(used: Sequence[c.Row]) -> list[tuple[str, list[c.Row], c.Fit]]:
    """System, those of its rows whose family others have too, and the fit without all of its rows."""
    found = []
    for system in sorted({row.scene.table.partition(" | ")[0] for row in used}):
        inside = [row for row in used if row.scene.table.startswith(f"{system} | ")]
        without = c.fit_rows([row for row in used if row not in inside])
        found.append((system, [row for row in inside if row.scene.family in without.factors], without))
    return found


def _systems(used: Sequence[c.Row]) -> list[Trial]:
    return [
        _trial(system, family, [row for row in inside if row.scene.family == family], without)
        for system, inside, without in _without_each_system(used)
        for family in sorted({row.scene.family for row in inside})
    ]


def _scales(used: Sequence[c.Row], every: Sequence[c.Row]) -> list[Trial]:
    found = []
    for most in SCALES:
        fit = c.fit_rows([row for row in used if row.scene.fabric.nodes <= most])
        far = [row for row in every if row.scene.fabric.nodes > most and fit.seen(row.scene)]
        for nodes, family in sorted({(row.scene.fabric.nodes, row.scene.family) for row in far}):
            if nodes in (4 * most, 8 * most):
                rows = [r for r in far if (r.scene.fabric.nodes, r.scene.family) == (nodes, family)]
                found.append(_trial(f"more than {most} nodes; {nodes} predicted", family, rows, fit))
    return found


def _trial(left_out: str, family: str, rows: Sequence[c.Row], fit: c.Fit) -> Trial:
    sizes = [abs(math.expm1(_miss(row, fit))) for row in rows]
    return Trial(
        left_out=left_out, family=family, rows=len(rows), median=six(float(np.median(sizes))), most=six(max(sizes))
    )


def _miss(row: c.Row, fit: c.Fit) -> float:
    return math.log(c.time_s(row.scene, fit) / row.time_s)


def _per_doubling(used: Sequence[c.Row]) -> float:
    near = [row for row in used if row.scene.fabric.nodes <= EXTRAPOLATED]
    fit = c.fit_rows(near)
    far = [row for row in used if row.scene.fabric.nodes > EXTRAPOLATED and fit.seen(row.scene)]
    misses = [
        abs(math.log(c.time_s(row.scene, fit) / row.time_s)) / math.log2(row.scene.fabric.nodes / EXTRAPOLATED)
        for row in far
    ]
    return _quantile(misses, 0.8)


def _step_misses(by_id: dict[str, Point], fit: c.Fit) -> list[float]:
    """Each of the iteration times predicted by constants from the other two."""
    from scipy.optimize import least_squares

    found = []
    for left in STEP_ROWS:
        kept = [name for name in STEP_ROWS if name != left]

        def miss(name: str, x: Iterable[float]) -> float:
            trial = step_constants(*(math.exp(v) for v in x))
            return math.log(si(training_rows.guess(by_id[name], trial, fit)) / by_id[name].si)

        x = least_squares(lambda v, names=kept: [miss(n, v) for n in names], [math.log(0.85), math.log(5.0)]).x
        found.append(miss(left, x))
    return found


def _share_misses(by_id: dict[str, Point]) -> list[float]:
    ones = dict.fromkeys(SHARE_ROWS, 1.0)
    found = []
    for ids in SHARE_ROWS.values():
        shares = [math.log(by_id[i].si / si(device_rows.guess(by_id[i], ones))) for i in ids]
        found += [s - float(np.median(shares[:k] + shares[k + 1 :])) for k, s in enumerate(shares) if len(shares) > 1]
    return found


def _spread(misses: Sequence[float], how: str) -> Spread:
    sizes = [abs(miss) for miss in misses]
    return Spread(
        width_80=six(_quantile(sizes, 0.80)), width_95=six(_quantile(sizes, 0.95)), residuals=len(sizes), how=how
    )


def _quantile(sizes: Sequence[float], share: float) -> float:
    """The ``share (n + 1)``-th smallest (conformal); with too few to reach it, a normal's multiple of their spread."""
    ordered = sorted(sizes)
    rank = math.ceil(share * (len(ordered) + 1))
    if rank <= len(ordered):
        return ordered[rank - 1]
    from scipy.stats import t

    scale = math.sqrt(sum(size**2 for size in ordered) / len(ordered))
    return float(scale * t.ppf((1 + share) / 2, max(len(ordered) - 1, 1)))
