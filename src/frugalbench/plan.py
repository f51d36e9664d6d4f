"""Config and machine to the ordered, seeded list of comparisons. Every case left out carries its reason."""

import difflib
import fnmatch
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from importlib import import_module

import msgspec

from frugalbench.config import Config
from frugalbench.schema import (
    Arm,
    Case,
    Comparison,
    Cost,
    FrugalbenchError,
    NothingRunsHere,
    Plan,
    Skipped,
)
from frugalbench.specs import SPECS, plugin, selftest
from frugalbench.specs.base import SIMULATED, Expansion, MachineView, Settings
from frugalbench.units import byte_size, si
from frugalbench.untrusted import brief, shown

DEVICES = ("cpu", "cuda")

MOST_CASES = 5000
MOST_THREADS = 4096
MOST_ARM_BYTES = 2.0**40
MOST_CALL_BYTES = 2.0**40
CONTEXT_BYTES = 2.0**30
"""Of a GPU, for each worker: its CUDA context with the libraries' kernels (half of this on an H100), workspaces, and
what an allocator keeps beyond what it was asked for."""
MOST_GPU_SHARE = 0.95
GPU_ENERGY_TURN_S = 2.1
"""A board's counter moves every 0.1 s, and a window holds 20 of its steps."""
HOST_THREADS = 4
"""Of a worker whose calls run on a device: launching takes one, and several workers load side by side."""
MOST_CALL_WORK = 1e16
"""Operations of one call: some seconds on the largest accelerator of today, hours on a CPU."""


def make_plan(
    config: Config, machine: MachineView, only: str | None = None, device: str | None = None, allow_code: bool = False
) -> Plan:
    """Expand every workload of ``config``, keep what ``only`` (a glob on case or comparison ids) selects.

    A workload of one's own is code, which ``allow_code`` permits to run. Raises :class:`FrugalbenchError` for an
    unknown workload or device, for sizes beyond any machine and for a glob that selects nothing,
    :class:`NothingRunsHere` when every case is skipped.
    """
    plan = expanded(config, machine, only, device, allow_code)
    if not (plan.comparisons or plan.modelled):
        _nothing(config, only, plan.skipped)
    return plan


def expanded(
    config: Config, machine: MachineView, only: str | None = None, device: str | None = None, allow_code: bool = False
) -> Plan:
    """The same, be it that nothing of it can run."""
    expansions: list[Expansion] = []
    seen: set[str] = set()
    for number, table in enumerate(config.workloads):
        expansions.append(_expand(config, number, machine, device, allow_code))
        _check_expansion(expansions[-1], table["name"], seen, f"{config.path}: [[workload]] {shown(table['name'])}")
    _check_names(config, [item.id for expansion in expansions for item in expansion.comparisons])
    comparisons = [kept for item in expansions for kept in (_select(found, only) for found in item.comparisons) if kept]
    comparisons = [_with_energy(item, config) for item in comparisons]
    modelled = [case for item in expansions for case in item.modelled if _matches(case.id, only)]
    skipped = [skip for item in expansions for skip in item.skipped if _matches(skip.case.id, only)]
    fitted = [_fit(item, config.measure.memory_limit_bytes, machine) for item in comparisons]
    comparisons = [item for item, _ in fitted if item.arms]
    skipped += [skip for _, skips in fitted for skip in skips]
    return Plan(seed=config.seed, comparisons=tuple(comparisons), skipped=tuple(skipped), modelled=tuple(modelled))


def _expand(config: Config, number: int, machine: MachineView, device: str | None, allow_code: bool) -> Expansion:
    table = dict(config.workloads[number])
    name = table.pop("name")
    where = f"{config.path}: [[workload]] {shown(name, 100)}"
    own = plugin.reference(name, config.path) if plugin.is_plugin(name) else ""
    if own and not allow_code:
        raise FrugalbenchError(
            f"{where}: would run code from {own}.\nRead it first; if you trust it, add --allow-code."
        )
    if name not in SPECS and not own:
        near = difflib.get_close_matches(name[:100], SPECS, n=1, cutoff=0)
        raise FrugalbenchError(f"{config.path}: unknown workload '{shown(name, 100)}'; did you mean '{near[0]}'?")
    chosen = device or table.get("device", "cpu")
    table.pop("device", None)
    _check_device(chosen, name, machine, where)
    usual = machine.logical_cores if chosen == "cpu" else min(machine.logical_cores, HOST_THREADS)
    threads = table.pop("threads", 0) or usual
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
        raise FrugalbenchError(
            f"{where}: 'threads' must be a positive integer of at most {MOST_THREADS}, not {brief(threads)}"
        )
    settings = Settings(workload=name, device=chosen, threads=threads, seed=config.seed, options=table, where=where)
    if own:
        return plugin.expand(own, settings, machine)
    expansion: Expansion = import_module(SPECS[name]).expand(settings, machine)
    return expansion


