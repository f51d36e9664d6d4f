"""``python -m frugalbench.cluster.published.refit``: every constant anew from the shipped rows, and how far they miss.

At most half of a table's rows are fitted on. Intervals rest on rows that did not decide the prediction: each fitted row
left out, each system left out, and more nodes than were fitted.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from frugalbench import paths
from frugalbench.cluster.published import collective_fit as c
from frugalbench.cluster.published import device_rows, exchange_rows, training_rows, wan_rows
from frugalbench.cluster.published.constants import Constants, Spread, Training, Trial
from frugalbench.cluster.published.guess import Guess
from frugalbench.cluster.published.points import Point, published

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
WAN_ROWS = {"continental": ("P0604",), "intercontinental": ("P0626",)}
SHARE_ROWS = {
    "bf16_share": ("P0155", "P0157", "P0159", "P0161"), "fp8_share": ("P0149", "P0163", "P0165"),
    "fp4_share": ("P0151",), "memory_share": ("P0154",),
}  # fmt: skip
ACCESS_ROWS = {"bandwidth": ("P0379", "P0385", "P0389", "P0391"), "latency": ("P0380", "P0386", "P0390", "P0392")}
"""Four of the eight combinations of direction, partner and distance, enough for one factor each."""
SCALES = (2, 4)
"""Nodes of the largest rows fitted where four and eight times as many are predicted."""
EXTRAPOLATED = 4
"""Nodes of the largest rows fitted when the cost of extrapolation is found."""


def main() -> int:
    """Write the file."""
    made = refit(published())
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else paths.data("network", "constants.json")
    target.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")
    print(f"wrote {target}", file=sys.stderr)
    return 0


def refit(points: Sequence[Point]) -> Constants:
    """Every constant and every spread, from the rows named above and every second row of each collective's table."""
    return with_spreads(constants(points), points)


def constants(points: Sequence[Point]) -> Constants:
    """Every constant; spreads are empty. Reads no row that it does not name in ``rows``."""
    by_id = {point.id: point for point in points}
    fit = c.fit(points)
    return Constants(
        collective=fit,
        training=_training(by_id, fit),
        exchange=_exchange(by_id),
        wan={name: _six(_wan_rate(by_id[ids[0]])) for name, ids in WAN_ROWS.items()},
        device=_device(by_id),
        rows=_rows(fit),
        spread={},
        per_doubling=0.0,
    )


def _rows(fit: c.Fit) -> dict[str, tuple[str, ...]]:
    step = [*STEP_ROWS, *STACK_ROWS.values()]
    shares = [name for ids in SHARE_ROWS.values() for name in ids]
    return {
        "collective": fit.rows,
        "training": (*step, *(twin for name in step for twin in TWINS.get(name, ()))),
        "exchange": (*(name for ids in EXCHANGE_ROWS.values() for name in ids), *EXCHANGE_TWINS),
        "wan": tuple(name for ids in WAN_ROWS.values() for name in ids),
        "device": (*shares, *(name for ids in ACCESS_ROWS.values() for name in ids)),
    }


def _training(by_id: dict[str, Point], fit: c.Fit) -> Training:
    from scipy.optimize import least_squares

    def misses(x: Iterable[float]) -> list[float]:
        trial = _step_constants(*(math.exp(v) for v in x))
        return [math.log(_si(training_rows.guess(by_id[name], trial, fit)) / by_id[name].si) for name in STEP_ROWS]

    product, traffic = (_six(math.exp(v)) for v in least_squares(misses, [math.log(0.85), math.log(5.0)]).x)
    plain = _step_constants(product, traffic)
    stack = {"megatron 2022": 1.0}
    for name, row in STACK_ROWS.items():
        stack[name] = _six(_si(training_rows.guess(by_id[row], plain, fit)) / by_id[row].si)
    stack["other"] = _six(math.exp(float(np.mean([math.log(value) for value in stack.values()]))))
    return Training(product=product, traffic=traffic, stack=stack)


def _step_constants(product: float, traffic: float) -> Training:
    return Training(product=product, traffic=traffic, stack={"megatron 2022": 1.0, "other": 1.0})


