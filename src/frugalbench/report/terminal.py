"""The report in a terminal: readable in 80 columns, coloured only where someone looks."""

import io
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row
from frugalbench.report import safe
from frugalbench.report.noise import noise_tables
from frugalbench.report.tables import (
    Cell,
    Table,
    absent_table,
    cases_tables,
    counts_text,
    facts_table,
    machine_table,
    ratio_text,
    threshold_text,
    tier_text,
    untested_groups,
)
from frugalbench.schema import Outcome, Tier, Verdict

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table as RichTable

STYLES = {
    "supported": "green",
    "refuted": "red",
    "inconclusive": "yellow",
    "not tested": "dim",
    "failed": "red",
    "capped": "yellow",
    "skipped": "dim",
    "modelled": "magenta",
    "published": "magenta",
    "emulated": "cyan",
}
WIDTH = 80


def verdicts_terminal(verdicts: Sequence[Verdict], width: int | None = None, colour: bool | None = None) -> str:
    """The verdict table, then why; ``width`` and ``colour`` default to what standard output is."""
    return _capture(_verdict_parts(verdicts), width, colour)


def terminal(
    runs: Sequence[Run],
    verdicts: Sequence[Verdict],
    rows: Sequence[Row],
    extra: Sequence[Table] = (),
    width: int | None = None,
    colour: bool | None = None,
) -> str:
    """The whole report as text. Of the facts only those of cases without a time (modelled ones) are shown."""
    untimed = [row for row in rows if row.time_s is None]
    tables = [*cases_tables(rows, brief=True).values(), *extra, facts_table(untimed), absent_table(rows)]
    tables += [*noise_tables(runs, rows), machine_table(runs, rows)]
    parts = [*_verdict_parts(verdicts), *(part for table in tables if table.rows for part in table_parts(table))]
    return _capture(parts, width, colour)


def table_terminal(table: Table, width: int | None = None, colour: bool | None = None) -> str:
    """One table as text."""
    return _capture(table_parts(table), width, colour)


def table_parts(table: Table) -> list["RenderableType"]:
    """One table with title and notes, for rich."""
    from rich.padding import Padding
    from rich.text import Text

    grid = _grid()
    for title, number in table.columns:
        grid.add_column(Text(safe.terminal(title)), justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        grid.add_row(*(_text(cell) for cell in row))
    notes = [Padding(Text(safe.terminal(note), style="dim"), (0, 0, 0, 2)) for note in table.notes]
    return [Text(f"\n{safe.terminal(table.title)}", style="bold"), grid, *notes]


def _verdict_parts(verdicts: Sequence[Verdict]) -> list["RenderableType"]:
    from rich.text import Text

    tested = [v for v in verdicts if v.verdict is not Outcome.NOT_TESTED]
    untested = [v for v in verdicts if v.verdict is Outcome.NOT_TESTED]
    parts: list[RenderableType] = [Text(f"Verdicts: {counts_text(verdicts)}", style="bold")]
    if tested:
        best = Text("* the fastest arm, chosen in the pilot; the others are as shipped", style="dim")
        parts += [_verdict_grid(tested), *([best] if any(v.arm == "best" for v in tested) else [])]
        parts += [Text("\nAgainst what, and what else to know", style="bold"), *_reasons(tested)]
    parts += [Text("\nNot tested", style="bold"), *_untested(untested)] if untested else []
    return parts


def _verdict_grid(verdicts: Sequence[Verdict]) -> "RenderableType":
    grid = _grid()
    for title in ("claim and regime", "verdict", "ratio [low, high]", "needs", "tier"):
        number = title in ("ratio [low, high]", "needs")
        grid.add_column(title, justify="right" if number else "left", no_wrap=title != "claim and regime")
    claim = None
    for verdict in verdicts:
        if verdict.claim != claim:
            claim = verdict.claim
            grid.add_row(_text(Cell(claim), "bold"))
        grid.add_row(*_verdict_cells(verdict))
    return grid


def _verdict_cells(verdict: Verdict) -> Iterable["RenderableType"]:
    texts = [f" {label(verdict)}", verdict.verdict.value, ratio_text(verdict)]
    texts += [threshold_text(verdict), tier_text(verdict.tier)]
    return [_text(Cell(text, mark=text)) for text in texts]


def label(verdict: Verdict) -> str:
    """Regime and candidate of a row; a star marks the best arm."""
    if verdict.candidate is None or verdict.tier is Tier.MODELLED:
        return verdict.regime
    return f"{verdict.regime} {verdict.candidate}{' *' if verdict.arm == 'best' else ''}"


def _reasons(verdicts: Sequence[Verdict]) -> list["RenderableType"]:
    """What the grid leaves out: the baseline, and notes after the comparison with the threshold."""
    lines: dict[tuple[str, str], list[str]] = {}
    for v in verdicts:
        note = v.reason.partition("; ")[2]
        against = f"over {v.baseline}" if v.baseline else ""
        text = "; ".join(part for part in (against, note) if part)
        if text:
            lines.setdefault((v.claim, text), []).append(label(v))
    return [_indented(claim, f"{', '.join(dict.fromkeys(what))}: {why}") for (claim, why), what in lines.items()]


def _untested(verdicts: Sequence[Verdict]) -> list["RenderableType"]:
    return [_indented(", ".join(claims), reason) for reason, claims in untested_groups(verdicts).items()]


def _indented(head: str, body: str) -> "RenderableType":
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text.assemble((safe.terminal(head), "bold"), ("  " + safe.terminal(body), "dim")), (0, 0, 0, 2))


def _grid() -> "RichTable":
    from rich import box, table

    return table.Table(box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False, show_edge=False)


def _text(cell: Cell, style: str | None = None) -> "RenderableType":
    from rich.text import Text

    return Text(_cell_text(cell.text), style=STYLES.get(cell.mark, "") if style is None else style)


def _cell_text(text: str) -> str:
    """Made safe, with the leading blank that indents a row below its claim."""
    blank = " " if text.startswith(" ") else ""
    return blank + safe.terminal(text).lstrip(" ")


def _capture(parts: Iterable["RenderableType"], width: int | None, colour: bool | None) -> str:
    console = _console(width, sys.stdout.isatty() if colour is None else colour)
    for part in parts:
        console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _console(width: int | None, colour: bool) -> "Console":
    from rich.console import Console

    if width is None:
        width = Console().width if sys.stdout.isatty() else WIDTH
    system = "standard" if colour else None
    return Console(file=io.StringIO(), width=width, force_terminal=colour, color_system=system, highlight=False)  # type: ignore[arg-type]
