"""Config and machine to the ordered, seeded list of comparisons. Every case left out carries its reason."""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from importlib import import_module

from frugalbench.config import Config
from frugalbench.schema import Arm, Case, Comparison, FrugalbenchError, NothingRunsHere, Plan, Skipped
from frugalbench.specs import SPECS
from frugalbench.specs.base import Expansion, MachineView, Settings

DEVICES = ("cpu", "cuda")


def make_plan(config: Config, machine: MachineView, only: str | None = None, device: str | None = None) -> Plan:
    """Expand every workload of ``config``, keep what ``only`` (a glob on case or comparison ids) selects.

    Raises :class:`FrugalbenchError` for an unknown workload or device and for a glob that selects nothing,
    :class:`NothingRunsHere` when every case is skipped.
    """
    expansions = [_expand(config, number, machine, device) for number in range(len(config.workloads))]
    comparisons = [kept for item in expansions for kept in (_select(found, only) for found in item.comparisons) if kept]
    modelled = [case for item in expansions for case in item.modelled if _matches(case.id, only)]
    skipped = [skip for item in expansions for skip in item.skipped if _matches(skip.case.id, only)]
    if not (comparisons or modelled):
        _nothing(config, only, skipped)
    return Plan(seed=config.seed, comparisons=tuple(comparisons), skipped=tuple(skipped), modelled=tuple(modelled))


def _expand(config: Config, number: int, machine: MachineView, device: str | None) -> Expansion:
    table = dict(config.workloads[number])
    name = table.pop("name")
    where = f"{config.path}: [[workload]] {name}"
    if name not in SPECS:
        near = difflib.get_close_matches(name, SPECS, n=1, cutoff=0)
        raise FrugalbenchError(f"{config.path}: unknown workload '{name}'; did you mean '{near[0]}'?")
    chosen = device or table.get("device", "cpu")
    table.pop("device", None)
    _check_device(chosen, machine, where)
    threads = table.pop("threads", 0) or machine.logical_cores
    if not isinstance(threads, int) or threads < 1:
        raise FrugalbenchError(f"{where}: 'threads' must be a positive integer, not {threads!r}")
    settings = Settings(workload=name, device=chosen, threads=threads, seed=config.seed, options=table, where=where)
    expansion: Expansion = import_module(SPECS[name]).expand(settings, machine)
    return expansion


def _check_device(device: str, machine: MachineView, where: str) -> None:
    if device not in DEVICES:
        near = difflib.get_close_matches(str(device), DEVICES, n=1, cutoff=0)
        raise FrugalbenchError(f"{where}: unknown device '{device}'; did you mean '{near[0]}'?")
    if device == "cuda" and not machine.has_cuda():
        raise NothingRunsHere(
            "--device cuda: this machine has no NVIDIA device; run with --device cpu, "
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
    )


def _select_arm(arm: Arm, only: str | None) -> Arm | None:
    cases = tuple(case for case in arm.cases if _matches(case.id, only))
    if not cases:
        return None
    return Arm(id=arm.id, cases=cases, imports=arm.imports, memory_bytes=arm.memory_bytes)


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
