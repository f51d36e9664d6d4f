"""What the environment did to a run, as tables and lines for every format."""

from collections.abc import Sequence

from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row
from frugalbench.analysis.noise import Noise, noise, noise_text, share_void
from frugalbench.analysis.statistics import latest
from frugalbench.report.tables import Cell, Table
from frugalbench.units import DASH


def noise_tables(runs: Sequence[Run], rows: Sequence[Row]) -> tuple[Table, Table]:
    """What the environment did to each comparison, and the cases whose times have two modes or a trend."""
    parts = [noise(latest(run.records)) for run in runs]
    lines = tuple(_noise_row(part) for found in parts for part in found)
    columns = (("comparison", False), ("rounds", True), ("void", True), ("what was seen", False))
    unsteady = tuple((Cell(row.case), Cell(row.flags)) for row in rows if row.flags)
    return (
        Table("Noise", columns, lines, _noise_lines(runs, parts) if lines else ()),
        Table("Unsteady cases", (("case", False), ("what was seen", False)), unsteady),
    )


def noise_lines(runs: Sequence[Run]) -> tuple[str, ...]:
    """One line per run: the share of void rounds, and what became of them."""
    return _noise_lines(runs, [noise(latest(run.records)) for run in runs])


def _noise_lines(runs: Sequence[Run], parts: Sequence[Sequence[Noise]]) -> tuple[str, ...]:
    names = [f" in {run.manifest.name}" if len(runs) > 1 else "" for run in runs]
    return tuple(f"Noise{name}: {noise_text(share_void(found))}" for name, found in zip(names, parts, strict=True))


def _noise_row(part: Noise) -> tuple[Cell, ...]:
    void = DASH if part.void_share is None else f"{100 * part.void_share:.0f}%"
    seen = "; ".join(part.flags) or DASH
    return (Cell(part.comparison), Cell(str(part.rounds)), Cell(void, hint=noise_text(part)), Cell(seen))
