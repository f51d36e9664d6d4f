"""A laptop's battery: what the whole machine draws, as long as nothing charges it.

As the kernel's ``Documentation/ABI/testing/sysfs-class-power`` describes it: ``power_now`` in microwatts, or
``current_now`` in microamperes times ``voltage_now`` in microvolts; some drivers give them a sign.
"""

from functools import partial
from pathlib import Path

from frugalbench.meters.base import Availability, Meter, MeterError
from frugalbench.meters.files import read_int, read_text
from frugalbench.meters.trace import TraceMeter

ROOT = Path("/sys/class/power_supply")
UPDATE_PERIOD_S = 1.0
"""The kernel's ACPI battery driver asks the firmware once a second; a slower gauge needs ``update_period_s``."""


def discover(root: Path = ROOT, update_period_s: float | None = None) -> list[Meter]:
    """One meter over all of the machine's batteries; empty where it has none."""
    found = batteries(root)
    if not found:
        return []
    names = " + ".join(path.name for path in found)
    return [
        TraceMeter(
            name=f"battery {names}",
            scope="machine",
            method=f"battery {names}, integrated",
            read=partial(discharge_w, found),
            update_period_s=update_period_s or UPDATE_PERIOD_S,
            remedy="unplug the charger; screen and radios count too",
        )
    ]


def batteries(root: Path) -> list[Path]:
    """Folders of the batteries that feed the machine; a mouse's has the scope ``Device``."""
    try:
        folders = sorted(root.iterdir())
    except OSError:
        return []
    return [f for f in folders if read_text(f / "type") == "Battery" and read_text(f / "scope") != "Device"]


def discharge_w(folders: list[Path]) -> float:
    """Watts out of all batteries. Raises :class:`MeterError` when none is being discharged, or one is charged."""
    states = [read_text(folder / "status") for folder in folders]
    resting = ("Discharging", "Full", "Not charging")
    if "Discharging" not in states or any(state not in resting for state in states):
        raise MeterError(f"battery is not being discharged ({', '.join(str(state) for state in states)})")
    return sum(_watts(folder) for folder, state in zip(folders, states, strict=True) if state == "Discharging")


def probe(root: Path = ROOT) -> Availability:
    """Whether the machine runs on its battery."""
    meters = discover(root)
    return meters[0].available() if meters else Availability(False, "no battery", "laptops only")


def _watts(folder: Path) -> float:
    if (folder / "power_now").exists():
        return abs(read_int(folder / "power_now")) * 1e-6
    return abs(read_int(folder / "current_now")) * read_int(folder / "voltage_now") * 1e-12
