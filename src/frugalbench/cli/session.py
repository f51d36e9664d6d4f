"""The two wings joined: measure a config into a run directory, and judge what a run directory holds."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from frugalbench.analysis.claims import claims_hash, evaluate, load_claims
from frugalbench.analysis.decide import decide
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import Run, load_run
from frugalbench.analysis.statistics import DEFAULT_FLOOR
from frugalbench.config import Config, load_config
from frugalbench.machine import Machine
from frugalbench.paths import state_dir
from frugalbench.plan import make_plan
from frugalbench.run.engine import Engine, Outcome
from frugalbench.run.store import Store, read_manifest
from frugalbench.run.transport import check_platform
from frugalbench.schema import SCHEMA_VERSION, FrugalbenchError, Harness, Manifest, Plan, Record, Verdict

_PACKAGES = (
    "frugalbench", "numpy", "torch", "transformers", "bitsandbytes", "onnx", "onnxscript", "onnxruntime", "openvino",
    "scipy",
)  # fmt: skip


def run(
    config: str,
    out: Path | str | None = None,
    *,
    only: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    device: str | None = None,
    time_budget_s: float | None = None,
    resume: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Run:
    """Measure ``config`` (a path or a shipped name) and return the run; its state says whether it is complete.

    Raises :class:`FrugalbenchError` for a bad request, :class:`NothingRunsHere` when no case can run here.
    """
    check_platform()
    settings = load_config(config, _all_overrides(overrides, seed, time_budget_s))
    machine = Machine.detect()
    path = Path(out) if out is not None else _default_out(settings.name)
    if resume:
        store, manifest, before = _reopen(path, machine)
    else:
        plan = make_plan(settings, machine, only, device)
        store, before = Store.create(path), []
        manifest = _manifest(settings, plan, machine)
    try:
        if resume:
            settings = _same_config(path, manifest, settings, time_budget_s)
        store.write_manifest(manifest)
        _execute(settings, machine, store, manifest, before, progress)
    finally:
        store.close()
    return load_run(path)


def _all_overrides(overrides: Sequence[str], seed: int | None, time_budget_s: float | None) -> list[str]:
    extra = [] if seed is None else [f"seed={seed}"]
    extra += [] if time_budget_s is None else [f"measure.time_budget_s={float(time_budget_s)}"]
    return [*overrides, *extra]


def _default_out(name: str) -> Path:
    return Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def _reopen(path: Path, machine: Machine) -> tuple[Store, Manifest, list[Record]]:
    recorded = read_manifest(path).machine_before.get("fingerprint")
    if recorded != machine.fingerprint:
        raise FrugalbenchError(
            f"{path}: measured on another machine (fingerprint {recorded}, this one is {machine.fingerprint}); "
            "start a new run with another --out"
        )
    return Store.reopen(path)


def _same_config(path: Path, manifest: Manifest, settings: Config, time_budget_s: float | None) -> Config:
    """The resumed run's own config; only the time budget may be renewed."""
    try:
        stored = msgspec.convert(manifest.config, Config)
    except msgspec.ValidationError as problem:
        raise FrugalbenchError(f"{path}/manifest.json: its config does not fit this version: {problem}") from None
    budget_s = settings.measure.time_budget_s if time_budget_s is not None else stored.measure.time_budget_s
    measure = msgspec.structs.replace(stored.measure, time_budget_s=budget_s)
    return msgspec.structs.replace(stored, measure=measure)


def _manifest(config: Config, plan: Plan, machine: Machine) -> Manifest:
    now = datetime.now(UTC)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        run_id=f"{now:%Y%m%dT%H%M%SZ}-{config.name}",
        name=config.name,
        config=msgspec.to_builtins(config),
        seed=config.seed,
        plan=plan,
        claims_hash=claims_hash(),
        machine_before=machine.describe(),
        versions=_versions(),
        revision=_revision(),
        started=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        notes=_notes(machine.fingerprint),
    )


def _execute(
    config: Config,
    machine: Machine,
    store: Store,
    manifest: Manifest,
    before: Sequence[Record],
    progress: Callable[[str], None],
) -> None:
    measure = config.measure
    choose = partial(
        decide, looks=measure.looks, claims=load_claims(), alpha=measure.alpha, floor=floor_of(machine.fingerprint)
    )
    engine = Engine(manifest.plan, config, store, choose, machine.logical_cores, progress, before)
    begin_s, cpu_s = time.monotonic(), time.process_time()
    outcome = engine.run()
    harness = Harness(
        wall_s=time.monotonic() - begin_s,
        parent_cpu_s=time.process_time() - cpu_s,
        measuring_s=outcome.measuring_s,
        prepared_s=outcome.prepared_s,
        peak_pss_bytes=outcome.peak_pss_bytes or None,
    )
    store.write_manifest(_finished(manifest, outcome, harness))


def _finished(manifest: Manifest, outcome: Outcome, harness: Harness) -> Manifest:
    imports = tuple(f"import of {name}: {time_s:.1f} s" for name, time_s in outcome.import_s.items())
    return msgspec.structs.replace(
        manifest,
        machine_after=Machine.detect().describe(),
        ended=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        state=outcome.state,
        harness=harness,
        decisions=outcome.decisions,
        notes=(*manifest.notes, *imports),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _revision() -> str | None:
    """Commit of the source checkout that the package runs from, with ``+`` when it has been changed."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def floor_of(fingerprint: object) -> float:
    """A/A floor that the self-test of the machine with ``fingerprint`` found, else the cautious default."""
    try:
        found = json.loads((state_dir() / f"selftest-{fingerprint}.json").read_text())
        return float(found["aa_floor"])
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_FLOOR


def _notes(fingerprint: str) -> tuple[str, ...]:
    if (state_dir() / f"selftest-{fingerprint}.json").exists():
        return (f"intervals are widened by the {floor_of(fingerprint):.1%} that this machine's self-test found",)
    return (
        "this machine was never self-tested: intervals are widened by a default floor of "
        f"{DEFAULT_FLOOR:.0%} on each ratio",
    )


def judge(runs: Sequence[Run]) -> tuple[Verdict, ...]:
    """The verdicts of stored runs, from their manifests and records alone."""
    claims = load_claims()
    return tuple(verdict for item in runs for verdict in evaluate(evidence_of(item, _run_floor(item)), claims))


def _run_floor(item: Run) -> float:
    return floor_of(item.manifest.machine_before.get("fingerprint"))


def warn(runs: Sequence[Run]) -> None:
    """Say on standard error what a reader of ``runs`` should know first."""
    for warning in (*claim_warnings(runs), *(problem for item in runs for problem in item.problems)):
        print(f"frugalbench: {warning}", file=sys.stderr)


def claim_warnings(runs: Sequence[Run]) -> list[str]:
    """Runs that were planned under other claims than those now installed."""
    now = claims_hash()
    return [
        f"{item.path}: planned under other claim files than the installed ones; verdicts use the installed thresholds"
        for item in runs
        if item.manifest.claims_hash != now
    ]


def describe(item: Any) -> Any:
    """Builtins for JSON output."""
    return msgspec.to_builtins(item)
