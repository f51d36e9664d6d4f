"""Identical arms, and arms with a known amount of extra work: what the self-test measures the harness with.

Each kind of work is a number of equal units, so an arm with 5% more units does 5% more real work inside its timed
call. ``compute-bound``: small fp32 matrix products on all threads. ``memory-bound``: a read of more memory than the
last-level cache holds. ``dispatch-bound``: operations on a handful of elements, whose time is the framework's own.
On the simulated device the units are the device's own, and arms with a planted mistake can stand beside honest ones.
"""

from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError
from frugalbench.specs.base import SIMULATED, Expansion, MachineView, Settings, choose, take
from frugalbench.specs.machine_peaks import MIB, buffer_mib

WORKLOAD = "selftest"
KINDS = ("compute-bound", "memory-bound", "dispatch-bound")
BASELINE = "same"

MISTAKES = {
    "no-synchronise": ("compute-bound", "does not synchronise"),
    "warm-cache": ("memory-bound", "stayed in the cache"),
    "small-rotation": ("memory-bound", "would not stream from memory"),
    "late-tuning": ("compute-bound", "compiled or tuned inside"),
}
"""Mistakes of timing to the kind of work that an arm makes them with, and to words of the reason it must fail with."""
MOST_ARMS = 20
MOST_PERCENT = 1000.0

MATRIX = {"cpu": 128, "cuda": 2048, SIMULATED: 128}
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

    Options: ``kinds``, ``identical`` (at least 1), ``extra`` (percent of additional units, rounded to whole units),
    ``mistakes`` (keys of :data:`MISTAKES`, each planted into an arm beside an honest one; simulated device only).
    """
    options = take(settings, {"kinds": list(KINDS), "identical": 4, "extra": [2.0, 5.0, 10.0], "mistakes": []})
    for mistake in options["mistakes"]:
        choose(settings, "mistake", str(mistake), tuple(MISTAKES))
    if options["mistakes"] and settings.device != SIMULATED:
        raise FrugalbenchError(f"{settings.where}: 'mistakes' are planted on the simulated device alone (--device sim)")
    for kind in options["kinds"]:
        choose(settings, "kind", kind, KINDS)
    if not 1 <= options["identical"] <= MOST_ARMS or not all(0 < item <= MOST_PERCENT for item in options["extra"]):
        raise FrugalbenchError(
            f"{settings.where}: 'identical' must be 1 to {MOST_ARMS}, each 'extra' above 0 and at most {MOST_PERCENT:g}"
        )
    extra = {**dict.fromkeys(names(options["identical"]), 0.0), **{f"plus-{item:g}": item for item in options["extra"]}}
    honest = [_comparison(kind, extra, settings, machine) for kind in options["kinds"]]
    planted = [_planted(mistake, settings, machine) for mistake in options["mistakes"]]
    return Expansion(comparisons=(*honest, *planted))


def names(identical: int) -> list[str]:
    """Names of the arms that do the same work."""
    return [BASELINE, *(f"{BASELINE}-{number}" for number in range(2, identical + 1))]


def units_of(kind: str, machine: MachineView, device: str = "cpu") -> int:
    """Units of work in a call of the baseline."""
    if kind == "memory-bound":
        steps = 1 if device == SIMULATED else round(buffer_mib(machine.last_level_cache_bytes) / MEMORY_STEP_MIB)
        return max(1, steps) * MEMORY_STEP_MIB
    return COMPUTE_UNITS if kind == "compute-bound" else DISPATCH_UNITS


def matrix(device: str) -> int:
    """Rows and columns of the compute-bound product on a device."""
    return MATRIX.get(device, MATRIX["cuda"])


def with_extra(units: int, percent: float) -> int:
    """Units of an arm with ``percent`` more work: at least one more when any is asked for."""
    return units + max(round(units * percent / 100), int(percent > 0))


def _comparison(kind: str, extra: dict[str, float], settings: Settings, machine: MachineView) -> Comparison:
    units = units_of(kind, machine, settings.device)
    most = with_extra(units, max(extra.values()))
    arms = [_arm(_case(kind, name, with_extra(units, percent), most, settings)) for name, percent in extra.items()]
    return Comparison(id=f"{WORKLOAD}/{kind}", workload=WORKLOAD, arms=tuple(arms), estimate_s=0.2 * len(arms))


def _planted(mistake: str, settings: Settings, machine: MachineView) -> Comparison:
    """An honest arm and one that makes ``mistake`` with as much work; both say that what they read are weights."""
    kind, _ = MISTAKES[mistake]
    units = units_of(kind, machine, settings.device)
    arms = [_arm(_case(kind, name, units, units, settings, mistake)) for name in (BASELINE, mistake)]
    return Comparison(id=f"{WORKLOAD}/{mistake}", workload=WORKLOAD, arms=tuple(arms), estimate_s=0.4)


def _arm(case: Case) -> Arm:
    reads_memory = case.regime == "memory-bound" and case.device != SIMULATED
    return Arm(
        id=case.variant,
        cases=(case,),
        imports=("numpy", "torch") if case.backend == "torch" else ("numpy",),
        memory_bytes=float(case.params["most_units"] * MIB) if reads_memory else 4.0 * 8 * matrix(case.device) ** 2,
    )


def _backend(kind: str, device: str) -> str:
    if device == SIMULATED:
        return "simulated"
    return "native" if kind == "memory-bound" and device == "cpu" else "torch"


def _dtype(kind: str, device: str) -> str:
    if device == SIMULATED:
        return "int64"
    return {"compute-bound": "float32", "memory-bound": "uint64"}.get(kind, "int64")


def _case(kind: str, name: str, units: int, most: int, settings: Settings, planted: str = "") -> Case:
    """``planted``: the mistake of the comparison; the arm of that name makes it."""
    flop = 2.0 * matrix(settings.device) ** 3 * units if kind == "compute-bound" else 0.0
    traffic = float(units * MIB) if kind == "memory-bound" else 0.0
    backend = _backend(kind, settings.device)
    params = {
        "threads": settings.threads,
        "units": units,
        "most_units": most,
        "seed": settings.seed,
        "matrix": matrix(settings.device),
    }
    shape = f"{units}-units" + (f"-{planted}" if planted else "")
    return Case(
        id=f"{WORKLOAD}/{name}/{shape}/{kind}/{backend}/{settings.device}",
        workload=WORKLOAD,
        variant=name,
        shape=shape,
        regime=kind,
        backend=backend,
        device=settings.device,
        dtype=_dtype(kind, settings.device),
        params=params | ({"mistake": name} if name == planted else {}),
        cost=Cost(token=1.0, flop=flop, weight_bytes=traffic if planted else 0.0, traffic_bytes=traffic),
        tolerance=_TOLERANCE[kind],
    )
