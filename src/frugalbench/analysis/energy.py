"""Joules and tokens per joule of one case, from the energy readings in its records.

Verdicts rest on gross joules: what the meters counted while the case computed. Net joules, less what the machine
drew with all arms loaded and none computing, are shown beside them.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from statistics import median
from typing import Any

from frugalbench.schema import Cost, Frozen, Reading, Record, Role, Tier

DECLARED = "declared-model"
"""Scope of the declared model, which stands in where nothing else says anything."""


class Joules(Frozen, frozen=True, kw_only=True):
    """Measured joules of a case, per call: the median over replicates of the median over windows."""

    gross_j: float | None = None
    net_j: float | None = None
    """``None`` without an idle baseline; zero or less where the meter cannot tell computing from idling."""
    idle_w: float | None = None
    """Power of the scopes that count while all arms were loaded and none computed."""
    token_per_gross_j: float | None = None
    token_per_net_j: float | None = None
    capped_windows: int = 0
    """Windows whose methods disagreed, so that they do not count as measured."""
    note: str = ""
    """The first such disagreement."""


def gross_and_net(records: list[Record], cost: Cost | None) -> Joules:
    """Gross and net joules per call, and tokens per joule of both. Poisoned windows are left out."""
    gross, net, idle = [], [], []
    for record in records:
        idle_w = _idle_w(record.readings)
        windows = [(window, joule) for window in _measured(record) if (joule := _window_joule(window)) is not None]
        gross += _median_of(joule / window[0].calls for window, joule in windows)
        known = [(window, joule, _idle_of(window, idle_w)) for window, joule in windows]
        net += _median_of(
            (joule - w * window[0].window_s) / window[0].calls for window, joule, w in known if w is not None
        )
        idle += _median_of(w for _, _, w in known if w is not None)
    notes = [note for record in records for note in _disagreements(record)]
    token = cost.token if cost else 0.0
    gross_j, net_j = _median_or_none(gross), _median_or_none(net)
    return Joules(
        gross_j=gross_j,
        net_j=net_j,
        idle_w=_median_or_none(idle),
        token_per_gross_j=_rate(token, gross_j),
        token_per_net_j=_rate(token, net_j),
        capped_windows=len(notes),
        note=notes[0] if notes else "",
    )


def why_no_joules(records: Iterable[Record]) -> str | None:
    """Why records of a machine with a meter hold no measured joules; ``None`` where no meter was read at all."""
    found = list(records)
    readings = [reading for record in found for reading in record.readings if reading.scope != DECLARED]
    skipped = (record.facts["energy_turns_s"].source for record in found if "energy_turns_s" in record.facts)
    capped = (f"two methods disagree: {r.note}" for r in readings if r.tier is Tier.MODELLED and r.note)
    poisoned = (f"reading the meter failed: {r.error}" for r in readings if r.role is Role.GROSS and r.error)
    return next(chain(skipped, capped, poisoned), None)


def energy(records: list[Record], cost: Cost | None) -> dict[str, Any]:
    """Fields of a row: tokens per joule measured (median over replicates of the median over windows) and modelled.

    A window with a failed reading is poisoned: it is counted and left out. The modelled interval goes from all
    joules at their upper bound to all at their lower one. Missing is ``None``.
    """
    token = cost.token if cost else 0.0
    records = [record for record in records if record.readings]
    per_replicate, poisoned, scopes = [], 0, set()
    modelled = [window for record in records for window in _modelled_windows(record)]
    for record in records:
        rates = []
        for window in _measured(record):
            joule = _window_joule(window)
            scopes |= {reading.scope for reading in window}
            if joule:
                rates.append(token * window[0].calls / joule)
            else:
                poisoned += 1
        per_replicate += [median(rates)] if rates else []
    low, high = _modelled_interval(modelled, token)
    joules = gross_and_net(records, cost)
    return {
        "token_per_net_joule": joules.token_per_net_j,
        "idle_w": joules.idle_w,
        "disagreement": joules.note,
        "token_per_joule": median(per_replicate) if per_replicate and token else None,
        "energy_scope": " + ".join(sorted(scopes)),
        "poisoned_windows": poisoned,
        "token_per_joule_low": low,
        "token_per_joule_high": high,
    }


def _measured(record: Record) -> Iterator[list[Reading]]:
    """Windows of measured readings that count."""
    return _windows(r for r in record.readings if r.tier is Tier.MEASURED and r.role is Role.GROSS and r.calls)


def _modelled_windows(record: Record) -> Iterator[list[Reading]]:
    """Windows of modelled readings; the declared model only where there is nothing closer to a measurement."""
    counted = (r for r in record.readings if r.tier is Tier.MODELLED and r.role is Role.GROSS and r.error is None)
    for window in _windows(counted):
        closer = [reading for reading in window if reading.scope != DECLARED]
        yield closer or window


def _windows(readings: Iterable[Reading]) -> Iterator[list[Reading]]:
    """Readings taken over the same window, of several scopes and methods."""
    ordered = sorted(readings, key=lambda r: (r.start_s, r.scope))
    for _, window in groupby(ordered, key=lambda r: r.start_s):
        yield list(window)


def _window_joule(window: list[Reading]) -> float | None:
    """Sum over scopes; ``None`` if any failed. A second method of the same scope is a cross-check, not a summand."""
    if any(r.joule is None or r.error is not None for r in window):
        return None
    return sum(reading.joule or 0.0 for reading in _first_of_scope(window))


def _first_of_scope(window: Iterable[Reading]) -> Iterable[Reading]:
    by_scope: dict[str, Reading] = {}
    for reading in window:
        by_scope.setdefault(reading.scope, reading)
    return by_scope.values()


def _idle_w(readings: Iterable[Reading]) -> dict[tuple[str, str], float]:
    """Scope and method to watts while nobody computed."""
    return {
        (r.scope, r.method): r.joule / r.window_s
        for r in readings
        if r.role is Role.IDLE and r.tier is Tier.MEASURED and r.joule is not None and r.window_s > 0
    }


def _idle_of(window: list[Reading], idle_w: dict[tuple[str, str], float]) -> float | None:
    """Idle watts of the scopes that a window counts; ``None`` if one is unknown."""
    found = [idle_w.get((reading.scope, reading.method)) for reading in _first_of_scope(window)]
    return None if None in found else sum(watts or 0.0 for watts in found)


def _disagreements(record: Record) -> list[str]:
    """One note for each window whose tier was capped."""
    windows = _modelled_windows(record)
    return [window[0].note for window in windows if window[0].note and window[0].scope != DECLARED]


def _modelled_interval(windows: list[list[Reading]], token: float) -> tuple[float | None, float | None]:
    """Tokens per joule at the upper and at the lower bound, medians over windows; scopes add up."""
    lows = [token * window[0].calls / joule for window in windows if (joule := _bound(window, "high_joule"))]
    highs = [token * window[0].calls / joule for window in windows if (joule := _bound(window, "low_joule"))]
    return (median(lows) if lows and token else None), (median(highs) if highs and token else None)


def _bound(window: list[Reading], name: str) -> float | None:
    """Sum over scopes of one bound; ``None`` if one is unknown."""
    bounds = [getattr(reading, name) for reading in _first_of_scope(window)]
    return None if None in bounds else float(sum(bounds))


def _median_of(values: Iterable[float]) -> list[float]:
    """The median as a list, empty without values."""
    found = list(values)
    return [median(found)] if found else []


def _median_or_none(values: list[float]) -> float | None:
    return median(values) if values else None


def _rate(token: float, joule: float | None) -> float | None:
    return token / joule if token and joule is not None and joule > 0 else None
