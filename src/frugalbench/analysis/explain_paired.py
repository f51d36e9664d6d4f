"""The chain behind a paired ratio: arms, rounds, replicates, interval, and what else would have been said."""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, median, stdev
from typing import Any

import msgspec

from frugalbench.analysis import paired, statistics
from frugalbench.analysis.chain import (
    COUNTS,
    LEFT_OUT,
    PILOT,
    Against,
    Asked,
    Chain,
    Datum,
    Flip,
    RoundDatum,
    Side,
    Working,
)
from frugalbench.analysis.energy import energy, why_no_joules
from frugalbench.analysis.flips import flips, more_replicates
from frugalbench.analysis.formulas import formula_of
from frugalbench.analysis.metrics import replicate_time_s
from frugalbench.analysis.placed import placed
from frugalbench.analysis.statistics import t_quantile
from frugalbench.schema import Case, Claim, Outcome, PairedRatio, Record, Status, Tier, Verdict


def paired_chain(asked: Asked, verdict: Verdict) -> Chain | None:
    """The chain of a row that rests on a ratio; ``None`` where there is none."""
    found = _speaking(asked).get(verdict)
    worked = None if found is None else paired.working(found[0], asked.evidence, found[1], verdict)
    return None if found is None or worked is None else _chain(asked, *found, verdict, worked)


def _speaking(asked: Asked) -> dict[Verdict, tuple[Claim, paired.Group]]:
    """Each row of the claim with the view and group that gave it, the first where two say the same."""
    if _speaking not in asked.memo:
        rows: dict[Verdict, tuple[Claim, paired.Group]] = {}
        for view, group in paired.views(asked.claim, asked.evidence):
            for row in paired.verdicts(view, asked.evidence, group):
                rows.setdefault(row, (view, group))
        asked.memo[_speaking] = rows
    found: dict[Verdict, tuple[Claim, paired.Group]] = asked.memo[_speaking]
    return found


def _chain(asked: Asked, view: Claim, group: paired.Group, verdict: Verdict, worked: paired.Working) -> Chain:
    rule = view.rule
    assert isinstance(rule, PairedRatio) and verdict.candidate and verdict.baseline
    name, strongest = verdict.candidate.removesuffix(group.label), verdict.baseline
    deciding, every = worked.intervals[strongest], list(worked.intervals.values())
    found = flips(view.direction, worked.limit, verdict.verdict, deciding, every)
    if verdict.verdict is Outcome.INCONCLUSIVE:
        found += _unsettled(worked, asked.evidence.floor)
    factor = worked.factors[strongest]
    return Chain(
        verdict=verdict,
        rule="",
        comparison=group.comparison,
        sides=_sides(group, name, rule, strongest),
        data=tuple(_data(asked, rule, group, name, strongest, factor)),
        working=_working(asked, rule, group, worked, strongest),
        against=tuple(_against(rule, base, worked, base == strongest) for base in worked.intervals),
        flips=tuple(found),
    )


def _unsettled(worked: paired.Working, floor: float) -> Iterator[Flip]:
    """What each baseline that is in the way of support would take."""
    for base, outcome in worked.outcomes.items():
        if outcome is Outcome.REFUTED:
            yield Flip(
                verdict="settled", change=None, what=f"against {base} it is missed: more replicates change nothing"
            )
        elif outcome is Outcome.INCONCLUSIVE:
            more = more_replicates(worked.logs[base], worked.factors[base], worked.limit, worked.alpha, floor)
            yield from [] if more is None else [msgspec.structs.replace(more, what=f"against {base}: {more.what}")]


def _against(rule: PairedRatio, base: str, worked: paired.Working, strongest: bool) -> Against:
    item = worked.intervals[base]
    return Against(
        baseline=base,
        ratio=paired.shown(rule, item.ratio),
        low=None if item.low is None else paired.shown(rule, item.low),
        high=None if item.high is None else paired.shown(rule, item.high),
        outcome=worked.outcomes[base].value,
        strongest=strongest,
    )


