"""What splitting experts over ranks costs: the all-to-all's share of a step, beside the share that a model predicts.

Descriptive; no verdict rests on it. The model is a start-up per step and a time per byte, fitted to all-to-alls of
equal blocks on the same ranks, so no exchange of a split layer takes part in its own prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from frugalbench.analysis import paired
from frugalbench.analysis.judge import Evidence, evidence_of
from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row
from frugalbench.analysis.metrics import rows as case_rows
from frugalbench.analysis.statistics import Interval, counted, interval, pair_logs
from frugalbench.interconnect import Terms, Wire, all_to_all_terms, fit_wire
from frugalbench.schema import FrugalbenchError, Record

WORKLOAD = "expert_parallel"
STEP, EXCHANGE, COMPUTE, SINGLE, CALIBRATION = "ep-step", "ep-exchange", "ep-compute", "single", "alltoall"
ALPHA = 0.05
MOST = 2**53
"""Bytes, ranks or tokens beyond it are none."""


@dataclass(frozen=True)
class Link:
    """What the ranks of one comparison have between them."""

    wire: Wire
    sizes: int
    miss: float
    """Median of the absolute relative errors at the sizes that it was fitted on."""


@dataclass(frozen=True)
class Split:
    """One layer at one number of tokens, split over ranks. Times are seconds per step."""

    shape: str
    regime: str
    tokens: int
    rows: dict[str, Row]
    """By variant, those that were measured."""
    exchange_share: Interval | None
    """The all-to-alls by themselves over the whole step, from paired rounds."""
    over_single: Interval | None
    """Speed of the step over one rank that has everything and as many threads."""
    terms: Terms | None
    """What an exchange moves, as the model counts it."""
    imbalance: float | None
    """Rows of the busiest rank over the mean of all."""
    link: Link | None

    def time_s(self, variant: str) -> float | None:
        """Seconds per call of one of the cases."""
        row = self.rows.get(variant)
        return row.time_s if row else None

    @property
    def predicted_s(self) -> float | None:
        """Time of the exchange by the model."""
        return self.link.wire.time_s(self.terms) if self.link and self.terms else None

    @property
    def predicted_share(self) -> float | None:
        """Of a step that consisted of the predicted exchange and the measured experts."""
        predicted_s, compute_s = self.predicted_s, self.time_s(COMPUTE)
        return predicted_s / (predicted_s + compute_s) if predicted_s and compute_s else None

    @property
    def miss(self) -> float | None:
        """Signed relative error of the predicted exchange."""
        predicted_s, measured_s = self.predicted_s, self.time_s(EXCHANGE)
        return predicted_s / measured_s - 1 if predicted_s and measured_s else None


def splits(run: Run) -> list[Split]:
    """Every split layer of a run, by shape, then by tokens."""
    evidence = evidence_of(run)
    times = {row.case: row for row in case_rows(run) if row.workload == WORKLOAD}
    groups = paired.groups(evidence, WORKLOAD).values()
    links = {group.comparison: _link(group, times) for group in groups if CALIBRATION in group.counted}
    found = [_split(group, evidence, times, links.get(group.comparison)) for group in groups if _is_split(group)]
    return sorted(found, key=lambda item: (item.shape, item.tokens))


def _is_split(group: paired.Group) -> bool:
    return any(variant in group.counted for variant in (STEP, EXCHANGE))


def _split(group: paired.Group, evidence: Evidence, times: dict[str, Row], link: Link | None) -> Split:
    rows = {
        variant: times[records[0].case.id]
        for variant, records in group.counted.items()
        if records[0].case.id in times and times[records[0].case.id].time_s
    }
    records = group.counted.get(STEP) or group.counted[EXCHANGE]

    def ratio(baseline: str, candidate: str) -> Interval | None:
        logs = pair_logs(
            group.counted.get(baseline, ()), group.counted.get(candidate, ()), "time", group.spoilt
        )  # fmt: skip
        return interval(logs, 1.0, ALPHA, evidence.floor)

    return Split(
        shape=records[0].case.shape,
        regime=group.regime,
        tokens=_count(records[0].case.params.get("tokens")) or 0,
        rows=rows,
        exchange_share=ratio(EXCHANGE, STEP),
        over_single=ratio(SINGLE, STEP),
        terms=_terms(records),
        imbalance=_fact(records, "rank_imbalance"),
        link=link,
    )


def _terms(records: Sequence[Record]) -> Terms | None:
    steps, moved_bytes = _fact(records, "exchange_steps"), _fact(records, "exchange_bytes")
    return None if steps is None or moved_bytes is None else (steps, moved_bytes)


def _fact(records: Sequence[Record], name: str) -> float | None:
    """A fact is whatever its file says; only a sane number takes part."""
    quantity = records[-1].facts.get(name)
    value = quantity.value if quantity else None
    return value if value is not None and 0 <= value <= MOST else None


def _count(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and 0 < value <= MOST else None


def _link(group: paired.Group, times: dict[str, Row]) -> Link | None:
    points: dict[Terms, float] = {}
    for record in group.counted[CALIBRATION]:
        size_bytes, ranks = (_count(record.case.params.get(name)) for name in ("size_bytes", "ranks"))
        time_s = times[record.case.id].time_s if record.case.id in times else None
        if counted(record) and size_bytes and ranks and ranks > 1 and time_s:
            points[all_to_all_terms(size_bytes, ranks)] = time_s
    return _fitted(points)


def _fitted(points: dict[Terms, float]) -> Link | None:
    try:
        wire = fit_wire(list(points), list(points.values()))
    except (FrugalbenchError, ValueError, ArithmeticError):
        return None
    misses = [abs(wire.time_s(terms) / time_s - 1) for terms, time_s in points.items()]
    return Link(wire=wire, sizes=len(points), miss=median(misses))
