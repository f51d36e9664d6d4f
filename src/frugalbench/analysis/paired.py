"""The paired-ratio rule: candidates against every baseline, in one comparison and one regime.

``supported`` needs the whole interval on the claim's side against *every* baseline. ``refuted`` is decided against
the strongest baseline alone, which the pilot named, so that a refutation is one test and not a search. Several
``as_shipped`` candidates share alpha by Holm's procedure; the ``best`` one was chosen in the pilot and pays nothing.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import msgspec

from frugalbench.analysis import statistics
from frugalbench.analysis.energy import why_no_joules
from frugalbench.analysis.judge import Evidence, decide_outcome, judge, not_tested
from frugalbench.analysis.statistics import Interval
from frugalbench.schema import Case, Claim, Outcome, PairedArms, PairedRatio, Record, Status, Tier, Verdict

Spoilt = Mapping[tuple[str, str, int], set[int]]


@dataclass(frozen=True)
class Group:
    """All records of one comparison in one regime, by variant."""

    comparison: str
    regime: str
    label: str
    """Appended to names when a run compares several shapes, or one at several numbers of tokens."""
    pilot: dict[str, list[Record]]
    counted: dict[str, list[Record]]
    absent: dict[str, str]
    """Variant to the reason why it has no counted record."""
    spoilt: Spoilt
    logs: dict[tuple[str, str, str], tuple[float, ...]] = field(default_factory=dict, compare=False, repr=False)
    """Log-ratios by metric, baseline and candidate, which several claims ask for."""


def views(claim: Claim, evidence: Evidence) -> Iterator[tuple[Claim, Group]]:
    """Every comparison and regime that a paired claim is about, with the claim as it reads for that workload: its own,
    then each that stands beside it. Where one workload stands there twice, with other arms on other devices, a group
    is held against those arms that it has."""
    rule = claim.rule
    assert isinstance(rule, PairedRatio)
    for arms in (None, *rule.beside):
        mine = rule if arms is None else _beside(rule, arms)
        for group in groups(evidence, mine.workload, named=arms is not None).values():
            if group.regime in claim.regimes and (arms is None or arms is _fitting(rule.beside, arms, group)):
                yield msgspec.structs.replace(claim, rule=mine), group


def _fitting(beside: Sequence[PairedArms], arms: PairedArms, group: Group) -> PairedArms:
    """Of the entries for this workload the first whose arms were measured in the group; the first of all if none."""
    same = [item for item in beside if item.workload == arms.workload]
    return next((i for i in same if not group.counted.keys().isdisjoint((*i.as_shipped, *i.best))), same[0])


def _beside(rule: PairedRatio, arms: PairedArms) -> PairedRatio:
    return msgspec.structs.replace(
        rule, workload=arms.workload, baselines=arms.baselines, as_shipped=arms.as_shipped, best=arms.best, beside=()
    )


def groups(evidence: Evidence, workload: str, named: bool = False) -> dict[tuple[str, str], Group]:
    """Records of ``workload`` by comparison and regime; ``named`` labels even an only comparison with its shape."""
    key = ("groups", workload, named)
    if key not in evidence.memo:
        evidence.memo[key] = _groups(evidence, workload, named)
    found: dict[tuple[str, str], Group] = evidence.memo[key]
    return found


def _groups(evidence: Evidence, workload: str, named: bool) -> dict[tuple[str, str], Group]:
    buckets: dict[tuple[str, str], list[Record]] = {}
    for record in evidence.of(workload):
        if not record.interrupted:
            buckets.setdefault((record.comparison, record.case.regime), []).append(record)
    keys = [key for key in buckets if key[0] != "plan"]
    labels = _labels({key: buckets[key][0].case for key in keys}, named)
    return {key: _group(key, buckets[key], buckets.get(("plan", key[1]), []), labels[key]) for key in keys}


def _labels(cases: Mapping[tuple[str, str], Case], named: bool) -> dict[tuple[str, str], str]:
    """What tells each group from the others: nothing, its shape, or its shape and the tokens of a call."""
    if len({comparison for comparison, _ in cases}) <= 1 and not named:
        return dict.fromkeys(cases, "")
    shared = Counter((case.shape, case.regime) for case in cases.values())
    return {
        key: f" @ {case.shape}{_tokens(case) if shared[case.shape, case.regime] > 1 else ''}"
        for key, case in cases.items()
    }


def _tokens(case: Case) -> str:
    return f" x {case.cost.token:g}" if case.cost and case.cost.token else ""


def _group(key: tuple[str, str], mine: Sequence[Record], elsewhere: Sequence[Record], label: str) -> Group:
    counted = [r for r in mine if statistics.counted(r) and r.samples]
    have = {r.case.variant for r in counted}
    return Group(
        comparison=key[0],
        regime=key[1],
        label=label,
        pilot=_by_variant(r for r in mine if r.replicate == 0 and r.samples),
        counted=_by_variant(counted),
        absent={r.case.variant: r.reason for r in [*elsewhere, *mine] if r.case.variant not in have and r.reason},
        spoilt=statistics.void_rounds(mine),
    )


def _by_variant(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.case.variant, []).append(record)
    return found


def verdicts(claim: Claim, evidence: Evidence, group: Group) -> list[Verdict]:
    """``as_shipped`` rows, one per candidate, and one ``best`` row."""
    rule = claim.rule
    assert isinstance(rule, PairedRatio)
    if rule.metric == "energy" and not _has_joules(group):
        return [not_tested(claim, evidence, group.regime, _no_joules(group))]
    strongest = champion(rule.baselines, group, rule, evidence)
    if strongest is None:
        return [not_tested(claim, evidence, group.regime, _why_absent(rule.baselines, group, "baseline"))]
    shipped = [name for name in rule.as_shipped if name in group.counted]
    rows = [_absent_row(claim, evidence, group, name) for name in rule.as_shipped if name not in group.counted]
    levels = _levels(claim, rule, evidence, group, shipped, strongest)
    rows += [_row(claim, rule, evidence, group, name, strongest, levels[name], "as_shipped") for name in shipped]
    if not rule.best:
        return rows
    fastest = champion(rule.best, group, rule, evidence)
    if fastest is None:
        rows.append(not_tested(claim, evidence, group.regime, _why_absent(rule.best, group, "candidate"), arm="best"))
    else:
        alpha = evidence.alpha_of(group.comparison)
        rows.append(_row(claim, rule, evidence, group, fastest, strongest, alpha, "best"))
    return rows


def _absent_row(claim: Claim, evidence: Evidence, group: Group, name: str) -> Verdict:
    reason = group.absent.get(name, "not in this run's config")
    return not_tested(claim, evidence, group.regime, f"{name}{group.label}: {reason}", arm="as_shipped")


def _why_absent(names: Sequence[str], group: Group, what: str) -> str:
    reasons = [f"{name}: {group.absent[name]}" for name in names if name in group.absent]
    return reasons[0] if reasons else f"no {what} of {', '.join(names)} was measured in this run"


def _has_joules(group: Group) -> bool:
    return any(
        reading.tier is Tier.MEASURED and reading.round is not None
        for rows in group.counted.values()
        for row in rows
        for reading in row.readings
    )


def _no_joules(group: Group) -> str:
    rows = [row for found in group.counted.values() for row in found]
    if not rows:
        return next((f"{name}: {reason}" for name, reason in group.absent.items()), "nothing was measured in this run")
    if (why := why_no_joules(rows)) is not None:
        return why
    modelled = any(row.readings for row in rows)
    shown = "; the report shows a modelled interval, which decides nothing" if modelled else ""
    return f"no energy counter can be read on this machine, so measured joules are missing{shown}"


def champion(names: Sequence[str], group: Group, rule: PairedRatio, evidence: Evidence) -> str | None:
    """The one with the best estimand in the pilot, among those that were then counted; an only one needs no pilot."""
    measured = [name for name in names if name in group.counted]
    if len(names) == 1 and measured:
        return measured[0]
    scored = {
        name: score
        for name in names
        if name in group.counted and (score := _pilot_score(name, group, rule, evidence)) is not None
    }
    return max(scored, key=lambda name: scored[name]) if scored else None


def _pilot_score(name: str, group: Group, rule: PairedRatio, evidence: Evidence) -> float | None:
    values = _pilot_values(name, group, rule.metric) or _pilot_values(name, group, "time")
    work = _work(group.counted[name][0].case, rule.scale, evidence)
    return work / median(values) if values and work is not None else None


def _pilot_values(name: str, group: Group, metric: str) -> list[float]:
    """Values of all good pilot rounds, or of all rounds where none was good."""
    rows = group.pilot.get(name, [])
    good = [
        statistics.round_values(row, metric, group.spoilt.get((row.comparison, group.regime, 0), set())) for row in rows
    ]
    values = [value for rounds in good for value in rounds.values()]
    return values or [value for row in rows for value in statistics.round_values(row, metric, set()).values()]


def _work(case: Case, scale: str, evidence: Evidence) -> float | None:
    """What turns units of work per second into the estimand's terms; ``None`` when a peak was not measured."""
    if scale in ("none", "tax") or case.cost is None:
        return 1.0
    token = case.cost.token or 1.0
    if scale == "flop":
        return (case.cost.flop + case.cost.op) / token
    peak = evidence.peaks.get((case.device, case.peaks[0])) if case.peaks else None
    return (case.cost.op or case.cost.flop) / token / peak if peak else None


