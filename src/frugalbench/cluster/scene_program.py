"""The program of a scene: training steps of every job as computations and transfers.

A step is a forward pass (a third of the computing) and a backward pass in buckets; each bucket's gradients are reduced
as soon as it is done, one bucket after the other, and the next step begins when the last is back. The number of buckets
is 1 / (1 - ``training.overlap``): of equal buckets the last has nothing to hide behind, so that share stays exposed.
Gradients are reduced and scattered inside, all-reduced outside, gathered inside, level by level, with the start-ups and
bytes of a ring or a tree (Thakur, Rabenseifner and Gropp, 2005); devices wait for their own group only.
"""

import math
from dataclasses import dataclass, field
from random import Random

from frugalbench.cluster.collectives import ring_traffic_bytes
from frugalbench.cluster.events import Program
from frugalbench.cluster.fold import Folded, Leaf, Path, fold
from frugalbench.cluster.jitter import slowest
from frugalbench.cluster.placement import achieved_flop_per_s, devices_of, tokens_of
from frugalbench.cluster.scene import Scene
from frugalbench.cluster.sharing import Uses
from frugalbench.cluster.step import BACKWARD_SHARE, FLOP_PER_PARAMETER_TOKEN
from frugalbench.cluster.topology import Values
from frugalbench.schema import FrugalbenchError

MOST_BUCKETS = 64
MOST_TASKS = 4_000_000


@dataclass(slots=True)
class _Stage:
    """One collective of a job in one group: who takes part, over which links."""

    leaves: list[int]
    uses: Uses
    moved_bytes: float
    delay_s: float


@dataclass
class Built:
    """A program, and where its tasks belong."""

    program: Program = field(default_factory=Program)
    leaves: list[Leaf] = field(default_factory=list)
    """In the order of the program's ranks."""
    step_ends: list[list[int]] = field(default_factory=list)
    """By job: the task that ends each step."""
    step_token: list[float] = field(default_factory=list)
    """By job: tokens of one step."""
    computing_s: dict[int, float] = field(default_factory=dict)
    """By rank: seconds of one step on the mean. What is drawn for a rank is that of the slowest of its copies."""


def build(scene: Scene, values: Values, alike: bool = True, only: int | None = None) -> Built:
    """The program of a scene with one value for each input; ``alike`` folds devices that are alike into one.

    ``only`` leaves the devices of all jobs but one idle.
    Raises :class:`FrugalbenchError` for devices that do not fill their groups and for more tasks than fit.
    """
    return _Builder(scene, values, alike, only).build()


