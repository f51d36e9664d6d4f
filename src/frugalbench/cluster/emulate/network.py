"""A network made of namespaces: one for each rank, a switch for each site, shaped links, a delay between sites.

This process is the switch of site 0. Rates are kept by the kernel's ``tbf`` at both ends of every link; the delay by
``netem`` where the kernel has it, else by :mod:`frugalbench.cluster.emulate.delay`. Every packet stays inside these
namespaces.
"""

from dataclasses import dataclass, field
from typing import Any

from frugalbench.cluster.emulate.delay import DelayLine, tun
from frugalbench.cluster.emulate.namespaces import NoNetwork, fresh, run, settle
from frugalbench.gloo import BURST_BYTES, Network

INTERFACE = "eth0"
_MTU = 9000
_QUEUE_BYTES = 32 << 20
"""More than all buffers in flight: a queue never overflows, so what limits a stream is its link or its buffer."""
_QUEUE_PACKETS = 100_000
_BITS = 8


@dataclass
class Built:
    """The namespaces of a network that stands."""

    ranks: list[int]
    """Descriptor of each rank's namespace."""
    line: DelayLine | None
    facts: dict[str, Any] = field(default_factory=dict)
    """Mechanisms and settings as they came out, for the record."""


def build(network: Network, congestion: str) -> Built:
    """Make everything. The process must be isolated already. Raises :class:`NoNetwork` with what is missing."""
    run(None, "ip", "link", "set", "lo", "up")
    far = fresh() if any(port.site for port in network.ports) else None
    settings = {**_SWITCH, **_tcp(congestion, round(network.buffer_bytes))}
    found = settle(None, settings)
    if found["ipv4.tcp_congestion_control"] != congestion:
        raise NoNetwork(f"TCP congestion control '{congestion}' cannot be had here; reno always can")
    built = Built([], None, {"shaping": "tbf at both ends of each link", "kernel": found})
    if far is not None:
        run(far, "ip", "link", "set", "lo", "up")
        settle(far, settings)
        built.line, built.facts["delay"] = _join(network, far)
    for rank, port in enumerate(network.ports):
        built.ranks.append(_attach(rank, port.rate_bytes_per_s, far if port.site else None, settings))
    return built


_SWITCH = {"ipv4.ip_forward": "1", "ipv6.conf.all.disable_ipv6": "1"}


def _tcp(congestion: str, buffer_bytes: int) -> dict[str, str]:
    return {
        "ipv4.tcp_congestion_control": congestion,
        "ipv4.tcp_slow_start_after_idle": "0",
        "ipv4.tcp_rmem": f"4096 {min(131072, buffer_bytes)} {buffer_bytes}",
        "ipv4.tcp_wmem": f"4096 {min(131072, buffer_bytes)} {buffer_bytes}",
    }


def address(rank: int) -> str:
    """Of a rank on its link."""
    return f"10.77.{rank}.2"


def _attach(rank: int, rate_bytes_per_s: float, switch: int | None, settings: dict[str, str]) -> int:
    """A namespace for a rank, on a link to the switch of its site."""
    own, port = fresh(), f"port{rank}"
    _pair(port, INTERFACE, own, switch)
    run(switch, "ip", "addr", "add", f"10.77.{rank}.1/30", "dev", port)
    run(own, "ip", "addr", "add", f"{address(rank)}/30", "dev", INTERFACE)
    for namespace, device in ((switch, port), (own, INTERFACE)):
        run(namespace, "ip", "link", "set", device, "up")
        _shape(namespace, device, rate_bytes_per_s)
    run(own, "ip", "link", "set", "lo", "up")
    run(own, "ip", "route", "add", "default", "via", f"10.77.{rank}.1")
    settle(own, settings)
    return own


def _shape(namespace: int | None, device: str, rate_bytes_per_s: float) -> None:
    rate = f"{round(rate_bytes_per_s * _BITS)}bit"
    limits = ("burst", BURST_BYTES, "limit", _QUEUE_BYTES)
    run(namespace, "tc", "qdisc", "add", "dev", device, "root", "handle", "1:", "tbf", "rate", rate, *limits)


def _join(network: Network, far: int) -> tuple[DelayLine | None, str]:
    """The link between the sites: a veth pair with ``netem``, or a delay line between two TUN devices."""
    assert network.wan is not None
    rate, delay_s = network.wan.rate_bytes_per_s, network.wan.delay_s
    line = None if _has_netem() else DelayLine((tun(None, "wan0"), tun(far, "wan1")), delay_s)
    if line is None:
        _pair("wan0", "wan1", far)
    for namespace, number in ((None, 0), (far, 1)):
        device = f"wan{number}"
        run(namespace, "ip", "addr", "add", f"10.78.0.{number + 1}/30", "dev", device)
        run(namespace, "ip", "link", "set", device, "mtu", _MTU, "up")
        _shape(namespace, device, rate)
        if line is None:
            late = ("delay", f"{delay_s * 1e6:.0f}us", "limit", _QUEUE_PACKETS)
            run(namespace, "tc", "qdisc", "add", "dev", device, "parent", "1:1", "netem", *late)
        for rank in _at(network, 1 - number):
            run(namespace, "ip", "route", "add", f"10.77.{rank}.0/30", "via", f"10.78.0.{2 - number}", "dev", device)
    return line, "netem" if line is None else "TUN delay line"


def _has_netem() -> bool:
    _pair("try0", "try1")
    try:
        run(None, "tc", "qdisc", "add", "dev", "try0", "root", "netem", "delay", "1ms")
    except NoNetwork:
        return False
    finally:
        run(None, "ip", "link", "del", "try0")
    return True


def _pair(near: str, far: str, into: int | None = None, outof: int | None = None) -> None:
    """Two devices joined back to back, the second moved ``into`` another namespace."""
    run(outof, "ip", "link", "add", near, "mtu", _MTU, "type", "veth", "peer", "name", far, "mtu", _MTU)
    if into is not None:
        run(outof, "ip", "link", "set", far, "netns", f"/proc/self/fd/{into}", keep=(into,))


def _at(network: Network, site: int) -> list[int]:
    return [rank for rank, port in enumerate(network.ports) if port.site == site]
