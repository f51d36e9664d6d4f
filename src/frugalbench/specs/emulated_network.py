"""Ranks on an emulated network: real gloo ranks in namespaces of their own, on links of a given rate and delay.

Times are ``emulated``: the software is real, the network is shaped on this machine, and computing is a sleep of the
time that it would take, so that the ranks need no core each. A *scene* is a network; its cases are what is done on it.

=============  ======================================================================================================
``uniform``    every rank on a link of the same rate, one site; all-reduce and, with four ranks, all-to-all
``slow-link``  the last rank's link has a quarter of the rate; half the sizes
``skewed``     one rank holds the popular experts: it gets three times as much of an all-to-all as each other
``slow-rank``  the last rank computes half as fast; a step is computing and an all-reduce
``two-sites``  half of the ranks far away, on one slower link with a delay
``remote``     training over two sites with unlike devices against one site: H local steps between exchanges
``growth``     2, 4 and 8 ranks, each with work of its own: links of the rate against links of a quarter of it
``mix``        two ranks and two that compute half as fast: equal shares and shares by speed against each pair alone
=============  ======================================================================================================

The last two are there only when asked for; what they say of growing and mixing: :mod:`frugalbench.analysis.grown`.
The predictions to hold beside all of them are :mod:`frugalbench.gloo`'s. It is fitted on two sizes of ``uniform`` with
two ranks, which are marked ``calibration`` in ``params``.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from frugalbench.cluster.collectives import ring_traffic_bytes
from frugalbench.cluster.emulate import namespaces
from frugalbench.gloo import Network, Port, Wan
from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError, Skipped, Tier
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take

WORKLOAD = "emulated_network"
SCENES = ("remote", "uniform", "slow-link", "skewed", "slow-rank", "two-sites")
GROWTH, MIX = "growth", "mix"
FAST_LINKS, SLOW_LINKS = "fast-links", "slow-links"
FAST_PAIR, SLOW_PAIR, EQUAL, BY_SPEED = "fast-pair", "slow-pair", "equal-shares", "shares-by-speed"
GROWN = (2, 4, 8)
"""Ranks of ``growth``."""
ONE_SITE, TWO_SITES = "one-site", "two-sites"
KIB, MBIT, ITEM_BYTES = 1024, 125_000.0, 4
MOST_RANKS = 8
MOST_CPU_SHARE = 0.7
"""Of the machine; above it, what is timed is this machine and not the network."""

DEFAULTS: dict[str, Any] = {
    "scenes": list(SCENES),
    "ranks": [2, 3, 4, 8],
    "sizes_kib": [256, 1024, 4096, 8192],
    "rate_mbit": 100.0,
    "wan_mbit": 50.0,
    "wan_delay_ms": 7.5,
    "compute_ms": 50.0,
    "local_steps": [1, 4, 16],
    "exchange_kib": 1024,
    "far_pace": 1.25,
    "congestion": "reno",
    "buffer_kib": 256,
}
SLOW_LINK, SLOW_RANK, POPULAR = 0.25, 2.0, 3
RANK_MEMORY_BYTES = 60e6
"""A rank shares torch with the process that it was forked from."""


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison per scene and number of ranks; ``remote`` has two arms, which take turns.

    Options: ``scenes`` (without ``growth`` and ``mix`` unless named), ``ranks`` (of ``uniform``; two-sites takes 2 and
    4 of them, growth 2, 4 and 8, the other scenes 4), ``sizes_kib`` (buffer of one rank), ``rate_mbit`` (of a rank's
    link), ``wan_mbit`` and ``wan_delay_ms`` (one way) between sites, ``compute_ms`` (of a local step), ``local_steps``
    (of ``remote``), ``exchange_kib`` (of ``remote``, growth and mix), ``far_pace`` (time of a step at the far site over
    the near one), ``congestion`` and ``buffer_kib`` of TCP. Skipped, with what is missing, where no network can be
    made. Raises :class:`FrugalbenchError` for an unknown key or an impossible value.
    """
    options = take(settings, DEFAULTS)
    _check(settings, options)
    comparisons = [item for scene in options["scenes"] for item in _SCENES[scene](settings, options)]
    if reason := _obstacle(settings, machine):
        cases = [case for comparison in comparisons for arm in comparison.arms for case in arm.cases]
        return Expansion(skipped=tuple(Skipped(case=case, reason=reason) for case in cases))
    return Expansion(comparisons=tuple(comparisons))