def _check_expansion(expansion: Expansion, name: str, seen: set[str], where: str) -> None:
    """Refuse a plan that nobody can carry out or tell apart: too many cases, sizes beyond any machine, one id twice."""
    for case in _all_cases(expansion):
        if case.id in seen:
            raise FrugalbenchError(f"{where}: the case {shown(case.id, 200)} is there twice; remove one of them")
        seen.add(case.id)
        if len(seen) > MOST_CASES:
            raise FrugalbenchError(f"{where}: more than {MOST_CASES} cases in one config; shorten its lists")
        if case.workload != name:
            raise FrugalbenchError(f"{where}: its case {shown(case.id, 200)} calls itself {shown(case.workload, 100)}")
        if case.cost is not None:
            _check_cost(case.cost, f"{where}: the case {shown(case.id, 200)}")
    for comparison in expansion.comparisons:
        for arm in comparison.arms:
            if not arm.cases:
                raise FrugalbenchError(f"{where}: the arm {shown(arm.id, 200)} has no case")
            if not 0 <= arm.memory_bytes <= MOST_ARM_BYTES:
                size = byte_size(arm.memory_bytes)
                raise FrugalbenchError(f"{where}: the arm {shown(arm.id, 200)} would hold {size}, beyond any machine")


def _check_names(config: Config, ids: Sequence[str]) -> None:
    """Two comparisons of one name would be judged as one."""
    twice = next((name for name, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise FrugalbenchError(
            f"{config.path}: two [[workload]] tables make the comparison {shown(twice, 200)}; make one table of them"
        )


def _check_cost(cost: Cost, where: str) -> None:
    work = max(cost.flop, cost.op)
    if not 0 <= work <= MOST_CALL_WORK:
        raise FrugalbenchError(f"{where} asks for {si(work, 'operations')} a call; {MOST_CALL_WORK:g} are the most")
    if not 0 <= max(cost.traffic_bytes, cost.weight_bytes) <= MOST_CALL_BYTES:
        moved = byte_size(max(cost.traffic_bytes, cost.weight_bytes))
        raise FrugalbenchError(f"{where} moves {moved} a call; {byte_size(MOST_CALL_BYTES)} are the most")


def _all_cases(expansion: Expansion) -> Iterable[Case]:
    for comparison in expansion.comparisons:
        for arm in comparison.arms:
            yield from arm.cases
    yield from expansion.modelled
    yield from (skip.case for skip in expansion.skipped)


def check_stored(stored: Plan, fresh: Plan, where: str) -> None:
    """Refuse to go on with a plan that its own config does not expand to: each arm and case must be one of ``fresh``.

    A plan names modules to import, so one that somebody else has edited is as good as code.
    """
    known = {(item.id, arm.id): arm for item in fresh.comparisons for arm in item.arms}
    loose = {case.id: case for case in (*fresh.modelled, *(skip.case for skip in fresh.skipped))}
    for item in stored.comparisons:
        for arm in item.arms:
            twin = known.get((item.id, arm.id))
            if twin is None or arm.imports != twin.imports or not arm.cases or not _all_in(arm, twin):
                raise _edited(where, arm.id)
    for case in stored.modelled:
        if loose.get(case.id) != case:
            raise _edited(where, case.id)
    if stored.seed != fresh.seed:
        raise _edited(where, "seed")


def _all_in(arm: Arm, twin: Arm) -> bool:
    """Whether ``twin`` has each case of ``arm``; a count that was stored comes back as a float, and is the same."""
    return all(case in twin.cases for case in arm.cases)


def _edited(where: str, what: str) -> FrugalbenchError:
    return FrugalbenchError(
        f"{where}: its plan is not what its config expands to here ({shown(what, 200)}).\n"
        "Start a new run with another --out; edited plans and those of other versions are not gone on with."
    )


def _check_device(device: str, workload: str, machine: MachineView, where: str) -> None:
    if device == SIMULATED:
        if workload != selftest.WORKLOAD:
            raise FrugalbenchError(
                f"{where}: the simulated device runs the self-test alone; try `frugalbench selftest --device sim`"
            )
        return
    if str(device).partition(":")[0] == "xpu":
        raise NothingRunsHere(
            f"{where}: an XPU is not measured: weights must rotate through more bytes than its last cache holds, and "
            "torch does not tell how many; run with --device cpu"
        )
    if device not in DEVICES:
        near = difflib.get_close_matches(str(device)[:100], DEVICES, n=1, cutoff=0)
        raise FrugalbenchError(f"{where}: unknown device '{shown(device, 100)}'; did you mean '{near[0]}'?")
    if device == "cuda" and not machine.has_cuda():
        raise NothingRunsHere(
            "--device cuda: this machine has no NVIDIA device, nor an AMD GPU; run with --device cpu, "
            "or see `frugalbench doctor` for what is missing"
        )


def _select(comparison: Comparison, only: str | None) -> Comparison | None:
    if _matches(comparison.id, only):
        return comparison
    arms = [arm for arm in (_select_arm(arm, only) for arm in comparison.arms) if arm]
    if not arms:
        return None
    return Comparison(
        id=comparison.id,
        workload=comparison.workload,
        arms=tuple(arms),
        estimate_s=comparison.estimate_s,
        competes=comparison.competes,
        tier=comparison.tier,
        metered=comparison.metered,
    )


def _select_arm(arm: Arm, only: str | None) -> Arm | None:
    cases = tuple(case for case in arm.cases if _matches(case.id, only))
    if not cases:
        return None
    return Arm(id=arm.id, cases=cases, imports=arm.imports, memory_bytes=arm.memory_bytes)


def _with_energy(comparison: Comparison, config: Config) -> Comparison:
    """Its estimate with the turns that a GPU's energy takes, which are most of what a replicate there lasts."""
    cases = sum(arm.cases[0].device == "cuda" and len(arm.cases) for arm in comparison.arms)
    if not comparison.metered or config.energy.meter == "none":
        return comparison
    more_s = GPU_ENERGY_TURN_S * config.measure.energy_rounds * cases
    return msgspec.structs.replace(comparison, estimate_s=comparison.estimate_s + more_s)


def _fit(comparison: Comparison, limit_bytes: float, machine: MachineView) -> tuple[Comparison, list[Skipped]]:
    """The arms that fit into memory together, taken in their order, and a reason for each of the others' cases.

    Arms of a GPU hold their weights and a context there, those of a processor share what the config allows.
    """
    kept: list[Arm] = []
    skipped: list[Skipped] = []
    held_bytes: dict[str, float] = defaultdict(float)
    for arm in comparison.arms:
        device = arm.cases[0].device
        wanted_bytes = arm.memory_bytes + (CONTEXT_BYTES if device == "cuda" else 0.0)
        allowed_bytes, remedy = _allowed(device, limit_bytes, machine)
        if held_bytes[device] + wanted_bytes > allowed_bytes:
            beside = f" beside {byte_size(held_bytes[device])} of other arms" if held_bytes[device] else ""
            reason = f"would hold {byte_size(wanted_bytes)}{beside}; {remedy}"
            skipped += [Skipped(case=case, reason=reason) for case in arm.cases]
        else:
            kept.append(arm)
            held_bytes[device] += wanted_bytes
    return msgspec.structs.replace(comparison, arms=tuple(kept)), skipped


def _allowed(device: str, limit_bytes: float, machine: MachineView) -> tuple[float, str]:
    """Bytes that the arms on a device may hold together, and what to do where they are not enough."""
    if device == "cpu":
        advice = "raise it, take fewer arms, or make the shape smaller"
        return limit_bytes, f"measure.memory_limit_bytes allows {byte_size(limit_bytes)}: {advice}"
    has_bytes = machine.gpu_memory_bytes if device == "cuda" else None
    if has_bytes is None:
        return math.inf, ""
    advice = "take fewer arms, or make the shape smaller"
    return MOST_GPU_SHARE * has_bytes, f"the GPU has {byte_size(has_bytes)} for all arms of a comparison: {advice}"


def _matches(text: str, only: str | None) -> bool:
    return only is None or fnmatch.fnmatchcase(text, only) or fnmatch.fnmatchcase(text, f"*{only}*")


def _nothing(config: Config, only: str | None, skipped: Sequence[Skipped]) -> None:
    if only is not None and not skipped:
        raise FrugalbenchError(f"--only {only}: selects no case; `frugalbench plan {config.name}` lists them")
    reasons = sorted({skip.reason for skip in skipped})
    why = reasons[0] if reasons else "the config lists no workload"
    raise NothingRunsHere(f"{config.path}: nothing can run here: {why}")


def cases(plan: Plan) -> Iterable[Case]:
    """Every case of the plan that is to be run or modelled, in order."""
    for comparison in plan.comparisons:
        for arm in comparison.arms:
            yield from arm.cases
    yield from plan.modelled
