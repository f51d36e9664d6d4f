"""The comparison of an interval with a threshold, and what a verdict says about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import measured_peaks
from frugalbench.analysis.spending import last_level, level
from frugalbench.analysis.statistics import DEFAULT_FLOOR, counted, latest
from frugalbench.schema import Claim, Decision, Outcome, Record, Status, Tier, Verdict
from frugalbench.units import against, significant


@dataclass(frozen=True)
class Evidence:
    """What verdicts rest on."""

    records: tuple[Record, ...]
    machine: str
    alpha: float = 0.05
    """Spent on this look."""
    alphas: dict[str, float] = field(default_factory=dict)
    """The same for comparisons that stopped at looks of their own."""
    floor: float = DEFAULT_FLOOR
    peaks: dict[tuple[str, str], float] = field(default_factory=dict)
    memory_bytes: float | None = None
    """What the machine lets a process use; ``None`` where the manifest does not say."""
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What several claims derive alike from the same records."""

    def alpha_of(self, comparison: str) -> float:
        """Alpha that the deciding look at a comparison may spend."""
        return self.alphas.get(comparison, self.alpha)

    def of(self, workload: str) -> Sequence[Record]:
        """The records of one workload, in their order; each claim asks for those of its own."""
        if "workloads" not in self.memo:
            found: dict[str, list[Record]] = {}
            for record in self.records:
                found.setdefault(record.case.workload, []).append(record)
            self.memo["workloads"] = found
        records: Sequence[Record] = self.memo["workloads"].get(workload, ())
        return records

    def absence(self, workload: str, regime: str | None) -> str:
        """Why a workload gives nothing to judge."""
        rows = [r for r in self.of(workload) if regime in (None, r.case.regime)]
        reasons = sorted({r.reason for r in rows if r.status in (Status.SKIPPED, Status.FAILED) and r.reason})
        reasons = reasons or sorted({str(r.details["not_judged"]) for r in rows if "not_judged" in r.details})
        if reasons:
            return reasons[0]
        where = f" in regime {regime}" if regime else ""
        return f"this run has no {workload} case{where}"


def evidence_of(run: Run) -> Evidence:
    """The evidence that a stored run holds, with the A/A floor that the run itself recorded."""
    if run not in _EVIDENCE:
        _EVIDENCE[run] = _evidence_of(run)
    return _EVIDENCE[run]


_EVIDENCE: WeakKeyDictionary[Run, Evidence] = WeakKeyDictionary()
"""Verdicts, tables and charts of one report ask for it."""


def _evidence_of(run: Run) -> Evidence:
    machine = run.manifest.machine_before
    records = latest(run.records)
    alpha, looks = _planned(run.manifest.config)
    return Evidence(
        records=records,
        machine=machine_label(machine),
        alpha=alpha,
        alphas=_alphas(records, run.manifest.decisions, alpha, looks),
        floor=DEFAULT_FLOOR if run.manifest.floor is None else run.manifest.floor,
        peaks=measured_peaks(run),
        memory_bytes=_memory_bytes(machine),
    )


def machine_label(machine: Mapping[str, object]) -> str:
    """What tells a machine from others: its name, after that of its host where several were measured together."""
    name, host = str(machine.get("name") or machine.get("fingerprint") or "unknown"), machine.get("host")
    return f"{host}: {name}" if isinstance(host, str) and host else name


def _memory_bytes(machine: Mapping[str, object]) -> float | None:
    """Of the machine, or of the control group where that allows less."""
    known = [machine.get(name) for name in ("memory_bytes", "memory_limit_bytes")]
    return min((float(size) for size in known if isinstance(size, int | float) and size > 0), default=None)


def _planned(config: dict[str, object]) -> tuple[float, tuple[int, ...]]:
    """Alpha and looks of a run's config; a config that no run can have written counts as one look."""
    measure = config.get("measure")
    measure = measure if isinstance(measure, dict) else {}
    alpha, looks = measure.get("alpha", 0.05), measure.get("looks")
    if not (isinstance(looks, list | tuple) and looks and all(type(item) is int and item > 0 for item in looks)):
        looks = (1,)
    return alpha if isinstance(alpha, float) and 0 < alpha < 1 else 0.05, tuple(sorted(looks))


def _alphas(
    records: Sequence[Record], decisions: Mapping[str, Decision], alpha: float, looks: Sequence[int]
) -> dict[str, float]:
    """Per comparison, what its deciding look may spend: one that was settled early has left the rest unspent."""
    reached: dict[str, int] = {}
    for record in records:
        if counted(record):
            reached[record.comparison] = max(reached.get(record.comparison, 0), record.replicate)
    found = {}
    for comparison, replicates in reached.items():
        decision = decisions.get(comparison)
        early = decision is not None and decision.stop and 0 < decision.look < len(looks) and replicates in looks
        found[comparison] = (level if early else last_level)(alpha, looks, replicates)
    return found


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
        reason=_told(f"{why}; {extra}" if extra else why),
        source=sources(claim),
    )


def _why(direction: str, threshold: float, low: float, high: float, found: Outcome) -> str:
    first, last = against(low, threshold), against(high, threshold)
    span = first if low == high else f"[{first}, {last}]"
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
        reason=_told(reason),
        source=sources(claim),
    )


MOST_REASON = 4000
"""Characters: one failed record may be the reason of every verdict of its workload."""


def _told(reason: str) -> str:
    return reason if len(reason) <= MOST_REASON else f"{reason[:MOST_REASON]}…"


def sources(claim: Claim) -> str:
    """The claim's sources in one line."""
    return "; ".join(f"{item.document}, {item.place}" if item.place else item.document for item in claim.sources)


def undecided(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Verdicts that more data could settle."""
    return [item for item in verdicts if item.verdict is Outcome.INCONCLUSIVE]
