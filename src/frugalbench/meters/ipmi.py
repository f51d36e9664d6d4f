"""Power of the whole machine from its management controller, by ``ipmitool dcmi power reading``."""

import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from frugalbench.meters.ask import output_of
from frugalbench.meters.base import Availability, Meter, MeterError
from frugalbench.meters.trace import TraceMeter

PROGRAM = "ipmitool"
ARGUMENTS = ("dcmi", "power", "reading")
DEVICES = ("/dev/ipmi0", "/dev/ipmi/0", "/dev/ipmidev/0")
UPDATE_PERIOD_S = 1.0
"""Most controllers refresh their power once a second; a slower one needs ``update_period_s``."""
LIMIT_S = 5.0

_WATTS = re.compile(r"^\s*Instantaneous power reading\s*:\s*(\d+)\s*Watts", re.MULTILINE)
_STATE = re.compile(r"^\s*Power reading state is\s*:\s*(\S+)", re.MULTILINE)


def discover(
    command: Sequence[str] = (PROGRAM, *ARGUMENTS), update_period_s: float | None = None, limit_s: float = LIMIT_S
) -> list[Meter]:
    """The one meter; empty where the program is not installed."""
    if shutil.which(command[0]) is None:
        return []
    return [
        TraceMeter(
            name="ipmi",
            scope="machine",
            method="IPMI DCMI instantaneous power, integrated",
            read=partial(power_w, command, limit_s),
            update_period_s=update_period_s or UPDATE_PERIOD_S,
            remedy=remedy(),
        )
    ]


def power_w(command: Sequence[str], limit_s: float) -> float:
    """Watts of the machine just now. Raises :class:`MeterError`."""
    return parsed_w(output_of(command, limit_s))


def parsed_w(text: str) -> float:
    """Watts in what the program printed. Raises :class:`MeterError` when the controller does not measure."""
    state, watts = _STATE.search(text), _WATTS.search(text)
    if state is not None and state[1] != "activated":
        raise MeterError(f"IPMI: power reading is {state[1]}")
    if watts is None:
        raise MeterError("IPMI: the controller tells no instantaneous power")
    if float(watts[1]) == 0:
        raise MeterError("IPMI: the controller says 0 W, so it does not measure")
    return float(watts[1])


def remedy(devices: Sequence[str] = DEVICES) -> str:
    """What to do about a controller that does not answer, by what is there of it."""
    present = [device for device in devices if Path(device).exists()]
    if not present:
        return "sudo modprobe ipmi_devintf ipmi_si  (only servers have a management controller)"
    return f"sudo chmod a+rw {present[0]}  (until the next start; a udev rule with a group keeps it)"


def probe(command: Sequence[str] = (PROGRAM, *ARGUMENTS)) -> Availability:
    """Whether the controller tells the machine's power."""
    meters = discover(command)
    if not meters:
        return Availability(False, f"{PROGRAM} is not installed", f"apt install {PROGRAM}  (only on servers)")
    return meters[0].available()
