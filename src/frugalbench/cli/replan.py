"""The plan of a stranger's run, made anew from the config and the machine that it tells.

A comparison that was left out of plan and records, or an arm said not to fit, is seen because the config gives it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from frugalbench.analysis.load import Run
from frugalbench.analysis.submission.turns import Finding
from frugalbench.cli.manifest import revision
from frugalbench.config import from_stored
from frugalbench.machine import Machine
from frugalbench.plan import expanded
from frugalbench.schema import Case, FrugalbenchError, Plan
from frugalbench.specs import cluster_model
from frugalbench.specs.quant_formats import as_on

BY_FORMULA = ("machine_peaks", "moe_ffn", "quantized_linear", "selftest", "allreduce")
"""Workloads whose cases follow from config and machine alone: nothing is opened, exported or looked up for them."""
BY_NAME = ("onnx_model",)
"""Workloads of whose cases that holds for the ids."""
ONLY = "only"
"""Key beside those of a config: the glob of a run that was measured with ``--only``."""
_SHIPPED = re.compile(r"[\w-]+")
_CLUSTERS = ("uniform", "fragmented", "mixes")
"""Options of ``cluster_model`` that may name files, which a stranger's config does not get to open."""
_TOO_LARGE = "would hold "
"""How the reason begins that an arm does not fit into memory."""


def planned(run: Run) -> Iterator[Finding]:
    """The plan is what config, ``--only`` and machine give: cases, shapes, costs and tolerances, and none left out."""
    yield from _tables(run)
    mine = _mine(run)
    measured = {case.id: case for case in _measured(run.manifest.plan) if case.workload in BY_FORMULA}
    if not (mine or measured):
        return
    try:
        fresh = _fresh(run, mine)
    except FrugalbenchError as problem:
        yield "manifest.json", f"its config cannot be planned: {str(problem).splitlines()[0]}"
        return
    asked = f" (measured at revision {run.manifest.revision}: ask that one if it plans otherwise)"
    known = _listed(fresh)
    for name, case in measured.items():
        if name not in known:
            yield name, "is not planned by the config and on the machine of the manifest"
        elif reason := _differs(case, known[name], is_this_revision(run)):
            yield name, reason + asked
    yield from _others(run, fresh, asked)
    yield from _fitting(run, {case.id for case in _measured(fresh)})


def _others(run: Run, fresh: Plan, asked: str) -> Iterator[Finding]:
    """Cases that the plan lacks, and modelled ones with parameters of their own."""
    for name in _left_out(run, fresh):
        yield name, f"is planned by the config, and neither in the plan nor left out with --only{asked}"
    known = _listed(fresh)
    for case in run.manifest.plan.modelled:
        if case.id in known and case != known[case.id]:
            yield case.id, f"is not the row that the config asks for{asked}"


def _left_out(run: Run, fresh: Plan) -> list[str]:
    """Cases that should be in the plan: all at the revision that is installed here; at another one, which may know
    fewer variants and rows, comparisons as wholes. There the order of turns tells of an arm taken out."""
    missing = _listed(fresh).keys() - _listed(run.manifest.plan).keys()
    if is_this_revision(run):
        return sorted(missing)
    begun = {item.id for item in run.manifest.plan.comparisons}
    gone = [item for item in fresh.comparisons if item.id not in begun]
    wholes = [{case.id for arm in item.arms for case in arm.cases} for item in gone]
    return sorted(name for cases in wholes for name in cases & missing if cases <= missing)


def is_this_revision(run: Run) -> bool:
    """Whether a run was measured at the revision of this checkout; never without one."""
    told, known = (run.manifest.revision or "").rstrip("+"), installed_revision().rstrip("+")
    return bool(told) and told == known


@cache
def installed_revision() -> str:
    """Commit of this checkout; empty without one."""
    return revision(Path(__file__)) or ""


def unplanned(run: Run) -> int:
    """Cases that the config gives at this revision and the plan lacks."""
    fresh = _fresh(run, _mine(run))
    return len(_listed(fresh).keys() - _listed(run.manifest.plan).keys())


def _tables(run: Run) -> Iterator[Finding]:
    """Every table of the config has a case, unless some were chosen."""
    if run.manifest.config.get(ONLY) is not None:
        return
    there = {case.workload for case in _listed(run.manifest.plan).values()}
    for table in _workloads(run):
        if table.get("name") not in there:
            asked = f"its config asks for {table.get('name')}"
            yield "manifest.json", f"{asked}, of which no case is in the plan, and it does not say --only"


