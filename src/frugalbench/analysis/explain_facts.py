"""The chains behind everything but paired ratios: exact facts, coverage, models, curves, answers, reach, the rest."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain as joined

from frugalbench.analysis import curves, noninferiority, paired, reach
from frugalbench.analysis.chain import COUNTS, LEFT_OUT, PILOT, Asked, Chain, Datum
from frugalbench.analysis.explain_paired import interval_working, side
from frugalbench.analysis.flips import exact_flip, flips, more_replicates
from frugalbench.analysis.metrics import replicate_time_s
from frugalbench.analysis.placed import placed
from frugalbench.analysis.statistics import Interval, counted, interval
from frugalbench.schema import (
    Coverage,
    EqualLoss,
    ExactRatio,
    Modelled,
    NonInferiority,
    Outcome,
    Reach,
    Record,
    Status,
    Verdict,
)

MOST_LISTED = 60
"""Records of a generic chain; the last datum says how many more there are."""


def exact(asked: Asked, verdict: Verdict) -> Chain | None:
    """Two facts of one record."""
    rule = asked.claim.rule
    assert isinstance(rule, ExactRatio)
    variant, _, shape = (verdict.candidate or "").partition(" @ ")
    for record in asked.evidence.records:
        facts, case = record.facts, record.case
        if case.variant != variant or shape not in ("", case.shape) or record.status is Status.FAILED:
            continue
        names = (rule.numerator, rule.denominator)
        if all(name in facts for name in names) and _ratio(record, *names) == verdict.ratio:
            return Chain(
                verdict=verdict, rule="", comparison=record.comparison, sides=(side("candidate", [record]),),
                data=tuple(_fact(asked, record, name) for name in names),
                method=f"{rule.numerator} / {rule.denominator} of one record; exact, so no interval",
                flips=tuple(exact_flip(asked.claim.direction, verdict.threshold, verdict.ratio or 0.0)),
            )  # fmt: skip
    return None


def _ratio(record: Record, above: str, below: str) -> float | None:
    top, bottom = record.facts[above].value, record.facts[below].value
    return top / bottom if top is not None and bottom else None


def _fact(asked: Asked, record: Record, name: str) -> Datum:
    found = record.facts[name]
    return Datum(
        name=name, value=found.value, unit=found.unit, low=found.low, high=found.high, replicate=record.replicate,
        note=", ".join(part for part in (found.tier.value, found.source) if part), records=asked.lines(record),
    )  # fmt: skip


def coverage(asked: Asked, verdict: Verdict) -> Chain:
    """One datum per case: 1 where every worker that tried found the fact true."""
    rule = asked.claim.rule
    assert isinstance(rule, Coverage)
    cases: dict[str, list[Record]] = {}
    for record in asked.evidence.records:
        case = record.case
        named = case.variant not in rule.without and (not rule.variants or case.variant in rule.variants)
        if named and case.workload in (rule.workload, *rule.beside):
            cases.setdefault(case.id, []).append(record)
    data = tuple(_case(asked, rule, name, rows) for name, rows in cases.items())
    tried = [item for item in data if item.use == COUNTS]
    held = sum(item.value == 1 for item in tried)
    return Chain(
        verdict=verdict,
        rule="",
        data=data,
        method=f"{held} of {len(tried)} tried cases hold, each of equal weight; exact, so no interval",
        flips=tuple(exact_flip(asked.claim.direction, verdict.threshold, verdict.ratio or 0.0)),
    )


def _case(asked: Asked, rule: Coverage, name: str, rows: Sequence[Record]) -> Datum:
    tried = [row for row in rows if row.status is not Status.SKIPPED and not row.interrupted]
    known = tried and (not rule.only_known or any(rule.fact in row.facts for row in tried))
    bad = [row for row in tried if not _true(row, rule.fact)]
    reasons = dict.fromkeys(row.reason or _what(row, rule.fact) for row in (bad if known else rows))
    where = next((found.full for row in rows if (found := placed(row))), "")
    return Datum(
        name=name,
        value=float(not bad) if known else None,
        unit="holds",
        use=COUNTS if known else LEFT_OUT,
        note="; ".join(filter(None, (*reasons, where))),
        records=asked.lines(*rows),
    )


def _true(row: Record, fact: str) -> bool:
    return row.status is not Status.FAILED and fact in row.facts and row.facts[fact].value == 1


def _what(row: Record, fact: str) -> str:
    found = row.facts.get(fact)
    return f"{fact} is {found.value:g}" if found and found.value is not None else f"no {fact} in the record"


def modelled(asked: Asked, verdict: Verdict) -> Chain | None:
    """The figure of the record, and the others that the model gave beside it."""
    rule = asked.claim.rule
    assert isinstance(rule, Modelled)
    for record in asked.evidence.records:
        case = record.case
        mine = (case.workload, case.variant, case.regime) == (rule.workload, rule.variant, verdict.regime)
        if mine and rule.fact in record.facts and record.facts[rule.fact].value == verdict.ratio:
            names = [rule.fact, *(name for name in record.facts if name != rule.fact)]
            span = Interval(verdict.ratio or 0.0, verdict.low, verdict.high, 0.0, 0)
            return Chain(
                verdict=verdict, rule="", comparison=case.id,
                data=tuple(_fact(asked, record, name) for name in names),
                method=f"{rule.fact} is judged; its interval is that of the model's inputs, not of noise",
                flips=tuple(flips(asked.claim.direction, verdict.threshold, verdict.verdict, span, [span])),
            )  # fmt: skip
    return None


def equal_loss(asked: Asked, verdict: Verdict) -> Chain | None:
    """One log-ratio of what was spent per pair of training runs."""
    rule = asked.claim.rule
    assert isinstance(rule, EqualLoss)
    mine = [r for r in asked.evidence.records if r.case.workload == rule.workload]
    for comparison in dict.fromkeys(record.comparison for record in mine):
        rows = [r for r in mine if r.comparison == comparison]
        data = [_curve_datum(asked, rule, rows, verdict.candidate or "", n) for n in _replicates(rows)]
        logs = [item.log_ratio for item in data if item.use == COUNTS and item.log_ratio is not None]
        alpha = asked.evidence.alpha_of(comparison)
        made = interval(logs, 1.0, alpha, 0.0)
        if made is not None and made.ratio == verdict.ratio:
            return _equal_loss(asked, verdict, comparison, rows, data, logs, made)
    return None


def _equal_loss(
    asked: Asked,
    verdict: Verdict,
    comparison: str,
    rows: Sequence[Record],
    data: Sequence[Datum],
    logs: Sequence[float],
    made: Interval,
) -> Chain:
    rule, alpha = asked.claim.rule, asked.evidence.alpha_of(comparison)
    assert isinstance(rule, EqualLoss)
    found = flips(asked.claim.direction, verdict.threshold, verdict.verdict, made, [made])
    more = more_replicates(logs, 1.0, verdict.threshold, alpha, 0.0)
    found += [more] if more and verdict.verdict is Outcome.INCONCLUSIVE else []
    decision = asked.run.manifest.decisions.get(comparison)
    arms = [("candidate", verdict.candidate), ("baseline", rule.baseline)]
    speaking = [(role, [r for r in rows if r.case.variant == name and counted(r)]) for role, name in arms]
    return Chain(
        verdict=verdict, rule="", comparison=comparison, flips=tuple(found), data=tuple(data),
        sides=tuple(side(role, records) for role, records in speaking if records),
        working=interval_working(
            asked, logs, 1.0, alpha, 0.0, scale="none", rivals=(), alpha_look=alpha,
            method=f"Student's t over pairs of training runs; each gives log({rule.axis} of the candidate / of the "
            "baseline) to the higher of the two final losses",
            bounds=(made.ratio, made.low, made.high), decision=decision.reason if decision else "",
        ),
    )  # fmt: skip


def _replicates(rows: Iterable[Record]) -> list[int]:
    return sorted({record.replicate for record in rows})


def _curve_datum(asked: Asked, rule: EqualLoss, rows: Sequence[Record], candidate: str, number: int) -> Datum:
    mine = [r for r in rows if r.replicate == number and r.case.variant in (candidate, rule.baseline)]
    known = {r.case.variant: r.details.get("curve") for r in mine if counted(r)}
    ours, base = known.get(candidate), known.get(rule.baseline)
    log = curves.log_ratio(ours, base, rule.axis) if curves.usable(ours) and curves.usable(base) else None  # type: ignore[arg-type]
    target = f"loss {max(ours[-1]['loss'], base[-1]['loss']):.6g}" if log is not None and ours and base else ""
    reasons = [r.reason for r in mine if r.reason]
    return Datum(
        name=f"replicate {number}",
        value=None if log is None else interval([log], 1.0, 0.5, 0.0).ratio,  # type: ignore[union-attr]
        unit="ratio",
        log_ratio=log,
        replicate=number,
        use=COUNTS if log is not None else PILOT if number == 0 else LEFT_OUT,
        note="; ".join([target] if target else reasons or ["no pair of curves that reach a common loss"]),
        records=asked.lines(*mine),
    )


def non_inferiority(asked: Asked, verdict: Verdict) -> Chain | None:
    """Counts of matched items, and the score interval of their ratio."""
    rule = asked.claim.rule
    assert isinstance(rule, NonInferiority)
    variant, _, shape = (verdict.candidate or "").partition(" @ ")
    for item in noninferiority.findings(asked.evidence.records, rule.workload, rule.baseline):
        case = item.case.case
        mine = case.variant == variant and case.regime == verdict.regime and shape in ("", case.shape)
        if mine and item.pair is not None and item.relative is not None and item.relative.value == verdict.ratio:
            span = Interval(verdict.ratio or 0.0, verdict.low, verdict.high, 0.0, 0)
            found = flips(asked.claim.direction, verdict.threshold, verdict.verdict, span, [span])
            return Chain(
                verdict=verdict, rule="", comparison=item.case.comparison, sides=(side("candidate", [item.case]),),
                data=tuple(_counts(asked, item)), flips=tuple(found),
                method="(both right + only the candidate) / (both right + only the baseline); score interval of a "
                "ratio of matched proportions (Nam and Blackwelder 2002), the score over the root of the design effect",
            )  # fmt: skip
    return None


def _counts(asked: Asked, item: noninferiority.Finding) -> Iterator[Datum]:
    pair = item.pair
    assert pair is not None
    named = {
        "both right": pair.both,
        "only the candidate right": pair.only_ours,
        "only the baseline right": pair.only_base,
        "neither right": pair.neither,
    }
    where = asked.lines(item.case)
    for name, value in named.items():
        yield Datum(name=name, value=float(value), unit="items", records=where)
    yield Datum(name="clusters of items", value=float(pair.clusters), unit="clusters", records=where)
    yield Datum(name="design effect", value=pair.effect, unit="1", records=where)
    if item.accuracy is not None:
        span = item.accuracy
        yield Datum(name="accuracy", value=span.value, low=span.low, high=span.high, unit="share", records=where)


def reached(asked: Asked, verdict: Verdict) -> Chain | None:
    """The paces that the model was given: time per call of both arms, by replicate."""
    rule = asked.claim.rule
    assert isinstance(rule, Reach)
    for group in paired.groups(asked.evidence, rule.workload).values():
        name = (verdict.candidate or "").removesuffix(group.label)
        base = (verdict.baseline or "").removeprefix("bf16 as ")
        if group.regime == verdict.regime and {name, base} <= group.counted.keys():
            rows = [*group.counted[name], *group.counted[base]]
            return Chain(
                verdict=verdict, rule="", comparison=group.comparison,
                sides=(side("candidate", group.counted[name]), side("baseline", group.counted[base])),
                data=tuple(joined(_listed(asked, rule), (_paced(asked, record) for record in rows))),
                method="largest listed model that fits into memory and generates fast enough at the bytes per second "
                f"that each arm moved (at least {rule.least_token_per_s:g} token/s), candidate over baseline",
            )  # fmt: skip
    return None


def _listed(asked: Asked, rule: Reach) -> Iterator[Datum]:
    yield Datum(name="memory of the machine", value=asked.evidence.memory_bytes, unit="bytes", note="manifest.json")
    shapes = reach.published(asked.evidence.records, rule.workload, rule.shapes) or {}
    yield Datum(name="published models listed", value=float(len(shapes)), unit="models")


def _paced(asked: Asked, record: Record) -> Datum:
    return Datum(
        name=f"{record.case.variant}, replicate {record.replicate}", value=replicate_time_s(record), unit="s per call",
        replicate=record.replicate, records=asked.lines(record), rounds=len(record.samples),
    )  # fmt: skip


def generic(asked: Asked, verdict: Verdict) -> Chain:
    """What became of the records of the rule's workload; all that can be told of a kind unknown here."""
    if (_of_workloads, verdict.regime) not in asked.memo:
        asked.memo[_of_workloads, verdict.regime] = _of_workloads(asked, verdict.regime)
    mine: list[Record] = asked.memo[_of_workloads, verdict.regime]
    data = [_outcome(asked, record) for record in mine[:MOST_LISTED]]
    if len(mine) > MOST_LISTED:
        data.append(Datum(name=f"and {len(mine) - MOST_LISTED} more records", value=None, use=LEFT_OUT))
    return Chain(verdict=verdict, rule="", data=tuple(data), method=verdict.metric)


def _of_workloads(asked: Asked, regime: str) -> list[Record]:
    """Records of the rule's workloads in a regime, or in every one where it has none."""
    rule = asked.claim.rule
    workloads = {item.workload for item in (rule, *getattr(rule, "beside", ())) if hasattr(item, "workload")}
    mine = [r for r in asked.evidence.records if r.case.workload in workloads]
    return [r for r in mine if r.case.regime == regime] or mine


def _outcome(asked: Asked, record: Record) -> Datum:
    use = PILOT if record.replicate == 0 else COUNTS if counted(record) else LEFT_OUT
    return Datum(
        name=f"{record.case.id}, replicate {record.replicate}", value=replicate_time_s(record), unit="s per call",
        replicate=record.replicate, use=use, rounds=len(record.samples),
        void=sum(s.void is not None for s in record.samples),
        note=": ".join(part for part in (record.status.value, record.reason) if part), records=asked.lines(record),
    )  # fmt: skip
