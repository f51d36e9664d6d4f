"""What a published table's words mean: the device, the links and the shape of the machine behind a system's name.

Patterns and rates are data (``data/network/systems.toml``). A rate that the name itself states (``NDR``,
``50 GB/s per GPU``, ``8x400G``) goes before the machine's, the machine's before the device's.
"""

import math
import re
from functools import cache, lru_cache

import msgspec

from frugalbench import paths
from frugalbench.cluster.hardware import convert, hardware, read_toml
from frugalbench.cluster.published.points import Point
from frugalbench.schema import Frozen

NODE = 8
"""Devices of one node where nothing says otherwise."""
ONE_CARD_GBIT = 100
WHOLE_NODE_GBIT = 1600
"""A stated rate from here on is that of all cards of a node."""
MOST_DEVICES = 10**7


class NamedDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device as tables call it."""

    pattern: str
    hardware: str = ""
    scaleup_bytes_per_s: float | None = None
    scaleout_bytes_per_s: float | None = None
    bf16_dense_flop_per_s: float | None = None
    memory_bytes: float | None = None
    memory_bytes_per_s: float | None = None
    mesh_peers: int | None = None
    in_switch: bool | None = None
    source: str = ""
    provenance: str = ""
    note: str = ""


class _Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pattern: str
    device: str
    scaleout_bytes_per_s: float
    source: str
    provenance: str
    node: int | None = None
    """Devices of one node, where it is not the usual number."""


class _Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pattern: str
    tier: str
    bytes_per_s: float


class _Names(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    device: tuple[NamedDevice, ...]
    machine: tuple[_Machine, ...]
    link: tuple[_Link, ...]


class Place(Frozen, frozen=True, kw_only=True):
    """A machine as the closed form sees it. Rates are bytes/s, one direction, per device."""

    device: str
    """Hardware id, or the matched word where no file describes the device; empty when unknown."""
    devices: int
    node: int
    """Devices of one scale-up domain."""
    scaleup_bytes_per_s: float | None
    scaleout_bytes_per_s: float | None
    mesh_peers: int | None = None
    """Direct links that the scale-up rate is split over, where there is no switch."""
    in_switch: bool = False
    """The scale-up switch can reduce (NVLink SHARP)."""
    host_bus: bool = False
    """Devices reach each other over PCIe, perhaps through the host's memory."""
    network_reduces: bool = False
    """The scale-out switches can reduce (InfiniBand SHARP)."""
    named: NamedDevice | None = None
    """What the patterns say of the device; its figures go before those of the hardware file."""

    @property
    def nodes(self) -> int:
        """Scale-up domains that the devices fill."""
        return math.ceil(self.devices / self.node)


_NODES = re.compile(r"(\d+)\s*(?:x\s*)?node\(?s?\)?\b")
_TIMES = re.compile(r"\b(\d+)\s*x\s+(?=[a-z])")
_PER_NODE = re.compile(r"nodes?\)?\s*(?:x|of|with)\s*(\d+)|(\d+)\s*(?:gpus?|devices|ranks)\s*(?:per|/|a)\s*node")
_RATE = re.compile(r"(\d+\s*x\s*)?(\d+(?:\.\d+)?)\s*(gb/s|gbit/s|gbps|gbe|g)\b\s*(per gpu|/gpu)?")
_DOMAIN = re.compile(r"nvl(\d+)")
_PLAIN = re.compile(r"ethernet|\btcp\b")
_WORD = re.compile(r"[|\[(?]")
_NET_WORDS = re.compile(r"infiniband|roce|efa|\bib\b|ethernet|tcpx|nic|net")


@cache
def known() -> _Names:
    """The patterns."""
    return convert(read_toml(paths.data("network", "systems.toml")), _Names, "systems.toml")


def place(point: Point) -> Place:
    """The machine that a row speaks of. What its words do not say is ``None``; eight devices make a node."""
    return _place(point.system.lower(), f"{point.work} {point.note}".lower(), point.devices)


