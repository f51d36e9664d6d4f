"""What a cluster file says: a device, nested levels of links, and the training step it runs.

A cluster is one kind of device in nested groups: a scale-up domain, a scale-out fabric, optionally a WAN. Every number
is either a figure of the device, by name, or an :class:`Input` with a source, marked when it is an assumption.
"""

import math
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from frugalbench import paths
from frugalbench.cluster.collectives import Span
from frugalbench.cluster.hardware import Hardware, convert, hardware, nearest, read_toml
from frugalbench.cluster.published import constants as fitted
from frugalbench.cluster.ranges import Range
from frugalbench.schema import FrugalbenchError

MOST_LEVELS = 8
MOST_DEVICES = 2**40
LEAST, MOST = 1e-30, 1e30
"""No figure of a cluster lies beyond these."""

_FITTED = ("alpha_s", "efficiency")
"""What of a level comes from the fit where the file does not say."""
Family = Literal["ring", "switch", "rack", "net"]
"""Rings inside a node, in-switch reduction inside a node and inside a rack, and networks between nodes."""
Values = dict[str, float]
"""One value for every ranged input of a cluster, by its name in :meth:`Cluster.inputs`."""


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A number that the cluster file gives itself."""

    value: float
    source: str
    low: float | None = None
    high: float | None = None
    assumption: bool = False
    """No document says it; the range is what seems possible."""

    def range(self) -> Range:
        """The value with its bounds."""
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        return Range(value=self.value, low=low, high=high)


class Level(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ring of the onion."""

    name: str
    bytes_per_s: Input | str
    """Per device, one direction, at the wire; a string names a figure of the device."""
    family: Family | None = None
    """Published tables whose fitted constants hold here; without it the two inputs below are needed."""
    alpha_s: Input | None = None
    """What a chunk needs from one rank to the next."""
    efficiency: Input | None = None
    """Achieved bus bandwidth over the wire's."""
    fan_out: int | None = None
    """How many groups of the level below it joins; absent on the outermost level, which takes what is left."""


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A data-parallel step of a dense transformer, optimizer state sharded or not (the traffic is the same)."""

    model: str
    parameters: Input
    mfu: Input
    """Achieved share of the device's dense bf16 peak while it computes, communication apart."""
    overlap: Input
    """Share of the gradient traffic that can run beside the backward pass."""
    gradient_bytes_per_parameter: Input
    batch_token: Input
    """Tokens of one step over all devices, under strong scaling."""
    device_token: Input
    """Tokens of one step per device, under weak scaling."""