def _exchange(by_id: dict[str, Point]) -> dict[str, dict[str, float]]:
    """Nonnegative least squares on relative misses of each library's rows.

    DeepEP's kernels: one start-up and the achieved share of the link. The others: a start-up for each operation and a
    cost per doubling of ranks; their bytes count at the wire's rate.
    """
    from scipy.optimize import nnls

    found: dict[str, dict[str, float]] = {}
    for name, ids in EXCHANGE_ROWS.items():
        rows = [by_id[row] for row in ids]
        shared = name == "deepep low-latency"
        matrix = np.array([_exchange_terms(row, shared) for row in rows])
        time_s = np.array([row.si for row in rows])
        left_s = time_s - (0.0 if shared else np.array([exchange_rows.link_s(row) for row in rows]))
        scaled = nnls(matrix / time_s[:, None], left_s / time_s)[0]
        dispatch, combine, doubling, inverse = (scaled[0], scaled[0], 0.0, scaled[1]) if shared else (*scaled, 1.0)
        found[name] = {
            "dispatch_s": _six(dispatch), "combine_s": _six(combine), "doubling_s": _six(doubling),
            "achieved": _six(1 / inverse),
        }  # fmt: skip
    names = list(next(iter(found.values())))
    found["other"] = {name: _six(float(np.mean([item[name] for item in found.values()]))) for name in names}
    return found


def _exchange_terms(row: Point, shared: bool) -> list[float]:
    """Columns: start-up (of either kind), doublings, and the bytes where the achieved share is fitted."""
    if shared:
        return [1.0, exchange_rows.link_s(row)]
    dispatch = exchange_rows.operation(row) == "dispatch"
    return [float(dispatch), float(not dispatch), math.log2(exchange_rows.ranks(row))]


def _wan_rate(row: Point) -> float:
    found = wan_rows.guess(row, (), {"continental": 1.0, "intercontinental": 1.0})
    return _si(found) / row.si


def _device(by_id: dict[str, Point]) -> dict[str, float]:
    ones = dict.fromkeys(SHARE_ROWS, 1.0)
    found = {
        name: _six(float(np.median([by_id[i].si / _si(device_rows.guess(by_id[i], ones)) for i in ids])))
        for name, ids in SHARE_ROWS.items()
    }
    plain = {f"{kind}_{name}": 1.0 for kind in ACCESS_ROWS for name in device_rows.FEATURES}
    for kind, ids in ACCESS_ROWS.items():
        matrix = np.array([device_rows.features(by_id[i]) for i in ids])
        target = np.log([by_id[i].si / _si(device_rows.guess(by_id[i], plain)) for i in ids])
        weights = np.linalg.lstsq(matrix, target, rcond=None)[0]
        for name, weight in zip(device_rows.FEATURES, weights, strict=True):
            found[f"{kind}_{name}"] = _six(math.exp(weight))
    return found


def with_spreads(made: Constants, points: Sequence[Point]) -> Constants:
    """The same with the spread of residuals of every kind of prediction."""
    by_id = {point.id: point for point in points}
    used = c.chosen(c.rows(points))
    pools = _collective_misses(used, made.collective)
    spread = {name: _spread(misses, "fitted rows or systems left out") for name, misses in sorted(pools.items())}
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
        per_doubling=_six(_per_doubling(used)),
        systems=tuple(_systems(used)),
        scales=tuple(_scales(used, c.rows(points))),
    )


def _prior_spread() -> Spread:
    """Of the achieved share, as the priors of family, device and table have it together."""
    spreads = (c.START["efficiency"][1], c.GROUP_SPREAD["efficiency"], c.TABLE_SPREAD["efficiency"])
    width = math.hypot(*spreads)
    return Spread(width_80=_six(1.2816 * width), width_95=_six(1.96 * width), residuals=0, how="the priors' spread")


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
        left_out=left_out, family=family, rows=len(rows), median=_six(float(np.median(sizes))), most=_six(max(sizes))
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
            trial = _step_constants(*(math.exp(v) for v in x))
            return math.log(_si(training_rows.guess(by_id[name], trial, fit)) / by_id[name].si)

        x = least_squares(lambda v, names=kept: [miss(n, v) for n in names], [math.log(0.85), math.log(5.0)]).x
        found.append(miss(left, x))
    return found


def _share_misses(by_id: dict[str, Point]) -> list[float]:
    ones = dict.fromkeys(SHARE_ROWS, 1.0)
    found = []
    for ids in SHARE_ROWS.values():
        shares = [math.log(by_id[i].si / _si(device_rows.guess(by_id[i], ones))) for i in ids]
        found += [s - float(np.median(shares[:k] + shares[k + 1 :])) for k, s in enumerate(shares) if len(shares) > 1]
    return found


def _spread(misses: Sequence[float], how: str) -> Spread:
    sizes = [abs(miss) for miss in misses]
    return Spread(
        width_80=_six(_quantile(sizes, 0.80)), width_95=_six(_quantile(sizes, 0.95)), residuals=len(sizes), how=how
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


def _si(found: Guess | str) -> float:
    if isinstance(found, str):
        raise ValueError(f"a row to fit on has no prediction: {found}")
    return found.si


def _six(value: float) -> float:
    return float(f"{value:.6g}")


if __name__ == "__main__":
    sys.exit(main())
