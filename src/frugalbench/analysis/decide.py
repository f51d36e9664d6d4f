"""The stopping rule: a pure function of records, so that it can be replayed on stored ones."""

from collections.abc import Sequence

from frugalbench.analysis import curves, paired
from frugalbench.analysis.judge import Evidence, undecided
from frugalbench.analysis.spending import level
from frugalbench.analysis.statistics import latest
from frugalbench.schema import Claim, Decision, EqualLoss, PairedRatio, Record, Verdict


def decide(
    records: Sequence[Record],
    replicates: int,
    looks: Sequence[int],
    claims: Sequence[Claim],
    alpha: float,
    floor: float,
) -> Decision:
    """Whether a comparison needs more replicates after the planned look at ``replicates``.

    It stops when every time-based paired claim and every equal-loss claim on its workload is settled, or when the last
    planned look is reached.
    Looks pay along :mod:`frugalbench.analysis.spending`. ``peak_share`` estimands need the run's peaks and do not hold
    a comparison up.
    """
    look = sum(item <= replicates for item in looks)
    if replicates >= looks[-1]:
        return Decision(stop=True, look=look, reason=f"last planned look, at {replicates} replicates")
    evidence = Evidence(records=latest(records), machine="", alpha=level(alpha, looks, replicates), floor=floor)
    open_rows = undecided([row for claim in claims for row in _rows(claim, evidence)])
    if open_rows:
        names = sorted({f"{row.claim} {row.regime}" for row in open_rows})
        return Decision(stop=False, look=look, reason=f"undecided: {', '.join(names)}")
    return Decision(stop=True, look=look, reason=f"every claim is settled at {replicates} replicates")


def _rows(claim: Claim, evidence: Evidence) -> list[Verdict]:
    rule = claim.rule
    if isinstance(rule, EqualLoss):
        mine = any(record.case.workload == rule.workload for record in evidence.records)
        return curves.verdicts(claim, evidence) if mine else []
    if not isinstance(rule, PairedRatio) or rule.metric != "time" or rule.scale == "peak_share":
        return []
    return [row for view, group in paired.views(claim, evidence) for row in paired.verdicts(view, evidence, group)]
