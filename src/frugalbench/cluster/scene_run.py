"""A scene played: distribution of step times, throughput, what it kept of an undisturbed run, links, ranks, joules."""

import itertools
import math
from random import Random
from typing import Literal

import msgspec

from frugalbench.cluster.events import LinkUse, Outcome, RankUse, run
from frugalbench.cluster.failures import Survived, replay
from frugalbench.cluster.fold import Leaf
from frugalbench.cluster.hardware import hardware
from frugalbench.cluster.ranges import Range, spanning
from frugalbench.cluster.scene import Mix, Scene, Stragglers
from frugalbench.cluster.scene_program import Built, build
from frugalbench.cluster.topology import Input, Values
from frugalbench.schema import Frozen, FrugalbenchError, Tier

ENDS: tuple[Literal["value", "low", "high"], ...] = ("value", "low", "high")


class StepTimes(Frozen, frozen=True, kw_only=True):
    """How long the steps of a job took at the central inputs, in seconds."""

    mean_s: float
    median_s: float
    p95_s: float
    longest_s: float


class JobPlayed(Frozen, frozen=True, kw_only=True):
    """One job of a scene. Ranges go from all inputs at their worse end to all at their better."""

    name: str
    devices: int
    steps: int
    step_token: float
    step_s: StepTimes
    token_per_s: Range
    reference: str
    """What ``kept`` is a share of."""
    reference_token_per_s: Range
    kept: float
    """Throughput over that of the reference, at the central inputs."""
    kept_at_ends: tuple[float, float]
    """The same with all inputs at their worse and at their better end. No bounds: both throughputs move."""
    waiting_share: float
    """Of the devices' time: that in which they do not compute, on the mean."""
    device_j: Range | None
    """Joules of the devices in one step; ``None`` where their power, or its share at work, is not known."""
    link_j: Range | None
    """Joules of the links in one step; ``None`` where no watts are given."""
    survived: Survived | None
    """With failures, which the step times above do not hold."""


class ScenePlayed(Frozen, frozen=True, kw_only=True):
    """A scene at its central inputs, and its jobs."""

    scene: str
    says: str
    devices: int
    leaves: int
    """Devices, or groups of devices that are alike and were played as one."""
    events: int
    seed: int
    tier: Tier
    jobs: tuple[JobPlayed, ...]
    links: tuple[LinkUse, ...]
    ranks: tuple[RankUse, ...]
    duration_s: float
    assumptions: tuple[str, ...]


def play(scene: Scene, alike: bool = True) -> ScenePlayed:
    """Play a scene with its inputs at the centre and at both ends, and its reference with the same inputs.

    ``alike`` lets one device stand for all that are like it. Raises :class:`FrugalbenchError` like :func:`build`.
    """
    built, outcome = _played(scene, scene.values(), alike)
    jobs = [_job(scene, job, built, outcome) for job in range(len(scene.jobs()))]
    return ScenePlayed(
        scene=scene.name,
        says=scene.says,
        devices=scene.size(),
        leaves=len(built.leaves),
        events=outcome.events,
        seed=scene.seed,
        tier=Tier.MODELLED,
        jobs=tuple(jobs),
        links=outcome.links,
        ranks=outcome.ranks,
        duration_s=outcome.end_s,
        assumptions=tuple(dict.fromkeys(scene.assumptions())),
    )


def throughput(scene: Scene, values: Values, job: int = 0, only: int | None = None) -> float:
    """Tokens per second of one job with one value for each input."""
    built, outcome = _played(scene, values, True, only)
    return _rate(scene, job if only is None else 0, built, outcome)


def reference(scene: Scene, job: int, values: Values) -> tuple[str, float]:
    """What a job is held against, in words and in tokens per second: nothing slow, nobody else, no distance.

    Beside other jobs it is the job alone in the same place; for unlike devices the sum of each kind by itself; over
    two sites one site of all devices, joined by the level below.
    """
    calm = msgspec.structs.replace(scene, slow_link=(), slow_device=(), stragglers=Stragglers(), steps=1, outer=None)
    if len(scene.jobs()) > 1:
        calm = msgspec.structs.replace(calm, outer=scene.outer)
        return "the job by itself", throughput(calm, values, only=job)
    if len(scene.kinds()) > 1:
        near = _one_site(scene, values)
        if scene.scaling == "strong":
            near = near | {"training.device_token": values["training.batch_token"] / scene.size()}
        return "the sum of its parts", sum(throughput(part, near) for part in parts(calm))
    if scene.outer:
        return "one site that exchanges every step", throughput(calm, _one_site(scene, values))
    return "the same undisturbed", throughput(calm, values)


def parts(scene: Scene) -> list[Scene]:
    """Each kind of a scene's devices by itself on the same fabric, its tokens per device those of the mix."""
    nothing = Input(value=1.0, source="")
    return [
        msgspec.structs.replace(
            scene,
            devices=number,
            scaling="weak",
            mix=(Mix(device=kind, devices=number, mfu=nothing),),
            split="equal",
            sequence_token=None,
            bridge=None,
        )
        for kind, number in scene.kinds()
    ]


