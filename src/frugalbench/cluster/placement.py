"""Where a scene's devices lie, which job has them, and how many tokens each gets."""

import itertools
import math
from collections.abc import Mapping

from frugalbench.cluster.fold import Device
from frugalbench.cluster.scene import PEAK, Scene
from frugalbench.cluster.topology import Values
from frugalbench.schema import FrugalbenchError


def achieved_flop_per_s(kind: str, values: Values) -> float:
    """Of one device while it computes."""
    return values[f"{kind}.mfu"] * values[f"{kind}.{PEAK}"]


def tokens_of(kinds: dict[str, int], device_token: float, rates: dict[str, float], scene: Scene) -> dict[str, float]:
    """Tokens of one device of each kind. ``device_token`` on the mean; ``kinds`` are numbers of devices.

    In whole sequences the best of the roundings up and down of every kind is taken.
    """
    total = sum(kinds.values())
    speed = sum(rates[kind] * number for kind, number in kinds.items()) / total
    exactly = {kind: device_token * (rates[kind] / speed if scene.split == "proportional" else 1.0) for kind in kinds}
    if scene.sequence_token is None:
        return exactly
    unit = scene.sequence_token
    roundings = [{max(1, math.floor(share / unit)), max(1, math.ceil(share / unit))} for share in exactly.values()]
    if scene.split == "equal":
        roundings = [{max(1, round(device_token / unit))}] * len(kinds)
    choices = [dict(zip(kinds, choice, strict=True)) for choice in itertools.product(*roundings)]
    best = max(choices, key=lambda item: pace(item, kinds, rates))
    return {kind: float(unit * sequences) for kind, sequences in best.items()}


def pace(tokens: Mapping[str, float], kinds: Mapping[str, int], rates: Mapping[str, float]) -> float:
    """Throughput, up to a factor, of devices that each compute their tokens and wait for the slowest."""
    return sum(kinds[kind] * n for kind, n in tokens.items()) / max(n / rates[kind] for kind, n in tokens.items())


def devices_of(scene: Scene, levels: list[str], wanted: range) -> list[Device]:
    """Every device of a scene, with what is slow about it; those of jobs that are not ``wanted`` have none."""
    kinds = [kind for kind, number in scene.kinds() for _ in range(number)]
    paces = {item.device: item.factor for item in scene.slow_device}
    slow: dict[int, list[float]] = {}
    for item in scene.slow_link:
        slow.setdefault(item.device, [1.0] * len(levels))[levels.index(item.level)] = item.factor
    links = {number: tuple(factors) for number, factors in slow.items()}
    jobs = [job if job in wanted else -1 for job in _jobs(scene)]
    return [
        Device(job=jobs[number], kind=kind, pace=paces.get(number, 1.0), links=links.get(number, ()))
        for number, kind in enumerate(kinds)
    ]


def _jobs(scene: Scene) -> list[int]:
    """The job of every device; -1 for those that have none."""
    sizes, total = [job.devices for job in scene.jobs()], scene.size()
    blocks = 1
    if scene.placement == "spread":
        room = math.prod(level.fan_out or 1 for level in scene.fabric().level[:-1])
        blocks = max(1, total // room)
        if bad := [size for size in sizes if size % blocks]:
            raise FrugalbenchError(
                f"{scene.name}: a job of {bad[0]} devices does not spread evenly over {blocks} groups"
            )
    block = [job for job, size in enumerate(sizes) for _ in range(size // blocks)]
    block += [-1] * (total // blocks - len(block))
    return block * blocks
