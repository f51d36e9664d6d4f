"""What a mixture of experts pays out, point by point: every arm against the fastest dense layers of its comparison.

Descriptive, beside the verdicts: the dense twins are the fastest of the counted replicates, each ratio has its own
95% interval, and nothing is corrected for their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from frugalbench.analysis import paired
from frugalbench.analysis.judge import Evidence, evidence_of
from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row
from frugalbench.analysis.metrics import rows as case_rows
from frugalbench.analysis.statistics import Interval, interval, pair_logs
from frugalbench.schema import Case, Record

WORKLOAD = "moe_ffn"
ALPHA = 0.05


@dataclass(frozen=True)
class Saving:
    """One mixture arm at one number of tokens."""

    shape: str
    routing: str
    regime: str
    tokens: int
    row: Row
    over_active: Interval | None
    """Speed over the fastest dense layer of equal active parameters."""
    over_total: Interval | None
    """Speed over the fastest dense layer of equal total parameters."""
    flop_ratio: float | None
    """FLOP of that layer over FLOP of the mixture: the saving on paper."""
    view: str = "layer"
    """``layer``, or ``block`` where attention is in every arm's time and FLOP."""
    dropped_share: float | None = None
    """Routed token copies beyond the experts' capacity, mean over the batches; ``None`` where there is no limit."""

    @property
    def realised(self) -> float | None:
        """Share of the paper saving."""
        return self.over_total.ratio / self.flop_ratio if self.over_total and self.flop_ratio else None


def savings(run: Run) -> list[Saving]:
    """Every counted mixture arm, by shape, then by tokens as measured."""
    evidence = evidence_of(run)
    times = {row.case: row for row in case_rows(run) if row.workload == WORKLOAD}
    found = []
    for group in paired.groups(evidence, WORKLOAD).values():
        active, total = (_fastest(group, times, kind) for kind in ("equal-active", "equal-total"))
        for name, records in group.counted.items():
            case = records[0].case
            if not name.startswith("dense") and case.id in times and times[case.id].time_s:
                found.append(_saving(group, evidence, records, times[case.id], active, total))
    return sorted(found, key=lambda item: (item.shape, item.regime == "training", item.tokens, item.row.time_s or 0))


def _fastest(group: paired.Group, times: dict[str, Row], kind: str) -> list[Record]:
    """Records of the dense arm of ``kind`` with the least median time; empty when there is none."""
    known = [
        (time_s, records)
        for name, records in group.counted.items()
        if name.startswith("dense") and kind in name and (time_s := _time_s(times, records[0].case)) is not None
    ]
    return min(known, key=lambda item: item[0])[1] if known else []


def _time_s(times: dict[str, Row], case: Case) -> float | None:
    row = times.get(case.id)
    return row.time_s if row else None


def _saving(
    group: paired.Group, evidence: Evidence, records: list[Record], row: Row, active: list[Record], total: list[Record]
) -> Saving:
    case = records[0].case

    def against(base: list[Record]) -> Interval | None:
        logs = pair_logs(base, records, "time", group.spoilt) if base else ()
        return interval(logs, 1.0, ALPHA, evidence.floor)

    flops = [item.cost.flop + item.cost.op for item in (total[0].case, case) if item.cost] if total else []
    return Saving(
        shape=case.shape,
        routing=str(case.params.get("routing", "")),
        regime=case.regime,
        tokens=_tokens(case),
        row=row,
        over_active=against(active),
        over_total=against(total),
        flop_ratio=flops[0] / flops[1] if len(flops) == 2 and flops[1] else None,
        view=str(case.params.get("view", "layer")),
        dropped_share=dropped.value if (dropped := row.facts.get("dropped_share")) else None,
    )


def _tokens(case: Case) -> int:
    """A parameter is whatever its file says."""
    tokens = case.params.get("tokens")
    return tokens if isinstance(tokens, int) else 0


def break_even(found: Sequence[Saving]) -> str:
    """Where the fastest mixture of one shape is as fast as the fastest equal-active dense layer, in one sentence.

    Both are chosen on the data that the sentence is about, and no interval is asked: it is for orientation.
    """
    best: dict[int, float] = {}
    for item in found:
        if item.regime != "training" and item.over_active:
            best[item.tokens] = max(best.get(item.tokens, 0.0), item.over_active.ratio)
    if not best:
        return ""
    tried = ", ".join(str(tokens) for tokens in sorted(best))
    pays = ", ".join(str(tokens) for tokens, ratio in sorted(best.items()) if ratio >= 1)
    who = "the fastest mixture is as fast as the fastest dense layer of equal active parameters"
    return f"by values, without intervals: {who} at {pays or 'none'} of {tried} tokens"


def skew(found: Sequence[Saving]) -> dict[tuple[str, int], dict[str, dict[str, float]]]:
    """``(layer, tokens)`` to arm to routing to seconds per call, of layers that were measured under several routings.

    Routings are comparisons of their own, so these times were not taken turn by turn.
    """
    points: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for item in found:
        if item.row.time_s and item.regime != "training":
            layer = item.shape.removesuffix(f"-{item.routing.split(':')[0]}")
            arms = points.setdefault((layer, item.tokens), {})
            arms.setdefault(item.row.variant, {})[item.routing.split(":")[0]] = item.row.time_s
    several = {key: {a: t for a, t in arms.items() if len(t) > 1} for key, arms in points.items()}
    return {key: arms for key, arms in several.items() if arms}
