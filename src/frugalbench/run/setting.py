"""What all replicates of a run share, and the job that each fresh worker is given."""

from collections.abc import Callable
from dataclasses import dataclass

from frugalbench.config import Energy, Measure
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


def make_job(setting: Setting, arm: Arm, template_id: str | None) -> protocol.Job:
    """Everything that a fresh worker for ``arm`` must know."""
    energy, case = setting.energy, arm.cases[0]
    threads = int(case.params.get("threads", setting.cores))
    return protocol.Job(
        arm=arm,
        seed=setting.seed,
        threads=threads,
        device=case.device,
        cache_dir=setting.cache_dir,
        scratch_dir=setting.scratch_dir,
        start_s=setting.start_s,
        meter=energy.meter,
        idle_w=None if energy.idle_w_per_core is None else energy.idle_w_per_core * threads,
        tdp_w=None if energy.tdp_w_per_core is None else energy.tdp_w_per_core * threads,
        watts_source=energy.source,
        template_id=template_id,
    )