def _intervals(rule: PairedRatio, evidence: Evidence, group: Group, name: str, alpha: float) -> dict[str, Interval]:
    found = {}
    for baseline in rule.baselines:
        if (parts := _parts(rule, evidence, group, name, baseline)) is not None:
            made = statistics.interval(parts[0], parts[1], alpha, evidence.floor)
            if made is not None:
                found[baseline] = made
    return found


def _parts(
    rule: PairedRatio, evidence: Evidence, group: Group, name: str, baseline: str
) -> tuple[tuple[float, ...], float] | None:
    """Log-ratios per replicate, and the factor that makes them the estimand."""
    if baseline not in group.counted:
        return None
    ours = _work(group.counted[name][0].case, rule.scale, evidence)
    theirs = _work(group.counted[baseline][0].case, rule.scale, evidence)
    if ours is None or theirs is None or not ours or not theirs:
        return None
    return pair_logs(group, rule.metric, baseline, name), ours / theirs


def pair_logs(group: Group, metric: str, baseline: str, name: str) -> tuple[float, ...]:
    """Log-ratios of a candidate to a baseline, one per replicate that both took."""
    key = metric, baseline, name
    if key not in group.logs:
        group.logs[key] = statistics.pair_logs(group.counted[baseline], group.counted[name], metric, group.spoilt)
    return group.logs[key]


