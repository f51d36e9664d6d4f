"""What-if over the size of a cluster: the fastest cut of a model at each number of devices. Measures nothing."""

from collections.abc import Callable
from pathlib import Path

from frugalbench.cluster.ranges import Range
from frugalbench.cluster.splits import Wanted
from frugalbench.cluster.topology import load
from frugalbench.cluster.whatif import Cut, cuts
from frugalbench.schema import FrugalbenchError, Sweep, Tier


def sizes(
    cluster: str | Path,
    model: str,
    devices: int | None,
    wanted: Wanted,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Sweep, ...]:
    """Throughput and MFU of the fastest cut at each size of the cluster, up to ``devices``; no value where none fits.

    Raises :class:`FrugalbenchError` like :func:`frugalbench.cluster.whatif.cuts`, and where no size has a cut.
    """
    found = load(cluster)
    counts = [count for count in found.device_counts() if count <= (devices or found.last_devices)]
    fastest: list[Cut | None] = []
    for count in counts:
        progress(f"{found.name}: cutting {model} over {count} devices")
        fastest.append(_fastest(cluster, model, count, wanted))
    if not any(fastest):
        cuts(cluster, model, counts[-1] if counts else devices, wanted)
    places = {"devices": tuple(map(float, counts))}
    rates = [None if cut is None else cut.token_per_s for cut in fastest]
    shares = [None if cut is None else cut.mfu for cut in fastest]
    return (
        _sweep(found.name, f"throughput of {model}, fastest cut", "token/s", places, rates),
        _sweep(found.name, f"MFU of {model}, fastest cut", "share of peak", places, shares),
    )


def _fastest(cluster: str | Path, model: str, count: int, wanted: Wanted) -> Cut | None:
    try:
        return cuts(cluster, model, count, wanted)[0]
    except FrugalbenchError:
        return None


def _sweep(line: str, figure: str, unit: str, over: dict[str, tuple[float, ...]], found: list[Range | None]) -> Sweep:
    return Sweep(
        figure=figure,
        unit=unit,
        line=line,
        tier=Tier.MODELLED,
        over=over,
        value=tuple(None if item is None else item.value for item in found),
        low=tuple(None if item is None else item.low for item in found),
        high=tuple(None if item is None else item.high for item in found),
        source="the cut that is fastest at the central inputs, with what the ranges of the inputs allow",
    )
