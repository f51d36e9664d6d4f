"""The two wings joined: measure a config into a run directory, and judge what a run directory holds."""

import json
import secrets
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from frugalbench import __version__
from frugalbench.analysis.claims import claims_hash, evaluate, load_claims
from frugalbench.analysis.decide import decide
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import Run, load_run
from frugalbench.analysis.statistics import DEFAULT_FLOOR
from frugalbench.analysis.submission.turns import GONE_ON
from frugalbench.analysis.variance import rounds_for
from frugalbench.cli import output
from frugalbench.config import Config, from_stored, load_config, require_permission
from frugalbench.machine import Machine
from frugalbench.meters import gpu_ready
from frugalbench.paths import state_dir
from frugalbench.plan import DEVICES, check_stored, make_plan
from frugalbench.run.engine import Decide, Engine, Outcome
from frugalbench.run.store import Store
from frugalbench.run.transport import check_platform
from frugalbench.schema import SCHEMA_VERSION, Claim, FrugalbenchError, Harness, Manifest, Plan, Record, Verdict
from frugalbench.specs import plugin

_WITH_TORCH = frozenset(("torch", "transformers", "bitsandbytes", "torchao", "triton"))
"""Libraries that compute on a GPU through torch."""
_PACKAGES = (
    "frugalbench", "numpy", "torch", "transformers", "bitsandbytes", "onnx", "onnxscript", "onnxruntime", "openvino",
    "scipy", "torchao", "triton", "vllm",
)  # fmt: skip


def run(
    config: str | Config,
    out: Path | str | None = None,
    *,
    only: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    device: str | None = None,
    time_budget_s: float | None = None,
    resume: bool = False,
    allow_code: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    host: str | None = None,
) -> Run:
    """Measure ``config`` (a path, a shipped name, or settings) and return the run; its state says if it is complete.

    ``host`` names the machine among several that are alike and begin in the same second (``run --on``).
    Raises :class:`FrugalbenchError` for a bad request and for a config that runs code without ``allow_code``,
    :class:`NothingRunsHere` when no case can run here.
    """
    check_platform()
    settings = load_config(config, all_overrides(overrides, seed, time_budget_s)) if isinstance(config, str) else config
    machine = Machine.detect()
    path = Path(out) if out is not None else default_out(settings.name)
    require_permission(settings, allow_code)
    if resume:
        settings = _same_config(path, machine, settings, time_budget_s, allow_code)
        store, manifest, before = _reopen(path)
        manifest = _gone_on(manifest, len(before))
    else:
        plan = make_plan(settings, machine, only, device, allow_code)
        said = require_device(plan)
        store, before = Store.create(path), []
        manifest = _manifest(settings, plan, machine, floor_of(machine.fingerprint), said, host, only)
    try:
        store.write_manifest(manifest)
        choose = decide_by_claims(settings, load_claims(), manifest.floor)
        plugins = plugin.references(settings) if allow_code else {}
        _execute(settings, machine, store, manifest, choose, before, progress, plugins)
    finally:
        store.close()
    return load_run(path)


def require_device(plan: Plan) -> tuple[str, ...]:
    """What a run of ``plan`` has to say of its GPU; none without one. Raises :class:`NothingRunsHere`."""
    together = [[arm for arm in item.arms if arm.cases[0].device.startswith("cuda")] for item in plan.comparisons]
    if not any(together):
        return ()
    imports = {name.partition(".")[0] for arms in together for arm in arms for name in arm.imports}
    said = gpu_ready.check(max(map(len, together)), bool(imports & _WITH_TORCH))
    for note in said:
        output.warn(note)
    return said


def decide_by_claims(config: Config, claims: Sequence[Claim], floor: float | None) -> Decide:
    """The stopping rule with the config's looks and alpha; ``floor`` is the run's own, as its manifest records it."""
    planned = config.measure
    widened = DEFAULT_FLOOR if floor is None else floor
    return partial(decide, looks=planned.looks, claims=claims, alpha=planned.alpha, floor=widened)


