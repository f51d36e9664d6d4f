"""What a scene file says: a cluster, and what happens on it that no closed form knows.

Unlike devices, links and devices that are slow, steps that straggle, devices that fail, several jobs on one fabric, and
sites that exchange only every few steps. A cluster's name alone is a scene in which nothing of that happens.
Devices are numbered from 0; neighbours in number are neighbours on the fabric.
"""

from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from frugalbench import paths
from frugalbench.cluster.hardware import Hardware, convert, hardware, nearest, read_toml
from frugalbench.cluster.ranges import Range, exact
from frugalbench.cluster.topology import LEAST, MOST, Cluster, Input, Level, Values, load, shipped_names
from frugalbench.schema import FrugalbenchError

MOST_STEPS = 10_000
MOST_DEVICES = 1 << 17
PEAK = "bf16_dense_flop_per_s"
_LESS_IS_BETTER = (".alpha_s", "bytes_per_parameter", ".parameters", ".restart_s", ".checkpoint_s")


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables of a scene file: unknown keys are errors."""


class Mix(_Part, frozen=True, kw_only=True):
    """Devices of another kind. They take the last numbers, in the order of the file."""

    device: str
    devices: int
    mfu: Input
    """Achieved share of this device's dense bf16 peak while it computes."""


class SlowLink(_Part, frozen=True, kw_only=True):
    """One device's link of one level."""

    level: str
    device: int
    factor: float
    """The link's rate is divided by it."""


class SlowDevice(_Part, frozen=True, kw_only=True):
    """One device that always computes slower."""

    device: int
    factor: float
    """Its time is multiplied by it."""


class Stragglers(_Part, frozen=True, kw_only=True):
    """How a device's time for the same work differs from step to step, independently of the others."""

    spread: float = 0.0
    """Standard deviation of the log of its time, whose mean stays what it was (log-normal)."""
    pause_share: float = 0.0
    """Of all steps of a device, those with a pause."""
    pause_s: float = 0.0


class Failures(_Part, frozen=True, kw_only=True):
    """Devices that drop out, at exponential times; the job restarts from its last checkpoint."""

    device_hours: Input
    """Mean time between failures of one device."""
    restart_s: Input
    checkpoint_steps: int
    checkpoint_s: Input
    """That a checkpoint holds the job up."""
    days: float = 30.0


class Job(_Part, frozen=True, kw_only=True):
    """A training run of its own on some of the devices."""

    name: str
    devices: int


class Outer(_Part, frozen=True, kw_only=True):
    """The outermost level exchanges parameters only after several local steps."""

    local_steps: int
    bytes_per_parameter: Input
    overlap: bool = False
    """The exchange runs beside the next local steps, whose start does not wait for it."""


class Power(_Part, frozen=True, kw_only=True):
    """What devices draw, as shares of their TDP, and links, in watts. Without it a scene has no joules."""

    busy_share: Input
    idle_share: Input
    link_w: dict[str, Input] = {}
    """By level: what one device's link draws, busy or not."""


