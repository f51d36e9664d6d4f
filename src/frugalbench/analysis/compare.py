"""Two runs held against each other, case by case: what got slower, and would you bet on it?

Times are judged by :mod:`frugalbench.analysis.unpaired`, Holm's step-down over all of them (S. Holm, Scand. J. Statist.
6, 1979), so that two runs of the same code raise any alarm in at most :data:`ALPHA` of all comparisons. What needs no
statistics is judged by :mod:`frugalbench.analysis.gates`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from frugalbench.analysis import unpaired
from frugalbench.analysis.differences import Difference, asked, differences
from frugalbench.analysis.gates import GATES, Gate, gates, in_both
from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row, rows
from frugalbench.analysis.statistics import DEFAULT_FLOOR, counted, holm, latest, round_values, void_rounds
from frugalbench.analysis.unpaired import Samples
from frugalbench.schema import Frozen, FrugalbenchError, Record, Status

ALPHA = 0.05
SHARED_ALLOWANCE = 0.10
"""A shift shared by all cases up to this much is laid to the machine: runs of one machine six hours apart: 7.5%."""
REGRESSED, IMPROVED, UNDECIDED = "regressed", "improved", "no difference shown"
ONLY_BASE, ONLY_NEW = "only in base", "only in new"
SLOWER, FASTER = "slower", "faster"
"""The words for two machines, where a difference is a finding and no regression."""


class Change(Frozen, frozen=True, kw_only=True):
    """One metric of one case in both runs. ``ratio`` is new / base of seconds or joules per token: above 1 is worse."""

    case: str
    metric: str
    """``time`` or ``energy``."""
    base: float | None
    """Seconds per call, or joules per token: geometric mean over replicates."""
    new: float | None
    ratio: float | None
    low: float | None
    high: float | None
    """At the confidence that Holm's procedure tests this case at, widened by floor and shared shift."""
    confidence: float | None
    detectable: float | None
    """Smallest worsening that would be found four times in five (0.05: 5%)."""
    replicates: tuple[int, int]
    outcome: str
    """``regressed``, ``improved`` (``slower``, ``faster`` between machines), ``no difference shown``, ``only in base``,
    ``only in new``."""
    alarm: bool = False
    """Regressed, and by more than the limit."""
    roofline: tuple[float | None, float | None] = (None, None)
    """Share of each machine's own measured roofline."""
    note: str = ""


class Shift(Frozen, frozen=True, kw_only=True):
    """What all cases of a metric have in common."""

    metric: str
    ratio: float
    spread: float
    """Standard deviation of the cases' log-ratios that their replicates do not explain."""
    cases: int
    alarm: bool
    """More than the limit and than :data:`SHARED_ALLOWANCE`."""


@dataclass(frozen=True)
class Compared:
    """The comparison of two runs."""

    same_machine: bool
    differences: tuple[Difference, ...]
    changes: tuple[Change, ...]
    gates: tuple[Gate, ...]
    checked: int
    """Cases that the gates looked at."""
    shifts: tuple[Shift, ...]
    floor: float
    fail_above_pct: float | None
    warnings: tuple[str, ...]

    @property
    def regressions(self) -> tuple[str, ...]:
        """What makes the exit code 1, a line each: gates, times beyond the limit, a shift of all cases."""
        slow = [f"{c.case}: {c.metric} {c.ratio:.3f} times the base's" for c in self.changes if c.alarm and c.ratio]
        shared = [f"all cases: {s.metric} {s.ratio:.3f} times the base's" for s in self.shifts if s.alarm]
        return (*(gate.text for gate in self.gates if gate.worse), *slow, *shared)


def compare(
    base: Run, new: Run, fail_above_pct: float | None = None, chosen: Iterable[str] = GATES, alpha: float = ALPHA
) -> Compared:
    """Compare ``new`` with ``base``; ``chosen`` names the gates that count.

    Only on one machine, and only with ``fail_above_pct``, does a time raise an alarm: where the case is slower at a
    familywise ``alpha`` over all cases and metrics, and its ratio exceeds the limit.
    """
    same = _machine(base) is not None and _machine(base) == _machine(new)
    floors = [DEFAULT_FLOOR if run.manifest.floor is None else run.manifest.floor for run in (base, new)]
    samples = {metric: _samples(base, new, metric) for metric in ("time", "energy")}
    cases = {(metric, case): item for metric, found in samples.items() for case, item in found.items()}
    moved = {metric: _drift(found.values(), same) for metric, found in samples.items()}
    tests = _tests(cases, moved, max(floors))
    levels = holm({key: test.p_value for key, test in tests.items()}, alpha)
    limit = math.inf if fail_above_pct is None or not same else 1 + fail_above_pct / 100
    found = [_change(key, item, tests.get(key), levels.get(key), same, limit) for key, item in cases.items()]
    return Compared(
        same_machine=same,
        differences=tuple(differences(base, new)),
        changes=tuple(_explained(found, base, new)),
        gates=tuple(g for g in gates(base, new, chosen) if same or g.gate != "memory"),
        checked=in_both(base, new),
        shifts=tuple(_shift(metric, item, limit) for metric, item in moved.items() if item.cases),
        floor=max(floors),
        fail_above_pct=fail_above_pct,
        warnings=tuple(_warnings(base, new, same, fail_above_pct, sum(m == "time" for m, _ in tests))),
    )


def require_common(base: Run, new: Run) -> None:
    """Raises :class:`FrugalbenchError` where the runs share no case or neither measured one: silence is no pass."""
    for run in (base, new):
        if not any(record.status is not Status.SKIPPED for record in run.records):
            raise FrugalbenchError(f"{run.path}: holds no measured case, so nothing can be compared; run it again")
    if not in_both(base, new):
        raise FrugalbenchError(
            f"{base.path} and {new.path} have no case in common; compare runs of the same config "
            f"('{base.manifest.name}' and '{new.manifest.name}')"
        )
    if not any(counted(record) for run in (base, new) for record in run.records):
        raise FrugalbenchError(f"{base.path} and {new.path}: every case failed in both runs; nothing can be compared")