def all_overrides(overrides: Sequence[str], seed: int | None, time_budget_s: float | None) -> list[str]:
    """``--set``, ``--seed`` and ``--time-budget`` as overrides of config keys."""
    extra = [] if seed is None else [f"seed={seed}"]
    extra += [] if time_budget_s is None else [f"measure.time_budget_s={float(time_budget_s)}"]
    return [*overrides, *extra]


def default_out(name: str) -> Path:
    """Where a run of the config ``name`` goes unless the user says so."""
    return Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def _gone_on(manifest: Manifest, records: int) -> Manifest:
    said = f"{GONE_ON} at {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}, after {records} records"
    return msgspec.structs.replace(manifest, notes=(*manifest.notes, said))


def _elapsed_s(manifest: Manifest, before: Sequence[Record]) -> float:
    """The run's clock when it is gone on with: since its start, and in any case after all that it holds."""
    if not before:
        return 0.0
    since_s = (datetime.now(UTC) - datetime.fromisoformat(manifest.started)).total_seconds()
    ends = [sample.start_s + sample.environment.wall_s for record in before for sample in record.samples]
    ends += [reading.start_s + reading.window_s for record in before for reading in record.readings]
    return max(since_s, max(ends, default=0.0) + 1.0)


def _together(before: Harness | None, now: Harness) -> Harness:
    """What the harness cost in all sessions of a run that told it; one that was killed did not."""
    if before is None:
        return now
    peaks = [item.peak_pss_bytes for item in (before, now) if item.peak_pss_bytes is not None]
    return Harness(
        wall_s=before.wall_s + now.wall_s,
        parent_cpu_s=before.parent_cpu_s + now.parent_cpu_s,
        measuring_s=before.measuring_s + now.measuring_s,
        prepared_s=before.prepared_s + now.prepared_s,
        modelling_cpu_s=before.modelling_cpu_s + now.modelling_cpu_s,
        peak_pss_bytes=max(peaks, default=None),
    )


def _reopen(path: Path) -> tuple[Store, Manifest, list[Record]]:
    store, manifest, before = Store.reopen(path)
    for line in store.dropped:
        output.warn(line)
    return store, manifest, before


def _same_config(
    path: Path, machine: Machine, settings: Config, time_budget_s: float | None, allow_code: bool
) -> Config:
    """The resumed run's own config; only the time budget may be renewed.

    Raises :class:`FrugalbenchError`, before anything is touched, for a run of another machine, for one that cannot be
    read, and for a plan that its config does not expand to.
    """
    manifest, where = load_run(path).manifest, f"{path}/manifest.json"
    recorded = manifest.machine_before.get("fingerprint")
    if recorded != machine.fingerprint:
        raise FrugalbenchError(
            f"{path}: measured on another machine (fingerprint {recorded}, this one is {machine.fingerprint}); "
            "start a new run with another --out"
        )
    stored = from_stored(manifest.config, where)
    require_permission(stored, allow_code)
    devices = {case.device for item in manifest.plan.comparisons for arm in item.arms for case in arm.cases}
    device = devices.pop() if len(devices) == 1 else None
    check_stored(manifest.plan, make_plan(stored, machine, None, device, allow_code), where)
    budget_s = settings.measure.time_budget_s if time_budget_s is not None else stored.measure.time_budget_s
    measure = msgspec.structs.replace(stored.measure, time_budget_s=budget_s)
    return msgspec.structs.replace(stored, measure=measure)


def _manifest(
    config: Config,
    plan: Plan,
    machine: Machine,
    floor: float,
    gpu_notes: Sequence[str] = (),
    host: str | None = None,
    only: str | None = None,
) -> Manifest:
    now = datetime.now(UTC)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        run_id=f"{now:%Y%m%dT%H%M%SZ}-{config.name}{'' if host is None else f'-{secrets.token_hex(4)}'}",
        name=config.name,
        config=msgspec.to_builtins(config) | ({} if only is None else {"only": only}),
        seed=config.seed,
        plan=plan,
        claims_hash=claims_hash(),
        machine_before=machine.describe() | ({} if host is None else {"host": host}),
        versions=_versions(),
        revision=revision(),
        started=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        floor=floor,
        notes=(*_notes(machine.fingerprint), *gpu_notes),
    )


