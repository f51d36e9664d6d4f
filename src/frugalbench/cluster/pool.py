"""``net.memory_pool``: decoding when a part of the bytes that each token reads lies in memory across a link.

Decoding reads its weights and cache once per token, so a token takes their bytes over the rate at which they come.
Local and remote bytes come beside each other where the remote ones are asked for in time (overlap 1), else one after
the other (overlap 0). Capacity, contention of several readers and the pool's own memory are not modelled.
"""

from frugalbench.cluster.hardware import hardware
from frugalbench.cluster.ranges import Range, exact, propagate
from frugalbench.cluster.topology import Values
from frugalbench.schema import Quantity, Tier

Facts = dict[str, Quantity]

LOCAL, REMOTE, PEAK = "achieved_memory_bytes_per_s", "pool_unidirectional_bytes_per_s", "bf16_dense_flop_per_s"
REMOTE_SHARE = 0.25
"""Of the bytes read per token, as the claim has it."""
THRESHOLD = 0.8
"""Of ``net.memory_pool``; the link that would meet it is drawn at it."""
OVERLAP = Range(value=1.0, low=0.0, high=1.0)
LATENCY = Range(value=2.0, low=2.0, high=5.0)
LATENCY_SOURCE = "CXL memory cards load 2 to 5 times as late as local memory: arXiv 2405.14209"


def pooled(device: str) -> Facts:
    """Throughput with a quarter of the bytes remote over all local, from achieved local and remote read rates."""
    item = hardware(device)
    local, remote = item.require(LOCAL), item.require(REMOTE)
    inputs = {"local": local, "remote": remote, "overlap": OVERLAP}
    (ratio,) = propagate(lambda v: [_kept(v)], inputs)
    return {
        "ratio": ratio.quantity(
            "1", f"{item.name}: {item.sources(REMOTE)}; reads overlap wholly (centre) to not at all"
        ),
        "local_bytes_per_s": local.quantity("B/s", item.sources(LOCAL)),
        "remote_bytes_per_s": remote.quantity("B/s", item.sources(REMOTE)),
        **_limits(device, local, remote),
    }


def unknown_link(device: str) -> Facts:
    """No ratio, since no rate of such a link was read; instead the rate that the threshold asks for."""
    item = hardware(device)
    local = item.require("memory_bytes_per_s")
    (waits,) = propagate(lambda v: [1 / (1 - REMOTE_SHARE + REMOTE_SHARE * v["latency"])], {"latency": LATENCY})
    return {
        "ratio": Quantity(value=None, unit="1", tier=Tier.MODELLED, source="no bandwidth of a CXL link was read"),
        "ratio_if_loads_wait": waits.quantity("1", f"loads one after the other, unlike decoding's; {LATENCY_SOURCE}"),
        "local_bytes_per_s": local.quantity(
            "B/s", f"{item.name}, published rate: {item.sources('memory_bytes_per_s')}"
        ),
        "link_at_threshold_bytes_per_s": _at_threshold(local).quantity("B/s", _WANTED),
    }


def _kept(values: Values) -> float:
    local_s, remote_s = (1 - REMOTE_SHARE) / values["local"], REMOTE_SHARE / values["remote"]
    together_s = max(local_s, remote_s)
    return 1 / values["local"] / (together_s + (1 - values["overlap"]) * (local_s + remote_s - together_s))


def _at_threshold(local: Range) -> Range:
    return exact(REMOTE_SHARE * THRESHOLD) * local


def _limits(device: str, local: Range, remote: Range) -> Facts:
    item = hardware(device)
    intensity = exact(REMOTE_SHARE) * item.require(PEAK) / remote
    return {
        "link_at_threshold_bytes_per_s": _at_threshold(local).quantity("B/s", _WANTED),
        "intensity_at_most_flop_per_byte": intensity.quantity(
            "FLOP/B", f"from here on arithmetic hides the remote bytes, even at peak: {item.sources(PEAK)}"
        ),
    }


_WANTED = f"link per device that keeps {THRESHOLD:.0%} with reads wholly overlapped"