def _obstacle(settings: Settings, machine: MachineView) -> str:
    if settings.device != "cpu":
        return f"emulated ranks run on the CPU, not on '{settings.device}'"
    if machine.installed("torch") is None:
        return "torch is not installed"
    return namespaces.obstacle()


def _check(settings: Settings, options: dict[str, Any]) -> None:
    for key in ("scenes", "ranks", "sizes_kib", "local_steps"):
        values = options[key]
        if not values or len(set(values)) < len(values):
            raise FrugalbenchError(f"{settings.where}: '{key}' must hold distinct values, at least one, not {values}")
    for scene in options["scenes"]:
        choose(settings, "scene", scene, tuple(_SCENES))
    if wrong := [ranks for ranks in options["ranks"] if not 2 <= ranks <= MOST_RANKS]:
        raise FrugalbenchError(f"{settings.where}: 'ranks' must be 2 to {MOST_RANKS} each, not {wrong[0]}")
    for key in ("sizes_kib", "local_steps"):
        if min(options[key]) < 1:
            raise FrugalbenchError(f"{settings.where}: '{key}' must be positive, not {min(options[key])}")
    for key in ("rate_mbit", "wan_mbit", "wan_delay_ms", "compute_ms", "exchange_kib", "far_pace", "buffer_kib"):
        if not options[key] > 0:
            raise FrugalbenchError(f"{settings.where}: '{key}' must be positive, not {options[key]}")


def _uniform(settings: Settings, options: dict[str, Any]) -> Iterator[Comparison]:
    for ranks in options["ranks"]:
        network = _network(options, _ports(options, ranks))
        works = [_all_reduce(size_kib) for size_kib in options["sizes_kib"]]
        if ranks == 4:
            works += [_all_to_all(size_kib, ranks, 1) for size_kib in options["sizes_kib"]]
        yield _alone(settings, options, "uniform", network, works)


