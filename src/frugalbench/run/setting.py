"""What all replicates of a run share, and the job that each fresh worker is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from frugalbench.config import Energy, Measure
from frugalbench.meters import MeterSettings
from frugalbench.run import protocol
from frugalbench.schema import Arm


@dataclass(frozen=True)
class Setting:
    """What all replicates of a run share."""

    measure: Measure
    energy: Energy
    seed: int
    cores: int
    cache_dir: str
    scratch_dir: str
    start_s: float
    clock: Callable[[], float]
    deadline_s: float
    """On ``clock``; nothing is started after it."""
    grace_s: float
    """How far past the deadline a request in progress may run before its worker is killed."""
    plugins: Mapping[str, str] = field(default_factory=dict)
    """Workload name to the code that builds it, as far as the user allowed any (``specs.plugin``)."""


def meter_settings(energy: Energy, threads: int, device: str) -> MeterSettings:
    """What a worker of ``threads`` threads on ``device`` asks for a meter."""
    return MeterSettings(
        kind=energy.meter,
        device=device,
        idle_w=energy.idle_w_per_core,
        tdp_w=energy.tdp_w_per_core,
        source=energy.source,
        per_core=True,
        cores=threads,
        csv=energy.csv,
        command=energy.command,
        prometheus_url=energy.prometheus_url,
        prometheus_query=energy.prometheus_query,
        unit=energy.unit,
        scope=energy.scope,
        update_period_s=energy.update_period_s,
    )


def make_job(setting: Setting, arm: Arm, template_id: str | None, replicate: int = 0) -> protocol.Job:
    """Everything that a fresh worker for ``arm`` must know."""
    case = arm.cases[0]
    threads = int(case.params.get("threads", setting.cores))
    return protocol.Job(
        arm=arm,
        seed=setting.seed,
        replicate=replicate,
        threads=threads,
        device=case.device,
        cache_dir=setting.cache_dir,
        scratch_dir=setting.scratch_dir,
        start_s=setting.start_s,
        energy=setting.energy,
        template_id=template_id,
        memory_limit_bytes=setting.measure.worker_limit_bytes,
        plugin=setting.plugins.get(case.workload, ""),
    )