def replicate_ratios(
    rule: PairedRatio, group: Group, name: str, baseline: str, factor: float
) -> list[tuple[int, float]]:
    """Number of each replicate that both took, and the estimand that it alone gives."""
    logs = pair_logs(group, rule.metric, baseline, name)
    theirs = {record.replicate for record in group.counted[baseline]}
    numbers = sorted(record.replicate for record in group.counted[name] if record.replicate in theirs)
    numbers = numbers if len(numbers) == len(logs) else list(range(1, len(logs) + 1))
    return [(number, shown(rule, math.exp(log) * factor)) for number, log in zip(numbers, logs, strict=True)]


def _levels(
    claim: Claim, rule: PairedRatio, evidence: Evidence, group: Group, names: Sequence[str], strongest: str
) -> dict[str, float]:
    p_values = {}
    for name in names:
        parts = _parts(rule, evidence, group, name, strongest)
        p_values[name] = statistics.p_value(*parts, _limit(claim), evidence.floor) if parts else 1.0
    return statistics.holm(p_values, evidence.alpha_of(group.comparison))


def _row(
    claim: Claim, rule: PairedRatio, evidence: Evidence, group: Group, name: str, strongest: str, alpha: float, arm: str
) -> Verdict:
    intervals = _intervals(rule, evidence, group, name, alpha)
    against = intervals.get(strongest)
    if against is None:
        reason = f"{name}{group.label}: no common round with {strongest}, or its peak was not measured"
        return not_tested(claim, evidence, group.regime, reason, arm=arm)
    bounds = _bound(rule, against.low), _bound(rule, against.high)
    return judge(
        claim, evidence, group.regime, shown(rule, against.ratio), *bounds,
        metric=_metric_name(rule), candidate=name + group.label, baseline=strongest, tier=group.counted[name][0].tier,
        replicates=against.replicates, confidence=against.confidence, arm=arm,
        outcome=_outcome(claim, intervals, strongest), extra=_extra(claim, group, name, intervals, strongest),
    )  # fmt: skip


def _outcome(claim: Claim, intervals: Mapping[str, Interval], strongest: str) -> Outcome:
    """Refuted against the strongest baseline, supported only against every one."""
    first = _against(claim, intervals[strongest])
    if first is Outcome.SUPPORTED and _unbeaten(claim, intervals):
        return Outcome.INCONCLUSIVE
    return first


def _against(claim: Claim, item: Interval) -> Outcome:
    if item.low is None or item.high is None:
        return Outcome.INCONCLUSIVE
    return decide_outcome(claim.direction, _limit(claim), item.low, item.high)


def _limit(claim: Claim) -> float:
    """The threshold as a ratio of speeds."""
    assert isinstance(claim.rule, PairedRatio)
    return 1 / (1 - claim.threshold) if claim.rule.scale == "tax" else claim.threshold


