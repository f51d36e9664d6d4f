"""Rows about collectives: which operation, algorithm and wire a row speaks of, and its metric out of a time."""

import re

from frugalbench.cluster import pipelined as p
from frugalbench.cluster.published.names import Place, place
from frugalbench.cluster.published.points import Point
from frugalbench.schema import Frozen

RACK = 16
"""Scale-up domains with more devices are racks: one more stage of switches."""
SWITCH_RANKS = 5
"""Fewer ranks in a domain reduce in a ring: in-switch reduction saves them nothing."""

_OPERATIONS = (
    ("all_reduce", r"all[_ -]?reduce|allreduce|over nic \(ring\)"),
    ("reduce_scatter", r"reduce[_ -]?scatter"),
    ("all_gather", r"all[_ -]?gather"),
    ("all_to_all", r"all[_ -]?to[_ -]?all|all2all|a2a"),
    ("broadcast", r"broadcast|bcast"),
    ("reduce", r"(?<![a-z])reduce(?![a-z])"),
    ("p2p", r"send[_ -]?recv|p2p|point[_ -]to[_ -]point|sendrecv|device_to_device|bidirectional"),
)
_OTHERS = re.compile(
    r"error|alignment|hierarchical all-reduce|astra|outer|deepep|dispatch|combine|diloco|training|peer read|pccl"
)
_METRICS = {
    "busbw": "busbw", "bus bandwidth": "busbw", "bus bw": "busbw",
    "algbw": "algbw", "alg bw": "algbw", "algobw": "algbw",
    "algorithm bw": "algbw", "alg bandwidth": "algbw", "algorithm bandwidth": "algbw", "algbandwidth": "algbw",
    "bandwidth": "bandwidth", "throughput": "bandwidth", "time": "time", "latency": "time", "duration": "time",
    "busbw / peak": "share", "busbw/peak": "share", "efficiency": "share", "bandwidth utilisation": "share",
    "bandwidth efficiency": "share", "algbw / peak": "share of algbw",
}  # fmt: skip


class Scene(Frozen, frozen=True, kw_only=True):
    """One measurement of a collective."""

    table: str
    """Rows of one table share constants: system, work and what limits it."""
    family: str
    """What limits: ``ring``, ``mesh``, ``switch``, ``rack``, ``net``, ``exchange``, ``exchange net``,
    ``host bus`` or ``direct``."""
    device: str
    operation: str
    algorithm: str
    size_bytes: float
    fabric: p.Fabric
    over_net: bool

    @property
    def group(self) -> str:
        """Tables of one family on one device."""
        return f"{self.family} | {self.device}"

    @property
    def ranks(self) -> int:
        """Devices that take part."""
        return self.fabric.ranks

    def hops(self) -> p.Hops:
        """Hops of the longest chain."""
        return p.hops(self.operation, self.algorithm, self.fabric)

    def wire_s(self) -> float:
        """Seconds at the full rate of the wire."""
        return p.wire_s(self.operation, self.algorithm, self.size_bytes, self.fabric, self.over_net)


def scene(point: Point) -> Scene | str:
    """The scene of a row about a collective, why there is none, or an empty text for rows of another kind."""
    work = point.work.lower()
    operation = next((name for name, pattern in _OPERATIONS if re.search(pattern, work)), "")
    if not operation or _OTHERS.search(f"{point.system} {work} {point.metric}".lower()):
        return ""
    if _metric(point) not in _METRICS:
        return f"no formula for '{point.metric}' of a collective"
    where = place(point)
    if where.scaleup_bytes_per_s is None:
        return f"no device that is known in '{point.system}'"
    size = _size_bytes(point)
    if isinstance(size, str):
        return size
    if where.nodes > 1 and where.scaleout_bytes_per_s is None:
        return f"no rate of the network between nodes in '{point.system}'"
    return _scene(point, operation, size, where)


LARGE = 16 * 2.0**30
"""Rows that give a rate without a size are taken for large messages."""


_BINARY = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30}
_SHORT = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG])", re.IGNORECASE)
_ASIDE = re.compile(r"\(.*?\)|\b(?:out-of-place|in-place|average|avg|mean|measured)\b")


