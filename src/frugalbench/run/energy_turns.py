"""How long energy takes, and what of it is kept: pure functions. No clock, no process, no meter."""

from collections.abc import Sequence

import msgspec

from frugalbench.run.schedule import METER_UPDATES
from frugalbench.schema import Quantity, Reading, Role, Tier

SLOW_METER_S = 0.05
"""From this update period on, energy turns are most of what a replicate lasts."""
IDLE_LEAST_S = 0.2
"""The idle window, however quick the meter: background work comes in bursts."""
SETTLE_SHARE = 0.5
"""Share of the idle window that is waited before it, since clocks and averaged power take a while to fall."""


def window_s(update_period_s: float, sample_s: float) -> float:
    """Length of an energy turn's window."""
    return max(METER_UPDATES * update_period_s, sample_s)


def idle_s(update_period_s: float) -> float:
    """Length of the idle window."""
    return max(METER_UPDATES * update_period_s, IDLE_LEAST_S)


def turns_s(windows_s: Sequence[float], calls_s: Sequence[float], rounds: int) -> float:
    """Time that ``rounds`` energy turns of each case take; a call that is longer than the window stretches it."""
    return rounds * sum(max(window, call) for window, call in zip(windows_s, calls_s, strict=True))


def replicates_to_come(number: int, first_look: int) -> int:
    """Replicates from ``number`` on that the first look needs; joules of fewer decide nothing."""
    return max(1, first_look - number + 1)


def kept(reading: Reading, number: int, void: str | None, last: bool) -> Reading:
    """A reading of an energy turn, as it is stored. What the environment spoilt counts only if it did so again.

    A turn is taken once more, not oftener: under a steady load there is nothing better to be had, and the note says so.
    """
    note = reading.note if void is None else f"window spoilt: {void}" + (f"; {reading.note}" if reading.note else "")
    counts = reading.role is Role.GROSS and (void is None or last)
    role = reading.role if counts else Role.PART
    return msgspec.structs.replace(reading, role=role, round=number if counts else None, note=note)


def skipped(turns: int, needed_s: float, left_s: float, replicates: int) -> Quantity | None:
    """Seconds that energy turns would take, with the reason why none is taken; ``None`` where they fit."""
    if needed_s * replicates <= left_s:
        return None
    each = "" if replicates == 1 else f" in each of {replicates} replicates"
    why = (
        f"no energy turns: {turns} of them, each {METER_UPDATES} updates of the meter long, would take "
        f"{needed_s:.1f} s{each}, and {max(0.0, left_s):.0f} s of the time budget are left"
    )
    return Quantity(value=needed_s, unit="s", tier=Tier.MODELLED, source=why)