Key = tuple[str, str]
"""Metric and case."""


def _machine(run: Run) -> str | None:
    found = run.manifest.machine_before.get("fingerprint")
    return str(found) if found else None


def _samples(base: Run, new: Run, metric: str) -> dict[str, Samples]:
    before, after = _logs(base, metric), _logs(new, metric)
    names = dict.fromkeys([*before, *after])
    return {name: Samples(before.get(name, ()), after.get(name, ())) for name in names}


def _logs(run: Run, metric: str) -> dict[str, tuple[float, ...]]:
    """Case to the logarithm of each replicate's median, by the rules that verdicts go by."""
    records = latest(run.records)
    spoilt = void_rounds(records)
    found: dict[str, list[float]] = {}
    for record in records:
        if counted(record):
            bad = spoilt.get((record.comparison, record.case.regime, record.replicate), set())
            values = list(round_values(record, metric, bad).values())
            if values:
                found.setdefault(record.case.id, []).append(math.log(median(values) * _per_call(record, metric)))
    return {name: tuple(logs) for name, logs in found.items()}


def _per_call(record: Record, metric: str) -> float:
    """Times are shown per call; only joules stay per token."""
    cost = record.case.cost
    return cost.token if metric == "time" and cost is not None and cost.token else 1.0


def _drift(cases: Iterable[Samples], same: bool) -> unpaired.Drift:
    found = list(cases)
    return unpaired.drift(found, unpaired.prior(found)) if same else unpaired.Drift()


def _tests(
    cases: Mapping[Key, Samples], moved: Mapping[str, unpaired.Drift], floor: float
) -> dict[Key, unpaired.CaseTest]:
    known = {metric: unpaired.prior([item for (kind, _), item in cases.items() if kind == metric]) for metric in moved}
    made = {key: unpaired.held(item, known[key[0]], moved[key[0]], floor) for key, item in cases.items()}
    return {key: test for key, test in made.items() if test is not None}


def _change(
    key: Key, item: Samples, test: unpaired.CaseTest | None, level: float | None, same: bool, limit: float
) -> Change:
    base, new = (math.exp(fmean(side)) if side else None for side in (item.base, item.new))
    ratio = new / base if base and new else None
    low, high = test.interval(level) if test and level else (None, None)
    outcome = _outcome(base, new, low, high, same)
    return Change(
        case=key[1],
        metric=key[0],
        base=base,
        new=new,
        ratio=ratio,
        low=None if low is None else _exp(low),
        high=None if high is None else _exp(high),
        confidence=None if level is None or test is None else 1 - level,
        detectable=test.detectable(level) if test and level else None,
        replicates=(len(item.base), len(item.new)),
        outcome=outcome,
        alarm=outcome == REGRESSED and ratio is not None and ratio > limit,
        note="" if test or ratio is None else "one replicate on a side shows nothing",
    )


def _exp(log: float) -> float:
    return math.exp(max(-700.0, min(700.0, log)))


def _outcome(base: float | None, new: float | None, low: float | None, high: float | None, same: bool) -> str:
    if base is None or new is None:
        return ONLY_NEW if base is None else ONLY_BASE
    if low is not None and low > 0:
        return REGRESSED if same else SLOWER
    if high is not None and high < 0:
        return IMPROVED if same else FASTER
    return UNDECIDED


def _explained(changes: Sequence[Change], base: Run, new: Run) -> Iterable[Change]:
    """With each machine's share of its roofline, and the reason where a run has no time."""
    import msgspec

    before, after = _rows(base), _rows(new)
    for change in changes:
        sides = before.get(change.case), after.get(change.case)
        shares = tuple(row.roofline_share if row else None for row in sides)
        missing = sides[0] if change.outcome == ONLY_NEW else sides[1]
        gone = change.outcome in (ONLY_BASE, ONLY_NEW) and missing is not None
        note = f"{missing.status.value}: {missing.reason}" if gone and missing else change.note
        yield msgspec.structs.replace(change, roofline=shares, note=note)


def _rows(run: Run) -> dict[str, Row]:
    return {row.case: row for row in rows(run)}


def _shift(metric: str, moved: unpaired.Drift, limit: float) -> Shift:
    ratio = _exp(moved.shift)
    alarm = ratio > max(limit, 1 + SHARED_ALLOWANCE)
    return Shift(metric=metric, ratio=ratio, spread=moved.spread, cases=moved.cases, alarm=alarm)


def _warnings(base: Run, new: Run, same: bool, limit_pct: float | None, tested: int) -> Iterable[str]:
    yield from dict.fromkeys([*base.problems, *new.problems])
    if not same:
        ungated = "" if limit_pct is None else "; --fail-above does not apply, gates on work, bytes and accuracy do"
        yield f"different machines: base {_machine(base)}, new {_machine(new)}{ungated}"
    if base.manifest.claims_hash != new.manifest.claims_hash:
        yield "the two runs were planned under different claims; times are compared, verdicts are not"
    if asked(base) != asked(new):
        yield "the two runs have different configs"
    if base.manifest.schema_version != new.manifest.schema_version:
        versions = base.manifest.schema_version, new.manifest.schema_version
        yield f"different schema versions: base {versions[0]}, new {versions[1]}; what the older lacks is not compared"
    if same and 0 < tested < unpaired.LEAST_CASES:
        yield (
            f"with {tested} timed cases a drift of the machine between the runs looks like a change of the code; "
            "`frugalbench versus` measures both turn by turn"
        )
