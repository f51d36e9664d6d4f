"""The comparison of an interval with a threshold, and what a verdict says about it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import measured_peaks
from frugalbench.analysis.statistics import DEFAULT_FLOOR, latest
from frugalbench.schema import Claim, Outcome, Record, Status, Tier, Verdict
from frugalbench.units import significant


@dataclass(frozen=True)
class Evidence:
    """What verdicts rest on."""

    records: tuple[Record, ...]
    machine: str
    alpha: float = 0.05
    """Spent on this look."""
    floor: float = DEFAULT_FLOOR
    peaks: dict[tuple[str, str], float] = field(default_factory=dict)

    def absence(self, workload: str, regime: str | None) -> str:
        """Why a workload gives nothing to judge."""
        rows = [r for r in self.records if r.case.workload == workload and regime in (None, r.case.regime)]
        reasons = sorted({r.reason for r in rows if r.status in (Status.SKIPPED, Status.FAILED) and r.reason})
        if reasons:
            return reasons[0]
        where = f" in regime {regime}" if regime else ""
        return f"this run has no {workload} case{where}"


def evidence_of(run: Run, floor: float = DEFAULT_FLOOR) -> Evidence:
    """The evidence that a stored run holds."""
    machine = run.manifest.machine_before
    return Evidence(
        records=latest(run.records),
        machine=str(machine.get("name") or machine.get("fingerprint") or "unknown"),
        alpha=spent_alpha(run.manifest.config),
        floor=floor,
        peaks=measured_peaks(run),
    )


def spent_alpha(config: dict[str, object]) -> float:
    """Alpha of one look: the planned looks share it evenly, so that looking several times is paid for."""
    measure = config.get("measure")
    measure = measure if isinstance(measure, dict) else {}
    looks = measure.get("looks") or (1,)
    return float(measure.get("alpha", 0.05)) / len(looks)


def decide_outcome(direction: str, threshold: float, low: float, high: float) -> Outcome:
    """Supported when the whole interval is on the claim's side, refuted when none of it is."""
    if direction == "at_least":
        return Outcome.SUPPORTED if low >= threshold else Outcome.REFUTED if high < threshold else Outcome.INCONCLUSIVE
    return Outcome.SUPPORTED if high <= threshold else Outcome.REFUTED if low > threshold else Outcome.INCONCLUSIVE


def judge(
    claim: Claim,
    evidence: Evidence,
    regime: str,
    ratio: float,
    low: float | None,
    high: float | None,
    *,
    metric: str,
    candidate: str | None,
    baseline: str | None,
    tier: Tier,
    replicates: int,
    threshold: float | None = None,
    confidence: float | None = None,
    arm: str | None = None,
    outcome: Outcome | None = None,
    extra: str = "",
) -> Verdict:
    """A verdict from a ratio and its interval; ``outcome`` overrides the comparison where several baselines decide."""
    limit = claim.threshold if threshold is None else threshold
    if low is None or high is None:
        found, why = Outcome.INCONCLUSIVE, "one replicate gives no interval"
    else:
        settled = decide_outcome(claim.direction, limit, low, high)
        found, why = outcome or settled, _why(claim.direction, limit, low, high, settled)
    return Verdict(
        claim=claim.id,
        regime=regime,
        machine=evidence.machine,
        scope=claim.scope,
        arm=arm,
        verdict=found,
        metric=metric,
        baseline=baseline,
        candidate=candidate,
        ratio=ratio,
        low=low,
        high=high,
        confidence=confidence,
        threshold=limit,
        tier=tier,
        replicates=replicates,
        reason=f"{why}; {extra}" if extra else why,
        source=sources(claim),
    )


def _why(direction: str, threshold: float, low: float, high: float, found: Outcome) -> str:
    span = significant(low) if low == high else f"[{significant(low)}, {significant(high)}]"
    need = f"{'at least' if direction == 'at_least' else 'at most'} {significant(threshold)}"
    words = {
        Outcome.SUPPORTED: "meets",
        Outcome.REFUTED: "misses",
        Outcome.INCONCLUSIVE: "does not settle",
        Outcome.NOT_TESTED: "says nothing of",
    }
    return f"{span} {words[found]} {need}"


def not_tested(
    claim: Claim,
    evidence: Evidence,
    regime: str,
    reason: str,
    arm: str | None = None,
    threshold: float | None = None,
) -> Verdict:
    """A verdict that says why there is none."""
    metric = getattr(claim.rule, "metric", "")
    return Verdict(
        claim=claim.id,
        regime=regime,
        machine=evidence.machine,
        scope=claim.scope,
        arm=arm,
        verdict=Outcome.NOT_TESTED,
        metric=metric,
        baseline=None,
        candidate=None,
        ratio=None,
        low=None,
        high=None,
        confidence=None,
        threshold=claim.threshold if threshold is None else threshold,
        tier=None,
        replicates=0,
        reason=reason,
        source=sources(claim),
    )


def sources(claim: Claim) -> str:
    """The claim's sources in one line."""
    return "; ".join(f"{item.document}, {item.place}" if item.place else item.document for item in claim.sources)


def undecided(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Verdicts that more data could settle."""
    return [item for item in verdicts if item.verdict is Outcome.INCONCLUSIVE]
