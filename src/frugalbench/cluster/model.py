"""What-if on a cluster: throughput, marginal throughput and the split of the step, with bounds. Measures nothing."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from frugalbench.cluster import step as steps_of
from frugalbench.cluster.ranges import Range, propagate
from frugalbench.cluster.step import Scaling, Step
from frugalbench.cluster.topology import Cluster, Values, load
from frugalbench.schema import Frozen, Sweep, Tier

Sweeps = tuple[Sweep, ...]
_BOUNDS = "bounds move its own inputs; a ratio of two clusters moves what they share together, so it is narrower"


class Row(Frozen, frozen=True, kw_only=True):
    """One device count of one cluster. Ranges hold what the inputs' bounds allow."""

    cluster: str
    scaling: str
    """``strong``: fixed tokens per step; ``weak``: fixed tokens per step and device."""
    devices: int
    token_per_s: Range
    marginal_token_per_s: Range | None
    """Per device added since the row before; ``None`` on the first row."""
    efficiency: Range
    """Throughput per device over that of the first row."""
    compute_s: Range
    communication_s: Range
    exposed_s: Range
    """Communication that does not hide behind the backward pass."""
    exposed_share: Range
    """``exposed_s`` over the whole step."""


class Summary(Frozen, frozen=True, kw_only=True):
    """The curve in three numbers."""

    area_token_per_s: Range
    """Area under marginal throughput over devices."""
    area_over_doublings: Range
    retained: Range
    """Area over that of a machine that scales perfectly."""


def simulate(cluster: str | Path, scalings: tuple[Scaling, ...] = ("strong", "weak")) -> list[Row]:
    """Rows for every device count of a cluster, given by path or by the bare name of a shipped one.

    Raises :class:`frugalbench.schema.FrugalbenchError` like :func:`frugalbench.cluster.topology.load`.
    """
    found = load(cluster)
    return [row for scaling in scalings for row in _rows(found, scaling)]


@cache
def sweeps(cluster: Cluster, scaling: Scaling) -> Sweeps:
    """The three curves over devices, with bounds: throughput, its share per device, and what added devices bring."""
    rows = _rows(cluster, scaling)
    label = f"{scaling} scaling"
    marginal = [(row.devices, row.marginal_token_per_s) for row in rows if row.marginal_token_per_s is not None]
    return (
        _sweep(cluster, f"throughput, {label}", "token/s", [(row.devices, row.token_per_s) for row in rows]),
        _sweep(
            cluster,
            f"throughput per device, {label}",
            "of the first's",
            [(r.devices, r.efficiency) for r in rows],
        ),
        _sweep(cluster, f"marginal throughput, {label}", "token/s per added device", marginal),
    )


def _sweep(cluster: Cluster, figure: str, unit: str, points: Sequence[tuple[int, Range]]) -> Sweep:
    found = [item for _, item in points]
    return Sweep(
        figure=figure,
        unit=unit,
        line=cluster.name,
        tier=Tier.MODELLED,
        over={"devices": tuple(float(devices) for devices, _ in points)},
        value=tuple(item.value for item in found),
        low=tuple(item.low for item in found),
        high=tuple(item.high for item in found),
        source=f"{cluster.says}: data-parallel step of {cluster.training.model}; {_BOUNDS}",
    )


def curve(cluster: Cluster, scaling: Scaling, values: Values) -> list[Step]:
    """The step at every device count, for one value of each input."""
    return [steps_of.step(cluster, devices, scaling, values) for devices in cluster.device_counts()]


def summary(cluster: Cluster, scaling: Scaling) -> Summary:
    """Areas under the marginal-throughput curve."""
    area, doublings, retained = propagate(lambda v: areas(curve(cluster, scaling, v)), cluster.inputs())
    return Summary(area_token_per_s=area, area_over_doublings=doublings, retained=retained)


def areas(steps: list[Step]) -> list[float]:
    """Area over devices, over doublings, and the share retained."""
    return [steps_of.area_token_per_s(steps), steps_of.area_over_doublings(steps), steps_of.retained(steps)]


def compare(
    candidate: Cluster,
    baseline: Cluster,
    result: Callable[[Cluster, Values], list[float]],
    read: Callable[[Cluster], dict[str, Range]] = Cluster.inputs,
) -> list[Range]:
    """Ratio candidate / baseline of each result, with bounds. ``read``: the inputs that ``result`` takes.

    An input that both files state alike (same name, value and bounds) is one unknown and moves together;
    every other one moves on its own.
    """
    ours, theirs = read(candidate), read(baseline)
    shared = {name for name in ours.keys() & theirs.keys() if ours[name] == theirs[name]}
    joint = {(name if name in shared else f"candidate:{name}"): item for name, item in ours.items()}
    joint |= {(name if name in shared else f"baseline:{name}"): item for name, item in theirs.items()}

    def ratios(values: Values) -> list[float]:
        over = result(candidate, {n: values[n if n in shared else f"candidate:{n}"] for n in ours})
        under = result(baseline, {n: values[n if n in shared else f"baseline:{n}"] for n in theirs})
        return [a / b for a, b in zip(over, under, strict=True)]

    return propagate(ratios, joint)


@cache
def _rows(cluster: Cluster, scaling: Scaling) -> tuple[Row, ...]:
    """Corners are evaluated once for the whole curve; results come back in blocks of one quantity each."""
    counts = cluster.device_counts()
    flat = propagate(lambda v: _results(curve(cluster, scaling, v)), cluster.inputs())
    blocks = [flat[i : i + len(counts)] for i in range(0, len(flat), len(counts))]
    total, efficiency, compute, communication, exposed, share, marginal = blocks
    return tuple(
        Row(
            cluster=cluster.name,
            scaling=scaling,
            devices=devices,
            token_per_s=total[i],
            marginal_token_per_s=marginal[i - 1] if i else None,
            efficiency=efficiency[i],
            compute_s=compute[i],
            communication_s=communication[i],
            exposed_s=exposed[i],
            exposed_share=share[i],
        )
        for i, devices in enumerate(counts)
    )


def _results(steps: list[Step]) -> list[float]:
    per_device = [s.token_per_s / s.devices for s in steps]
    return [
        *(s.token_per_s for s in steps),
        *(rate / per_device[0] for rate in per_device),
        *(s.compute_s for s in steps),
        *(s.communication_s for s in steps),
        *(s.exposed_s for s in steps),
        *(s.exposed_s / (s.compute_s + s.exposed_s) for s in steps),
        *steps_of.marginal_token_per_s(steps),
    ]
