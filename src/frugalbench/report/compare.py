"""Two runs held against each other: what got slower, and would you bet on it?

The runs did not take turns, so their replicates are unpaired samples: Welch's t on the logarithms of the replicate
medians (B. L. Welch, Biometrika 34, 1947), Holm's step-down over the cases (S. Holm, Scand. J. Statist. 6, 1979).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from frugalbench.analysis.conformance import lost, standings
from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import replicate_time_s, rows
from frugalbench.analysis.statistics import counted
from frugalbench.report.tables import Cell, Table
from frugalbench.schema import Frozen, Status
from frugalbench.units import interval, seconds, significant

CONFIDENCE = 0.95
MOST_LOST = 20
"""Conformance cases that are named in the warnings; ``regressions`` has them all."""
SAME_WITHIN_PCT = 5.0
"""Without a limit of the user's, an interval inside this band counts as the same."""


class Change(Frozen, frozen=True, kw_only=True):
    """One case in both runs. ``ratio`` is time new / time base, so above 1 is slower."""

    case: str
    base_s: float | None
    new_s: float | None
    ratio: float | None
    low: float | None
    high: float | None
    replicates: tuple[int, int]
    flag: str
    """``slower``, ``faster``, ``same``, ``cannot tell``, ``failed``, ``mended``, ``only in base``, ``only in new``."""
    p_beyond: float | None = None
    """One-sided p-value of "slower by no more than the limit"; before Holm's correction."""


@dataclass(frozen=True)
class Compared:
    """The comparison of two runs."""

    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    regressions: tuple[str, ...]
    """Case ids that failed or are slower beyond the limit, and conformance cases that no longer pass; not empty means
    exit code 1."""


def compare(base: Run, new: Run, fail_above_pct: float | None = None) -> Compared:
    """Compare ``new`` with ``base``, case by case.

    With ``fail_above_pct`` a case regresses when it is slower by more than that many percent with a familywise
    error of 5% over all cases. A case that ran in ``base`` and failed in ``new`` always regresses; so does a test case
    of ONNX that passed on a runtime and was executed again without passing.
    """
    band = SAME_WITHIN_PCT if fail_above_pct is None else fail_above_pct
    times, states = (_times(base), _times(new)), (_states(base), _states(new))
    names = dict.fromkeys([*states[0], *states[1]])
    changes = tuple(_change(n, [t.get(n, []) for t in times], [s.get(n) for s in states], band) for n in names)
    slower = _beyond(changes) if fail_above_pct is not None else set()
    bad = tuple(c.case for c in changes if c.flag == "failed" or c.case in slower)
    gone = [item.text for item in lost(standings(base), standings(new))]
    return Compared(changes, (*_warnings(base, new), *gone[:MOST_LOST], *_more(gone)), (*bad, *gone))


def _more(gone: Sequence[str]) -> list[str]:
    return [f"{len(gone) - MOST_LOST} more conformance cases no longer pass"] if len(gone) > MOST_LOST else []


def compared_table(compared: Compared) -> Table:
    """The changes as a table, the warnings as its notes."""
    columns = (("case", False), ("base", True), ("new", True), ("new/base [low, high]", True), ("", False))
    return Table("New against base", columns, tuple(_line(c) for c in compared.changes), compared.warnings)


def welch(base: Sequence[float], new: Sequence[float], shift: float = 0.0) -> tuple[float, float, float]:
    """Interval of mean(new) - mean(base) at :data:`CONFIDENCE`, and the one-sided p-value of difference <= ``shift``.

    Needs two values on each side. Two constant samples have an interval of width 0.
    """
    from scipy.special import stdtr, stdtrit

    parts = variance(base) / len(base), variance(new) / len(new)
    error, difference = math.sqrt(sum(parts)), fmean(new) - fmean(base)
    if error == 0:
        return difference, difference, float(difference <= shift)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(base) - 1) + parts[1] ** 2 / (len(new) - 1))
    half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * error
    return difference - half, difference + half, float(stdtr(freedom, (shift - difference) / error))


def _times(run: Run) -> dict[str, list[float]]:
    """Case id to the logarithms of its replicate medians; a repeated replicate counts once, as last written."""
    latest = {(r.case.id, r.comparison, r.replicate): r for r in run.records}
    times: dict[str, list[float]] = {}
    for record in latest.values():
        if counted(record) and (time_s := replicate_time_s(record)):
            times.setdefault(record.case.id, []).append(math.log(time_s))
    return times


def _states(run: Run) -> dict[str, Status]:
    return {row.case: row.status for row in rows(run) if row.replicates or row.status is Status.FAILED}


def _change(name: str, logs: list[list[float]], states: list[Status | None], band_pct: float) -> Change:
    base, new = logs
    low, high, p_beyond = (None, None, None)
    if len(base) > 1 and len(new) > 1:
        low, high, p_beyond = welch(base, new, math.log1p(band_pct / 100))
    return Change(
        case=name,
        base_s=math.exp(fmean(base)) if base else None,
        new_s=math.exp(fmean(new)) if new else None,
        ratio=math.exp(fmean(new) - fmean(base)) if base and new else None,
        low=None if low is None else math.exp(low),
        high=None if high is None else math.exp(high),
        replicates=(len(base), len(new)),
        flag=_state_flag(states) or _flag(low, high, math.log1p(band_pct / 100)),
        p_beyond=p_beyond,
    )


def _state_flag(states: list[Status | None]) -> str | None:
    base, new = states
    if new is None:
        return "only in base"
    if base is None:
        return "failed" if new is Status.FAILED else "only in new"
    if (base is Status.FAILED) != (new is Status.FAILED):
        return "failed" if new is Status.FAILED else "mended"
    return None


def _flag(low: float | None, high: float | None, band: float) -> str:
    """From an interval of log-ratios. A sure difference is named even where it is small."""
    if low is None or high is None:
        return "cannot tell"
    if low > 0 or high < 0:
        return "slower" if low > 0 else "faster"
    return "same" if -band <= low and high <= band else "cannot tell"


def _beyond(changes: Sequence[Change]) -> set[str]:
    """Cases slower beyond the limit, Holm's step-down at 1 - :data:`CONFIDENCE`."""
    ordered = sorted((c.p_beyond, c.case) for c in changes if c.p_beyond is not None)
    found: set[str] = set()
    for index, (p_value, case) in enumerate(ordered):
        if p_value > (1 - CONFIDENCE) / (len(ordered) - index):
            break
        found.add(case)
    return found


def _warnings(base: Run, new: Run) -> list[str]:
    machines = [run.manifest.machine_before.get("fingerprint") for run in (base, new)]
    found = list(dict.fromkeys([*base.problems, *new.problems]))
    if machines[0] != machines[1]:
        found.append(f"different machines: base {machines[0]}, new {machines[1]}; times may differ for that alone")
    if base.manifest.config != new.manifest.config:
        found.append("the two runs have different configs")
    return found


def _line(change: Change) -> tuple[Cell, ...]:
    bounds = "" if change.low is None else f" {interval(change.low, change.high)}"
    mark = {"slower": "refuted", "failed": "failed", "faster": "supported"}.get(change.flag, "")
    hint = f"Welch's t over {change.replicates[0]} and {change.replicates[1]} replicates"
    ratio = Cell(significant(change.ratio) + bounds, hint=hint)
    return (
        Cell(change.case),
        Cell(seconds(change.base_s)),
        Cell(seconds(change.new_s)),
        ratio,
        Cell(change.flag, mark=mark),
    )
