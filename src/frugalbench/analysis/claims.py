"""From claims and records to verdicts. The rules are a closed set; each claim's file chooses one."""

import hashlib
import tomllib
from collections.abc import Callable, Iterator, Sequence

import msgspec

from frugalbench.analysis import curves, noninferiority, paired, reach
from frugalbench.analysis.judge import Evidence, judge, not_tested
from frugalbench.paths import data
from frugalbench.schema import (
    CaseOutcome,
    Claim,
    Coverage,
    EqualLoss,
    ExactGroup,
    ExactRatio,
    FrugalbenchError,
    Modelled,
    NonInferiority,
    NotTested,
    PairedRatio,
    Reach,
    Record,
    Status,
    Tier,
    Verdict,
)
from frugalbench.units import byte_size, share, significant


def load_claims() -> tuple[Claim, ...]:
    """All claims, by id. Raises :class:`FrugalbenchError` naming the file of one that does not fit the schema."""
    claims = []
    for path in sorted(data("claims").glob("*.toml")):
        try:
            claims.append(msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Claim))
        except (msgspec.ValidationError, tomllib.TOMLDecodeError) as problem:
            raise FrugalbenchError(f"{path}: not a claim: {problem}") from None
    return tuple(claims)


def claims_hash() -> str:
    """Changes whenever a claim's file does."""
    digest = hashlib.sha256()
    for path in sorted(data("claims").glob("*.toml")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def evaluate(evidence: Evidence, claims: Sequence[Claim]) -> tuple[Verdict, ...]:
    """One or more verdicts for every claim, in the order of ``claims``."""
    return tuple(
        item for claim in claims for item in (*_RULES[type(claim.rule)](claim, evidence), *_beside(claim, evidence))
    )


def under(claim: Claim, verdict: Verdict) -> Claim:
    """The claim with the rule that gave the verdict: its second one for what was modelled."""
    second = claim.modelled is not None and verdict.tier is Tier.MODELLED
    return msgspec.structs.replace(claim, rule=claim.modelled) if second else claim


def _beside(claim: Claim, evidence: Evidence) -> list[Verdict]:
    """Rows of the second rule, where the run holds its records."""
    if claim.modelled is None:
        return []
    return _modelled_rows(msgspec.structs.replace(claim, rule=claim.modelled), evidence)


def _paired(claim: Claim, evidence: Evidence) -> list[Verdict]:
    rule = claim.rule
    assert isinstance(rule, PairedRatio)
    views = list(paired.views(claim, evidence))
    verdicts = []
    for regime in claim.regimes:
        mine = [view for view in views if view[1].regime == regime]
        found = [row for view, group in mine for row in paired.verdicts(view, evidence, group)]
        verdicts += found or [not_tested(claim, evidence, regime, evidence.absence(rule.workload, regime))]
    return verdicts


def _exact(claim: Claim, evidence: Evidence) -> list[Verdict]:
    rule = claim.rule
    assert isinstance(rule, ExactRatio)
    regimes: dict[str, list[ExactGroup]] = {}
    for group in rule.groups:
        regimes.setdefault(group.regime, []).append(group)
    return [row for groups in regimes.values() for row in _exact_regime(claim, evidence, rule, groups)]


def _exact_regime(claim: Claim, evidence: Evidence, rule: ExactRatio, groups: Sequence[ExactGroup]) -> list[Verdict]:
    """Rows of all groups of a regime, those beyond the first named with their shape; where there are none, the first
    group's workload says why."""
    first = groups[0]
    found = [
        row
        for group in groups
        for variant in group.variants
        for row in _exact_rows(claim, evidence, group, variant, named=group is not first)
    ]
    reason = evidence.absence(first.workload or rule.workload, None)
    return found or [not_tested(claim, evidence, first.regime, reason, threshold=first.threshold)]


def _exact_rows(claim: Claim, evidence: Evidence, group: ExactGroup, variant: str, named: bool) -> Iterator[Verdict]:
    """One layer speaks for all of its format; whole models, a group's own workload, each speak for themselves."""
    rule = claim.rule
    assert isinstance(rule, ExactRatio)
    speaking: dict[str, Record] = {}
    mine = evidence.of(group.workload or rule.workload)
    named = named or (bool(group.workload) and len({record.case.shape for record in mine}) > 1)
    for record in mine:
        if record.case.variant == variant and _ratio_of(rule, record) is not None:
            speaking.setdefault(record.case.shape if group.workload else "", record)
    for shape, record in speaking.items():
        ratio, scope = _ratio_of(rule, record), record.case.params.get("scope")
        assert ratio is not None
        row = judge(
            claim, evidence, group.regime, ratio, ratio, ratio,
            threshold=group.threshold, metric=f"{rule.numerator} / {rule.denominator}, exact",
            candidate=f"{variant} @ {shape}" if named else variant, baseline=rule.denominator,
            tier=record.facts[rule.numerator].tier, replicates=1, extra=_covered(record),
        )  # fmt: skip
        yield msgspec.structs.replace(row, scope=scope) if scope in ("literal", "analogue") else row


def _covered(record: Record) -> str:
    """How much of a whole model its format covers, or how the cases of a census ended, where the record tells."""
    if "census_s" in record.facts:
        return _census(record)
    value = {name: found.value for name, found in record.facts.items()}
    part, total, wide, rest = (
        value.get(name) for name in ("quantised_share", "weight_bytes", "bf16_bytes", "unquantised_bytes")
    )
    if part is None:
        return f"{byte_size(rest)} of it are not in this format" if rest else ""
    said = f"{share(part)} of the parameters are in this format"
    if total is None or not wide or rest is None or rest <= (narrow := (1 - part) * wide):
        return said
    would = significant((total - rest + narrow) / wide)
    return f"{said}, the others take {byte_size(rest)} as held; in bf16 they would make the ratio {would}"


def _census(record: Record) -> str:
    """Counts behind a share of cases; those of other outcomes are over all cases of the suite."""
    counts = {name: record.facts[name].value for name in ("core_passed", "core_cases", "cases") if name in record.facts}
    ended = [f"{record.facts[o.value].value or 0:.0f} {o.value}" for o in CaseOutcome if o.value in record.facts]
    passed, core, cases = (f"{counts.get(name) or 0:.0f}" for name in ("core_passed", "core_cases", "cases"))
    return f"{passed} of {core} core cases; of all {cases}: {', '.join(ended)}"


def _ratio_of(rule: ExactRatio, record: Record) -> float | None:
    facts = record.facts
    if rule.numerator not in facts or rule.denominator not in facts or record.status is Status.FAILED:
        return None
    above, below = facts[rule.numerator].value, facts[rule.denominator].value
    return above / below if above is not None and below else None


def _coverage(claim: Claim, evidence: Evidence) -> list[Verdict]:
    rule = claim.rule
    assert isinstance(rule, Coverage)
    cases: dict[str, list[Record]] = {}
    workloads = dict.fromkeys((rule.workload, *rule.beside))
    for record in (record for name in workloads for record in evidence.of(name)):
        if _covers(rule, record.case.variant):
            cases.setdefault(record.case.id, []).append(record)
    tried = {name: rows for name, rows in cases.items() if any(_tried(row) for row in rows)}
    skipped = len(cases) - len(tried)
    if rule.only_known:
        tried = {name: rows for name, rows in tried.items() if any(rule.fact in row.facts for row in rows)}
    if not tried:
        return [not_tested(claim, evidence, claim.regimes[0], evidence.absence(rule.workload, None))]
    held = [name for name, rows in tried.items() if _holds(rows, rule.fact)]
    share = len(held) / len(tried)
    missing = sorted(set(tried) - set(held))
    names = rule.variants or sorted({rows[0].case.variant for rows in tried.values()})
    extra = f"{len(held)} of {len(tried)} cases{_named(missing)}"
    extra += f"; {skipped} skipped or cut short, not counted" if skipped else ""
    return [
        judge(
            claim, evidence, claim.regimes[0], share, share, share,
            metric=f"share of cases with {rule.fact}", candidate=", ".join(names),
            baseline=None, tier=Tier.MEASURED, replicates=_replicates(tried), extra=extra,
        )
    ]  # fmt: skip


_MOST_NAMED = 4


def _named(missing: Sequence[str]) -> str:
    """The first cases of those that do not hold."""
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    return f"; not: {', '.join(missing[:_MOST_NAMED])}{more}" if missing else ""


def _covers(rule: Coverage, variant: str) -> bool:
    return variant not in rule.without and (not rule.variants or variant in rule.variants)


def _holds(rows: Sequence[Record], fact: str) -> bool:
    """Every worker that tried must have found the fact true; a failed one did not."""
    return all(
        row.status is not Status.FAILED and fact in row.facts and row.facts[fact].value == 1
        for row in rows
        if _tried(row)
    )


def _tried(row: Record) -> bool:
    return row.status is not Status.SKIPPED and not row.interrupted


def _replicates(tried: dict[str, list[Record]]) -> int:
    return min(len({row.replicate for row in rows}) for rows in tried.values())


def _modelled(claim: Claim, evidence: Evidence) -> list[Verdict]:
    rule = claim.rule
    assert isinstance(rule, Modelled)
    return _modelled_rows(claim, evidence) or [
        not_tested(claim, evidence, "all", evidence.absence(rule.workload, None))
    ]


def _modelled_rows(claim: Claim, evidence: Evidence) -> list[Verdict]:
    rule = claim.rule
    assert isinstance(rule, Modelled)
    wanted = [record for record in evidence.of(rule.workload) if record.case.variant == rule.variant]
    return [_modelled_row(claim, evidence, record, rule.fact) for record in wanted]


def _modelled_row(claim: Claim, evidence: Evidence, record: Record, fact: str) -> Verdict:
    regime, quantity = record.case.regime, record.facts.get(fact)
    if quantity is None or quantity.value is None:
        return not_tested(claim, evidence, regime, record.reason or "the model has no figure to compute it from")
    low = quantity.value if quantity.low is None else quantity.low
    high = quantity.value if quantity.high is None else quantity.high
    return judge(
        claim, evidence, regime, quantity.value, low, high,
        metric="modelled ratio", candidate=record.case.shape, baseline=record.case.params.get("baseline"),
        tier=quantity.tier, replicates=0, extra=quantity.source,
    )  # fmt: skip


def _untested(claim: Claim, evidence: Evidence) -> list[Verdict]:
    assert isinstance(claim.rule, NotTested)
    return [not_tested(claim, evidence, regime, claim.rule.reason) for regime in claim.regimes]


_RULES: dict[type, Callable[[Claim, Evidence], list[Verdict]]] = {
    PairedRatio: _paired,
    ExactRatio: _exact,
    Coverage: _coverage,
    Modelled: _modelled,
    EqualLoss: curves.verdicts,
    NonInferiority: noninferiority.verdicts,
    Reach: reach.verdicts,
    NotTested: _untested,
}