class Scene(_Part, frozen=True, kw_only=True):
    """A scene file."""

    name: str
    says: str
    cluster: str
    devices: int | None = None
    """All of them; absent: the cluster's ``last_devices``."""
    steps: int = 1
    seed: int = 1
    scaling: Literal["weak", "strong"] = "weak"
    """Fixed tokens per step and device, or fixed tokens per step."""
    split: Literal["equal", "proportional"] = "equal"
    """Tokens per device: alike, or as its kind's achieved rate."""
    sequence_token: int | None = None
    """With it, a device takes whole sequences of that many tokens."""
    bridge: Input | None = None
    """Share of a link's rate that exchanges between unlike devices reach; absent: all of it."""
    placement: Literal["packed", "spread"] = "packed"
    """A job's devices side by side, or an equal part in every outermost group."""
    pooled: tuple[str, ...] = ()
    """Levels whose links the devices of one group below share, instead of having a part each."""
    mix: tuple[Mix, ...] = ()
    slow_link: tuple[SlowLink, ...] = ()
    slow_device: tuple[SlowDevice, ...] = ()
    job: tuple[Job, ...] = ()
    stragglers: Stragglers = Stragglers()
    failures: Failures | None = None
    outer: Outer | None = None
    power: Power | None = None

    def fabric(self) -> Cluster:
        """The cluster that it happens on."""
        return _shipped(self.cluster) if Path(self.cluster).suffix != ".toml" else load(self.cluster)

    def size(self) -> int:
        """Number of devices."""
        return self.fabric().last_devices if self.devices is None else self.devices

    def kinds(self) -> list[tuple[str, int]]:
        """Device kinds with their numbers of devices, in the order of the devices."""
        own = self.size() - sum(item.devices for item in self.mix)
        return [(self.fabric().device, own)] * (own > 0) + [(item.device, item.devices) for item in self.mix]

    def jobs(self) -> tuple[Job, ...]:
        """The jobs; one on everything where none is given."""
        return self.job or (Job(name="job", devices=self.size()),)

    def inputs(self) -> dict[str, Range]:
        """Every number that the scene reads, by name, with its bounds. A kind's figures begin with its id."""
        cluster = self.fabric()
        found = cluster.inputs()
        for name in dict.fromkeys([cluster.device, *(item.device for item in self.mix)]):
            found |= _device_inputs(cluster, hardware(name))
        found[f"{cluster.device}.mfu"] = cluster.training.mfu.range()
        found |= {f"{item.device}.mfu": item.mfu.range() for item in self.mix}
        found["bridge"] = self.bridge.range() if self.bridge else exact(1.0)
        if self.outer:
            found["outer.bytes_per_parameter"] = self.outer.bytes_per_parameter.range()
        if self.failures:
            names = ("device_hours", "restart_s", "checkpoint_s")
            found |= {f"failures.{name}": getattr(self.failures, name).range() for name in names}
        return found

    def values(self, end: Literal["value", "low", "high"] = "value") -> Values:
        """One value of each input: the central ones, or all at the end that is worse or better for throughput."""
        other = {"value": "value", "low": "high", "high": "low"}[end]
        return {
            name: getattr(item, other if name.endswith(_LESS_IS_BETTER) else end)
            for name, item in self.inputs().items()
        }

    def assumptions(self) -> list[str]:
        """Names of the inputs that no document backs, the cluster's included."""
        given: dict[str, Input | None] = {"bridge": self.bridge}
        given |= {f"{item.device}.mfu": item.mfu for item in self.mix}
        if self.outer:
            given["outer.bytes_per_parameter"] = self.outer.bytes_per_parameter
        if self.failures:
            names = ("device_hours", "restart_s", "checkpoint_s")
            given |= {f"failures.{name}": getattr(self.failures, name) for name in names}
        if self.power:
            given |= {"power.busy_share": self.power.busy_share, "power.idle_share": self.power.idle_share}
            given |= {f"power.link_w.{level}": item for level, item in self.power.link_w.items()}
        return [*self.fabric().assumptions(), *(name for name, item in given.items() if item and item.assumption)]


def load_scene(name: str | Path) -> Scene:
    """A scene or a cluster, by path or by the bare name of a shipped one.

    Raises :class:`FrugalbenchError` for an unknown name, an unreadable file, an unknown key (naming the nearest), a
    number out of range and an impossible scene.
    """
    path = Path(name)
    shipped = paths.shipped("configs") / "scenes" / f"{name}.toml"
    path = path if path.suffix == ".toml" else shipped
    if path != shipped or shipped.is_file():
        document = read_toml(path)
        if "cluster" in document:
            scene = convert(document, Scene, str(path))
            return checked(_beside(scene, path), str(path))
    elif str(name) not in shipped_names():
        raise FrugalbenchError(
            f"unknown scene or cluster '{name}'" + nearest(str(name), shipped_scenes() + shipped_names())
        )
    cluster = load(name)
    return checked(Scene(name=cluster.name, says=cluster.says, cluster=str(name)), str(name))


def shipped_scenes() -> list[str]:
    """The scenes that come with the package."""
    return sorted(path.stem for path in (paths.shipped("configs") / "scenes").glob("*.toml"))


