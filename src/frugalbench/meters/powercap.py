"""CPU energy from Linux powercap (RAPL on Intel and AMD).

Layout, as the kernel's ``Documentation/power/powercap/powercap.rst`` describes it: a zone is a folder
``<control type>:<n>`` with ``name``, ``energy_uj`` and ``max_energy_range_uj``; parts are ``<control type>:<n>:<m>``.
Counted once each: packages. A zone is left out of the package sum when it is a part of one (core, uncore, dram),
the whole platform (psys), the same package through a second control type (``intel-rapl-mmio``), or a die that reads
its package's own counter. Parts and platform become meters of their own, with their own scope.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from frugalbench.meters.base import Availability, Energy, MeterError
from frugalbench.meters.files import read_int, read_text, readable_remedy
from frugalbench.schema import Tier

ROOT = Path("/sys/class/powercap")
UPDATE_PERIOD_S = 0.001
"""RAPL energy counters change about every millisecond (Intel SDM volume 3, "RAPL interfaces")."""

LOOK_PERIOD_S = 10.0
"""How often a window looks at the counters, so that none wraps around twice unseen: 65 kJ, the smallest range (32 bits
of 15 microjoules), last a minute at a kilowatt."""

_ZONE = re.compile(r"^([a-z0-9-]+):(\d+)(?::(\d+))?$")
_PACKAGE = re.compile(r"^package-(\d+)(?:-die-(\d+))?$")
_SCOPES = {"core": "cpu-core", "uncore": "cpu-uncore", "dram": "cpu-dram", "psys": "platform"}


@dataclass(frozen=True)
class Zone:
    """One powercap folder that counts energy."""

    path: Path
    control_type: str
    name: str

    def energy_uj(self) -> int:
        """The counter now, in microjoules. Raises :class:`MeterError`."""
        return read_int(self.path / "energy_uj")

    def used_uj(self, before: int, now: int) -> int:
        """Difference of two counts, across at most one wrap-around. Raises :class:`MeterError`."""
        if now >= before:
            return now - before
        span = read_int(self.path / "max_energy_range_uj")
        if before > span:
            raise MeterError(f"{self.path}: counter {before} lies beyond its range {span}")
        return now - before + span


@dataclass
class Counts:
    """The counters of one window: when last looked at, and what they used until then."""

    last_uj: list[int]
    used_uj: int = 0
    failed: str | None = None


@dataclass(frozen=True)
class PowercapMeter:
    """Sum of the zones of one scope, across wrap-arounds."""

    scope: str
    zones: tuple[Zone, ...]
    tier: Tier = Tier.MEASURED
    update_period_s: float = UPDATE_PERIOD_S
    look_period_s: float = LOOK_PERIOD_S

    @property
    def name(self) -> str:
        return f"powercap {self.scope}"

    @property
    def method(self) -> str:
        return "powercap energy_uj: " + ", ".join(zone.path.name for zone in self.zones)

    def available(self) -> Availability:
        try:
            self.begin()
        except MeterError as error:
            return Availability(False, str(error), readable_remedy([zone.path / "energy_uj" for zone in self.zones]))
        return Availability(True, f"{len(self.zones)} zone(s): {', '.join(zone.name for zone in self.zones)}")

    def begin(self) -> Counts:
        return Counts([zone.energy_uj() for zone in self.zones])

    def sample(self, mark: Counts) -> None:
        """Follow the counters within a long window; a failure poisons it."""
        try:
            self._follow(mark)
        except MeterError as error:
            mark.failed = str(error)

    def end(self, mark: Counts) -> Energy:
        if mark.failed is not None:
            raise MeterError(mark.failed)
        self._follow(mark)
        return Energy(mark.used_uj * 1e-6)

    def _follow(self, mark: Counts) -> None:
        now = [zone.energy_uj() for zone in self.zones]
        used = [zone.used_uj(a, b) for zone, a, b in zip(self.zones, mark.last_uj, now, strict=True)]
        mark.last_uj, mark.used_uj = now, mark.used_uj + sum(used)


def discover(root: Path = ROOT) -> list[PowercapMeter]:
    """One meter per scope found under ``root``, ``cpu-package`` first. Unreadable ones say so when probed."""
    zones = list(_zones(root))
    scopes: dict[str, list[Zone]] = {}
    if packages := _distinct_packages(zones):
        scopes["cpu-package"] = packages
    kept = {zone.path.name for zone in packages}
    for zone in zones:
        if (scope := _SCOPES.get(zone.name)) and _belongs(zone, kept):
            scopes.setdefault(scope, []).append(zone)
    return [PowercapMeter(scope, tuple(found)) for scope, found in scopes.items()]


def probe(root: Path = ROOT) -> Availability:
    """Whether the CPU's package energy can be read here."""
    meters = [meter for meter in discover(root) if meter.scope == "cpu-package"]
    if not meters:
        detail = f"no RAPL package zone under {root}"
        return Availability(False, detail, "sudo modprobe intel_rapl_msr  (virtual machines rarely have counters)")
    return meters[0].available()


def _zones(root: Path) -> Iterator[Zone]:
    try:
        folders = sorted(root.iterdir(), key=lambda path: path.name)
    except OSError:
        return
    for folder in folders:
        match = _ZONE.match(folder.name)
        if match and (name := read_text(folder / "name")):
            yield Zone(folder, match[1], name)


def _distinct_packages(zones: list[Zone]) -> list[Zone]:
    """Each package's energy once: one control type per name, then one zone per counter."""
    by_name: dict[str, Zone] = {}
    for zone in sorted(zones, key=lambda zone: "mmio" in zone.control_type):
        if _PACKAGE.match(zone.name):
            by_name.setdefault(zone.name, zone)
    kept: list[Zone] = []
    for _, zone in sorted(by_name.items()):
        if not any(_same_package(zone, other) and _same_counter(zone, other) for other in kept):
            kept.append(zone)
    return kept


def _same_package(one: Zone, other: Zone) -> bool:
    first, second = _PACKAGE.match(one.name), _PACKAGE.match(other.name)
    return first is not None and second is not None and first[1] == second[1]


def _same_counter(one: Zone, other: Zone) -> bool:
    """Whether two zones show one counter: a read of one falls between two reads of the other.

    Some processors list each die of a package with the package's own counter, others with a counter per die;
    independent counters do not fall between two reads a few microseconds apart.
    """
    try:
        before, between, after = other.energy_uj(), one.energy_uj(), other.energy_uj()
    except MeterError:
        return False
    return before <= between <= after


def _belongs(zone: Zone, packages: set[str]) -> bool:
    """Whether a part's parent is a counted package; psys stands alone, but only once."""
    if zone.name == "psys":
        return "mmio" not in zone.control_type
    return zone.path.name.rpartition(":")[0] in packages
