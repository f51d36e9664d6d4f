"""Training over two sites 1,500 km apart: which bandwidth, steps between exchanges and overlap keep one site's rate.

Both sites are alike and have half of the devices and of a step's tokens each. A step inside a site is that of
:mod:`frugalbench.cluster.parallel` in its fastest cut; the exchange is that of :mod:`frugalbench.cluster.wan`, which is
held against Streaming DiLoCo's table and INTELLECT-1. *Kept* is throughput over that of the same devices with no
exchange between them, so what a larger site's own fabric would cost is left out. Bandwidth is what the exchange gets,
each way, over all flows; what runs beside computing slows neither. Nothing is said about loss, and nothing fails.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from frugalbench.cluster import parallel, splits, wan
from frugalbench.cluster.layout import Split
from frugalbench.cluster.ranges import Range, exact, propagate
from frugalbench.cluster.topology import Cluster, Values, load
from frugalbench.schema import Frozen, FrugalbenchError, Quantity, Tier

DISTANCE_M = 1.5e6
"""Between the sites, as the claim has it."""
FIBRE_M_PER_S = 299_792_458 / 1.468
"""Light in single-mode fibre: group index 1.468 at 1,550 nm (data sheets of G.652 fibre; recalled)."""
ROUTE = Range(value=1.2, low=1.0209, high=1.5)
"""Length of the fibre over the distance; assumed. The lower end is the claim's round trip of 15 ms."""
LEAST_KEPT = 0.95
"""Threshold of ``net.cross_region``."""
SITES = 2
WAYS: dict[str, tuple[bool, int]] = {
    "no overlap": (False, 0),
    "overlapped": (False, 1),
    "streamed, overlapped": (True, 1),
}
"""Whether fragments of the model are sent at different steps, and the steps by which an exchange may arrive late."""
BITS = (16, 4)
GBIT_PER_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
LOCAL_STEPS = (1, 4, 16, 64, 100, 500)
"""1 is data parallelism; 100 and 500 are DiLoCo's and Streaming DiLoCo's (arXiv 2311.08105, 2501.18512)."""
DIGITS = 5

NAMED_STEPS = (1, 100)

Facts = dict[str, Quantity]
Plane = dict[str, Any]
"""``columns`` (name to values), ``units`` of them, ``value``: the column to show, and its ``threshold`` if any."""


class Sites(Frozen, frozen=True, kw_only=True):
    """What is trained, and on what."""

    cluster: str
    """A site's inside."""
    model: str
    devices: int
    """Of one site."""

    @property
    def says(self) -> str:
        """In a few words."""
        return f"{self.model} on {SITES} x {self.devices} devices of '{self.cluster}'"


class Way(Frozen, frozen=True, kw_only=True):
    """How the sites exchange."""

    every: int
    overlap: str = "no overlap"
    """One of :data:`WAYS`."""
    bits: int = 16
    """Per parameter and direction."""


def kept(sites: Sites, way: Way, bit_per_s: float) -> Range | None:
    """Throughput over that of the same devices without distance; ``None`` for a way that the model does not cover."""
    step = _step_s(sites)

    def share(values: Values) -> list[float]:
        return [wan.utilisation(_scheme(sites, way, values), bit_per_s)]

    return propagate(share, {"step_s": step, "route": ROUTE})[0] if covered(sites, way) else None


def least_bit_per_s(sites: Sites, way: Way) -> Range:
    """Least bandwidth that keeps :data:`LEAST_KEPT`; infinite where the distance alone costs more."""

    def least(values: Values) -> list[float]:
        return [wan.bit_per_s_for(_scheme(sites, way, values), LEAST_KEPT)]

    return propagate(least, {"step_s": _step_s(sites), "route": ROUTE})[0]


def covered(sites: Sites, way: Way) -> bool:
    """Whether the closed form holds: gradients of every step are not quantised, and streamed fragments do not meet.

    A fragment has two steps to arrive in, so two steps must lie between one fragment and the next.
    """
    streaming, lag = WAYS[way.overlap]
    scheme = _scheme(sites, way, _centre(sites))
    apart = not streaming or way.every >= (1 + lag) * scheme.fragments
    return apart and (way.every > 1 or way.bits == max(BITS))


def judged(sites: Sites, way: Way, bit_per_s: float) -> Facts:
    """Facts of one point of the region. Raises :class:`FrugalbenchError` for a way that is not :func:`covered`."""
    found = kept(sites, way, bit_per_s)
    if found is None:
        raise FrugalbenchError(f"{sites.says}: {way} is not in the closed form; use more steps or 16 bits")
    what = f"{sites.says}: throughput over that of the same devices without distance"
    least = least_bit_per_s(sites, way)
    return {
        "ratio": found.quantity("1", what),
        "least_bit_per_s": _rate(least, sites),
        **_inputs(sites),
    }


def region(sites: Sites) -> Facts:
    """The least bandwidth of the usual numbers of steps, by name; all others are in :func:`frontier`."""
    ways = [way for way in _ways() if way.every in NAMED_STEPS and covered(sites, way)]
    return {_name(way): _rate(least_bit_per_s(sites, way), sites) for way in ways} | _inputs(sites)


