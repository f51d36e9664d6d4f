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
from frugalbench.cluster import serving
from frugalbench.cluster.published import collective_fit as c
from frugalbench.cluster.published import device_rows, exchange_rows, training_rows, wan_rows
from frugalbench.cluster.published.constants import Constants, Training
from frugalbench.cluster.published.fitted_rows import (
    ACCESS_ROWS,
    BALANCE_ROWS,
    EXCHANGE_ROWS,
    EXCHANGE_TWINS,
    SHARE_ROWS,
    STACK_ROWS,
    STEP_ROWS,
    TWINS,
    WAN_ROWS,
    si,
    six,
    step_constants,
)
from frugalbench.cluster.published.points import Point, published
from frugalbench.cluster.published.spreads import with_spreads
from frugalbench.cluster.topology import load

MOST_IMBALANCE = 8.0
"""Of the busiest rank's load over the mean one's: where the search for it ends."""


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
    fit, exchange = c.fit(points), _exchange(by_id)
    return Constants(
        collective=fit,
        training=_training(by_id, fit),
        exchange=exchange,
        wan={name: six(_wan_rate(by_id[ids[0]])) for name, ids in WAN_ROWS.items()},
        device=_device(by_id),
        serving={"imbalance": six(_imbalance(by_id, exchange))},
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
        "serving": BALANCE_ROWS,
    }


def _training(by_id: dict[str, Point], fit: c.Fit) -> Training:
    from scipy.optimize import least_squares

    def misses(x: Iterable[float]) -> list[float]:
        trial = step_constants(*(math.exp(v) for v in x))
        return [math.log(si(training_rows.guess(by_id[name], trial, fit)) / by_id[name].si) for name in STEP_ROWS]

    product, traffic = (six(math.exp(v)) for v in least_squares(misses, [math.log(0.85), math.log(5.0)]).x)
    plain = step_constants(product, traffic)
    stack = {"megatron 2022": 1.0}
    for name, row in STACK_ROWS.items():
        stack[name] = six(si(training_rows.guess(by_id[row], plain, fit)) / by_id[row].si)
    stack["other"] = six(math.exp(float(np.mean([math.log(value) for value in stack.values()]))))
    return Training(product=product, traffic=traffic, stack=stack)


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
            "dispatch_s": six(dispatch), "combine_s": six(combine), "doubling_s": six(doubling),
            "achieved": six(1 / inverse),
        }  # fmt: skip
    names = list(next(iter(found.values())))
    found["other"] = {name: six(float(np.mean([item[name] for item in found.values()]))) for name in names}
    return found


def _exchange_terms(row: Point, shared: bool) -> list[float]:
    """Columns: start-up (of either kind), doublings, and the bytes where the achieved share is fitted."""
    if shared:
        return [1.0, exchange_rows.link_s(row)]
    dispatch = exchange_rows.operation(row) == "dispatch"
    return [float(dispatch), float(not dispatch), math.log2(exchange_rows.ranks(row))]


def _wan_rate(row: Point) -> float:
    found = wan_rows.guess(row, (), {"continental": 1.0, "intercontinental": 1.0})
    return si(found) / row.si


def _device(by_id: dict[str, Point]) -> dict[str, float]:
    ones = dict.fromkeys(SHARE_ROWS, 1.0)
    found = {
        name: six(float(np.median([by_id[i].si / si(device_rows.guess(by_id[i], ones)) for i in ids])))
        for name, ids in SHARE_ROWS.items()
    }
    plain = {f"{kind}_{name}": 1.0 for kind in ACCESS_ROWS for name in device_rows.FEATURES}
    for kind, ids in ACCESS_ROWS.items():
        matrix = np.array([device_rows.features(by_id[i]) for i in ids])
        target = np.log([by_id[i].si / si(device_rows.guess(by_id[i], plain)) for i in ids])
        weights = np.linalg.lstsq(matrix, target, rcond=None)[0]
        for name, weight in zip(device_rows.FEATURES, weights, strict=True):
            found[f"{kind}_{name}"] = six(math.exp(weight))
    return found


def _imbalance(by_id: dict[str, Point], exchange: dict[str, dict[str, float]]) -> float:
    """Load of the busiest rank at which the model gains by perfect balance what the published prefill gains.

    Whatever slows both alike, the software's factor above all, leaves the ratio as it is.
    """
    from scipy.optimize import brentq

    cluster = load("cloudmatrix384")
    found = {name: item.value for name, item in serving.figures(cluster, exchange).items()}
    found |= {f"{cluster.name}.software": 1.0, f"{cluster.name}.exchange": 1.0, "prefill.gain": serving.PREFILL_GAIN}

    def rate(imbalance: float) -> float:
        return serving.prefill_token_per_s(cluster, {**found, "serving.imbalance": imbalance})

    perfect, default = (by_id[name].si for name in BALANCE_ROWS)
    return float(brentq(lambda x: rate(1.0) / rate(x) - perfect / default, 1.0, MOST_IMBALANCE))


if __name__ == "__main__":
    sys.exit(main())
