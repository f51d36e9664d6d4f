"""``history`` as one self-contained page: an overview, then a chart and a table for each series."""

import shlex
from collections.abc import Callable, Iterator, Sequence

from frugalbench.analysis.history import History, Point, Series
from frugalbench.report import charts, safe
from frugalbench.report.charts_history import changes_text, history_svg, metric_title
from frugalbench.report.evidence import Texts
from frugalbench.report.export import EXTRA_HINT
from frugalbench.report.history import history_table
from frugalbench.report.html_tables import Tables
from frugalbench.report.page import page, section
from frugalbench.report.sweeps import beside
from frugalbench.report.tables import Cell, Table
from frugalbench.units import DASH, significant

MOST_CHARTS = 60
"""Series with a change come first; the rest stands in the overview."""
_COLUMNS = ("#", "run", "started", "revision", "value", "low", "high", "change")


def history_page(found: History, folder: str, case: str, progress: Callable[[str], None] = lambda _: None) -> str:
    """The page of what :func:`frugalbench.analysis.history.history` found in ``folder`` for cases that match."""
    texts = Texts()
    tables = Tables(texts)
    overview = history_table(found)
    sections = [("s-overview", "Overview", [tables.html(overview), *_missing()])]
    sections.append(("s-series", "Series", beside(_all(found.series, tables, progress))))
    sections.append(("s-recompute", "How to compute it again", [_recompute(found, folder, case)]))
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    body = [
        '<a class="skip" href="#s-overview">Skip to the overview</a>',
        f"<header><h1>{safe.html(f'frugalbench history: {overview.title}')}</h1>",
        f'<p class="note">{safe.html("; ".join(_machines(found.series)))}</p>',
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>',
        *(section(*item) for item in sections),
        "</main>",
    ]
    data = {"tables": tables.stored, "texts": list(texts.known)}
    return page(f"frugalbench history: {overview.title}", body, data)


def _missing() -> list[str]:
    hint = f'<p class="note">Tables only: charts need altair and vl-convert, <code>{safe.html(EXTRA_HINT)}</code></p>'
    return [] if charts.available() else [hint]


def _machines(series: Sequence[Series]) -> Iterator[str]:
    for machine, name in dict.fromkeys((item.machine, item.machine_name) for item in series):
        yield f"{name or 'unknown machine'} ({machine})"


def _all(series: Sequence[Series], tables: Tables, progress: Callable[[str], None]) -> Iterator[str]:
    ordered = sorted(series, key=lambda item: -len(item.steps or ()))
    for number, item in enumerate(ordered[:MOST_CHARTS], 1):
        progress(f"drawing {number} of {min(len(ordered), MOST_CHARTS)}: {item.case}")
        yield _one(item, tables)
    if left := len(ordered) - MOST_CHARTS:
        yield f'<p class="note">{left} more series stand in the overview alone; --case GLOB chooses</p>' * (left > 0)


def _one(series: Series, tables: Tables) -> str:
    heading = f"<h3>{safe.html(f'{series.case}: {changes_text(series)}')}</h3>"
    svg, state = (history_svg(series), "") if charts.available() else ("", " open")
    table = f"<details{state}><summary>{len(series.points)} runs</summary>{tables.html(_runs(series))}</details>"
    return f'<div class="curve">{heading}{svg}{table}</div>'


def _runs(series: Series) -> Table:
    changes = {step.at: f"×{significant(step.ratio)}" for step in series.steps or ()}
    rows = tuple(_row(number, point, changes.get(number, "")) for number, point in enumerate(series.points))
    columns = tuple((name, name in ("#", "value", "low", "high")) for name in _COLUMNS)
    notes = ("low, high: 95% interval over the replicates of a run", f"values are {metric_title(series.metric)}")
    return Table(f"Runs of {series.case} on {series.machine_name or series.machine}", columns, rows, notes)


def _row(number: int, point: Point, change: str) -> tuple[Cell, ...]:
    why = "the run has one replicate, or the metric no interval"
    bounds = (Cell(significant(bound), hint=why if bound is None else "") for bound in (point.low, point.high))
    first = (
        Cell(str(number + 1)),
        Cell(point.run, hint=point.path),
        Cell(point.started),
        Cell(point.revision or DASH, hint=_REVISION),
    )
    return (*first, Cell(significant(point.value, 4)), *bounds, Cell(change))


_REVISION = "what the run's manifest says of the tree that was measured"


def _recompute(found: History, folder: str, case: str) -> str:
    metric = found.series[0].metric
    command = f"frugalbench history {shlex.quote(folder)} --metric {metric} --case {shlex.quote(case)}"
    return (
        "<p>Everything here follows from the run directories below this folder.</p>"
        f"<p><code>{safe.html(f'{command} --format html --output history.html')}</code></p>"
    )
