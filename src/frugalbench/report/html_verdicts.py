"""The verdicts of the page: filters, the table, and what opens below each row."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from frugalbench.analysis.grounds import grounds
from frugalbench.report import safe
from frugalbench.report.evidence import Cases, Texts, claims_data, grounds_data
from frugalbench.report.html_tables import MOST_STATIC, drawn, reasoned
from frugalbench.report.tables import (
    FAMILIES,
    VERDICT_COLUMNS,
    Cell,
    Table,
    family_of,
    tier_text,
    verdict_row,
)
from frugalbench.schema import Outcome, Verdict
from frugalbench.units import DASH

_FACETS = ("family", "machine", "tier", "outcome")


def verdict_data(verdicts: Sequence[Verdict], cases: Cases, texts: Texts) -> dict[str, Any]:
    """All verdicts with their evidence, and the claims that they answer."""
    names: dict[str, int] = {}
    several = len({verdict.machine for verdict in verdicts}) > 1
    rows = []
    for verdict, found in zip(verdicts, grounds(cases.runs, verdicts), strict=True):
        told = {
            "id": _slug(verdict, names),
            "claim": texts(verdict.claim),
            "cells": [texts.cell(reasoned(cell)) for cell in cells(verdict, several)],
            "facets": [texts(facet) for facet in _facets(verdict)],
            "reason": texts(verdict.reason),
        }
        rows.append(told | _span(verdict) | grounds_data(found, cases, texts))
    return {"verdicts": rows, "claims": claims_data((verdict.claim for verdict in verdicts), texts)}


def _span(verdict: Verdict) -> dict[str, Any]:
    if verdict.ratio is None:
        return {}
    bounds = (verdict.ratio, verdict.low, verdict.high, verdict.threshold)
    return {"span": [None if v is None else float(f"{v:.6g}") for v in bounds]}


def _facets(verdict: Verdict) -> tuple[str, str, str, str]:
    return family_of(verdict.claim), verdict.machine, tier_text(verdict.tier), verdict.verdict.value


def _slug(verdict: Verdict, names: dict[str, int]) -> str:
    """An address that stays the same from report to report of a run; repeated ones are numbered."""
    parts = (verdict.claim, verdict.regime, verdict.arm or "", verdict.candidate or "")
    slug = re.sub(r"[^A-Za-z0-9._@-]+", "-", "/".join(part for part in parts if part))[:120].strip("-")
    names[slug] = names.get(slug, 0) + 1
    return slug if names[slug] == 1 else f"{slug}~{names[slug]}"


def cells(verdict: Verdict, several: bool) -> tuple[Cell, ...]:
    """The row; with a column for the machine where there are several, before the last one. The reason is cut to its
    first part: all of it opens below."""
    row = verdict_row(verdict)
    row = tuple(Cell(DASH, cell.mark, verdict.reason) if cell.text == DASH else cell for cell in row)
    first, rest = verdict.reason.partition("; ")[::2]
    row = (*row[:-1], Cell(f"{first} …" if rest else first, hint=verdict.reason))
    return (*row[:-1], Cell(verdict.machine), row[-1]) if several else row


def verdicts_html(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Filters and the table; without its script the page shows the decided rows."""
    several = len({verdict.machine for verdict in verdicts}) > 1
    columns = (*VERDICT_COLUMNS[:-1], ("machine", False), VERDICT_COLUMNS[-1]) if several else VERDICT_COLUMNS
    decided = [cells(verdict, several) for verdict in verdicts if verdict.verdict is not Outcome.NOT_TESTED]
    yield _filters(verdicts, columns)
    yield '<p class="note" id="count" role="status"></p>'
    yield drawn(Table("Verdicts", columns, ()), decided[: 4 * MOST_STATIC], ' id="verdicts"')
    yield "<noscript><p>Without scripts this page neither filters nor opens a row to its evidence.</p></noscript>"


def _filters(verdicts: Sequence[Verdict], columns: Sequence[tuple[str, bool]]) -> str:
    known = [dict.fromkeys(item) for item in zip(*map(_facets, verdicts), strict=True)] or [{}] * len(_FACETS)
    selects = [_select(place, name, known[place]) for place, name in enumerate(_FACETS)]
    order = "".join(f'<option value="{place}">{safe.html(title)}</option>' for place, (title, _) in enumerate(columns))
    return (
        '<div id="filters" role="search" aria-label="Filter the verdicts" hidden>'
        f"{''.join(selects)}"
        '<label>contains<input type="search" placeholder="words of a row"></label>'
        f'<label>sorted by<select id="order"><option value="">as evaluated</option>{order}</select></label>'
        '<button type="button">Reset filters</button></div>'
    )


def _select(place: int, name: str, values: Iterable[str]) -> str:
    first = '<option value="decided">decided ones</option>' if name == "outcome" else ""
    options = "".join(f'<option value="{safe.html(v)}">{safe.html(_named(name, v))}</option>' for v in values)
    every = f'{first}<option value="">all</option>'
    return f'<label>{name}<select data-facet="{place}">{every}{options}</select></label>'


def _named(name: str, value: str) -> str:
    if name == "family":
        return FAMILIES.get(value, value)
    return "none" if name == "tier" and value == DASH else value
