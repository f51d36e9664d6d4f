"""What only the harness itself can ask of a stranger's run: its plan from its config, its voids from its environments.

Both wings meet here. Asked only of runs that this version measured: another one may plan and describe otherwise.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from frugalbench import __version__
from frugalbench.analysis.load import Run, load_run
from frugalbench.config import from_stored
from frugalbench.machine import Machine
from frugalbench.meters.environment import void_reason
from frugalbench.plan import make_plan
from frugalbench.schema import Case, FrugalbenchError, Record, Sample
from frugalbench.specs.base import SIMULATED

Finding = tuple[str, str]

RELEASED = (__version__,)
BY_FORMULA = ("machine_peaks", "moe_ffn", "quantized_linear", "selftest", "allreduce")
"""Workloads whose cases follow from config and machine alone: nothing is opened, exported or looked up for them."""
_VOID = re.compile(
    r"run delay |steal |foreign CPU |memory stall |swapping |CPU throttled$|GPU throttled: |\d+% of the cores busy"
    r"|\d+ kernels were compiled"
)
_MEASURED_VOID = re.compile(r"(run delay|steal|foreign CPU|memory stall) (\d+\.\d) ms above ")


def checks() -> tuple[tuple[str, Callable[[Run], Iterator[Finding]]], ...]:
    """Name and rule, as :func:`frugalbench.analysis.submission.vet.vet` takes them."""
    return (("schema", released), ("machine", identity), ("plan", planned), ("environment", voids))


def page_of(files: dict[str, bytes]) -> bytes:
    """The report of a run that exists as these files alone, so that it holds nothing that they lack."""
    from frugalbench.cli import judging
    from frugalbench.report.render import render

    with tempfile.TemporaryDirectory(prefix="frugalbench-") as folder:
        inside = Path(folder, "run")
        inside.mkdir()
        for name, content in files.items():
            (inside / name).write_bytes(content)
        runs = [load_run(inside)]
        made = render(runs, judging.judge(runs), "html", None)
        return (made.encode() if isinstance(made, str) else made).replace(str(inside).encode(), b"the run")


def _is_ours(run: Run) -> bool:
    return run.manifest.versions.get("frugalbench") == __version__


def released(run: Run) -> Iterator[Finding]:
    """Of a version that this one knows: what another one writes cannot be asked after."""
    told = run.manifest.versions.get("frugalbench")
    if told not in RELEASED:
        yield (
            "manifest.json",
            f"measured with frugalbench {told}, which this one ({__version__}) does not know; use that one",
        )


def identity(run: Run) -> Iterator[Finding]:
    """Name and fingerprint follow from the rest of the description, which is therefore all of one piece."""
    if not _is_ours(run):
        return
    names = {item.name for item in fields(Machine)}
    for moment in ("machine_before", "machine_after"):
        told = getattr(run.manifest, moment) or {}
        if not names <= told.keys():
            yield "manifest.json", f"{moment} lacks {', '.join(sorted(names - told.keys())[:4])}"
            continue
        machine = Machine(**_arguments(told))
        if told.get("fingerprint") != machine.fingerprint or told.get("name") != machine.name:
            yield "manifest.json", f"fingerprint and name in {moment} are not those of the machine that it describes"


def _arguments(told: dict[str, Any]) -> dict[str, Any]:
    listed = {item.name: told[item.name] for item in fields(Machine)}
    return listed | {name: tuple(told[name] or ()) for name in ("flags", "gpus")}


@dataclass(frozen=True)
class _Told(Machine):
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


def planned(run: Run) -> Iterator[Finding]:
    """Cases of :data:`BY_FORMULA` have the shapes, costs and tolerances that the config gives on that machine."""
    cases = [
        case
        for item in run.manifest.plan.comparisons
        if item.workload in BY_FORMULA
        for arm in item.arms
        for case in arm.cases
    ]
    if not _is_ours(run) or not cases:
        return
    try:
        fresh = _fresh(run, {case.device for case in cases})
    except FrugalbenchError as problem:
        yield "manifest.json", f"its config cannot be planned: {str(problem).splitlines()[0]}"
        return
    for case in cases:
        if case.id not in fresh:
            yield case.id, "is not planned by the config and on the machine of the manifest"
        elif reason := _differs(case, fresh[case.id]):
            yield (
                case.id,
                f"{reason} (measured at revision {run.manifest.revision}: ask that one if it plans otherwise)",
            )


def _fresh(run: Run, devices: set[str]) -> dict[str, Case]:
    """Cases by id, those that this machine would skip included."""
    manifest = run.manifest
    stored = from_stored(manifest.config, "manifest.json")
    mine = tuple(table for table in stored.workloads if table["name"] in BY_FORMULA)
    told = manifest.machine_before
    machine = _Told(
        **_arguments(told),
        boards=tuple(board for board in told.get("gpu_boards") or () if isinstance(board, dict)),
        versions=tuple(manifest.versions.items()),
    )
    device = devices.pop() if len(devices) == 1 else None
    plan = make_plan(msgspec.structs.replace(stored, workloads=mine), machine, None, device)
    measured = [case for item in plan.comparisons for arm in item.arms for case in arm.cases]
    return {case.id: case for case in (*(item.case for item in plan.skipped), *measured)}


def _differs(case: Case, fresh: Case) -> str | None:
    if case.cost is not None and fresh.cost is not None:
        for name in ("token", "flop", "op", "weight_bytes", "traffic_bytes", "parameters", "active_parameters"):
            told, known = getattr(case.cost, name), getattr(fresh.cost, name)
            if abs(told - known) > 1e-6 * max(abs(told), abs(known)):
                return f"{name} is {told:.6g}; its shape gives {known:.6g}"
    if case.tolerance is not None and fresh.tolerance is not None and case.tolerance > 1.000001 * fresh.tolerance:
        return f"a tolerance of {case.tolerance:.3g}; its shape gives {fresh.tolerance:.3g}"
    return None if case.peaks == fresh.peaks else f"names the peaks {case.peaks}; its workload names {fresh.peaks}"


def voids(run: Run) -> Iterator[Finding]:
    """A window is void exactly where its environment spoilt it, and for the reason that is told."""
    if not _is_ours(run):
        return
    cores = int(run.manifest.machine_before.get("logical_cores") or 1)
    for record in run.records:
        threads = _threads(record, cores)
        reason = next(filter(None, (_void_fault(sample, threads, cores) for sample in record.samples)), None)
        if reason:
            yield f"{record.case.id}, replicate {record.replicate}", reason
    yield from _steady(run)


def _threads(record: Record, cores: int) -> int:
    """The most that the worker may have computed with."""
    asked = record.case.params.get("threads")
    known = [asked if isinstance(asked, int) else 0, (record.worker.threads if record.worker else None) or 0]
    return max(*known, 1) if any(known) else cores


def _void_fault(sample: Sample, threads: int, cores: int) -> str | None:
    if sample.environment.wall_s <= 0:
        return None
    spoilt = void_reason(sample.environment, threads, cores)
    if spoilt and sample.void is None:
        return f"round {sample.round} counts although its environment spoilt it: {spoilt}"
    if sample.void and not _VOID.match(sample.void):
        return f"round {sample.round} is void for {sample.void!r}, which is none of the harness's reasons"
    said = _MEASURED_VOID.match(sample.void or "")
    if said:
        value_s = getattr(sample.environment, said[1].replace("CPU", "cpu").replace(" ", "_") + "_s")
        if value_s is None or f"{1e3 * value_s:.1f}" != said[2]:
            return f"round {sample.round} is void for {sample.void!r}, which its environment does not show"
    return None


def _steady(run: Run) -> Iterator[Finding]:
    """Void rounds count under a steady load alone, which many of them must show."""
    spoilt = {(r.comparison, r.replicate, r.case.regime) for r in run.records for s in r.samples if s.void is not None}
    for record in run.records:
        key = (record.comparison, record.replicate, record.case.regime)
        if record.steady_load and record.samples and key not in spoilt and record.case.device != SIMULATED:
            yield f"{record.case.id}, replicate {record.replicate}", "a steady load, and not one void round"