def grid(sites: Sites) -> Plane:
    """Every point of the region: columns of equal length, their units, and what of them is held against what."""
    rows = [
        (gbit * 1e9, *_of(way), *_rounded(at))
        for way in _ways()
        for gbit in GBIT_PER_S
        if (at := kept(sites, way, gbit * 1e9)) is not None
    ]
    units = {"wan_bit_per_s": "bit/s", **_WAY, "kept": "1", "kept_low": "1", "kept_high": "1"}
    return _plane(units, rows) | {"value": "kept", "threshold": LEAST_KEPT}


def frontier(sites: Sites) -> Plane:
    """Where the region ends: the least bandwidth of every way, in columns as :func:`grid` has them."""
    rows = [(*_of(way), *_rounded(least_bit_per_s(sites, way))) for way in _ways() if covered(sites, way)]
    names = ("least_bit_per_s", "least_bit_per_s_low", "least_bit_per_s_high")
    return _plane(_WAY | dict.fromkeys(names, "bit/s"), rows) | {"value": names[0]}


def described(sites: Sites) -> dict[str, str]:
    """What the numbers rest on, in words."""
    return {
        "cut of a site": splits.described(_cut(sites)),
        "distance": f"{DISTANCE_M / 1e3:.0f} km; fibre of 1.02 to 1.5 times that (assumed), light at group index 1.468",
        "step_s": "; ".join(f"{name}: {text}" for name, text in parallel.SOURCES.items()),
        "exchange": "layers or fragments as in arXiv 2501.18512; a site sends its parameters once an exchange",
    }


_WAY = {"local_steps": "steps", "overlap": "", "bits_per_parameter": "bit"}


def _of(way: Way) -> tuple[int, str, int]:
    return way.every, way.overlap, way.bits


def _rounded(item: Range) -> list[float | None]:
    figures = (item.value, item.low, item.high)
    return [float(f"{x:.{DIGITS}g}") if math.isfinite(x) else None for x in figures]


def _plane(units: dict[str, str], rows: Sequence[tuple[Any, ...]]) -> Plane:
    columns = {name: [row[i] for row in rows] for i, name in enumerate(units)}
    return {"columns": columns, "units": units}


def _ways() -> Iterator[Way]:
    for overlap, bits, every in itertools.product(WAYS, BITS, LOCAL_STEPS):
        yield Way(every=every, overlap=overlap, bits=bits)


def _name(way: Way) -> str:
    overlap = "" if way.overlap == "no overlap" else f"_{way.overlap.replace(', ', '_')}"
    return f"least_bit_per_s_every_{way.every}{overlap}_{way.bits}_bit"


def _rate(least: Range, sites: Sites) -> Quantity:
    """As stored: a bound that no bandwidth reaches is missing."""
    value, low, high = (x if math.isfinite(x) else None for x in (least.value, least.low, least.high))
    source = f"least bandwidth that keeps {LEAST_KEPT:.0%}; {sites.says}"
    return Quantity(value=value, low=low, high=high, unit="bit/s", tier=Tier.MODELLED, source=source)


def _inputs(sites: Sites) -> Facts:
    trip = ROUTE * exact(_round_trip_s(1.0))
    return {
        "step_s": _step_s(sites).quantity(
            "s", f"{sites.says}, no exchange between sites: {splits.described(_cut(sites))}"
        ),
        "round_trip_s": trip.quantity("s", f"{DISTANCE_M / 1e3:.0f} km of distance over fibre"),
        "exchanged_bytes": exact(2.0 * _parameters(sites)).quantity("B", "parameters in 16 bits, once each way"),
    }


def _scheme(sites: Sites, way: Way, values: Values) -> wan.Exchange:
    streaming, lag = WAYS[way.overlap]
    return wan.Exchange(
        parameters=_parameters(sites),
        layers=splits.known_shape(sites.model).n_layers,
        step_s=values["step_s"],
        bits=float(way.bits),
        every=way.every,
        streaming=streaming,
        overlap_steps=lag,
        replicas=SITES,
        latency_s=_round_trip_s(values["route"]),
    )


def _round_trip_s(route: float) -> float:
    return 2 * route * DISTANCE_M / FIBRE_M_PER_S


def _centre(sites: Sites) -> Values:
    return {"step_s": _step_s(sites).value, "route": ROUTE.value}


def _parameters(sites: Sites) -> float:
    return float(splits.known_shape(sites.model).parameters)


@cache
def _cut(sites: Sites) -> Split:
    """The fastest cut of half a step inside a site at the central inputs."""
    cluster, shape = load(sites.cluster), splits.known_shape(sites.model)
    centre = {name: item.value for name, item in parallel.inputs(cluster, shape).items()}
    every = splits.candidates(cluster, shape, sites.devices, _batch(cluster), splits.Wanted())
    return splits.ranked(cluster, shape, every, centre)[0]


@cache
def _step_s(sites: Sites) -> Range:
    cluster, shape, cut = load(sites.cluster), splits.known_shape(sites.model), _cut(sites)

    def seconds(values: Values) -> list[float]:
        return [parallel.step(cluster, shape, cut, values).step_s]

    return propagate(seconds, parallel.inputs(cluster, shape))[0]


def _batch(cluster: Cluster) -> int:
    """Sequences of a site's half of a step."""
    return max(1, round(cluster.training.batch_token.value / SITES / splits.SEQUENCE))