def _sides(group: paired.Group, name: str, rule: PairedRatio, strongest: str) -> tuple[Side, ...]:
    chosen = "baseline (strongest in the pilot)" if len(rule.baselines) > 1 else "baseline"
    rest = [base for base in rule.baselines if base in group.counted and base != strongest]
    roles = [("candidate", name), (chosen, strongest), *(("baseline", base) for base in rest)]
    return tuple(side(role, group.counted[arm]) for role, arm in roles)


def side(role: str, records: Sequence[Record]) -> Side:
    """What an arm's counted records say of it."""
    case = records[0].case
    times = [time_s for record in records if (time_s := replicate_time_s(record)) is not None]
    errors = [r.verification.error for r in records if r.verification and r.verification.error is not None]
    checked = records[0].verification
    return Side(
        role=role,
        variant=case.variant,
        case=case.id,
        backend=case.backend,
        device=case.device,
        dtype=case.dtype,
        replicates=len(times),
        tier=records[0].tier,
        time_s=median(times) if times else None,
        error=max(errors, default=None),
        tolerance=checked.tolerance if checked else None,
        checked=checked.what if checked else "",
        placed=where.full if (where := placed(records[-1])) else "",
        **_cost(case),
        **_energy(records, case),
    )


def _cost(case: Case) -> dict[str, Any]:
    """A cost of 0 means that there is none of this kind."""
    cost = case.cost
    if cost is None:
        return {}
    names = ("token", "flop", "op", "traffic_bytes", "weight_bytes")
    found: dict[str, Any] = {name: getattr(cost, name) or None for name in names}
    return found | {"flop_formula": formula_of(case, "flop"), "traffic_formula": formula_of(case, "traffic_bytes")}


def _energy(records: Sequence[Record], case: Case) -> dict[str, Any]:
    found = energy(list(records), case.cost)
    if found["token_per_joule"] is not None:
        note, tier = found["energy_scope"], Tier.MEASURED
    elif found["token_per_joule_low"] is not None or found["token_per_joule_high"] is not None:
        scopes = sorted({r.scope for record in records for r in record.readings if r.tier is Tier.MODELLED})
        note, tier = f"{' + '.join(scopes)}; decides nothing", Tier.MODELLED
    else:
        return {"energy_note": why_no_joules(records) or "no energy counter was read"}
    names = ("token_per_joule", "token_per_joule_low", "token_per_joule_high")
    return {name: found[name] for name in names} | {"energy_tier": tier, "energy_note": note}


def _data(asked: Asked, rule: PairedRatio, group: paired.Group, name: str, base: str, factor: float) -> Sequence[Datum]:
    """One per replicate that either arm took, the pilot first, then what was cut short."""
    mine = _by_group(asked, rule.workload).get((group.comparison, group.regime), [])
    ours, theirs = (_by_start([r for r in mine if r.case.variant == arm]) for arm in (name, base))
    keys = sorted(ours.keys() | theirs.keys(), key=lambda key: (key[1], key[0]))
    return [_datum(asked, rule, group, ours.get(key), theirs.get(key), key, factor) for key in keys]


def _by_group(asked: Asked, workload: str) -> dict[tuple[str, str], list[Record]]:
    """Records of a workload, those cut short included, by comparison and regime."""
    if (_by_group, workload) not in asked.memo:
        made: dict[tuple[str, str], list[Record]] = {}
        for record in asked.evidence.records:
            if record.case.workload == workload:
                made.setdefault((record.comparison, record.case.regime), []).append(record)
        asked.memo[_by_group, workload] = made
    found: dict[tuple[str, str], list[Record]] = asked.memo[_by_group, workload]
    return found


def _by_start(records: Sequence[Record]) -> dict[tuple[int, bool], Record]:
    return {(record.replicate, record.interrupted): record for record in records}


def _datum(
    asked: Asked,
    rule: PairedRatio,
    group: paired.Group,
    ours: Record | None,
    theirs: Record | None,
    key: tuple[int, bool],
    factor: float,
) -> Datum:
    spoilt = group.spoilt.get((group.comparison, group.regime, key[0]), set())
    logs = () if ours is None or theirs is None else statistics.pair_logs([theirs], [ours], rule.metric, group.spoilt)
    samples = _rounds(rule.metric, ours, theirs, spoilt)
    use, note = _use(ours, theirs, key, bool(logs))
    return Datum(
        name=f"replicate {key[0]}",
        value=paired.shown(rule, math.exp(logs[0]) * factor) if logs else None,
        unit="ratio",
        log_ratio=logs[0] if logs else None,
        replicate=key[0],
        use=use,
        rounds=sum(item.used for item in samples) if logs else 0,
        void=sum(not item.used and item.void is not None for item in samples),
        note=note,
        records=asked.lines(*(record for record in (ours, theirs) if record is not None)),
        samples=samples,
    )


