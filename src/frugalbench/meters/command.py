"""An external meter that a command reads: it prints one number, watts just now or a counter of joules.

The command is code from a config. Whoever runs a config decides whether it may run; nothing here asks.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from frugalbench.meters.ask import last_number, output_of
from frugalbench.meters.base import Availability, Meter
from frugalbench.meters.trace import TraceMeter

UPDATE_PERIOD_S = 1.0
LIMIT_S = 5.0


def discover(
    command: Sequence[str],
    unit: str = "W",
    scope: str = "machine",
    update_period_s: float | None = None,
    limit_s: float = LIMIT_S,
    clock: Callable[[], float] = time.monotonic,
) -> list[Meter]:
    """The one meter; empty without a command."""
    if not command:
        return []
    how = "power, integrated" if unit == "W" else "energy counter"
    return [
        TraceMeter(
            name="command",
            scope=scope,
            method=f"command {Path(command[0]).name}, {how}",
            read=partial(_read, tuple(command), limit_s),
            update_period_s=update_period_s or UPDATE_PERIOD_S,
            unit=unit,
            remedy=f"run it by hand; its last line must hold one number, in {unit}",
            clock=clock,
        )
    ]


def probe(command: Sequence[str] = ()) -> Availability:
    """Whether the command prints a number."""
    meters = discover(command)
    if not meters:
        return Availability(False, "not configured", '[energy] meter = "command", command = ["PROGRAM", "ARGUMENT"]')
    return meters[0].available()


def _read(command: Sequence[str], limit_s: float) -> float:
    return last_number(output_of(command, limit_s))