def _one_site(scene: Scene, values: Values) -> Values:
    """With [outer], the outermost links are as good as those of the level below."""
    if not scene.outer:
        return values
    below, outermost = (level.name for level in scene.fabric().level[-2:])
    moved = {name: name.replace(f"{below}.", f"{outermost}.") for name in values if f"{below}." in name}
    return values | {new: values[old] for old, new in moved.items()}


def _played(scene: Scene, values: Values, alike: bool, only: int | None = None) -> tuple[Built, Outcome]:
    built = build(scene, values, alike, only)
    return built, run(built.program)


def _times(scene: Scene, job: int, built: Built, outcome: Outcome) -> list[float]:
    """Duration of each step; without the first round where an exchange overlaps the next, for it waits for none."""
    ends = [0.0, *(outcome.task_end_s[task] for task in built.step_ends[job])]
    first = scene.outer.local_steps if scene.outer and scene.outer.overlap else 0
    return [after - before for before, after in itertools.pairwise(ends[first:])]


def _rate(scene: Scene, job: int, built: Built, outcome: Outcome) -> float:
    times = _times(scene, job, built, outcome)
    return built.step_token[job] * len(times) / math.fsum(times)


def _job(scene: Scene, job: int, built: Built, outcome: Outcome) -> JobPlayed:
    times = _times(scene, job, built, outcome)
    centre, *ends = (scene.values(end) for end in ENDS)
    rates = [_rate(scene, job, built, outcome), *(throughput(scene, values, job) for values in ends)]
    held = [reference(scene, job, values) for values in (centre, *ends)]
    kept, worse, better = (rate / base for rate, (_, base) in zip(rates, held, strict=True))
    ranks = [rank for rank, leaf in zip(outcome.ranks, built.leaves, strict=True) if leaf.device.job == job]
    devices = sum(rank.copies for rank in ranks)
    busy_s = sum(busy * leaf.copies for leaf, busy in _busy(job, built))
    end_s = max(outcome.task_end_s[task] for task in built.step_ends[job])
    return JobPlayed(
        name=scene.jobs()[job].name,
        devices=devices,
        steps=len(times),
        step_token=built.step_token[job],
        step_s=_summary(times),
        token_per_s=_over(rates),
        reference=held[0][0],
        reference_token_per_s=_over([rate for _, rate in held]),
        kept=kept,
        kept_at_ends=(worse, better),
        waiting_share=1 - busy_s / (devices * end_s),
        device_j=_device_j(scene, job, built, end_s),
        link_j=_link_j(scene, devices, math.fsum(times) / len(times)),
        survived=_survived(scene, devices, math.fsum(times) / len(times), centre),
    )


def _busy(job: int, built: Built) -> list[tuple[Leaf, float]]:
    """A job's leaves, each with the seconds that one of its copies computes in all steps, on the mean."""
    steps = len(built.step_ends[job])
    ranks = enumerate(built.leaves)
    return [(leaf, built.computing_s[rank] * steps) for rank, leaf in ranks if leaf.device.job == job]


def _over(numbers: list[float]) -> Range:
    return spanning(numbers[0], numbers[1:])


def _summary(times: list[float]) -> StepTimes:
    ordered = sorted(times)
    return StepTimes(
        mean_s=math.fsum(times) / len(times),
        median_s=(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2,
        p95_s=ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)],
        longest_s=ordered[-1],
    )


def _device_j(scene: Scene, job: int, built: Built, end_s: float) -> Range | None:
    """Busy and idle seconds of all devices at their shares of the TDP, per step."""
    if scene.power is None:
        return None
    busy, idle = scene.power.busy_share.range(), scene.power.idle_share.range()
    found = dict.fromkeys(ENDS, 0.0)
    for leaf, busy_s in _busy(job, built):
        power = tdp_w(leaf.device.kind)
        if power is None:
            return None
        for end in ENDS:
            joule = getattr(busy, end) * busy_s + getattr(idle, end) * (end_s - busy_s)
            found[end] += joule * leaf.copies * getattr(power, end) / len(built.step_ends[job])
    return Range(**found)


def tdp_w(kind: str) -> Range | None:
    """A device's TDP from figures that were read; ``None`` where it is unpublished or recalled."""
    try:
        return hardware(kind).deciding("tdp_w")
    except FrugalbenchError:
        return None


def _link_j(scene: Scene, devices: int, step_s: float) -> Range | None:
    if scene.power is None or not scene.power.link_w:
        return None
    watts = [item.range() for item in scene.power.link_w.values()]
    return Range(**{end: sum(getattr(item, end) for item in watts) * devices * step_s for end in ENDS})


def _survived(scene: Scene, devices: int, step_s: float, values: Values) -> Survived | None:
    if scene.failures is None:
        return None
    return replay(
        step_s,
        devices,
        Random(scene.seed),
        device_hours=values["failures.device_hours"],
        restart_s=values["failures.restart_s"],
        checkpoint_steps=scene.failures.checkpoint_steps,
        checkpoint_s=values["failures.checkpoint_s"],
        days=scene.failures.days,
    )
