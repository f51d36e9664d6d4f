"""The adaptation tax: one kernel by hand and in every portable way, side by side, with lines of code."""

from collections.abc import Sequence

from frugalbench.analysis import paired
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row
from frugalbench.analysis.metrics import rows as case_rows
from frugalbench.analysis.statistics import Interval, interval, pair_logs
from frugalbench.report.tables import Cell, Table
from frugalbench.units import DASH, seconds, significant

WORKLOAD, TUNED = "kernel_tax", "hand-tuned"
_ALPHA = 0.05
_COLUMNS = ("written as", "time", "tax", "lines", "what ran")
_NOTES = (
    "tax: 1 - speed of this way / speed of the hand-tuned kernel, with its 95% interval; negative: this way is faster",
    "lines: of the kernel as its author writes it, neither blank nor comment; the hand-tuned files hold mixtures of "
    "experts, their routing and their gradients too",
)


def tax_tables(runs: Sequence[Run]) -> list[Table]:
    """A table per run, shape and number of tokens; empty when no run measured the kernel."""
    return [table for run in runs for table in _tables(run)]


def _tables(run: Run) -> list[Table]:
    evidence, times = evidence_of(run), {row.case: row for row in case_rows(run) if row.workload == WORKLOAD}
    tables = []
    for group in paired.groups(evidence, WORKLOAD).values():
        tuned = group.counted.get(TUNED, [])
        lines = []
        for name, records in group.counted.items():
            logs = pair_logs(records, tuned, "time", group.spoilt) if tuned and name != TUNED else ()
            found = interval(logs, 1.0, _ALPHA, evidence.floor) if logs else None
            what = records[-1].details.get("implementation")
            lines.append((times[records[0].case.id], found, what if isinstance(what, str) else DASH))
        lines.sort(key=lambda item: item[0].time_s or 0.0)
        first = lines[0][0] if lines else None
        if first:
            title = f"The adaptation tax: {first.shape}, {first.regime} ({run.manifest.name})"
            columns = tuple((column, column in ("time", "tax", "lines")) for column in _COLUMNS)
            tables.append(Table(title, columns, tuple(_line(*item) for item in lines), _NOTES, "adaptation"))
    return tables


def _line(row: Row, over: Interval | None, what: str) -> tuple[Cell, ...]:
    code = row.facts.get("code_lines")
    return (
        Cell(row.variant, hint=row.case),
        Cell(seconds(row.time_s), hint=row.source),
        Cell(DASH if over is None else _tax_text(over)),
        Cell(DASH if code is None else significant(code.value), hint=code.source if code else ""),
        Cell(what),
    )


def _tax_text(over: Interval) -> str:
    """The ratio is hand-tuned over portable; the tax grows with it."""
    if over.low is None or over.high is None:
        return significant(1 - 1 / over.ratio)
    low, middle, high = (significant(1 - 1 / value) for value in (over.low, over.ratio, over.high))
    return f"{middle} [{low}, {high}]"
