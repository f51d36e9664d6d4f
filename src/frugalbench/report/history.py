"""A metric over many runs as a table with a line of bars per case."""

import math

from frugalbench.analysis.history import History, Series
from frugalbench.report.tables import Cell, Table
from frugalbench.units import DASH, significant

BARS = "▁▂▃▄▅▆▇█"
MOST_BARS = 30


def history_table(found: History) -> Table:
    """One row per machine and case: first, last, the line of bars, and each change of level."""
    columns = (
        ("case", False),
        ("runs", True),
        ("first", True),
        ("last", True),
        ("trend", False),
        ("changes", False),
    )
    metric = found.series[0].metric
    notes = [*found.problems, *dict.fromkeys(f"{_steps_missing(s)}" for s in found.series if s.steps is None)]
    machines = {series.machine for series in found.series}
    rows = tuple(_row(series, len(machines) > 1) for series in found.series)
    return Table(f"{metric} over {found.runs} runs", columns, rows, tuple(dict.fromkeys(notes)))


def _steps_missing(series: Series) -> str:
    return "no changes are looked for in fewer than 4 runs" if len(series.points) < 4 else "changes were not looked for"


def _row(series: Series, several: bool) -> tuple[Cell, ...]:
    values = [point.value for point in series.points]
    name = f"{series.case} on {series.machine}" if several else series.case
    return (
        Cell(name), Cell(str(len(values))), Cell(significant(values[0])), Cell(significant(values[-1])),
        Cell(bars(values)), Cell(_changes(series)),
    )  # fmt: skip


def _changes(series: Series) -> str:
    if series.steps is None:
        return DASH
    told = [f"{step.ratio:.3f} times from {step.run} ({step.revision or 'no revision'})" for step in series.steps]
    return "; ".join(told) or "none"


def bars(values: list[float]) -> str:
    """The last :data:`MOST_BARS` values between their least and their largest, on a log scale."""
    logs = [math.log(value) for value in values[-MOST_BARS:]]
    low, high = min(logs), max(logs)
    if high - low < 1e-9:
        return BARS[3] * len(logs)
    return "".join(BARS[round((log - low) / (high - low) * (len(BARS) - 1))] for log in logs)
