"""Energy counters and power sensors of the kernel's hardware monitoring, for the drivers that say what they measure.

As the kernel's ``Documentation/hwmon/sysfs-interface.rst`` describes it: ``energyN_input`` in microjoules,
``powerN_average`` or ``powerN_input`` in microwatts, ``…_label`` for what it is, ``powerN_average_interval`` in
milliseconds. A sensor on a rail says nothing about its load, so drivers that are not listed here are left alone.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from frugalbench.meters.base import Availability, Meter, MeterError, first_working
from frugalbench.meters.files import read_int, read_text, readable_remedy
from frugalbench.meters.trace import CounterMeter, TraceMeter

ROOT = Path("/sys/class/hwmon")
COUNTER_PERIOD_S = 0.001
"""amd_energy passes on registers that change every millisecond (``Documentation/hwmon/amd_energy.rst``)."""
GPU_PERIOD_S = 0.1
POWER_PERIOD_S = 1.0
"""Where the driver does not tell an averaging interval; ACPI power meters average over a second or so."""


@dataclass(frozen=True)
class Sensor:
    """What one driver's files mean: labels (a pattern; no label is an empty one) to a scope."""

    driver: str
    label: str
    scope: str
    period_s: float = POWER_PERIOD_S


KNOWN = (
    Sensor("amd_energy", r"Esocket\d+", "cpu-package", COUNTER_PERIOD_S),
    Sensor("amdgpu", r"(PPT|)", "gpu-board", GPU_PERIOD_S),
    Sensor("i915", r"", "gpu-board", GPU_PERIOD_S),
    Sensor("xe", r"card", "gpu-board", GPU_PERIOD_S),
    Sensor("power_meter", r"", "machine"),
    Sensor("corsairpsu", r"power total", "machine"),
)
"""``power_meter`` is ACPI's, at the power supply; ``corsairpsu`` tells what the supply delivers."""

_FILE = re.compile(r"(energy|power)(\d+)_(input|average)")


@dataclass(frozen=True)
class Found:
    """One file that tells energy or power."""

    path: Path
    what: str
    driver: str
    sensor: Sensor


def discover(root: Path = ROOT) -> list[Meter]:
    """One meter per known sensor, but one per scope for counters, which add up over sockets; counters first."""
    found = list(_found(root))
    counters = [item for item in found if item.what == "energy"]
    scopes = dict.fromkeys((item.driver, item.sensor.scope) for item in counters)
    summed: list[Meter] = [
        _counter([item for item in counters if (item.driver, item.sensor.scope) == key]) for key in scopes
    ]
    return summed + [_power(item) for item in found if item.what == "power"]


def probe(root: Path = ROOT) -> Availability:
    """Whether a sensor that says what it measures can be read."""
    names = sorted({name for folder in _folders(root) if (name := read_text(folder / "name"))})
    others = f" (it has {', '.join(names)})" if names else ""
    drivers = ", ".join(sorted({sensor.driver for sensor in KNOWN}))
    otherwise = Availability(False, f"no known energy or power sensor under {root}{others}", f"a driver of: {drivers}")
    return first_working(discover(root), otherwise)


def _found(root: Path) -> Iterator[Found]:
    for folder in _folders(root):
        driver = read_text(folder / "name") or ""
        files = sorted(path for path in _listed(folder) if _FILE.fullmatch(path.name))
        for path in files:
            what, number, kind = _FILE.fullmatch(path.name).groups()  # type: ignore[union-attr]
            if what == "power" and kind == "input" and folder / f"power{number}_average" in files:
                continue  # the average over the whole interval misses nothing
            label = read_text(folder / f"{what}{number}_label") or ""
            for sensor in KNOWN:
                if sensor.driver == driver and re.fullmatch(sensor.label, label):
                    yield Found(path, what, driver, sensor)


def _counter(items: list[Found]) -> CounterMeter:
    paths = [item.path for item in items]
    return CounterMeter(
        name=f"hwmon {items[0].driver} energy",
        scope=items[0].sensor.scope,
        method=f"hwmon {items[0].driver} " + ", ".join(f"{path.parent.name}/{path.name}" for path in paths),
        read=lambda: sum(read_int(path) for path in paths) * 1e-6,
        update_period_s=items[0].sensor.period_s,
        remedy=readable_remedy(paths),
    )


def _power(item: Found) -> TraceMeter:
    return TraceMeter(
        name=f"hwmon {item.driver} power",
        scope=item.sensor.scope,
        method=f"hwmon {item.driver} {item.path.parent.name}/{item.path.name}, integrated",
        read=partial(_watts, item.path),
        update_period_s=_interval_s(item) or item.sensor.period_s,
        remedy=readable_remedy([item.path]),
    )


def _watts(path: Path) -> float:
    return read_int(path) * 1e-6


def _interval_s(item: Found) -> float | None:
    """Averaging interval that the driver tells, in seconds."""
    try:
        return read_int(item.path.with_name(f"{item.path.name.split('_')[0]}_average_interval")) * 1e-3
    except MeterError:
        return None


def _folders(root: Path) -> list[Path]:
    return sorted(_listed(root))


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
