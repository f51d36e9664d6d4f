"""The two wings joined: measure a config into a run directory, stopping where the claims are settled."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec

from frugalbench.analysis.claims import load_claims
from frugalbench.analysis.decide import decide
from frugalbench.analysis.load import Run, load_run
from frugalbench.analysis.statistics import DEFAULT_FLOOR
from frugalbench.analysis.variance import rounds_for
from frugalbench.cli import output
from frugalbench.cli.floor import floor_of
from frugalbench.cli.manifest import elapsed_s, finished, gone_on, new_manifest, together
from frugalbench.config import Config, from_stored, load_config, require_permission
from frugalbench.machine import Machine
from frugalbench.meters import gpu_ready
from frugalbench.plan import check_stored, make_plan
from frugalbench.run.engine import Decide, Engine
from frugalbench.run.store import Store
from frugalbench.run.transport import check_platform
from frugalbench.schema import Claim, FrugalbenchError, Harness, Manifest, Plan, Record
from frugalbench.specs import plugin

_WITH_TORCH = frozenset(("torch", "transformers", "bitsandbytes", "torchao", "triton"))
"""Libraries that compute on a GPU through torch."""


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

    ``host`` names the machine among several that are alike (``run --on``).
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
        manifest = gone_on(manifest, len(before))
    else:
        plan = make_plan(settings, machine, only, device, allow_code)
        said = require_device(plan)
        store, before = Store.create(path), []
        manifest = new_manifest(settings, plan, machine, floor_of(machine.fingerprint), said, host, only)
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
    cores, since_s = machine.logical_cores, elapsed_s(manifest, before)
    engine = Engine(manifest.plan, config, store, choose, cores, progress, before, rounds, plugins, since_s)
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
    store.write_manifest(finished(manifest, outcome, together(manifest.harness, harness)))


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
        manifest = new_manifest(config, plan, machine, floor, said)
        store.write_manifest(manifest)
        _execute(config, machine, store, manifest, choose, (), progress)
    finally:
        store.close()
    return load_run(path)