@lru_cache(maxsize=4096)
def _place(system: str, rest: str, devices: int | None) -> Place:
    machine = next((item for item in known().machine if re.search(item.pattern, system)), None)
    device = _device(machine.device if machine else system) or _device(rest)
    node = _node(system, rest, machine)
    total = min(devices or _count(system, node), MOST_DEVICES)
    up, out = _rates(system, device, machine, node)
    if up is None and out is not None:
        node, up = 1, out
    return Place(
        device=device.hardware or _WORD.split(device.pattern)[0] if device else "",
        devices=total,
        node=min(node, total) if node > total else node,
        scaleup_bytes_per_s=up,
        scaleout_bytes_per_s=out,
        mesh_peers=_mesh(device),
        in_switch=_in_switch(system, device),
        host_bus=_host_bus(system, device),
        network_reduces="sharp" in system and total > node,
        named=device,
    )


def _device(text: str) -> NamedDevice | None:
    return next((item for item in known().device if re.search(item.pattern, text)), None)


def _node(system: str, rest: str, machine: _Machine | None) -> int:
    if found := _DOMAIN.search(system):
        return max(1, int(found[1]))
    if found := _PER_NODE.search(f"{system} {rest}"):
        return max(1, int(found[1] or found[2]))
    if machine and machine.node:
        return machine.node
    if "cloudmatrix" in system:
        return 768
    return 16 if "dgx-2" in system else NODE


def _count(system: str, node: int) -> int:
    """Devices where the column is empty: ``16 nodes x 8 H100``, ``4x p5``, ``8x A100``."""
    if found := _NODES.search(system):
        return int(found[1]) * node
    found = _TIMES.search(system)
    times = int(found[1]) if found else 1
    whole = any(re.search(item.pattern, system) for item in known().machine) or "nvl" in system
    return max(1, times * node if whole else times)


def _rates(
    system: str, device: NamedDevice | None, machine: _Machine | None, node: int
) -> tuple[float | None, float | None]:
    up = out = None
    if device and device.hardware:
        item = hardware(device.hardware)
        up, out = (_first(item.figures(f"{tier}_unidirectional_bytes_per_s")) for tier in ("scaleup", "scaleout"))
    if device:
        up, out = device.scaleup_bytes_per_s or up, device.scaleout_bytes_per_s or out
    out = machine.scaleout_bytes_per_s if machine else out
    stated = {item.tier: item.bytes_per_s for item in reversed(known().link) if re.search(item.pattern, system)}
    capped = device is not None and device.hardware in ("h800-sxm", "h20")
    up = up if capped and up else stated.get("scaleup", up)
    return up, _stated_rate(system, node) or stated.get("scaleout", out)


def _first(figures: tuple[object, ...]) -> float | None:
    return getattr(figures[0], "value", None) if figures else None


def _stated_rate(system: str, node: int) -> float | None:
    """``EFAv4 50 GB/s per GPU``, ``400 Gb/s``, ``RoCE 400G``: bytes/s; ``Gb`` and ``G`` are bits.

    Plain Ethernet of up to 100 Gbit/s is one card of a node, unless a count or ``per GPU`` stands beside it.
    """
    for found in _RATE.finditer(system):
        value, unit = float(found[2]), found[3]
        before = system[max(0, found.start(2) - 24) : found.start(2)]
        if unit == "gbe" or (value <= ONE_CARD_GBIT and _PLAIN.search(system) and unit in ("gbit/s", "gbps")):
            return value * 0.125e9 / (1 if found[1] or found[4] else node)
        if unit == "gb/s" and found[4]:
            return value * 1e9
        if unit == "gb/s" and value not in (100, 200, 400, 800):
            continue
        if unit == "g" and not _NET_WORDS.search(before):
            continue
        return value * 0.125e9 / (NODE if value >= WHOLE_NODE_GBIT else 1)
    return None


def _mesh(device: NamedDevice | None) -> int | None:
    if device is None:
        return None
    return device.mesh_peers or (7 if device.hardware in ("mi300x", "mi325x") else None)


def _host_bus(system: str, device: NamedDevice | None) -> bool:
    own = hardware(device.hardware).scaleup_name.lower() if device and device.hardware else ""
    return "pcie" in system or ("pcie" in own and "nvlink" not in own and "nvlink" not in system)


def _in_switch(system: str, device: NamedDevice | None) -> bool:
    """Switches of the fourth NVLink generation and later reduce."""
    if device is None or "pcie" in system:
        return False
    return device.hardware in ("h100-sxm", "h200-sxm", "h800-sxm", "h20", "b200", "gb200", "gb300", "rubin")
