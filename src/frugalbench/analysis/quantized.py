"""What the low-precision formats of one linear layer give, each beside the fastest unquantised arm of its comparison.

Descriptive, beside the verdicts: that arm is the fastest of the counted replicates, each ratio has its own 95%
interval, and nothing is corrected for their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from frugalbench.analysis import paired
from frugalbench.analysis.judge import Evidence, evidence_of
from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row
from frugalbench.analysis.metrics import rows as case_rows
from frugalbench.analysis.statistics import Interval, interval, pair_logs
from frugalbench.schema import Case, Cost, Record, Status

WORKLOAD = "quantized_linear"
ALPHA = 0.05
UNQUANTISED_BITS = 16
"""Arms with at least so many bits per weight are unquantised."""


@dataclass(frozen=True)
class Product:
    """One arm at one number of tokens."""

    shape: str
    regime: str
    tokens: int
    row: Row
    over_unquantised: Interval | None
    """Speed over the fastest unquantised arm; ``None`` for that arm itself, and where there is none."""
    is_baseline: bool
    is_quantised: bool
    """Fewer than :data:`UNQUANTISED_BITS` bits per weight, as far as the record says."""
    operation_per_s: float | None
    """Multiplications and additions, of floats or of integers."""
    bytes_per_weight: float | None
    """Of what is stored, scales and zero points included."""
    kernel: str
    """What ran, as the loaded object or the profiler names it; empty where the record does not say."""

    @property
    def limit(self) -> tuple[float, str] | None:
        """Share of the measured limit and its name: ``read`` bandwidth where few tokens stream the weights, ``peak``
        arithmetic where many share them, between the two the nearer one. ``None`` where that limit was not measured."""
        known = {"read": self.row.mbu, "peak": self.row.mfu}
        wanted = {"decode": ("read",), "prefill": ("peak",)}.get(self.regime, ("read", "peak"))
        found = [(share, name) for name in wanted if (share := known[name]) is not None]
        return max(found, default=None)


def products(run: Run, workload: str = WORKLOAD) -> list[Product]:
    """Every counted arm, by shape, then by tokens, the fastest first."""
    evidence = evidence_of(run)
    times = {row.case: row for row in case_rows(run) if row.workload == workload}
    found: list[Product] = []
    for group in paired.groups(evidence, workload).values():
        arms = [records for records in group.counted.values() if _time_s(times, records) is not None]
        base = _fastest([records for records in arms if _is_unquantised(records[0].case)], times)
        found += [_product(group, evidence, records, times[records[0].case.id], base) for records in arms]
    return sorted(found, key=lambda item: (item.shape, item.tokens, item.regime, item.row.time_s or 0))


def _time_s(times: dict[str, Row], records: Sequence[Record]) -> float | None:
    row = times.get(records[0].case.id)
    return row.time_s if row else None


def _fastest(arms: Sequence[list[Record]], times: dict[str, Row]) -> list[Record]:
    """Records of the arm with the least median time that was not capped; empty when there is none."""
    whole = [records for records in arms if all(record.status is Status.OK for record in records)]
    return min(whole or arms, key=lambda records: _time_s(times, records) or 0, default=[])


def _is_unquantised(case: Case) -> bool:
    """A parameter is whatever its file says."""
    bits = case.params.get("bits")
    return isinstance(bits, int) and bits >= UNQUANTISED_BITS


def _product(
    group: paired.Group, evidence: Evidence, records: list[Record], row: Row, base: list[Record]
) -> Product:  # fmt: skip
    case = records[0].case
    is_baseline = bool(base) and base[0].case.id == case.id
    logs = pair_logs(base, records, "time", group.spoilt) if base and not is_baseline else ()
    kernel = records[-1].details.get("kernel")
    return Product(
        shape=case.shape,
        regime=case.regime,
        tokens=round(case.cost.token) if case.cost else 0,
        row=row,
        over_unquantised=interval(logs, 1.0, ALPHA, evidence.floor) if logs else None,
        is_baseline=is_baseline,
        is_quantised=not _is_unquantised(case),
        operation_per_s=_operation_per_s(case.cost, row),
        bytes_per_weight=_bytes_per_weight(case.cost, row),
        kernel=kernel if isinstance(kernel, str) else "",
    )


def _operation_per_s(cost: Cost | None, row: Row) -> float | None:
    work = cost.flop + cost.op if cost else 0.0
    return work / row.time_s if work and row.time_s else None


def _bytes_per_weight(cost: Cost | None, row: Row) -> float | None:
    stored = row.facts.get("weight_bytes")
    weights = cost.parameters if cost else 0
    return stored.value / weights if stored and stored.value and weights else None
