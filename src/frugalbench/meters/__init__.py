"""Energy meters: one file per source. ``pick`` chooses, ``window`` measures.

The ladder, from the first rung on: counters near the silicon (powercap, NVML, amdsmi, hwmon); the whole machine
(battery, its management controller); an external meter that a config names; watts that a config declares.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frugalbench.meters import amd, battery, command, csvlog, declared, hwmon, ipmi, nvml, powercap, prometheus
from frugalbench.meters.base import (
    SCOPES,
    Availability,
    Energy,
    Meter,
    MeterError,
    Window,
    counting_scopes,
)
from frugalbench.schema import FrugalbenchError, NothingRunsHere, Tier

__all__ = [
    "KINDS",
    "SCOPES",
    "Availability",
    "Energy",
    "Meter",
    "MeterError",
    "MeterSettings",
    "Window",
    "counting_scopes",
    "declared",
    "nvml",
    "pick",
    "powercap",
    "probes",
    "window",
]


@dataclass(frozen=True)
class MeterSettings:
    """The ``[energy]`` table of a config, resolved for this machine."""

    kind: str = "auto"
    """A key of :data:`KINDS`, ``none``, or ``auto``: the first rungs of the ladder that cover the device, the external
    meters that are configured, and the declared model where watts are declared."""
    device: str = "cpu"
    idle_w: float | None = None
    tdp_w: float | None = None
    source: str = ""
    """Where the declared watts come from."""
    per_core: bool = False
    cores: int = 1
    csv: str = ""
    command: tuple[str, ...] = ()
    prometheus_url: str = ""
    prometheus_query: str = ""
    unit: str = "W"
    scope: str = "machine"
    """What an external meter covers."""
    update_period_s: float | None = None
    """Of a meter that cannot tell its own."""
    powercap_root: Path = powercap.ROOT
    hwmon_root: Path = hwmon.ROOT
    battery_root: Path = battery.ROOT
    nvml_driver: Any = None
    amd_library: Any = None
    ipmi_command: tuple[str, ...] = (ipmi.PROGRAM, *ipmi.ARGUMENTS)


@dataclass(frozen=True)
class Kind:
    """One source: how to find its meters, and whether it answers."""

    what: str
    discover: Callable[[MeterSettings], Sequence[Meter]]
    probe: Callable[[MeterSettings], Availability]


KINDS: dict[str, Kind] = {
    "powercap": Kind(
        "CPU energy (powercap RAPL)",
        lambda s: powercap.discover(s.powercap_root),
        lambda s: powercap.probe(s.powercap_root),
    ),
    "nvml": Kind("GPU energy (NVML)", lambda s: nvml.discover(s.nvml_driver), lambda s: nvml.probe(s.nvml_driver)),
    "amdsmi": Kind("GPU energy (amdsmi)", lambda s: amd.discover(s.amd_library), lambda s: amd.probe(s.amd_library)),
    "hwmon": Kind(
        "energy and power sensors (hwmon)", lambda s: hwmon.discover(s.hwmon_root), lambda s: hwmon.probe(s.hwmon_root)
    ),
    "battery": Kind(
        "machine power (battery)",
        lambda s: battery.discover(s.battery_root, s.update_period_s),
        lambda s: battery.probe(s.battery_root),
    ),
    "ipmi": Kind(
        "machine power (IPMI DCMI)",
        lambda s: ipmi.discover(s.ipmi_command, s.update_period_s),
        lambda s: ipmi.probe(s.ipmi_command),
    ),
    "csv": Kind(
        "external meter (log file)",
        lambda s: csvlog.discover(s.csv, s.scope, s.update_period_s),
        lambda s: csvlog.probe(s.csv),
    ),
    "command": Kind(
        "external meter (command)",
        lambda s: command.discover(s.command, s.unit, s.scope, s.update_period_s),
        lambda s: command.probe(s.command),
    ),
    "prometheus": Kind(
        "external meter (Prometheus)",
        lambda s: prometheus.discover(s.prometheus_url, s.prometheus_query, s.unit, s.scope, s.update_period_s),
        lambda s: prometheus.probe(s.prometheus_url, s.prometheus_query),
    ),
}
"""Name in a config to a measuring source, in the order of the ladder; ``auto``, ``declared`` and ``none`` go along."""

_COUNTERS = ("powercap", "nvml", "amdsmi", "hwmon")
_WHOLE = ("battery", "ipmi")
_OTHER_KINDS = ("auto", "declared", "none")


def pick(settings: MeterSettings) -> list[Meter]:
    """The meters to open windows on; each of them answered when it was read just now.

    Measuring ones are left out where they do not cover the device: a GPU's work shows in no processor's counter.
    Raises :class:`FrugalbenchError` for an unknown kind or bad watts, and :class:`NothingRunsHere` when a kind that
    was asked for by name, or configured, does not answer here.
    """
    if settings.kind not in (*KINDS, *_OTHER_KINDS):
        raise FrugalbenchError(
            f"energy: unknown meter '{settings.kind}'; choose one of {', '.join((*_OTHER_KINDS, *KINDS))}"
        )
    if settings.kind == "none":
        return []
    if settings.kind == "declared":
        return _modelled(settings)
    found = _climb(settings) if settings.kind == "auto" else _named(settings.kind, settings)
    covered = found if counting_scopes((meter.scope for meter in found), settings.device) else []
    modelled = _modelled(settings) if settings.kind == "auto" and _declares(settings) else []
    return [*covered, *modelled]


def window(
    meters: Sequence[Meter],
    clock: Callable[[], float] = time.monotonic,
    device: str | None = None,
    watched: bool = False,
    cores: Iterable[int] = (),
) -> Window:
    """Open a window over ``meters``; ``.close(calls=n)`` returns their readings, one :class:`schema.Reading` each.

    ``device`` is what computes: scopes that do not cover it, or overlap those that do, are marked as parts.
    """
    measuring = [meter.scope for meter in meters if meter.tier is Tier.MEASURED]
    counting = None if device is None else counting_scopes(measuring, device)
    return Window(meters, clock, counting, watched, cores)


def probes(settings: MeterSettings | None = None) -> dict[str, Availability]:
    """What each measuring kind answers here."""
    settings = settings or MeterSettings()
    return {name: kind.probe(settings) for name, kind in KINDS.items()}


def _climb(settings: MeterSettings) -> list[Meter]:
    """Counters of scopes that none before them has; the whole machine only where these do not cover the device."""
    found: list[Meter] = []
    for name in _COUNTERS:
        have = _scopes(found)
        found += [meter for meter in _working(name, settings) if meter.scope not in have]
    for name in _WHOLE:
        if not counting_scopes(_scopes(found), settings.device):
            found += _working(name, settings)
    found = _prompt(found, settings.device)
    for name, given in (("csv", settings.csv), ("command", settings.command), ("prometheus", settings.prometheus_url)):
        found += _named(name, settings) if given else []
    return found


def _prompt(found: list[Meter], device: str) -> list[Meter]:
    """Without the meters that count for nothing and are slower than those that do: they would stretch every window."""
    counting = counting_scopes(_scopes(found), device)
    slowest_s = max((meter.update_period_s for meter in found if meter.scope in counting), default=0.0)
    return [meter for meter in found if meter.scope in counting or meter.update_period_s <= slowest_s]


def _named(name: str, settings: MeterSettings) -> list[Meter]:
    working = _working(name, settings)
    if not working:
        why = KINDS[name].probe(settings)
        raise NothingRunsHere(f"energy: {name} does not answer: {why.detail}; {why.remedy}")
    return working


def _working(name: str, settings: MeterSettings) -> list[Meter]:
    return [meter for meter in KINDS[name].discover(settings) if meter.available()]


def _scopes(meters: Iterable[Meter]) -> set[str]:
    return {meter.scope for meter in meters}


def _declares(settings: MeterSettings) -> bool:
    return settings.idle_w is not None or settings.tdp_w is not None


def _modelled(settings: MeterSettings) -> list[Meter]:
    s = settings
    return [declared.declare(s.idle_w, s.tdp_w, s.source, s.cores, s.per_core)]
