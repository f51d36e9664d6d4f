"""All-reduce over real gloo ranks on this machine: one case per size, float32, sum.

Work per call, by formula: every rank sends ``2(n-1)/n`` of its buffer, and ``n-1`` additions are made per element over
all ranks. The buffer sizes are what one rank holds. No tokens are processed, so ``token`` is 0.
"""

from frugalbench.cluster.collectives import ring_traffic_bytes
from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError, Skipped
from frugalbench.specs.base import Expansion, MachineView, Settings, take

WORKLOAD = "allreduce"
VARIANT = "gloo-ring"
REGIME = "collective"
ITEM_BYTES = 4
KIB = 1024

SIZES_KIB = [4, 16, 64, 256, 1024, 4096, 16384]
MOST_RANKS = 8

RANK_MEMORY_BYTES = 260e6
"""Rough size of one more Python process with torch loaded, for planning."""


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison with one arm that holds every size.

    Options: ``sizes_kib`` (buffer of one rank), ``ranks``. Skipped with a reason without a core per rank, without torch
    and on another device than the CPU. Raises :class:`FrugalbenchError` for an unknown key or an impossible value.
    """
    options = take(settings, {"sizes_kib": SIZES_KIB, "ranks": 2})
    sizes_kib, ranks = options["sizes_kib"], options["ranks"]
    _check(settings, sizes_kib, ranks)
    cases = tuple(_case(size_kib * KIB, ranks, settings) for size_kib in sizes_kib)
    if reason := _obstacle(settings, machine, ranks):
        return Expansion(skipped=tuple(Skipped(case=case, reason=reason) for case in cases))
    held_bytes = 2.0 * ranks * max(sizes_kib) * KIB + (ranks - 1) * RANK_MEMORY_BYTES
    arm = Arm(id=VARIANT, cases=cases, imports=("torch", "torch.distributed"), memory_bytes=held_bytes)
    return Expansion(
        comparisons=(Comparison(id=WORKLOAD, workload=WORKLOAD, arms=(arm,), estimate_s=4.0, competes=False),)
    )


def tolerance(ranks: int) -> float:
    """Largest error of a float32 sum of ``ranks`` normal values over its root mean square, with a factor to spare.

    Each of ``n - 1`` additions rounds by at most ``2**-24`` of the partial sum; the largest of some millions of
    normal values is below 8 times their root mean square.
    """
    return 8 * ranks * 2.0**-24


def _check(settings: Settings, sizes_kib: list[int], ranks: int) -> None:
    if not sizes_kib or min(sizes_kib) < 1 or len(set(sizes_kib)) < len(sizes_kib):
        raise FrugalbenchError(f"{settings.where}: 'sizes_kib' must hold distinct positive integers, not {sizes_kib}")
    if not 2 <= ranks <= MOST_RANKS:
        raise FrugalbenchError(f"{settings.where}: 'ranks' must be 2 to {MOST_RANKS}, not {ranks}")


def _obstacle(settings: Settings, machine: MachineView, ranks: int) -> str:
    if settings.device != "cpu":
        return f"gloo ranks run on the CPU, not on '{settings.device}'"
    if ranks > machine.logical_cores:
        return f"{ranks} ranks need a core each; this machine has {machine.logical_cores}"
    return "" if machine.installed("torch") else "torch is not installed"


def _case(size_bytes: int, ranks: int, settings: Settings) -> Case:
    elements = size_bytes // ITEM_BYTES
    shape = f"r{ranks}-{size_bytes // KIB}kib"
    return Case(
        id=f"{WORKLOAD}/{VARIANT}/{shape}/{REGIME}/gloo/{settings.device}",
        workload=WORKLOAD,
        variant=VARIANT,
        shape=shape,
        regime=REGIME,
        backend="gloo",
        device=settings.device,
        dtype="float32",
        params={"ranks": ranks, "size_bytes": size_bytes, "elements": elements, "seed": settings.seed},
        cost=Cost(
            token=0.0,
            flop=float((ranks - 1) * elements),
            weight_bytes=0.0,
            traffic_bytes=ring_traffic_bytes(size_bytes, ranks),
        ),
        tolerance=tolerance(ranks),
    )
