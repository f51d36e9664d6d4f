"""Collectives over nested levels of links, by the closed form of :mod:`frugalbench.cluster.pipelined`.

The two innermost levels are one fabric, a ring or tree through nodes as a library builds it and as the published tables
show it. Each level further out reduces the shards that a reduce-scatter leaves on every device.
Sizes are bytes of one rank's buffer.
"""

import math

from frugalbench.cluster import pipelined as p
from frugalbench.schema import Frozen


class Span(Frozen, frozen=True, kw_only=True):
    """One level of links as one group of ranks meets it."""

    ranks: int
    """Groups of the level below that it joins."""
    bytes_per_s: float
    """At the wire, one direction, per device."""
    hop_s: float
    """What a chunk needs from one rank to the next."""
    efficiency: float
    """Achieved share of the wire for large messages."""
    pipelining: float = 1.0
    exchange_share: float = 1.0
    """What an all-to-all achieves over what a ring does."""
    between: bool = False
    """Between nodes rather than inside one."""
    in_switch: bool = False
    """The switch adds up."""


def all_reduce_s(size_bytes: float, spans: list[Span]) -> float:
    """Seconds of an all-reduce over nested groups, innermost first; zero for a single rank."""
    used = [span for span in spans if span.ranks > 1]
    inner, outer = used[:2], used[2:]
    if not outer:
        return _flat_s("all_reduce", size_bytes, inner)
    shard_bytes = size_bytes / math.prod(span.ranks for span in inner)
    around_s = _flat_s("reduce_scatter", size_bytes, inner) + _flat_s("all_gather", size_bytes, inner)
    return around_s + all_reduce_s(shard_bytes, outer)


def shards_s(size_bytes: float, spans: list[Span]) -> float:
    """Seconds of a reduce-scatter or an all-gather of ``size_bytes`` in all: they move the same over the same hops."""
    used = [span for span in spans if span.ranks > 1]
    inner, outer = used[:2], used[2:]
    if not outer:
        return _flat_s("all_gather", size_bytes, inner)
    shard_bytes = size_bytes / math.prod(span.ranks for span in inner)
    return _flat_s("all_gather", size_bytes, inner) + shards_s(shard_bytes, outer)


def all_to_all_s(size_bytes: float, spans: list[Span]) -> float:
    """Seconds in which each rank sends ``size_bytes``, spread evenly over all ranks, its own share included.

    What leaves a node goes through the node's links outward at every level; the slowest level sets the pace.
    """
    ranks = math.prod(span.ranks for span in spans)
    start_s, load_s, pipelining, inside = 0.0, 0.0, 0.0, 1
    for span in spans:
        away = ranks - inside if span.between else span.ranks - 1
        at_level_s = size_bytes * away / ranks / (span.bytes_per_s * span.efficiency * span.exchange_share)
        start_s += span.hop_s * math.log2(span.ranks)
        if span.ranks > 1 and at_level_s > load_s:
            load_s, pipelining = at_level_s, span.pipelining
        inside *= span.ranks
    return start_s + pipelining * math.sqrt(start_s * load_s) + load_s


def ring_traffic_bytes(size_bytes: float, ranks: int) -> float:
    """Bytes that each rank sends in an all-reduce: ``2(n-1)/n`` of its buffer."""
    return p.bus_factor("all_reduce", ranks) * size_bytes


def _flat_s(operation: str, size_bytes: float, spans: list[Span]) -> float:
    """One fabric: the fastest algorithm, as a library's tuner would choose, at the pace of the narrower wire."""
    if not spans:
        return 0.0
    trees = operation == "all_reduce" and not spans[0].in_switch
    algorithms = ("ring", "tree") if trees else ("switch",) if operation == "all_reduce" else ("ring",)
    return min(_algorithm_s(operation, name, size_bytes, spans) for name in algorithms)


def _algorithm_s(operation: str, algorithm: str, size_bytes: float, spans: list[Span]) -> float:
    inner, outer = spans[0], spans[-1]
    node = 1 if inner.between else inner.ranks
    fabric = p.Fabric(
        ranks=math.prod(span.ranks for span in spans),
        node=node,
        up_bytes_per_s=inner.bytes_per_s,
        out_bytes_per_s=outer.bytes_per_s,
    )
    return max(
        p.collective_s(operation, algorithm, size_bytes, fabric, _constants(span, inner, outer), span.between)
        for span in spans
    )


def _constants(limit: Span, inner: Span, outer: Span) -> p.Constants:
    return p.Constants(up_s=inner.hop_s, net_s=outer.hop_s, pipelining=limit.pipelining, efficiency=limit.efficiency)