def _slow_link(settings: Settings, options: dict[str, Any]) -> Iterator[Comparison]:
    *others, last = _ports(options, 4)
    slow = Port(rate_bytes_per_s=SLOW_LINK * last.rate_bytes_per_s)
    works = [_all_reduce(size_kib) for size_kib in dict.fromkeys(max(1, size // 2) for size in options["sizes_kib"])]
    yield _alone(settings, options, "slow-link", _network(options, (*others, slow)), works)


def _skewed(settings: Settings, options: dict[str, Any]) -> Iterator[Comparison]:
    works = [_all_to_all(size_kib, 4, POPULAR) for size_kib in options["sizes_kib"]]
    yield _alone(settings, options, "skewed", _network(options, _ports(options, 4)), works)


def _slow_rank(settings: Settings, options: dict[str, Any]) -> Iterator[Comparison]:
    *others, last = _ports(options, 4)
    slow = Port(rate_bytes_per_s=last.rate_bytes_per_s, pace=SLOW_RANK)
    works = [_step(size_kib, options, 1) for size_kib in options["sizes_kib"]]
    yield _alone(settings, options, "slow-rank", _network(options, (*others, slow)), works)


def _two_sites(settings: Settings, options: dict[str, Any]) -> Iterator[Comparison]:
    for ranks in (2, 4):
        works = [_all_reduce(size_kib) for size_kib in options["sizes_kib"]]
        yield _alone(settings, options, "two-sites", _apart(options, ranks, 1.0), works)


def _remote(settings: Settings, options: dict[str, Any]) -> Iterator[Comparison]:
    """One site exchanges after every step; two sites after H of them, with and without overlap.

    The far site's devices are slower, and one site is given the same devices: what differs is the distance.
    """
    far = _apart(options, 4, options["far_pace"])
    near_ports = (Port(rate_bytes_per_s=port.rate_bytes_per_s, pace=port.pace) for port in far.ports)
    near = _network(options, tuple(near_ports))
    arms = []
    for variant, network in ((ONE_SITE, near), (TWO_SITES, far)):
        works = [
            _step(options["exchange_kib"], options, 1 if variant == ONE_SITE else steps, overlap, steps)
            for steps in options["local_steps"]
            for overlap in (False, True)
        ]
        arms.append(_arm(settings, options, "remote", variant, network, works))
    yield _in_turns(f"{WORKLOAD}/remote", arms)


def _growth(settings: Settings, options: dict[str, Any]) -> Iterator[Comparison]:
    """As much work for each rank however many there are; links of the rate and of a quarter of it take turns."""
    for ranks in GROWN:
        arms = []
        for variant, factor in ((FAST_LINKS, 1.0), (SLOW_LINKS, SLOW_LINK)):
            ports = (Port(rate_bytes_per_s=factor * options["rate_mbit"] * MBIT),) * ranks
            works = [_step(options["exchange_kib"], options, 1)]
            arms.append(_arm(settings, options, GROWTH, variant, _network(options, ports), works, token=ranks))
        yield _in_turns(f"{WORKLOAD}/{GROWTH}-r{ranks}", arms)


def _mix(settings: Settings, options: dict[str, Any]) -> Iterator[Comparison]:
    """Four ranks of two paces, with equal shares of the work and with shares by speed, and each pair by itself."""
    rate = options["rate_mbit"] * MBIT
    fast, slow = (Port(rate_bytes_per_s=rate, pace=pace) for pace in (1.0, SLOW_RANK))
    mixed = (fast, fast, slow, slow)
    speeds = [1 / port.pace for port in mixed]
    by_speed = [len(mixed) * speed / sum(speeds) for speed in speeds]
    groups: tuple[tuple[str, tuple[Port, ...], list[float]], ...] = (
        (FAST_PAIR, (fast, fast), []),
        (SLOW_PAIR, (slow, slow), []),
        (EQUAL, mixed, []),
        (BY_SPEED, mixed, by_speed),
    )
    arms = []
    for variant, ports, shares in groups:
        works = [_step(options["exchange_kib"], options, 1) | ({"shares": shares} if shares else {})]
        arms.append(_arm(settings, options, MIX, variant, _network(options, ports), works, token=len(ports)))
    yield _in_turns(f"{WORKLOAD}/{MIX}", arms)


_SCENES = dict(
    zip(
        (*SCENES, GROWTH, MIX),
        (_remote, _uniform, _slow_link, _skewed, _slow_rank, _two_sites, _growth, _mix),
        strict=True,
    )
)


def _in_turns(name: str, arms: list[Arm]) -> Comparison:
    return Comparison(
        id=name, workload=WORKLOAD, arms=tuple(arms), estimate_s=_seconds(arms), competes=False, tier=Tier.EMULATED
    )


def _network(options: dict[str, Any], ports: tuple[Port, ...], wan: Wan | None = None) -> Network:
    return Network(ports=ports, wan=wan, buffer_bytes=options["buffer_kib"] * KIB)


def _ports(options: dict[str, Any], ranks: int) -> tuple[Port, ...]:
    return (Port(rate_bytes_per_s=options["rate_mbit"] * MBIT),) * ranks


def _apart(options: dict[str, Any], ranks: int, far_pace: float) -> Network:
    """The second half of the ranks at the other site."""
    rate = options["rate_mbit"] * MBIT
    sites = [rank >= ranks // 2 for rank in range(ranks)]
    ports = tuple(Port(rate_bytes_per_s=rate, site=int(far), pace=far_pace if far else 1.0) for far in sites)
    wan = Wan(rate_bytes_per_s=options["wan_mbit"] * MBIT, delay_s=options["wan_delay_ms"] / 1e3)
    return _network(options, ports, wan)


def _all_reduce(size_kib: int) -> dict[str, Any]:
    return {"kind": "all_reduce", "elements": size_kib * KIB // ITEM_BYTES}


def _all_to_all(size_kib: int, ranks: int, popular: int) -> dict[str, Any]:
    """Every rank sends ``size_kib``; rank 0 gets ``popular`` shares of each other rank's."""
    part = size_kib * KIB // ITEM_BYTES // (ranks - 1 + popular)
    row = [popular * part, *([part] * (ranks - 1))]
    return {"kind": "all_to_all", "elements": sum(row), "blocks": [row] * ranks}


def _step(size_kib: int, options: dict[str, Any], steps: int, overlap: bool = False, over: int = 0) -> dict[str, Any]:
    """``over``: local steps that the case's regime is named for, where it is not ``steps``."""
    return {
        "kind": "step",
        "elements": size_kib * KIB // ITEM_BYTES,
        "compute_s": options["compute_ms"] / 1e3,
        "steps": steps,
        "overlap": overlap,
        "over": over or steps,
    }


def _alone(
    settings: Settings, options: dict[str, Any], scene: str, network: Network, works: list[dict[str, Any]]
) -> Comparison:
    arm = _arm(settings, options, scene, scene, network, works)
    return _in_turns(f"{WORKLOAD}/{scene}-r{len(network.ports)}", [arm])


def _seconds(arms: list[Arm]) -> float:
    """Starting the ranks, and one call of each case at the rate of its slowest link."""
    return sum(4.0 + sum(2 * float(case.params["size_bytes"]) / _slowest(case) for case in arm.cases) for arm in arms)


def _slowest(case: Case) -> float:
    network = msgspec.convert(case.params["network"], Network)
    rates = [port.rate_bytes_per_s for port in network.ports]
    return min([*rates, network.wan.rate_bytes_per_s] if network.wan else rates)


def _arm(
    settings: Settings,
    options: dict[str, Any],
    scene: str,
    variant: str,
    network: Network,
    works: list[dict[str, Any]],
    token: int | None = None,
) -> Arm:
    """``token``: units of work of one call; its local steps unless given."""
    cases = tuple(_case(settings, options, scene, variant, network, work, token) for work in works)
    memory_bytes = len(network.ports) * (RANK_MEMORY_BYTES + 3.0 * max(case.params["size_bytes"] for case in cases))
    return Arm(id=variant, cases=cases, imports=("frugalbench.workloads.emulated_network",), memory_bytes=memory_bytes)


def _case(
    settings: Settings,
    options: dict[str, Any],
    scene: str,
    variant: str,
    network: Network,
    work: dict[str, Any],
    token: int | None,
) -> Case:
    ranks, size_bytes = len(network.ports), work["elements"] * ITEM_BYTES
    over = work.pop("over", 1)
    regime = _regime(scene, work, over)
    shape = f"{scene}-r{ranks}-{size_bytes // KIB}kib"
    calibration = scene == "uniform" and ranks == 2 and size_bytes // KIB in _calibration(options["sizes_kib"])
    return Case(
        id=f"{WORKLOAD}/{shape}/{variant}/{regime.replace(' ', '-')}/gloo/{settings.device}",
        workload=WORKLOAD,
        variant=variant,
        shape=shape,
        regime=regime,
        backend="gloo",
        device=settings.device,
        dtype="float32",
        params={
            "ranks": ranks,
            "size_bytes": size_bytes,
            "network": msgspec.to_builtins(network),
            "work": work,
            "calibration": calibration,
            "seed": settings.seed,
            "congestion": options["congestion"],
            "most_cpu_share": MOST_CPU_SHARE,
        },
        cost=Cost(
            token=float(work.get("steps", 0) if token is None else token),
            flop=0.0 if work["kind"] == "all_to_all" else float((ranks - 1) * work["elements"]),
            weight_bytes=0.0,
            traffic_bytes=ring_traffic_bytes(size_bytes, ranks) if work["kind"] != "all_to_all" else float(size_bytes),
        ),
        tolerance=8 * ranks * 2.0**-24,
    )


def _calibration(sizes_kib: list[int]) -> set[int]:
    """The sizes that the model is fitted on: the smallest and the last but one."""
    ordered = sorted(sizes_kib)
    return {ordered[0], ordered[-2:][0]}


def _regime(scene: str, work: dict[str, Any], over: int) -> str:
    if scene == "remote":
        return f"every {over} steps{', overlapped' if work['overlap'] else ''}"
    return {"all_reduce": "all-reduce", "all_to_all": "all-to-all", "step": "step"}[work["kind"]]
