"""Is one arm as fast as another? The question that ``versus`` and the self-test put to the same rules as any claim."""

from collections.abc import Sequence

from frugalbench.analysis import paired
from frugalbench.analysis.decide import decide
from frugalbench.analysis.judge import Evidence
from frugalbench.analysis.spending import last_level, level
from frugalbench.schema import Claim, Outcome, PairedRatio, Record, Source, Verdict


def question(
    workload: str, regime: str, baseline: str, candidates: Sequence[str], best: Sequence[str] = (), metric: str = "time"
) -> Claim:
    """The claim that each candidate is at least as fast as the baseline: supported is faster, refuted is slower."""
    return Claim(
        id=f"{workload}.{baseline}",
        says=f"as fast as {baseline}",
        sources=(Source(document="asked on the command line"),),
        estimand="speed of the candidate over that of the baseline",
        direction="at_least",
        threshold=1.0,
        regimes=(regime,),
        scope="literal",
        flips="an interval on the other side of 1",
        rule=PairedRatio(
            workload=workload, metric=metric, baselines=(baseline,), as_shipped=tuple(candidates), best=tuple(best)
        ),
    )


def answers(claim: Claim, evidence: Evidence) -> list[Verdict]:
    """The verdicts on ``claim`` in its regime, without the rows that say what was not asked."""
    rule = claim.rule
    assert isinstance(rule, PairedRatio)
    rows = [row for view, group in paired.views(claim, evidence) for row in paired.verdicts(view, evidence, group)]
    return [row for row in rows if row.arm == "as_shipped" or rule.best]


def conclude(
    records: Sequence[Record], claim: Claim, looks: Sequence[int], alpha: float, floor: float
) -> tuple[Verdict, int] | None:
    """The verdict on stored records of one pair, and after how many replicates: looks are taken as a run takes them.

    ``None`` when the records hold no counted replicate of the pair, or none with a round that both arms took unspoilt.
    """
    have = max((record.replicate for record in records), default=0)
    planned = [look for look in looks if look <= have] or [have]
    for look in planned:
        seen = [record for record in records if record.replicate <= look]
        early = look < looks[-1] and decide(seen, look, looks, [claim], alpha, floor).stop
        if early or look == planned[-1]:
            spend = level if early else last_level
            evidence = Evidence(records=tuple(seen), machine="", alpha=spend(alpha, looks, look), floor=floor)
            rows = answers(claim, evidence)
            if rows and rows[0].ratio is not None:
                return rows[0], look
            break
    return None


def faster(row: Verdict) -> bool | None:
    """Whether the candidate is faster (``True``) or slower; ``None`` when that is open."""
    return {Outcome.SUPPORTED: True, Outcome.REFUTED: False}.get(row.verdict)