def _use(ours: Record | None, theirs: Record | None, key: tuple[int, bool], paired_up: bool) -> tuple[str, str]:
    rows = [record for record in (ours, theirs) if record is not None]
    bad = [
        f"{r.case.variant} {r.status.value}: {r.reason}" for r in rows if r.status in (Status.FAILED, Status.SKIPPED)
    ]
    notes = bad + [f"{r.case.variant} capped" for r in rows if r.status is Status.CAPPED]
    notes += ["steady load: no round set aside"] if any(r.steady_load for r in rows) else []
    if key[0] == 0:
        return PILOT, "; ".join(notes)
    if key[1]:
        return LEFT_OUT, "cut short"
    if len(rows) < 2:
        notes.append("the other arm has no record")
    elif not paired_up and not bad:
        notes.append("no common good round")
    return COUNTS if paired_up and all(map(statistics.counted, rows)) else LEFT_OUT, "; ".join(notes)


def _rounds(metric: str, ours: Record | None, theirs: Record | None, spoilt: set[int]) -> tuple[RoundDatum, ...]:
    """All rounds; those that enter the datum are ``used``."""
    mine, other = (_values(metric, record, set()) for record in (ours, theirs))
    good = _values(metric, ours, spoilt).keys() & _values(metric, theirs, spoilt).keys()
    causes = {s.round: s.void for r in (ours, theirs) if r for s in r.samples if s.void} if metric == "time" else {}
    return tuple(
        RoundDatum(
            round=number,
            candidate=mine.get(number),
            baseline=other.get(number),
            void=causes.get(number) or ("another arm of the round was spoilt" if number in spoilt else None),
            used=number in good,
        )
        for number in sorted(mine.keys() | other.keys())
    )


def _values(metric: str, record: Record | None, spoilt: set[int]) -> dict[int, float]:
    return {} if record is None else statistics.round_values(record, metric, spoilt)


def _working(asked: Asked, rule: PairedRatio, group: paired.Group, worked: paired.Working, strongest: str) -> Working:
    item = worked.intervals[strongest]
    decision = asked.run.manifest.decisions.get(group.comparison)
    return interval_working(
        asked, worked.logs[strongest], worked.factors[strongest], worked.alpha, asked.evidence.floor,
        method="Student's t over replicates; a replicate is the median of its good rounds' log(baseline / candidate)",
        scale=rule.scale, rivals=worked.rivals, alpha_look=worked.alpha_look,
        bounds=(item.ratio, item.low, item.high), decision=decision.reason if decision else "",
    )  # fmt: skip


def interval_working(
    asked: Asked,
    logs: Sequence[float],
    factor: float,
    alpha: float,
    floor: float,
    *,
    method: str,
    scale: str,
    rivals: tuple[str, ...],
    alpha_look: float,
    bounds: tuple[float, float | None, float | None],
    decision: str,
) -> Working:
    """How ``bounds`` came out of ``logs``."""
    several = len(logs) > 1
    measure = asked.run.manifest.config.get("measure")
    known = measure if isinstance(measure, dict) else {}
    planned, looks = known.get("alpha"), known.get("looks")
    return Working(
        method=method,
        replicates=len(logs),
        log_mean=fmean(logs),
        log_sd=stdev(logs) if several else None,
        degrees=len(logs) - 1,
        t=t_quantile(1 - alpha / 2, len(logs) - 1) if several else None,
        alpha_run=planned if isinstance(planned, float) else None,
        alpha_look=alpha_look,
        alpha=alpha,
        rivals=rivals,
        floor=floor,
        factor=factor,
        scale=scale,
        ratio=bounds[0],
        low=bounds[1],
        high=bounds[2],
        looks=tuple(n for n in looks if isinstance(n, int)) if isinstance(looks, list | tuple) else (),
        decision=decision,
    )
