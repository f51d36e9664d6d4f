"""Markdown: tables that read well as text and render on a forge."""

from collections.abc import Iterable, Sequence

from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row
from frugalbench.report import safe
from frugalbench.report.brief import brief_table
from frugalbench.report.citation import citation
from frugalbench.report.machines import machines_table, published_table
from frugalbench.report.noise import noise_tables
from frugalbench.report.tables import (
    Cell,
    Table,
    absent_table,
    cases_tables,
    counts_text,
    facts_table,
    machine_table,
    untested_table,
    verdicts_table,
)
from frugalbench.schema import Verdict


def verdicts_markdown(verdicts: Sequence[Verdict]) -> str:
    """The verdict table alone, as it is spliced into a README."""
    tables = [table for table in (verdicts_table(verdicts), untested_table(verdicts)) if table.rows]
    return "\n".join([*(table_markdown(table, heading=False) for table in tables), f"{counts_text(verdicts)}.\n"])


def brief_markdown(verdicts: Sequence[Verdict]) -> str:
    """One line per claim."""
    return "\n".join((table_markdown(brief_table(verdicts, wide=True), heading=False), f"{counts_text(verdicts)}.\n"))


def markdown(runs: Sequence[Run], verdicts: Sequence[Verdict], rows: Sequence[Row], extra: Sequence[Table] = ()) -> str:
    """The whole report: verdicts, cases per workload, ``extra`` tables, facts, absences, machine."""
    tables = [machines_table(verdicts, runs), published_table(verdicts), *cases_tables(rows).values(), *extra]
    tables += [facts_table(rows), absent_table(rows)]
    tables += [*noise_tables(runs, rows), machine_table(runs, rows)]
    names = safe.markdown(", ".join(run.manifest.name for run in runs))
    parts = [f"# frugalbench: {names}\n", "## Verdicts\n", verdicts_markdown(verdicts)]
    sources = ["## Cite as\n", *(f"- {safe.markdown(citation(run))}" for run in runs), ""]
    return "\n".join([*parts, *(table_markdown(table) for table in tables if table.rows), *sources])


def table_markdown(table: Table, heading: bool = True) -> str:
    """One table with its notes below."""
    lines = [f"## {safe.markdown(table.title)}", ""] if heading else []
    lines.append(_line(safe.markdown(title) for title, _ in table.columns))
    lines.append("|" + "|".join("---:" if number else "---" for _, number in table.columns) + "|")
    lines += [_line(_cell(cell) for cell in row) for row in table.rows]
    lines += ["", *(f"- {safe.markdown(note)}" for note in table.notes)] if table.notes else []
    return "\n".join(lines) + "\n"


def _line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _cell(cell: Cell) -> str:
    text = safe.markdown(cell.text)
    return f"**{text}**" if cell.mark in ("supported", "refuted") else text
