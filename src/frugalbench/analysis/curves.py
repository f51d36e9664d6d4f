"""The equal-loss rule: what a candidate spends to reach a loss, over what the baseline spends to reach the same one.

Each replicate gives a pair of curves from the same seed. The loss compared at is the higher of the two final ones, so
that both have reached it; what each spent until then is read off its curve, straight between the logarithm of what
was spent at neighbouring points. The datum is the log-ratio; the interval is Student's t over replicates, with no
floor, because counting FLOP knows no noise of a machine.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from frugalbench.analysis.judge import Evidence, judge, not_tested
from frugalbench.analysis.statistics import counted, interval
from frugalbench.schema import Claim, EqualLoss, Record, Tier, Verdict
from frugalbench.units import significant

Curve = Sequence[Mapping[str, Any]]


def verdicts(claim: Claim, evidence: Evidence) -> list[Verdict]:
    """One verdict per candidate."""
    rule = claim.rule
    assert isinstance(rule, EqualLoss)
    regime = claim.regimes[0]
    rows = [row for name in rule.candidates for row in _rows(claim, rule, evidence, regime, name)]
    return rows or [not_tested(claim, evidence, regime, evidence.absence(rule.workload, None))]


def _rows(claim: Claim, rule: EqualLoss, evidence: Evidence, regime: str, candidate: str) -> list[Verdict]:
    mine = [record for record in evidence.of(rule.workload) if counted(record)]
    found = []
    for comparison in dict.fromkeys(record.comparison for record in mine):
        both = pairs([r for r in mine if r.comparison == comparison], rule.baseline, candidate)
        alpha = evidence.alpha_of(comparison)
        logs = [log for ours, base in both if (log := log_ratio(ours, base, rule.axis)) is not None]
        made = interval(logs, 1.0, alpha, 0.0)
        if made is None:
            continue
        found.append(
            judge(
                claim, evidence, regime, made.ratio, made.low, made.high,
                metric=f"{rule.axis} to equal loss", candidate=candidate, baseline=rule.baseline, tier=Tier.MEASURED,
                replicates=made.replicates, confidence=made.confidence, extra=_extra(both, rule.axis),
            )
        )  # fmt: skip
    return found


def pairs(records: Sequence[Record], baseline: str, candidate: str) -> list[tuple[Curve, Curve]]:
    """Curves of candidate and baseline, by replicate."""
    curves = {(r.case.variant, r.replicate): r.details.get("curve") for r in records}
    numbers = sorted({number for _, number in curves})
    both = [(curves.get((candidate, number)), curves.get((baseline, number))) for number in numbers]
    return [(ours, base) for ours, base in both if usable(ours) and usable(base) and ours and base]


def usable(curve: object) -> bool:
    """A list of points that all hold numbers; records may come from anywhere."""
    return (
        isinstance(curve, list)
        and len(curve) >= 2
        and all(
            isinstance(point, dict)
            and all(isinstance(point.get(key), int | float) for key in ("flop", "time_s", "loss"))
            and point["flop"] > 0
            and point["time_s"] > 0
            and all(math.isfinite(point[key]) for key in ("flop", "time_s", "loss"))
            for point in curve
        )
    )


def log_ratio(ours: Curve, base: Curve, axis: str) -> float | None:
    """Log of what ``ours`` spent over what ``base`` spent to reach the higher of the final losses."""
    target = max(ours[-1]["loss"], base[-1]["loss"])
    spent = log_spent(ours, target, axis), log_spent(base, target, axis)
    return None if spent[0] is None or spent[1] is None else spent[0] - spent[1]


def log_spent(curve: Curve, target: float, axis: str) -> float | None:
    """Log of what was spent when the best loss so far first fell to ``target``; ``None`` when it never did, or had
    at the first point already, before which nothing is known."""
    best, previous = curve[0]["loss"], math.log(curve[0][axis])
    if best <= target:
        return None
    for point in curve[1:]:
        here = math.log(point[axis])
        if point["loss"] <= target:
            share = (best - target) / (best - point["loss"])
            return float(previous + share * (here - previous))
        if point["loss"] < best:
            best, previous = point["loss"], here
    return None


def _extra(pairs: Sequence[tuple[Curve, Curve]], axis: str) -> str:
    """Final losses, and the same ratio in seconds of training."""
    ours, base = (sum(pair[i][-1]["loss"] for pair in pairs) / len(pairs) for i in (0, 1))
    text = f"final loss {significant(ours)} against {significant(base)} nat/byte"
    if axis != "time_s":
        logs = [log for pair in pairs if (log := log_ratio(*pair, "time_s")) is not None]
        made = interval(logs, 1.0, 0.05, 0.0)
        if made is not None and made.low is not None and made.high is not None:
            text += (
                f"; seconds to equal loss {significant(made.ratio)} [{significant(made.low)}, {significant(made.high)}]"
            )
    return text
