"""Two methods over one window and one scope: a counter and integrated power, say. If they disagree, neither counts."""

from collections.abc import Sequence

import msgspec

from frugalbench.schema import Reading, Role, Tier

MOST_DISAGREEMENT = 0.20
"""Share by which two methods may differ over one window and one scope. Beyond it neither counts as measured."""
LEAST_UPDATES = 10
"""A window with fewer updates of the slower method says nothing about the other one."""


def cross_check(readings: Sequence[Reading], update_period_s: Sequence[float]) -> tuple[Reading, ...]:
    """Cap the tier of readings whose scope two methods put more than :data:`MOST_DISAGREEMENT` apart.

    Such a scope is ``modelled``, from the smaller to the larger figure, and its note says so. The share is of the
    larger one. If the scope counts, so are the others that do: a sum is no better than its worst part. Windows that
    are too short for the slower method are let pass.
    """
    checked = list(readings)
    notes = {}
    for scope in dict.fromkeys(reading.scope for reading in readings):
        same = [
            index
            for index, r in enumerate(readings)
            if r.scope == scope and r.tier is Tier.MEASURED and r.joule is not None
            and r.window_s >= LEAST_UPDATES * update_period_s[index]
        ]  # fmt: skip
        note, low, high = _disagreement([readings[index] for index in same])
        for index in same if note else ():
            notes[readings[index].role] = note
            checked[index] = _capped(readings[index], note, low, high)
    if note := notes.get(Role.GROSS, ""):
        checked = [_capped(r, note, r.joule, r.joule) if r.role is Role.GROSS else r for r in checked]
    return tuple(checked)


def _capped(reading: Reading, note: str, low: float | None, high: float | None) -> Reading:
    if reading.tier is not Tier.MEASURED:
        return reading
    return msgspec.structs.replace(reading, tier=Tier.MODELLED, note=note, low_joule=low, high_joule=high)


def _disagreement(readings: Sequence[Reading]) -> tuple[str, float, float]:
    """Why readings of one window and scope do not agree, or nothing; and the span that they leave."""
    if len(readings) < 2:
        return "", 0.0, 0.0
    ordered = sorted(readings, key=lambda r: r.joule or 0.0)
    low, high = ordered[0].joule or 0.0, ordered[-1].joule or 0.0
    apart = (high - low) / high if high > 0 else 0.0
    if apart <= MOST_DISAGREEMENT:
        return "", low, high
    return (
        f"{ordered[0].method} says {low:.4g} J, {ordered[-1].method} {high:.4g} J: {apart:.0%} apart, "
        f"more than {MOST_DISAGREEMENT:.0%}, so neither counts as measured",
        low,
        high,
    )