class Serving(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Expert-parallel inference over the whole cluster."""

    model: str
    ranks_per_device: int = 1
    """Copies of attention on a device: dies of a package."""
    expert_ranks: int
    """Ranks that share the experts of a layer between them in decoding."""
    shared_ranks: int = 0
    """Of these, ranks that hold a copy of the shared expert instead of routed ones; none: each rank has it as well."""
    prefill_ranks: int | None = None
    """Ranks that share the experts in prefill; as many as in decoding where it is not said."""
    prefill_split: int = 1
    """Ranks that cut attention by heads between them in prefill."""
    exchange: Literal["cann", "other"]
    """Published tables of dispatch and combine whose fitted constants hold."""
    product_figure: str
    """The device's figure of 8-bit products."""
    product_share: Input
    attention_share: Input
    """Of the bf16 peak, by the attention kernel."""
    memory_share: Input
    bulk_share: Input
    """Of the wire's rate, by large transfers between ranks."""


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cluster file."""

    name: str
    says: str
    device: str
    first_devices: int
    last_devices: int
    level: tuple[Level, ...]
    training: Training
    serving: Serving | None = None

    def hardware(self) -> Hardware:
        """The device's figures."""
        return hardware(self.device)

    def device_counts(self) -> list[int]:
        """Doublings from the first to the last, the last always included."""
        counts = [self.first_devices]
        while counts[-1] * 2 <= self.last_devices:
            counts.append(counts[-1] * 2)
        return counts if counts[-1] == self.last_devices else [*counts, self.last_devices]

    def inputs(self) -> dict[str, Range]:
        """Every number that the model reads, by name, with its bounds."""
        training = {
            f"training.{field}": getattr(self.training, field).range() for field in Training.__struct_fields__[1:]
        }
        peak = {"device.bf16_dense_flop_per_s": self.hardware().require("bf16_dense_flop_per_s")}
        links = {key: value for level in self.level for key, value in self._link_inputs(level).items()}
        return {**training, **peak, **links}

    def levels(self, devices: int, values: Values) -> list[Span]:
        """Each level, innermost first, as a machine of that many devices meets it."""
        return self.spans(1, devices, values)

    def spans(self, stride: int, size: int, values: Values) -> list[Span]:
        """The levels as a group of ``size`` ranks meets them that lie ``stride`` devices apart."""
        found, reach, below = [], 1.0, 1
        for index, level in enumerate(self.level):
            reach *= math.inf if level.fan_out is None else level.fan_out
            within = max(below, round(min(max(reach / stride, 1.0), size)))
            found.append(self._span(index, level, round(within / below), values))
            below = within
        return found

    def _span(self, index: int, level: Level, ranks: int, values: Values) -> Span:
        pipelining, exchange_share = _fitted_shape(level.family, self.device, index > 0)
        return Span(
            ranks=ranks,
            bytes_per_s=values[f"{level.name}.bytes_per_s"],
            hop_s=values[f"{level.name}.alpha_s"],
            efficiency=values[f"{level.name}.efficiency"],
            pipelining=pipelining,
            exchange_share=exchange_share,
            between=index > 0,
            in_switch=level.family in ("switch", "rack"),
        )

    def _link_inputs(self, level: Level) -> dict[str, Range]:
        rate = level.bytes_per_s
        wire = self.hardware().require(rate) if isinstance(rate, str) else rate.range()
        alpha, efficiency = (None if item is None else item.range() for item in (level.alpha_s, level.efficiency))
        if level.family is not None:
            usual_s, usual = fitted_ranges(level.family, self.device)
            alpha, efficiency = alpha or usual_s, efficiency or usual
        assert alpha is not None and efficiency is not None
        return {
            f"{level.name}.alpha_s": alpha,
            f"{level.name}.bytes_per_s": wire,
            f"{level.name}.efficiency": efficiency,
        }

    def assumptions(self) -> list[str]:
        """Names of the inputs that no document backs."""
        return [name for name, item in self._stated().items() if isinstance(item, Input) and item.assumption]

    def sources(self) -> dict[str, str]:
        """Where each of :meth:`inputs` comes from."""
        found = {"device.bf16_dense_flop_per_s": self.hardware().sources("bf16_dense_flop_per_s")}
        for name, item in self._stated().items():
            if isinstance(item, Input):
                found[name] = f"assumed: {item.source}" if item.assumption else item.source
            elif isinstance(item, str):
                found[name] = self.hardware().sources(item)
        for level in self.level:
            text = f"fitted to published tables of '{level.family}' (data/network/constants.json)"
            found |= {f"{level.name}.{key}": text for key in _FITTED if getattr(level, key) is None}
        return found

    def _stated(self) -> dict[str, Input | str | None]:
        given = {f"training.{field}": getattr(self.training, field) for field in Training.__struct_fields__[1:]}
        for level in self.level:
            given |= {f"{level.name}.{key}": getattr(level, key) for key in ("bytes_per_s", *_FITTED)}
        return given


def fitted_ranges(family: str, device: str) -> tuple[Range, Range]:
    """Seconds of a hop and share of the wire out of the published tables of a family.

    Widths: 95% of the rows (or systems) that were left out of the fit and are as far from it as this device. Shares
    end at the wire: beyond it only networks that add up get, and no cluster here says that its network does.
    """
    known = fitted.shipped()
    found = known.collective.family(family, device)
    near = "device seen" if f"{family} | {device}" in known.collective.factors else "family only"
    hop_s = found.latency * (found.net_s if family == "net" else found.up_s)
    start, load = (known.spread[f"{near}, {part}"].width_95 for part in ("start-up", "bytes"))
    low, value, high = (min(found.efficiency * math.exp(width), 1.0) for width in (-load, 0.0, load))
    hop = Range(value=hop_s, low=hop_s * math.exp(-start), high=hop_s * math.exp(start))
    return hop, Range(value=value, low=low, high=high)


@cache
def _fitted_shape(family: Family | None, device: str, between: bool) -> tuple[float, float]:
    """Pipelining of chunks, and the all-to-all's share of the ring's rate, from the fit where there is one."""
    if family is None:
        return 1.0, 1.0
    fit = fitted.shipped().collective
    found, exchange = fit.family(family, device), fit.family("exchange net" if between else "exchange", device)
    return found.pipelining, min(exchange.efficiency / found.efficiency, 1.0)


def load(cluster: str | Path) -> Cluster:
    """A cluster by path, or by the bare name of a shipped one.

    Raises :class:`FrugalbenchError` for an unknown name, an unreadable file, an unknown key (naming the nearest),
    a number out of range and an unknown or unpublished device figure.
    """
    path = _find(cluster)
    found = convert(read_toml(path), Cluster, str(path))
    _check(found, str(path))
    return found


def shipped_names() -> list[str]:
    """The clusters that come with the package."""
    return sorted(path.stem for path in (paths.shipped("configs") / "clusters").glob("*.toml"))


def _find(cluster: str | Path) -> Path:
    path = Path(cluster)
    if path.suffix == ".toml":
        return path
    shipped = paths.shipped("configs") / "clusters" / f"{cluster}.toml"
    if not shipped.is_file():
        raise FrugalbenchError(f"unknown cluster '{cluster}'" + nearest(str(cluster), shipped_names()))
    return shipped


def _check(cluster: Cluster, where: str) -> None:
    if len(cluster.level) > MOST_LEVELS or cluster.last_devices > MOST_DEVICES:
        raise FrugalbenchError(f"{where}: more than {MOST_LEVELS} levels, or more than {MOST_DEVICES} devices")
    for level in cluster.level:
        if level.family is None and (level.alpha_s is None or level.efficiency is None):
            raise FrugalbenchError(f"{where}: level '{level.name}' needs 'family', or 'alpha_s' and 'efficiency'")
    for name, item in cluster.inputs().items():
        if not LEAST <= item.low <= item.high <= MOST:
            raise FrugalbenchError(f"{where}: '{name}' must be positive and between {LEAST:g} and {MOST:g}, not {item}")
        if not 0 < item.low <= item.value <= item.high:
            raise FrugalbenchError(f"{where}: '{name}' must be positive with low <= value <= high, not {item}")
        if name.endswith((".efficiency", ".mfu", ".overlap")) and item.high > 1:
            raise FrugalbenchError(f"{where}: '{name}' is a share and cannot exceed 1, not {item.high}")
    if not cluster.level or any(level.fan_out is None for level in cluster.level[:-1]):
        raise FrugalbenchError(f"{where}: every [[level]] but the outermost needs 'fan_out'; add it")
    names = [level.name for level in cluster.level]
    if cluster.serving is not None:
        _check_ranks(cluster.serving, where)
    if len(set(names)) < len(names):
        raise FrugalbenchError(f"{where}: two levels are called '{max(names, key=names.count)}'; names must differ")
    _check_counts(cluster, where)


def _check_ranks(serving: Serving, where: str) -> None:
    names = ("ranks_per_device", "expert_ranks", "prefill_ranks", "prefill_split")
    if bad := [name for name in names if (getattr(serving, name) or 0) < 1 and getattr(serving, name) is not None]:
        raise FrugalbenchError(f"{where}: '{bad[0]}' of [serving] must be at least 1")
    if not 0 <= serving.shared_ranks < serving.expert_ranks:
        most = serving.expert_ranks - 1
        raise FrugalbenchError(f"{where}: 'shared_ranks' of [serving] must be between 0 and {most}: some hold experts")


def _check_counts(cluster: Cluster, where: str) -> None:
    if not 1 <= cluster.first_devices <= cluster.last_devices:
        raise FrugalbenchError(f"{where}: 'first_devices' must be at least 1 and at most 'last_devices'")
    room = 1
    for level in cluster.level:
        if level.fan_out is not None and level.fan_out < 1:
            raise FrugalbenchError(f"{where}: 'fan_out' of '{level.name}' must be at least 1, not {level.fan_out}")
        for devices in cluster.device_counts():
            if devices > room and devices % room:
                raise FrugalbenchError(f"{where}: {devices} devices do not fill groups of {room}; change the counts")
        room *= level.fan_out or cluster.last_devices
    if cluster.last_devices > room:
        raise FrugalbenchError(f"{where}: the levels join {room} devices, fewer than 'last_devices'; widen 'fan_out'")
