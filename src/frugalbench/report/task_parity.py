"""What a real model answers right through each runtime, beside torch in float64 on the same items."""

from collections.abc import Sequence

from frugalbench.analysis.judge import decide_outcome
from frugalbench.analysis.load import Run
from frugalbench.analysis.matched import items_needed
from frugalbench.analysis.noninferiority import Finding, changed, findings
from frugalbench.analysis.statistics import latest
from frugalbench.report.accuracy import accuracy_gates, gate_cell, grouped, items_note, percent_text, ratio_text
from frugalbench.report.tables import Cell, Table
from frugalbench.schema import Outcome
from frugalbench.units import DASH

WORKLOAD, BASELINE, FILE_BASELINE = "onnx_task", "torch-float64", "onnx-float64"
MOST_ITEMS = 10_000_000
_OF_FILE = "float64: the same file in onnx.reference"
_NOTES = (
    "lost, won: items right in float64 and wrong here, and the reverse; a bare difference of shares would hide both",
    "relative: right answers over those of float64 on the same items, with its 95% interval",
    "yes: the whole interval clears the gate; no: none of it does; open: too few items, with about how many it takes",
    "stands beside onnx.parity and decides no verdict",
)


def task_parity_tables(runs: Sequence[Run]) -> list[Table]:
    """Per run and task a table of right answers; empty when no run asked."""
    return [_table(run, rows) for run in runs for rows in grouped(_found(run))]


def _found(run: Run) -> list[Finding]:
    """Each model beside its own float64 answer."""
    records = [record for record in latest(run.records) if record.case.workload == WORKLOAD]
    of_file = {record.case.shape for record in records if record.case.variant == FILE_BASELINE}
    parts = {base: [record for record in records if (record.case.shape in of_file) is (base == FILE_BASELINE)]
             for base in (BASELINE, FILE_BASELINE)}  # fmt: skip
    return [item for base, mine in parts.items() for item in findings(mine, WORKLOAD, base)]


def _table(run: Run, rows: Sequence[Finding]) -> Table:
    case = rows[0].case.case
    limits = accuracy_gates()
    titles = ("runtime", "right %", "lost", "won", "relative", *(f"≥{gate:g}".replace("0.", ".") for gate in limits))
    columns = tuple((title, title != "runtime") for title in titles)
    unlike = [f"{item.case.case.variant}: {text}" for item in rows for text in changed(run.records, item.case)]
    of_file = _OF_FILE if any(item.case.case.variant == FILE_BASELINE for item in rows) else ""
    notes = tuple(filter(None, (items_note(rows), of_file, *_NOTES, *unlike)))
    title = f"Answers of {case.shape} on {case.regime} through each runtime ({run.manifest.name})"
    return Table(title, columns, tuple(_line(item, limits) for item in rows), notes, "onnx")


def _line(item: Finding, limits: Sequence[float]) -> tuple[Cell, ...]:
    pair = item.pair if item.relative else None
    return (
        Cell(item.case.case.variant, hint=item.case.case.id),
        Cell(percent_text(item.accuracy), hint=item.reason),
        Cell(DASH if pair is None else str(pair.only_base), hint=item.reason),
        Cell(DASH if pair is None else str(pair.only_ours), hint=item.reason),
        Cell(ratio_text(item.relative), hint=item.reason),
        *(_gate(item, gate) for gate in limits),
    )


def _gate(item: Finding, gate: float) -> Cell:
    cell = gate_cell(item.relative, gate)
    if item.relative is None or item.pair is None:
        return cell
    outcome = decide_outcome("at_least", gate, item.relative.low, item.relative.high)
    needed = items_needed(item.pair, gate) if outcome is Outcome.INCONCLUSIVE else None
    return Cell(f"{cell.text}: {min(needed, MOST_ITEMS)}", mark=cell.mark) if needed else cell
