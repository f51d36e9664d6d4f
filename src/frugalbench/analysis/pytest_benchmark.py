"""pytest-benchmark's JSON as a run that ``compare`` and ``report`` take: one file is one process, so one replicate.

A folder of files (``--benchmark-autosave``, once for each process) has as many replicates as files. Rounds inside a
process share its luck, so a single file gives ratios and no interval.
"""

import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from frugalbench.analysis.load import Run, load_run
from frugalbench.analysis.plausible import record_fault
from frugalbench.analysis.remote import is_remote
from frugalbench.schema import (
    SCHEMA_VERSION,
    UNREADABLE,
    Case,
    Environment,
    FrugalbenchError,
    Manifest,
    Plan,
    Record,
    Sample,
    Status,
)
from frugalbench.untrusted import read_bounded

WORKLOAD = "pytest-benchmark"
MOST_BYTES = 256 * 2**20
MOST_FILES = 1000


class _Stats(msgspec.Struct):
    median: float
    """Seconds."""
    data: list[float] = []
    """Seconds of each round, in files that were saved with their data."""
    iterations: int = 1


class _Benchmark(msgspec.Struct):
    fullname: str
    stats: _Stats


class _File(msgspec.Struct):
    benchmarks: list[_Benchmark]
    machine_info: dict[str, Any]
    datetime: str
    commit_info: dict[str, Any] = {}
    version: str = ""


def load_any(path: Path | str) -> Run:
    """A run directory or its address, a file of pytest-benchmark or a folder of them; raises like :func:`load_run`."""
    if is_remote(path):
        return load_run(path)
    path = Path(path)
    if path.is_dir() and not os.path.lexists(path / "manifest.json") and any(path.glob("*.json")):
        return _load(path, sorted(path.glob("*.json")))
    return _load(path, [path]) if path.suffix == ".json" and path.is_file() else load_run(path)


def _load(path: Path, files: list[Path]) -> Run:
    if len(files) > MOST_FILES:
        raise FrugalbenchError(f"{path}: {len(files)} JSON files are more than the {MOST_FILES} that are read")
    read = [(file, _read(file)) for file in files]
    machines = {_fingerprint(item.machine_info) for _, item in read}
    if len(machines) > 1:
        raise FrugalbenchError(f"{path}: its files come from {len(machines)} machines; keep one machine to a folder")
    records = tuple(record for at, (file, item) in enumerate(read, 1) for record in _records(file, item, at))
    return Run(path, _manifest(path, read[0][1], machines.pop()), records)


def _read(file: Path) -> _File:
    try:
        return msgspec.json.decode(read_bounded(file, MOST_BYTES), type=_File)
    except UNREADABLE as problem:
        raise FrugalbenchError(
            f"{file}: not a JSON file of pytest-benchmark ({problem}).\nName a run directory, or a file that "
            "--benchmark-json or --benchmark-save wrote."
        ) from None
    except OSError as problem:
        raise FrugalbenchError(f"{file}: cannot be read: {problem.strerror}") from None


def _fingerprint(machine: dict[str, Any]) -> str:
    cpu = machine.get("cpu")
    brand = [cpu.get("brand_raw"), cpu.get("count")] if isinstance(cpu, dict) else []
    told = "|".join(str(item) for item in (machine.get("node"), machine.get("machine"), *brand))
    return hashlib.sha256(told.encode(errors="replace")).hexdigest()[:16]


def _manifest(path: Path, first: _File, fingerprint: str) -> Manifest:
    revision = first.commit_info.get("id")
    python = {"python": first.machine_info.get("python_version"), "system": first.machine_info.get("release")}
    return Manifest(
        schema_version=SCHEMA_VERSION,
        run_id=path.name,
        name=WORKLOAD,
        config={},
        seed=0,
        plan=Plan(seed=0, comparisons=()),
        claims_hash="",
        machine_before={"fingerprint": fingerprint, "name": first.machine_info.get("node"), **python},
        versions={WORKLOAD: first.version},
        revision=revision if isinstance(revision, str) else None,
        started=first.datetime,
        state="complete",
    )


def _records(file: Path, found: _File, replicate: int) -> Iterable[Record]:
    for item in found.benchmarks:
        record = _record(item, replicate)
        if reason := record_fault(record):
            raise FrugalbenchError(f"{file}: {item.fullname[:100]}: {reason}")
        yield record


def _record(item: _Benchmark, replicate: int) -> Record:
    case = Case(
        id=item.fullname, workload=WORKLOAD, variant=item.fullname, shape="", regime="rounds", backend="python",
        device="cpu", dtype="",
    )  # fmt: skip
    times = [time_s for time_s in item.stats.data or [item.stats.median] if math.isfinite(time_s)]
    return Record(
        schema_version=SCHEMA_VERSION,
        comparison=item.fullname,
        arm=item.fullname,
        case=case,
        replicate=replicate,
        status=Status.OK,
        samples=tuple(_sample(at, time_s, item.stats.iterations) for at, time_s in enumerate(times)),
    )


def _sample(at: int, time_s: float, calls: int) -> Sample:
    """What the environment did is not in the file; its CPU time is taken to be the time itself and never shown."""
    window_s = time_s * calls
    around = Environment(wall_s=window_s, cpu_s=window_s)
    return Sample(round=at, turn=0, calls=calls, time_s=time_s, start_s=0.0, environment=around)