def _size_bytes(point: Point) -> float | str:
    """Bytes of the message, with the suffixes of nccl-tests (``8G``) too; why there are none."""
    if size := point.size_bytes:
        return size
    if found := _SHORT.fullmatch(point.size):
        return float(found[1]) * _BINARY[found[2].upper()]
    if point.size:
        return f"the message size '{point.size}' is not understood; give bytes, or a number with KiB, MiB, GiB"
    return "a time needs the message size" if _kind(point) == "time" else LARGE


def metric(point: Point, found: Scene, time_s: float) -> float:
    """What the row's metric would be, in SI units, if the collective took ``time_s``."""
    kind = _kind(point)
    if kind == "time":
        return time_s
    algbw = found.size_bytes / time_s
    busbw = algbw * p.bus_factor(found.operation, found.ranks)
    if kind == "share":
        return found.wire_s() / time_s
    if kind == "share of algbw":
        return found.wire_s() / time_s / p.bus_factor(found.operation, found.ranks)
    if found.operation == "p2p" and "bidirectional" in point.work.lower():
        return 2 * algbw
    return algbw if kind == "algbw" else busbw


def observed_s(point: Point, found: Scene) -> float:
    """The time that the row's value stands for."""
    return point.si if _kind(point) == "time" else metric(point, found, 1.0) / point.si


def _kind(point: Point) -> str:
    return _METRICS[_metric(point)]


def _metric(point: Point) -> str:
    """``out-of-place bus_bw (GB/s)`` is ``bus bw``."""
    return " ".join(_ASIDE.sub(" ", point.metric.lower()).replace("_", " ").split())


def _scene(point: Point, operation: str, size: float, where: Place) -> Scene:
    work, text = point.work.lower(), point.text()
    fabric = p.Fabric(
        ranks=where.devices,
        node=where.node,
        up_bytes_per_s=where.scaleup_bytes_per_s or 0.0,
        out_bytes_per_s=where.scaleout_bytes_per_s,
        mesh_peers=where.mesh_peers,
    )
    over_net = where.nodes > 1 and _net_limits(operation, where, "over nic" in work)
    algorithm = _algorithm(operation, work, text, where, over_net)
    family = _family(operation, algorithm, where, over_net)
    parts = [point.system, re.sub(r"\s+", " ", point.work), family]
    if family == "exchange net":
        parts.append("two nodes" if where.nodes == 2 else "more nodes")
    return Scene(
        table=" | ".join(parts),
        family=family,
        device=where.device,
        operation=operation,
        algorithm=algorithm,
        size_bytes=size,
        fabric=fabric,
        over_net=over_net,
    )


def _net_limits(operation: str, where: Place, says_so: bool) -> bool:
    """Whether cards or the links inside a node are the narrower, at the shares usually achieved (0.95 and 0.8)."""
    if says_so or where.network_reduces or operation in ("all_to_all", "p2p"):
        return True
    out = (where.scaleout_bytes_per_s or 0.0) * where.node
    return 0.95 * out < 0.8 * (where.scaleup_bytes_per_s or 0.0)


def _algorithm(operation: str, work: str, text: str, where: Place, over_net: bool) -> str:
    if operation == "all_to_all":
        return "pairwise"
    if operation == "p2p":
        return "direct"
    if "halving" in work:
        return "halving_doubling"
    if "nvls_enable=0" in work or re.search(r"\bring\b(?!/)", work):
        return "ring"
    if operation == "all_reduce" and where.in_switch and not over_net and _reduces_in_switch(work, text, where):
        return "switch"
    if operation == "all_reduce" and where.network_reduces:
        return "switch"
    return "tree" if re.search(r"\btree\b", work) else "ring"


def _reduces_in_switch(work: str, text: str, where: Place) -> bool:
    if "without sharp" in text and "with/without" not in text:
        return False
    return where.node > RACK or (where.nodes == 1 and (where.devices >= SWITCH_RANKS or "nvls" in work))


def _family(operation: str, algorithm: str, where: Place, over_net: bool) -> str:
    if operation == "all_to_all":
        return "exchange net" if over_net else "exchange"
    if operation == "p2p":
        return "direct"
    if over_net:
        return "net"
    if algorithm == "switch":
        return "rack" if where.node > RACK else ("net" if where.nodes > 1 else "switch")
    if where.host_bus:
        return "host bus"
    return "mesh" if where.mesh_peers else "ring"