def shown(rule: PairedRatio, ratio: float) -> float:
    """What a ratio of speeds, hand-tuned over portable, says of the tax, which grows with it; elsewhere the ratio."""
    return 1 - 1 / ratio if rule.scale == "tax" and ratio else ratio


def _bound(rule: PairedRatio, ratio: float | None) -> float | None:
    return None if ratio is None else shown(rule, ratio)


def _unbeaten(claim: Claim, intervals: Mapping[str, Interval]) -> list[str]:
    """Baselines against which the claim does not hold."""
    return [name for name, item in intervals.items() if _against(claim, item) is not Outcome.SUPPORTED]


def _extra(claim: Claim, group: Group, name: str, intervals: Mapping[str, Interval], strongest: str) -> str:
    notes = []
    if any(row.status is Status.CAPPED for row in group.counted[name]):
        notes.append("capped: one round a replicate")
    if any(row.steady_load for row in group.counted[name]):
        notes.append("steady load: no round set aside")
    if _against(claim, intervals[strongest]) is Outcome.SUPPORTED and (rest := _unbeaten(claim, intervals)):
        notes.append(f"not settled against {', '.join(rest)}")
    rule = claim.rule
    assert isinstance(rule, PairedRatio)
    others = [f"{shown(rule, item.ratio):.3g} over {base}" for base, item in intervals.items() if base != strongest]
    if others:
        notes.append(", ".join(others))
    return "; ".join([*notes, *_missing(claim, group, intervals)])


def _missing(claim: Claim, group: Group, intervals: Mapping[str, Interval]) -> list[str]:
    """Baselines that were not there, by the reason why."""
    found: dict[str, list[str]] = {}
    for base in _left_out(claim, intervals):
        found.setdefault(_why_left_out(group, base), []).append(base)
    return [f"{', '.join(names)} left out ({reason})" for reason, names in found.items()]


def _why_left_out(group: Group, base: str) -> str:
    if base in group.counted:
        return "its peak was not measured"
    return group.absent.get(base, "not in this run's config")


def _left_out(claim: Claim, intervals: Mapping[str, Interval]) -> list[str]:
    assert isinstance(claim.rule, PairedRatio)
    return [base for base in claim.rule.baselines if base not in intervals]


def _metric_name(rule: PairedRatio) -> str:
    base = "speed" if rule.metric == "time" else "tokens per joule"
    names = {"flop": f"{base} x FLOP ratio", "peak_share": f"{base} as share of peak"}
    names |= {"none": base, "tax": f"1 - portable / hand-tuned {base}"}
    return names[rule.scale]


@dataclass(frozen=True)
class Working:
    """What one row was computed from."""

    logs: dict[str, tuple[float, ...]]
    """By baseline, one per replicate that both took."""
    factors: dict[str, float]
    """By baseline, what makes such a ratio the estimand."""
    alpha_look: float
    alpha: float
    rivals: tuple[str, ...]
    """Candidates that shared ``alpha_look`` by Holm's procedure."""
    intervals: dict[str, Interval]
    """By baseline, as ratios of speeds times the factor."""
    outcomes: dict[str, Outcome]
    limit: float
    """The threshold in the same terms."""


def working(claim: Claim, evidence: Evidence, group: Group, row: Verdict) -> Working | None:
    """The workings of ``row``, which :func:`verdicts` gave for the same arguments; ``None`` where it has no ratio."""
    rule = claim.rule
    assert isinstance(rule, PairedRatio)
    if row.candidate is None or row.baseline is None:
        return None
    name, whole = row.candidate.removesuffix(group.label), evidence.alpha_of(group.comparison)
    parts = {base: found for base in rule.baselines if (found := _parts(rule, evidence, group, name, base)) is not None}
    rivals = [item for item in rule.as_shipped if item in group.counted] if row.arm == "as_shipped" else [name]
    levels = _levels(claim, rule, evidence, group, rivals, row.baseline) if row.arm == "as_shipped" else {name: whole}
    if row.baseline not in parts:
        return None
    intervals = _intervals(rule, evidence, group, name, levels[name])
    return Working(
        logs={base: found[0] for base, found in parts.items()},
        factors={base: found[1] for base, found in parts.items()},
        alpha_look=whole,
        alpha=levels[name],
        rivals=tuple(rivals),
        intervals=intervals,
        outcomes={base: _against(claim, item) for base, item in intervals.items()},
        limit=_limit(claim),
    )
