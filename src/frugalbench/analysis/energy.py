"""Tokens per joule of one case, from the energy readings in its records."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from statistics import median
from typing import Any

from frugalbench.schema import Cost, Reading, Record, Tier


def energy(records: list[Record], cost: Cost | None) -> dict[str, Any]:
    """Fields of a row: tokens per joule measured (median over replicates of the median over windows) and modelled.

    A window with a failed reading is poisoned: it is counted and left out. The modelled interval goes from all
    joules at their upper bound to all at their lower one. Missing is ``None``.
    """
    token = cost.token if cost else 0.0
    per_replicate, modelled, poisoned, scopes = [], [], 0, set()
    for record in records:
        rates = []
        for window in _windows(r for r in record.readings if r.tier is Tier.MEASURED):
            joule = _window_joule(window)
            scopes |= {reading.scope for reading in window}
            if joule:
                rates.append(token * window[0].calls / joule)
            else:
                poisoned += 1
        per_replicate += [median(rates)] if rates else []
        modelled += [r for r in record.readings if r.tier is Tier.MODELLED and r.error is None]
    low, high = _modelled_interval(modelled, token)
    return {
        "token_per_joule": median(per_replicate) if per_replicate and token else None,
        "energy_scope": " + ".join(sorted(scopes)),
        "poisoned_windows": poisoned,
        "token_per_joule_low": low,
        "token_per_joule_high": high,
    }


def _windows(readings: Iterable[Reading]) -> Iterator[list[Reading]]:
    """Readings taken over the same window, of several scopes and methods."""
    ordered = sorted(readings, key=lambda r: (r.start_s, r.scope))
    for _, window in groupby(ordered, key=lambda r: r.start_s):
        yield list(window)


def _window_joule(window: list[Reading]) -> float | None:
    """Sum over scopes; ``None`` if any failed. A second method of the same scope is a cross-check, not a summand."""
    if any(r.joule is None or r.error is not None for r in window):
        return None
    by_scope: dict[str, float] = {}
    for reading in window:
        by_scope.setdefault(reading.scope, reading.joule or 0.0)
    return sum(by_scope.values())


def _modelled_interval(readings: list[Reading], token: float) -> tuple[float | None, float | None]:
    lows = [token * r.calls / r.high_joule for r in readings if r.high_joule]
    highs = [token * r.calls / r.low_joule for r in readings if r.low_joule]
    return (median(lows) if lows and token else None), (median(highs) if highs and token else None)
