"""Curves and maps beside the tables of their points."""

from collections.abc import Iterable, Iterator, Sequence

from frugalbench.analysis.electricity import BreakEven, break_evens
from frugalbench.analysis.load import Run
from frugalbench.analysis.sweeps import Group, grouped, stored, two_sites
from frugalbench.report import charts, charts_sweep, safe
from frugalbench.report.charts_price import break_even_svg, break_even_table
from frugalbench.report.html_tables import Tables
from frugalbench.report.tables import Cell, Table, family_of
from frugalbench.schema import Sweep, Verdict
from frugalbench.units import significant

Drawn = tuple[list[str], Table]
"""Charts, and the table of their points."""
_WHY = "no bound, or no value, is known at this point"


def family_parts(family: str, runs: Sequence[Run], verdicts: Sequence[Verdict], tables: Tables) -> Iterator[str]:
    """What the page shows of a family's curves: each chart, then its points behind a summary."""
    known = {record.case.workload for run in runs for record in run.records}
    sweeps = stored(runs, {name for name in known if family_of(name) == family})
    if family == "net":
        sweeps += two_sites(runs, verdicts)
    found = [drawn(group) for group in grouped(sweeps)]
    if family == "net":
        found += [break_even(item) for item in break_evens(runs)]
    return (part for item in found for part in parts(item, tables))


def drawn(group: Group) -> Drawn:
    """A group of sweeps."""
    return charts_sweep.sweep_svgs(group) if charts.available() else [], points_table(group)


def break_even(found: BreakEven) -> Drawn:
    """Electricity."""
    return [break_even_svg(found)] if charts.available() else [], break_even_table(found)


def parts(found: Drawn, tables: Tables) -> Iterator[str]:
    """The charts, and the table folded below them; open where nothing can be drawn."""
    svgs, table = found
    state = "" if svgs else " open"
    summary = safe.html(f"Points: {table.title}")
    points = f"<details{state}><summary>{summary}</summary>{tables.html(table)}</details>"
    yield from (f'<div class="curve">{svg}</div>' for svg in svgs[:-1])
    yield f'<div class="curve">{"".join(svgs[-1:])}{points}</div>'


def beside(made: Iterable[str]) -> list[str]:
    """As many next to each other as there is room for."""
    together = "".join(made)
    return [f'<div class="curves">{together}</div>'] if together else []


def points_table(group: Group) -> Table:
    """A row for each point of each line, in its order."""
    first = group[0]
    names = [charts_sweep.input_name(name) for name in first.over]
    unit = "ratio" if first.unit == "1" else first.unit
    columns = (("line", False), *((name, True) for name in (*names, unit, "low", "high")), ("tier", False))
    rows = tuple(row for sweep in group for row in _rows(sweep))
    asked = () if first.least is None else (f"asked for: at least {significant(first.least)}",)
    notes = (*asked, *dict.fromkeys(sweep.source for sweep in group if sweep.source))
    return Table(charts_sweep.title_of(first), columns, rows, notes)


def _rows(sweep: Sweep) -> Iterator[tuple[Cell, ...]]:
    for number, value in enumerate(sweep.value):
        place = (charts_sweep.place_text(name, column[number]) for name, column in sweep.over.items())
        figures = (value, *charts_sweep.bounds_at(sweep, number))
        shown = (Cell(significant(figure), hint=sweep.source if figure is not None else _WHY) for figure in figures)
        yield (Cell(sweep.line), *map(Cell, place), *shown, Cell(sweep.tier.value, mark=sweep.tier.value))
