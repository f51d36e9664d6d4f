"""Identical arms, and arms with a known amount of extra work: what the self-test measures the harness with.

Each kind of work is a number of equal units, so an arm with 5% more units does 5% more real work inside its timed
call. ``compute-bound``: small fp32 matrix products on all threads. ``memory-bound``: a read of more memory than the
last-level cache holds. ``dispatch-bound``: operations on a handful of elements, whose time is the framework's own.
"""

from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.specs.machine_peaks import MIB, buffer_mib

WORKLOAD = "selftest"
KINDS = ("compute-bound", "memory-bound", "dispatch-bound")
BASELINE = "same"

MOST_ARMS = 20
MOST_PERCENT = 1000.0

MATRIX = {"cpu": 128, "cuda": 2048}
"""Rows and columns of the compute-bound product: about 0.03 ms on two cores, 0.3 ms on an H100 in full precision, where
a smaller one would be bound by its launch; a unit is 1% of a call."""
COMPUTE_UNITS = 100
DISPATCH_UNITS = 1000
ELEMENTS = 8
"""Size of the tensors of the dispatch-bound work."""
MEMORY_STEP_MIB = 100
"""A unit is 1 MiB, and 2, 5 and 10% of a multiple of 100 are whole units."""

_TOLERANCE = {"compute-bound": 1e-4, "memory-bound": 1e-12, "dispatch-bound": 1e-12}
"""fp32 sums of 128 x 100 products; the other two are exact integers."""


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison per kind of work: ``identical`` arms without and one arm per entry of ``extra`` percent.

    Options: ``kinds``, ``identical`` (at least 1), ``extra`` (percent of additional units, rounded to whole units).
    """
    options = take(settings, {"kinds": list(KINDS), "identical": 4, "extra": [2.0, 5.0, 10.0]})
    for kind in options["kinds"]:
        choose(settings, "kind", kind, KINDS)
    if not 1 <= options["identical"] <= MOST_ARMS or not all(0 < item <= MOST_PERCENT for item in options["extra"]):
        raise FrugalbenchError(
            f"{settings.where}: 'identical' must be 1 to {MOST_ARMS}, each 'extra' above 0 and at most {MOST_PERCENT:g}"
        )
    extra = {**dict.fromkeys(names(options["identical"]), 0.0), **{f"plus-{item:g}": item for item in options["extra"]}}
    return Expansion(comparisons=tuple(_comparison(kind, extra, settings, machine) for kind in options["kinds"]))


def names(identical: int) -> list[str]:
    """Names of the arms that do the same work."""
    return [BASELINE, *(f"{BASELINE}-{number}" for number in range(2, identical + 1))]


def units_of(kind: str, machine: MachineView) -> int:
    """Units of work in a call of the baseline."""
    if kind == "memory-bound":
        return max(1, round(buffer_mib(machine.last_level_cache_bytes) / MEMORY_STEP_MIB)) * MEMORY_STEP_MIB
    return COMPUTE_UNITS if kind == "compute-bound" else DISPATCH_UNITS


def matrix(device: str) -> int:
    """Rows and columns of the compute-bound product on a device."""
    return MATRIX["cpu" if device == "cpu" else "cuda"]


def with_extra(units: int, percent: float) -> int:
    """Units of an arm with ``percent`` more work: at least one more when any is asked for."""
    return units + max(round(units * percent / 100), int(percent > 0))


def _comparison(kind: str, extra: dict[str, float], settings: Settings, machine: MachineView) -> Comparison:
    units = units_of(kind, machine)
    most = with_extra(units, max(extra.values()))
    cases = [_case(kind, name, with_extra(units, percent), most, settings) for name, percent in extra.items()]
    imports = ("numpy",) if kind == "memory-bound" and settings.device == "cpu" else ("numpy", "torch")
    held_bytes = float(most * MIB) if kind == "memory-bound" else 4.0 * 8 * matrix(settings.device) ** 2
    arms = tuple(Arm(id=case.variant, cases=(case,), imports=imports, memory_bytes=held_bytes) for case in cases)
    return Comparison(id=f"{WORKLOAD}/{kind}", workload=WORKLOAD, arms=arms, estimate_s=0.2 * len(arms))


def _case(kind: str, name: str, units: int, most: int, settings: Settings) -> Case:
    flop = 2.0 * matrix(settings.device) ** 3 * units if kind == "compute-bound" else 0.0
    traffic = float(units * MIB) if kind == "memory-bound" else 0.0
    backend = "native" if kind == "memory-bound" and settings.device == "cpu" else "torch"
    return Case(
        id=f"{WORKLOAD}/{name}/{units}-units/{kind}/{backend}/{settings.device}",
        workload=WORKLOAD,
        variant=name,
        shape=f"{units}-units",
        regime=kind,
        backend=backend,
        device=settings.device,
        dtype={"compute-bound": "float32", "memory-bound": "uint64"}.get(kind, "int64"),
        params={
            "threads": settings.threads,
            "units": units,
            "most_units": most,
            "seed": settings.seed,
            "matrix": matrix(settings.device),
        },
        cost=Cost(token=1.0, flop=flop, weight_bytes=0.0, traffic_bytes=traffic),
        tolerance=_TOLERANCE[kind],
    )