class _Builder:
    def __init__(self, scene: Scene, values: Values, alike: bool, only: int | None) -> None:
        self.scene, self.values = scene, values
        self.jobs = range(len(scene.jobs())) if only is None else range(only, only + 1)
        self.cluster = scene.fabric()
        self.levels = [level.name for level in self.cluster.level]
        self.folded: Folded = fold(devices_of(scene, self.levels, self.jobs), self._fan_outs(), alike)
        self.built = Built(leaves=[leaf for leaf in self.folded.leaves if leaf.device.job >= 0])
        self.random = Random(scene.seed)
        self.program = self.built.program
        self.links: dict[tuple[int, object], int] = {}
        self.ranks = [self.program.add_rank(self._name(leaf), leaf.copies) for leaf in self.built.leaves]
        overlap = values["training.overlap"]
        self.buckets = min(MOST_BUCKETS, max(1, round(1 / (1 - overlap)) if overlap < 1 else MOST_BUCKETS))

    def build(self) -> Built:
        for job in self.jobs:
            self._job(job)
        return self.built

    def _fan_outs(self) -> list[int]:
        inner = [level.fan_out or 1 for level in self.cluster.level[:-1]]
        room, size = 1, self.scene.size()
        for fan_out in inner:
            room *= fan_out
            if size > room and size % room:
                raise FrugalbenchError(
                    f"{self.scene.name}: {size} devices do not fill groups of {room}; the nearest numbers that do "
                    f"are {size // room * room} and {(size // room + 1) * room}"
                )
        return [*inner, -(-size // room)]

    def _name(self, leaf: Leaf) -> str:
        device, job = leaf.device, self.scene.jobs()[leaf.device.job].name
        odd = [f"{device.pace:g} times as slow"] * (device.pace != 1)
        odd += [f"{self.levels[n]} / {factor:g}" for n, factor in enumerate(device.links) if factor != 1]
        which = f"device {leaf.first}" if leaf.copies == 1 else f"devices from {leaf.first}"
        return f"{job}: {device.kind}, {which}" + "".join(f", {text}" for text in odd)

    # Links

    def _rate(self, leaf: Leaf, level: int) -> float:
        name = self.levels[level]
        wire = self.values[f"{leaf.device.kind}.{name}.bytes_per_s"] * self.values[f"{name}.efficiency"]
        return wire / (leaf.device.links[level] if leaf.device.links else 1.0)

    def _link(self, index: int, level: int) -> tuple[int, float]:
        """A leaf's link of one level and its weight on it: its own, or the trunk of the group below."""
        leaf = self.built.leaves[index]
        if self.levels[level] not in self.scene.pooled or level == 0:
            if (level, index) not in self.links:
                name = f"{self.levels[level]}, {self._name(leaf)}"
                self.links[level, index] = self.program.add_link(name, self._rate(leaf, level), leaf.copies)
            return self.links[level, index], 1.0
        return self._trunk(leaf, level)

    def _trunk(self, leaf: Leaf, level: int) -> tuple[int, float]:
        group = leaf.groups[level - 1]
        copies = self.folded.copies[group]
        if (level, group) not in self.links:
            inside = [item for item in self.folded.leaves if item.groups[level - 1] == group]
            rate = sum(self._rate(item, level) * item.copies for item in inside) / copies
            name = f"{self.levels[level]}, shared, from device {min(item.first for item in inside)}"
            self.links[level, group] = self.program.add_link(name, rate, copies)
        return self.links[level, group], leaf.copies / copies

    def _uses(self, leaves: list[int], level: int, group: Path) -> Uses:
        weights: dict[int, float] = {}
        for index in leaves:
            link, weight = self._link(index, level)
            weights[link] = weights.get(link, 0.0) + weight
        members = [self.built.leaves[index] for index in leaves]
        if len({leaf.device.kind for leaf in members}) > 1 and self.values["bridge"] < 1:
            rate = min(self._rate(leaf, level) for leaf in members) * self.values["bridge"]
            weights[self._bridge(level, group, rate)] = 1.0
        return tuple(weights.items())

    def _bridge(self, level: int, group: Path, rate: float) -> int:
        key = (level, ("bridge", group, rate))
        if key not in self.links:
            self.links[key] = self.program.add_link(f"{self.levels[level]}, between unlike devices", rate)
        return self.links[key]

    # Collectives

    def _stages(self, job: int, size_bytes: float, last: int) -> list[list[_Stage]]:
        """Stages of one all-reduce of a job over the levels before ``last``, in their order."""
        active = [level for level in range(last) if self._parts(job, level) > 1]
        inner, shard = [], size_bytes
        for level in active[:-1]:
            inner.append(self._collective(job, level, shard, inside=True))
            shard /= self._parts(job, level)
        outer = [self._collective(job, active[-1], shard, inside=False)] if active else []
        return [*inner, *outer, *reversed(inner)]

    def _parts(self, job: int, level: int) -> int:
        return next((n for (of, at, _), n in self.folded.fan_out.items() if (of, at) == (job, level)), 1)

    def _collective(self, job: int, level: int, shard_bytes: float, inside: bool) -> list[_Stage]:
        """Inside: half of a ring's all-reduce. Outermost: ring or tree, as the slowest link of the level has it."""
        parts, alpha_s = self._parts(job, level), self.values[f"{self.levels[level]}.alpha_s"]
        moved, delay = ring_traffic_bytes(shard_bytes, parts), 2 * (parts - 1) * alpha_s
        if inside:
            moved, delay = moved / 2, delay / 2
        else:
            rate = min(self._rate(leaf, level) for leaf in self.built.leaves if leaf.device.job == job)
            climbs = 2 * math.ceil(math.log2(parts)) * alpha_s
            if climbs + 2 * shard_bytes / rate < delay + moved / rate:
                moved, delay = 2 * shard_bytes, climbs
        groups: dict[Path, list[int]] = {}
        for index, leaf in enumerate(self.built.leaves):
            if leaf.device.job == job:
                groups.setdefault(leaf.groups[level] if level < len(leaf.groups) else (), []).append(index)
        return [
            _Stage(leaves=leaves, uses=self._uses(leaves, level, group), moved_bytes=moved, delay_s=delay)
            for group, leaves in groups.items()
        ]

    def _reduce(self, stages: list[list[_Stage]], ready: dict[int, int], before: dict[int, int]) -> dict[int, int]:
        """Add one collective; each leaf joins after its ``ready`` and ``before`` tasks. Its last task by leaf."""
        for number, level in enumerate(stages):
            done: dict[int, int] = {}
            for stage in level:
                after = dict.fromkeys(ready[index] for index in stage.leaves)
                if not number:
                    after |= dict.fromkeys(before[index] for index in stage.leaves if index in before)
                task = self.program.transfer(stage.uses, stage.moved_bytes, stage.delay_s, after)
                done |= dict.fromkeys(stage.leaves, task)
            ready = done
        return ready

    # Steps

    def _job(self, job: int) -> None:
        own = [index for index, leaf in enumerate(self.built.leaves) if leaf.device.job == job]
        seconds, token = self._seconds(own)
        odd = self.scene.stragglers
        self.built.computing_s |= {i: seconds[i] + odd.pause_share * odd.pause_s for i in own}
        outer, levels = self.scene.outer, len(self.levels)
        size = self.values["training.parameters"] * self.values["training.gradient_bytes_per_parameter"]
        stages = self._stages(job, size / self.buckets, levels - 1 if outer else levels)
        steps = self._steps()
        tasks = steps * (len(own) * (1 + self.buckets) + self.buckets * sum(map(len, stages)))
        if len(self.program.rank) + tasks > MOST_TASKS:
            raise FrugalbenchError(
                f"{self.scene.name}: {steps} steps of {len(own)} unlike devices are {tasks:,} tasks, more than "
                f"{MOST_TASKS:,}; ask for fewer steps or let alike devices fold"
            )
        ends: list[int] = []
        done: dict[int, int] = {}
        exchanged: int | None = None
        for number in range(steps):
            done = self._step(own, seconds, stages, done)
            closing = set(done.values())
            if outer and (number + 1) % outer.local_steps == 0:
                exchange = self._exchange(job, own, done, exchanged)
                if not outer.overlap:
                    done = dict.fromkeys(own, exchange)
                    closing = {exchange}
                elif exchanged is not None:
                    closing.add(exchanged)
                    done = dict.fromkeys(own, self.program.join(closing))
                exchanged = exchange
            ends.append(self.program.join(closing))
        self.built.step_ends.append(ends)
        self.built.step_token.append(token)

    def _steps(self) -> int:
        """Whole rounds where parameters are exchanged every few steps; one more where that overlaps, to fill it."""
        outer, steps = self.scene.outer, self.scene.steps
        return steps if not outer else outer.local_steps * (-(-steps // outer.local_steps) + int(outer.overlap))

    def _step(
        self, own: list[int], seconds: dict[int, float], stages: list[list[_Stage]], done: dict[int, int]
    ) -> dict[int, int]:
        odd = self.scene.stragglers
        drawn = {i: slowest(seconds[i], self.built.leaves[i].copies, odd, self.random) for i in own}
        ready = {}
        for index in own:
            forward_s = (1 - BACKWARD_SHARE) * drawn[index]
            ready[index] = self.program.compute(self.ranks[index], forward_s, [done[index]] if index in done else [])
        sent: dict[int, int] = {}
        for _ in range(self.buckets):
            for index in own:
                backward_s = BACKWARD_SHARE / self.buckets * drawn[index]
                ready[index] = self.program.compute(self.ranks[index], backward_s)
            sent = self._reduce(stages, ready, sent)
        return sent

    def _exchange(self, job: int, own: list[int], done: dict[int, int], before: int | None) -> int:
        """All-reduce of the parameters over the outermost level, each device its shard of them."""
        level = len(self.levels) - 1
        shard = self.values["training.parameters"] * self.values["outer.bytes_per_parameter"]
        shard /= math.prod(self._parts(job, inner) for inner in range(level))
        after = dict.fromkeys([*(done[index] for index in own), *([] if before is None else [before])])
        if self._parts(job, level) < 2:
            return self.program.join(after)
        (stage,) = self._collective(job, level, shard, inside=False)
        return self.program.transfer(stage.uses, stage.moved_bytes, stage.delay_s, after)

    def _seconds(self, own: list[int]) -> tuple[dict[int, float], float]:
        """Computing of each leaf in one step, and the tokens of the whole step."""
        kinds: dict[str, int] = {}
        for index in own:
            leaf = self.built.leaves[index]
            kinds[leaf.device.kind] = kinds.get(leaf.device.kind, 0) + leaf.copies
        strong = self.scene.scaling == "strong"
        token = (
            self.values["training.batch_token"] / sum(kinds.values())
            if strong
            else self.values["training.device_token"]
        )
        rates = {kind: achieved_flop_per_s(kind, self.values) for kind in kinds}
        shares = tokens_of(kinds, token, rates, self.scene)
        flop = FLOP_PER_PARAMETER_TOKEN * self.values["training.parameters"]
        leaves = self.built.leaves
        seconds = {
            i: flop * shares[leaves[i].device.kind] / rates[leaves[i].device.kind] * leaves[i].device.pace for i in own
        }
        return seconds, sum(shares[kind] * number for kind, number in kinds.items())