def checked(scene: Scene, where: str) -> Scene:
    """The scene, when it is possible. Raises :class:`FrugalbenchError` naming place and remedy."""
    cluster = scene.fabric()
    names = [level.name for level in cluster.level]
    for level in (
        *(item.level for item in scene.slow_link),
        *scene.pooled,
        *(scene.power.link_w if scene.power else ()),
    ):
        if level not in names:
            raise FrugalbenchError(f"{where}: {cluster.name} has no level '{level}'" + nearest(level, names))
    if names[0] in scene.pooled:
        raise FrugalbenchError(f"{where}: 'pooled' names the innermost level, below which there are no groups")
    _check_devices(scene, where)
    _check_numbers(scene, where)
    for name, item in scene.inputs().items():
        if not LEAST <= item.low <= item.value <= item.high <= MOST:
            raise FrugalbenchError(f"{where}: '{name}' must be positive with low <= value <= high, not {item}")
        if name.endswith((".mfu", "bridge")) and item.high > 1:
            raise FrugalbenchError(f"{where}: '{name}' is a share and cannot exceed 1, not {item.high}")
    return scene


def _check_devices(scene: Scene, where: str) -> None:
    size, own = scene.size(), scene.size() - sum(item.devices for item in scene.mix)
    if not 1 <= size <= MOST_DEVICES:
        raise FrugalbenchError(f"{where}: 'devices' must be 1 to {MOST_DEVICES}, not {size}")
    if own < 0 or any(item.devices < 1 for item in scene.mix):
        raise FrugalbenchError(f"{where}: the [[mix]] asks for {size - own} devices of {size}; raise 'devices'")
    if sum(job.devices for job in scene.jobs()) > size or any(job.devices < 1 for job in scene.jobs()):
        raise FrugalbenchError(f"{where}: the jobs take {sum(j.devices for j in scene.jobs())} of {size} devices")
    jobs = [job.name for job in scene.jobs()]
    if len(set(jobs)) < len(jobs):
        raise FrugalbenchError(f"{where}: two jobs are called '{max(jobs, key=jobs.count)}'; names must differ")
    slow: tuple[SlowLink | SlowDevice, ...] = (*scene.slow_link, *scene.slow_device)
    for item in slow:
        if not 0 <= item.device < size:
            raise FrugalbenchError(f"{where}: device {item.device} is slow, but devices are 0 to {size - 1}")
        if not 0 < item.factor < MOST:
            raise FrugalbenchError(f"{where}: 'factor' must be positive, not {item.factor}")


def _check_numbers(scene: Scene, where: str) -> None:
    cluster, odd = scene.fabric(), scene.stragglers
    if not 1 <= scene.steps <= MOST_STEPS:
        raise FrugalbenchError(f"{where}: 'steps' must be 1 to {MOST_STEPS}, not {scene.steps}")
    if not (0 <= odd.spread <= 3 and 0 <= odd.pause_share <= 1 and 0 <= odd.pause_s < MOST):
        raise FrugalbenchError(f"{where}: stragglers need a spread of 0 to 3, a pause share of 0 to 1 and a pause >= 0")
    if scene.sequence_token is not None and scene.sequence_token < 1:
        raise FrugalbenchError(f"{where}: 'sequence_token' must be positive, not {scene.sequence_token}")
    if scene.outer and (scene.outer.local_steps < 1 or len(cluster.level) < 2):
        raise FrugalbenchError(
            f"{where}: [outer] needs 'local_steps' of at least 1 and a cluster of two levels or more"
        )
    if scene.failures and (scene.failures.checkpoint_steps < 1 or not 0 < scene.failures.days <= 3650):
        raise FrugalbenchError(f"{where}: [failures] needs 'checkpoint_steps' of at least 1 and up to 3650 'days'")


@cache
def _shipped(cluster: str) -> Cluster:
    return load(cluster)


def _beside(scene: Scene, path: Path) -> Scene:
    """A cluster given as a relative path lies beside the scene file."""
    inside = Path(scene.cluster)
    if inside.suffix != ".toml" or inside.is_absolute():
        return scene
    return msgspec.structs.replace(scene, cluster=str(path.parent / inside))


def _device_inputs(cluster: Cluster, device: Hardware) -> dict[str, Range]:
    rates = {f"{device.id}.{level.name}.bytes_per_s": _wire(level, device) for level in cluster.level}
    return {f"{device.id}.{PEAK}": device.require(PEAK), **rates}


def _wire(level: Level, device: Hardware) -> Range:
    rate = level.bytes_per_s
    return device.require(rate) if isinstance(rate, str) else rate.range()
