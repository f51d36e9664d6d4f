"""One self-contained page: verdicts first, then each family with a chart and its tables. No script, no network."""

from collections.abc import Iterable, Sequence

from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row
from frugalbench.analysis.saving import savings
from frugalbench.report import charts, safe
from frugalbench.report.export import EXTRA_HINT
from frugalbench.report.machines import machines_table, published_table
from frugalbench.report.noise import noise_tables
from frugalbench.report.pareto import run_points
from frugalbench.report.tables import (
    FAMILIES,
    Cell,
    Table,
    absent_table,
    cases_tables,
    counts_text,
    facts_table,
    family_of,
    machine_table,
    untested_table,
    verdicts_table,
)
from frugalbench.schema import Tier, Verdict

_STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--paper:#fff;--line:#d5d8dc;--soft:#f4f5f7;--dim:#5d6570;
--good:#1b7a45;--bad:#b3261e;--warn:#8a6100;--model:#8e3a9d}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8ea;--paper:#16181b;--line:#3a3f46;--soft:#1f2226;--dim:#a0a8b2;
--good:#5fcf8f;--bad:#ff8a80;--warn:#e8b84a;--model:#d79be3}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1180px;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.25rem;margin-top:2.5rem;border-bottom:1px solid var(--line)}h3{font-size:1rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
th{background:var(--soft);white-space:nowrap}.n{text-align:right;white-space:nowrap}[title]{cursor:help}
td:last-child:not(.n){min-width:9rem}.note,footer{color:var(--dim);font-size:.85rem}svg{display:block;margin:1rem 0}
.supported{color:var(--good);font-weight:600}.refuted,.failed{color:var(--bad);font-weight:600}
.inconclusive,.capped{color:var(--warn);font-weight:600}.not-tested,.skipped{color:var(--dim)}
.modelled,.published,.emulated{color:var(--model);font-style:italic}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The page runs no script and fetches nothing, whatever text it holds."""
_TIERS = {
    Tier.MEASURED: "timed or counted on this machine",
    Tier.EMULATED: "timed here, on something shaped to behave like something else",
    Tier.MODELLED: "computed from a formula and stated inputs",
    Tier.PUBLISHED: "taken from a document",
}


def html(runs: Sequence[Run], verdicts: Sequence[Verdict], rows: Sequence[Row], extra: Sequence[Table] = ()) -> str:
    """The page. ``extra`` tables go to their families."""
    names = ", ".join(run.manifest.name for run in runs)
    body = [f"<h1>frugalbench: {safe.html(names)}</h1>", *_summary(runs, verdicts)]
    for family in _families(verdicts, rows):
        body += _family(family, runs, verdicts, rows, extra)
    tail = (facts_table(rows), absent_table(rows), *noise_tables(runs, rows), machine_table(runs, rows))
    body += [part for table in tail if table.rows for part in (f"<h2>{safe.html(table.title)}</h2>", table_html(table))]
    return _page(f"frugalbench: {names}", [*body, _footer()])


def table_html(table: Table) -> str:
    """One table with its notes; hints become hover titles."""
    head = "".join(f"<th{_class('n' if number else '')}>{safe.html(title)}</th>" for title, number in table.columns)
    lines = "\n".join(_line(row, table) for row in table.rows)
    notes = "".join(f"<li>{safe.html(note)}</li>" for note in table.notes)
    notes = f'\n<ul class="note">{notes}</ul>' if notes else ""
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{lines}\n</table></div>{notes}'


def _line(row: Sequence[Cell], table: Table) -> str:
    cells = zip(row, table.columns, strict=True)
    return "<tr>" + "".join(_cell(cell, number) for cell, (_, number) in cells) + "</tr>"


def _cell(cell: Cell, number: bool) -> str:
    classes = " ".join(c for c in ("n" if number else "", cell.mark.replace(" ", "-")) if c)
    title = f' title="{safe.html(cell.hint)}"' if cell.hint else ""
    return f"<td{_class(classes)}{title}>{safe.html(cell.text)}</td>"


def _class(names: str) -> str:
    return f' class="{safe.html(names)}"' if names else ""


def _summary(runs: Sequence[Run], verdicts: Sequence[Verdict]) -> Iterable[str]:
    yield f"<p>{safe.html(counts_text(verdicts))}.</p>"
    problems = [p for run in runs for p in run.problems]
    yield from (f'<p class="inconclusive">{safe.html(problem)}</p>' for problem in problems)
    yield "<h2>Verdicts</h2>"
    yield table_html(verdicts_table(verdicts))
    for table in (machines_table(verdicts, runs), published_table(verdicts)):
        if table.rows:
            yield f"<h3>{safe.html(table.title)}</h3>"
            yield table_html(table)
    absent = untested_table(verdicts)
    if absent.rows:
        summary = f"Not tested, and why ({len(absent.rows)} reasons)"
        yield f"<details><summary>{summary}</summary>{table_html(absent)}</details>"
    if not charts.available():
        hint = safe.html(EXTRA_HINT)
        yield f'<p class="note">Tables only: charts need altair and vl-convert, <code>{hint}</code></p>'


def _families(verdicts: Sequence[Verdict], rows: Sequence[Row]) -> list[str]:
    present = dict.fromkeys(
        [*(family_of(v.claim) for v in verdicts if v.ratio), *(family_of(r.workload) for r in rows)]
    )
    return [f for f in FAMILIES if f in present] + [f for f in present if f not in FAMILIES]


def _family(
    family: str, runs: Sequence[Run], verdicts: Sequence[Verdict], rows: Sequence[Row], extra: Sequence[Table]
) -> list[str]:
    own = [r for r in rows if family_of(r.workload) == family]
    tables = [*cases_tables(own).values(), *(table for table in extra if table.family == family)]
    parts = _charts([v for v in verdicts if family_of(v.claim) == family], own)
    if family == "moe" and charts.available():
        parts += charts.saving_svgs([item for run in runs for item in savings(run)])
    if family == "quant" and charts.available():
        parts += charts.pareto_svgs([point for run in runs for point in run_points(run)])
    parts += [part for table in tables for part in (f"<h3>{safe.html(table.title)}</h3>", table_html(table))]
    return [f"<h2>{safe.html(FAMILIES.get(family, family))}</h2>", *parts] if parts else []


def _charts(verdicts: Sequence[Verdict], rows: Sequence[Row]) -> list[str]:
    if not charts.available():
        return []
    drawn = [charts.forest_svg(verdicts, "Ratio, interval and threshold")]
    drawn.append(charts.roofline_svg(rows, "How near each case comes to what this machine can do"))
    return [svg for svg in drawn if svg]


def _footer() -> str:
    words = "; ".join(f"<b>{tier.value}</b>: {safe.html(text)}" for tier, text in _TIERS.items())
    return (
        f"<footer><p>How a number was obtained: {words}. Hover over a number for its source.</p>"
        "<p>Times are medians of replicate medians; intervals are 95%, Student's t over replicates, unless a row "
        "says otherwise. MFU and MBU are shares of peaks measured in the same run.</p></footer>"
    )


def _page(title: str, body: Iterable[str]) -> str:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    content = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}\n<title>{safe.html(title)}</title>\n<style>{_STYLE}</style>'
        f"</head>\n<body>\n{content}\n</body></html>\n"
    )
