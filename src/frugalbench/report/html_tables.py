"""Tables of the page: short ones whole, of long ones the first rows, the rest as data drawn on demand."""

from collections.abc import Sequence

from frugalbench.report import safe
from frugalbench.report.evidence import Texts
from frugalbench.report.tables import Cell, Table
from frugalbench.units import DASH

MOST_STATIC = 60
NO_VALUE = "not measured, not applicable, or not recorded for this row"


class Tables:
    """Renders tables and keeps the rows that are not drawn at once."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.stored: list[list[list[int | list[int]]]] = []

    def html(self, table: Table) -> str:
        """One table with its notes."""
        attributes = ""
        if len(table.rows) > MOST_STATIC:
            attributes = f' data-rows="{len(self.stored)}"'
            self.stored.append([[self.texts.cell(reasoned(cell)) for cell in row] for row in table.rows])
        return drawn(table, table.rows[:MOST_STATIC], attributes) + _notes(table)


def drawn(table: Table, rows: Sequence[Sequence[Cell]], attributes: str = "") -> str:
    """The table itself, in a region that scrolls by keyboard too."""
    head = "".join(
        f'<th scope="col"{_class("n" if number else "")}>{safe.html(title or "name")}</th>'
        for title, number in table.columns
    )
    lines = "\n".join(_line(row, table) for row in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{safe.html(table.title)}"><table'
        f"{attributes}>\n<thead><tr>{head}</tr></thead>\n<tbody>{lines}</tbody>\n</table></div>"
    )


def _notes(table: Table) -> str:
    notes = "".join(f"<li>{safe.html(note)}</li>" for note in table.notes)
    return f'\n<ul class="note">{notes}</ul>' if notes else ""


def _line(row: Sequence[Cell], table: Table) -> str:
    cells = zip(row, table.columns, strict=True)
    return "<tr>" + "".join(_cell(cell, number) for cell, (_, number) in cells) + "</tr>"


def _cell(cell: Cell, number: bool) -> str:
    cell = reasoned(cell)
    classes = " ".join(c for c in ("n" if number else "", cell.mark.replace(" ", "-")) if c)
    if cell.text == DASH:
        why = safe.html(cell.hint)
        inner = f'<span class="dash" tabindex="0" role="img" aria-label="no value: {why}" title="{why}">{DASH}</span>'
        return f"<td{_class(classes)}>{inner}</td>"
    hint = f' title="{safe.html(cell.hint)}"' if cell.hint else ""
    return f"<td{_class(classes)}{hint}>{safe.html(cell.text)}</td>"


def reasoned(cell: Cell) -> Cell:
    """No dash goes without a reason."""
    return Cell(DASH, cell.mark, NO_VALUE) if cell.text == DASH and not cell.hint else cell


def _class(names: str) -> str:
    return f' class="{safe.html(names)}"' if names else ""
