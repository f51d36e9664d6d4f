"""Closed-form times of all-reduce, with a latency per step and a bandwidth per device (alpha-beta).

Formulas: Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH" (2005) for the
ring and the tree; ``algbw`` and ``busbw`` as nccl-tests defines them in its ``doc/PERFORMANCE.md``.
Sizes are bytes of one rank's buffer, rates bytes per second that one device sends (one direction).
"""

import math

from frugalbench.schema import Frozen


class Link(Frozen, frozen=True, kw_only=True):
    """What one device has to reach its peers of one level."""

    alpha_s: float
    """Start-up of one step: launch, synchronisation and propagation."""
    bytes_per_s: float
    """Achieved, one direction, per device."""


def ring_all_reduce_s(size_bytes: float, ranks: int, link: Link) -> float:
    """Reduce-scatter and all-gather around a ring: ``2(n-1)`` steps of ``size / n`` bytes."""
    if ranks < 2:
        return 0.0
    return 2 * (ranks - 1) * (link.alpha_s + size_bytes / ranks / link.bytes_per_s)


def tree_all_reduce_s(size_bytes: float, ranks: int, link: Link) -> float:
    """Reduce up and broadcast down a pipelined binary tree: ``2 log2 n`` start-ups, every byte sent twice."""
    if ranks < 2:
        return 0.0
    return 2 * math.ceil(math.log2(ranks)) * link.alpha_s + 2 * size_bytes / link.bytes_per_s


def all_reduce_s(size_bytes: float, ranks: int, link: Link) -> float:
    """The faster of ring and tree, as a library's tuner would choose."""
    return min(ring_all_reduce_s(size_bytes, ranks, link), tree_all_reduce_s(size_bytes, ranks, link))


def hierarchical_all_reduce_s(size_bytes: float, levels: list[tuple[int, Link]]) -> float:
    """All-reduce over nested groups, ``levels`` from the innermost out, each with its group's fan-out.

    Reduce-scatter inside, all-reduce of each device's shard outside, all-gather inside: the inner level moves what a
    ring all-reduce moves there, the outer one only ``size / fan-out``.
    """
    total_s, shard_bytes = 0.0, size_bytes
    for index, (ranks, link) in enumerate(levels):
        outermost = all(fan_out < 2 for fan_out, _ in levels[index + 1 :])
        total_s += (all_reduce_s if outermost else ring_all_reduce_s)(shard_bytes, ranks, link)
        shard_bytes /= ranks
    return total_s


def algbw_bytes_per_s(size_bytes: float, time_s: float) -> float:
    """Buffer size over time."""
    return size_bytes / time_s


def busbw_bytes_per_s(size_bytes: float, time_s: float, ranks: int) -> float:
    """``algbw`` times ``2(n-1)/n``: the rate at the wire of a ring, comparable across rank counts."""
    return algbw_bytes_per_s(size_bytes, time_s) * 2 * (ranks - 1) / ranks


def ring_traffic_bytes(size_bytes: float, ranks: int) -> float:
    """Bytes that each rank sends in an all-reduce: ``2(n-1)/n`` of its buffer."""
    return 2 * (ranks - 1) / ranks * size_bytes