def _execute(
    config: Config,
    machine: Machine,
    store: Store,
    manifest: Manifest,
    choose: Decide,
    before: Sequence[Record],
    progress: Callable[[str], None],
    plugins: Mapping[str, str] | None = None,
) -> None:
    rounds = partial(rounds_for, configured=config.measure.rounds)
    cores, elapsed_s = machine.logical_cores, _elapsed_s(manifest, before)
    engine = Engine(manifest.plan, config, store, choose, cores, progress, before, rounds, plugins, elapsed_s)
    begin_s, cpu_s = time.monotonic(), time.process_time()
    outcome = engine.run()
    harness = Harness(
        wall_s=time.monotonic() - begin_s,
        parent_cpu_s=time.process_time() - cpu_s - outcome.modelling_cpu_s,
        measuring_s=outcome.measuring_s,
        prepared_s=outcome.prepared_s,
        modelling_cpu_s=outcome.modelling_cpu_s,
        peak_pss_bytes=outcome.peak_pss_bytes or None,
    )
    store.write_manifest(_finished(manifest, outcome, _together(manifest.harness, harness)))


def measure(
    config: Config,
    plan: Plan,
    machine: Machine,
    path: Path,
    choose: Decide,
    floor: float,
    progress: Callable[[str], None] = lambda _: None,
) -> Run:
    """Measure a plan into a new run directory, stopping where ``choose`` says so; ``floor`` widens its intervals."""
    check_platform()
    said = require_device(plan)
    store = Store.create(path)
    try:
        manifest = _manifest(config, plan, machine, floor, said)
        store.write_manifest(manifest)
        _execute(config, machine, store, manifest, choose, (), progress)
    finally:
        store.close()
    return load_run(path)


def _finished(manifest: Manifest, outcome: Outcome, harness: Harness) -> Manifest:
    imports = tuple(f"import of {name}: {time_s:.1f} s" for name, time_s in outcome.import_s.items())
    alone = tuple(f"each worker imported {name} by itself: on import it {how}" for name, how in outcome.spoilt.items())
    return msgspec.structs.replace(
        manifest,
        machine_after=Machine.detect().describe(),
        ended=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        state=outcome.state,
        harness=harness,
        decisions=outcome.decisions,
        notes=(*manifest.notes, *imports, *alone),
    )


def _versions() -> dict[str, str]:
    found = {"frugalbench": __version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def revision() -> str | None:
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


def self_test_of(fingerprint: str, device: str = "cpu") -> dict[str, Any] | None:
    """What the self-test of the machine with ``fingerprint`` found, or ``None`` where there was none."""
    try:
        found = json.loads(self_test_file(fingerprint, device).read_text())
    except (OSError, ValueError):
        return None
    good = isinstance(found, dict) and isinstance(found.get("aa_floor"), float) and 0 <= found["aa_floor"] < 1
    return found if good else None


def self_test_file(fingerprint: str, device: str) -> Path:
    """Where the self-test of a machine is kept."""
    return state_dir() / f"selftest-{fingerprint}{'' if device == 'cpu' else f'-{device}'}.json"


def floor_of(fingerprint: str) -> float:
    """A/A floor that this machine's self-tests found (the largest over devices), else the cautious default."""
    found = [item["aa_floor"] for device in DEVICES if (item := self_test_of(fingerprint, device))]
    return max(found, default=DEFAULT_FLOOR)


def _notes(fingerprint: str) -> tuple[str, ...]:
    if any(self_test_of(fingerprint, device) for device in DEVICES):
        return (f"intervals are widened by the {floor_of(fingerprint):.2%} that this machine's self-test found",)
    return (
        "this machine was never self-tested (`frugalbench selftest`): intervals are widened by a default floor of "
        f"{DEFAULT_FLOOR:.0%} on each ratio",
    )


def judge(runs: Sequence[Run]) -> tuple[Verdict, ...]:
    """The verdicts of stored runs, from their manifests and records alone."""
    claims = load_claims()
    return tuple(verdict for item in runs for verdict in evaluate(evidence_of(item), claims))


def warn(runs: Sequence[Run]) -> None:
    """Say on standard error what a reader of ``runs`` should know first."""
    for warning in (*claim_warnings(runs), *(problem for item in runs for problem in item.problems)):
        output.warn(warning)


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