def _fitting(run: Run, measurable: set[str]) -> Iterator[Finding]:
    """What is left out for its size would not fit."""
    for skip in run.manifest.plan.skipped:
        if skip.reason.startswith(_TOO_LARGE) and skip.case.id in measurable:
            yield skip.case.id, f"was left out ({skip.reason.split(';')[0]}), and the config's limits let it in"


def _workloads(run: Run) -> list[dict[str, Any]]:
    found = run.manifest.config.get("workloads")
    return [table for table in found if isinstance(table, dict)] if isinstance(found, list) else []


def _mine(run: Run) -> tuple[dict[str, Any], ...]:
    """Tables of the config that are planned anew."""
    return tuple(table for table in _workloads(run) if table.get("name") in (*BY_FORMULA, *BY_NAME) or _models(table))


def _models(table: dict[str, Any]) -> bool:
    """Whether a table asks for modelled rows of clusters that come with the package."""
    named = [table.get(key, []) for key in _CLUSTERS]
    names = [name for item in named for name in (item if isinstance(item, list) else [item])]
    return table.get("name") == cluster_model.WORKLOAD and all(_SHIPPED.fullmatch(str(name)) for name in names)


def _fresh(run: Run, tables: Sequence[dict[str, Any]]) -> Plan:
    manifest = run.manifest
    stored = from_stored(manifest.config, "manifest.json")
    told, only = manifest.machine_before, manifest.config.get(ONLY)
    machine = Told(
        **arguments(told),
        boards=tuple(board for board in told.get("gpu_boards") or () if isinstance(board, dict)),
        versions=tuple(manifest.versions.items()),
    )
    devices = {case.device for case in _measured(manifest.plan)}
    device = devices.pop() if len(devices) == 1 else None
    config = msgspec.structs.replace(stored, workloads=tuple(tables))
    with as_on(machine.flags):
        return expanded(config, machine, only if isinstance(only, str) else None, device)


def _measured(plan: Plan) -> list[Case]:
    return [case for item in plan.comparisons for arm in item.arms for case in arm.cases]


def _listed(plan: Plan) -> dict[str, Case]:
    """Every case by its id: to be measured, to be modelled, left out with a reason."""
    cases = (*(item.case for item in plan.skipped), *plan.modelled, *_measured(plan))
    return {case.id: case for case in cases}


def arguments(told: dict[str, Any]) -> dict[str, Any]:
    """Fields of :class:`Machine` from what a manifest tells of one."""
    listed = {item.name: told[item.name] for item in fields(Machine)}
    return listed | {name: tuple(told[name] or ()) for name in ("flags", "gpus")}


@dataclass(frozen=True)
class Told(Machine):
    """The machine that a manifest describes, for planning."""

    boards: tuple[dict[str, Any], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()

    def installed(self, package: str) -> str | None:
        """As the manifest lists it; what it does not list is taken to be there, so that its cases are planned."""
        return dict(self.versions).get(package, "0")

    def has_cuda(self) -> bool:
        return bool(self.gpus)

    @property
    def gpu_l2_bytes(self) -> int:
        return int(self._board("l2_bytes") or 0)

    @property
    def gpu_memory_bytes(self) -> int | None:
        return self._board("memory_bytes")

    def _board(self, key: str) -> int | None:
        told = self.boards[0].get(key) if self.boards else None
        return told if isinstance(told, int) else None


def _differs(case: Case, fresh: Case, strictly: bool) -> str | None:
    if case.cost is not None and fresh.cost is not None:
        for name in ("token", "flop", "op", "weight_bytes", "traffic_bytes", "parameters", "active_parameters"):
            told, known = getattr(case.cost, name), getattr(fresh.cost, name)
            if abs(told - known) > 1e-6 * max(abs(told), abs(known)):
                return f"{name} is {told:.6g}; its shape gives {known:.6g}"
    if case.tolerance is not None and fresh.tolerance is not None and case.tolerance > 1.000001 * fresh.tolerance:
        return f"a tolerance of {case.tolerance:.3g}; its shape gives {fresh.tolerance:.3g}"
    if case.peaks == fresh.peaks or (not strictly and _as_many(case.peaks, fresh.peaks)):
        return None
    return f"names the peaks {case.peaks}; its workload names {fresh.peaks}"


def _as_many(told: Sequence[str], known: Sequence[str]) -> bool:
    """Whether another revision may have named these: as many, of which it shares one."""
    return len(told) == len(known) and bool(set(told) & set(known))
