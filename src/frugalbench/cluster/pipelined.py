"""Closed-form time of a collective with pipelined chunks: ``T = L + k sqrt(l W) + W``.

``L`` is what the hops of one chunk cost, ``W`` what the bytes cost at the achieved rate, and ``k sqrt(l W)`` what
cutting the message into chunks leaves over: with ``c`` chunks a pipeline takes ``(h + c)(a + w/c)``, least at
``c = sqrt(h w / a)``, where it is ``h a + 2 sqrt(h a w) + w`` (``k = 2`` for equal hops). ``l`` is ``L`` for chains
that one chunk runs down as a whole; in a ring every rank starts at once, and ``l`` is the passage through one node.
Traffic per rank and hops per algorithm: Thakur, Rabenseifner and Gropp (2005); in-switch reduction: every rank sends
its buffer once and one share of the result.
Sizes are bytes of one rank's buffer as nccl-tests prints them (the gathered buffer for all-gather and reduce-scatter).
"""

import math

from frugalbench.schema import Frozen

SWITCH_HOPS = 14
"""Hops of in-switch reduction, counted as those of a ring of eight: measured start-ups are alike."""


class Fabric(Frozen, frozen=True, kw_only=True):
    """Ranks in equal nodes. Rates are bytes/s, one direction, per rank, at the wire."""

    ranks: int
    node: int
    up_bytes_per_s: float
    out_bytes_per_s: float | None = None
    mesh_peers: int | None = None
    """Links that the scale-up rate is split over, where there is no switch."""

    @property
    def nodes(self) -> int:
        """Nodes that the ranks fill."""
        return math.ceil(self.ranks / self.node)


class Hops(Frozen, frozen=True, kw_only=True):
    """How often a chunk changes rank inside a node and between nodes."""

    up: float
    net: float
    parts: int = 1
    """Equal stretches that run at the same time: the nodes of a ring."""


class Constants(Frozen, frozen=True, kw_only=True):
    """What is fitted; everything else is counted."""

    up_s: float
    """One hop inside a node."""
    net_s: float
    """One hop between nodes."""
    latency: float = 1.0
    """Factor on all hops."""
    pipelining: float = 1.0
    """``k``."""
    efficiency: float = 1.0
    """Achieved share of the wire for large messages."""
    congestion: float = 0.0
    """Exponent with which the achieved rate falls per doubling of nodes beyond four."""


def bus_factor(operation: str, ranks: int) -> float:
    """``busbw / algbw`` as nccl-tests defines it."""
    if operation == "all_reduce":
        return 2 * (ranks - 1) / ranks
    if operation in ("all_gather", "reduce_scatter", "all_to_all"):
        return (ranks - 1) / ranks
    return 1.0


def hops(operation: str, algorithm: str, fabric: Fabric) -> Hops:
    """Hops of the longest chain. All-reduce goes round twice; a tree has one level per doubling of nodes."""
    ranks, nodes = fabric.ranks, fabric.nodes
    passes = 2 if operation == "all_reduce" else 1
    if algorithm == "switch":
        return Hops(up=SWITCH_HOPS, net=passes * math.log2(nodes) if nodes > 1 else 0.0)
    if algorithm == "tree":
        return Hops(up=passes * (min(fabric.node, ranks) - 1), net=passes * math.log2(max(nodes, 1)))
    if algorithm == "halving_doubling":
        inside = math.log2(min(fabric.node, ranks))
        return Hops(up=passes * inside, net=passes * math.log2(max(nodes, 1)))
    if algorithm == "pairwise":
        return Hops(up=math.log2(max(ranks, 2)), net=math.log2(nodes) if nodes > 1 else 0.0)
    if algorithm == "direct":
        return Hops(up=1.0, net=1.0 if nodes > 1 else 0.0)
    if nodes == 1:
        return Hops(up=passes * (ranks - 1), net=0.0)
    return Hops(up=passes * (ranks - nodes), net=passes * nodes, parts=nodes)


def wire_s(operation: str, algorithm: str, size_bytes: float, fabric: Fabric, over_net: bool) -> float:
    """Seconds that the bytes take at the full rate of the wire that limits them."""
    ranks = fabric.ranks
    if algorithm == "switch" and operation == "all_reduce" and not over_net:
        return size_bytes * (1 + 1 / ranks) / fabric.up_bytes_per_s
    traffic = size_bytes * bus_factor(operation, ranks)
    if not over_net:
        return traffic / _inside(fabric)
    out = fabric.out_bytes_per_s or math.nan
    if operation == "all_to_all":
        return max(size_bytes * (ranks - fabric.node) / ranks / out, traffic / _inside(fabric))
    return traffic / (out if algorithm == "direct" else out * min(fabric.node, ranks))


def time_s(start_s: float, at_wire_s: float, constants: Constants, nodes: int = 1, parts: int = 1) -> float:
    """``L + k sqrt(L / parts W) + W`` for ``L`` and ``W`` of :func:`start_s` and :func:`wire_s`."""
    rate = constants.efficiency * math.pow(max(nodes / 4, 1.0), -constants.congestion)
    load = at_wire_s / rate
    return start_s + constants.pipelining * math.sqrt(start_s / parts * load) + load


def start_s(found: Hops, constants: Constants) -> float:
    """``L``: seconds of the hops."""
    return constants.latency * (found.up * constants.up_s + found.net * constants.net_s)


def collective_s(
    operation: str, algorithm: str, size_bytes: float, fabric: Fabric, constants: Constants, over_net: bool = False
) -> float:
    """Seconds of one collective; zero for a single rank."""
    if fabric.ranks < 2:
        return 0.0
    found = hops(operation, algorithm, fabric)
    at_wire_s = wire_s(operation, algorithm, size_bytes, fabric, over_net)
    return time_s(start_s(found, constants), at_wire_s, constants, fabric.nodes, found.parts)


def _inside(fabric: Fabric) -> float:
    """Rate inside a node: without a switch a rank reaches only as many links as it has peers."""
    if fabric.mesh_peers is None:
        return fabric.up_bytes_per_s
    return fabric.up_bytes_per_s * min(fabric.ranks - 1, fabric.mesh_peers) / fabric.mesh_peers
