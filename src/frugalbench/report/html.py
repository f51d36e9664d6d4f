"""One self-contained page: verdicts that open to their evidence, each family with charts and tables, the machine, and
how to compute it all again. One script of its own, allowed by its hash; no network."""

import shlex
from collections.abc import Iterator, Sequence

from frugalbench.analysis.judge import machine_label
from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row
from frugalbench.analysis.saving import savings
from frugalbench.report import charts, charts_machine, safe
from frugalbench.report.evidence import Cases, Texts
from frugalbench.report.export import EXTRA_HINT
from frugalbench.report.html_tables import Tables
from frugalbench.report.html_verdicts import verdict_data, verdicts_html
from frugalbench.report.machines import machines_table, published_table
from frugalbench.report.noise import noise_tables
from frugalbench.report.page import anchor, page, section
from frugalbench.report.pareto import run_points
from frugalbench.report.sweeps import beside, family_parts
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
)
from frugalbench.schema import Outcome, Tier, Verdict
from frugalbench.units import DASH

MOST_CHARTS = 12
"""Of one kind in one family; what they show stands in the tables too."""
MOST_OPEN = 12
"""Tables of a family beyond it are folded."""
_TIERS = {
    Tier.MEASURED: "timed or counted on this machine",
    Tier.EMULATED: "timed here, on something shaped to behave like something else",
    Tier.MODELLED: "computed from a formula and stated inputs",
    Tier.PUBLISHED: "taken from a document",
}
_Section = tuple[str, str, list[str]]
"""Id, heading, parts."""


def html(runs: Sequence[Run], verdicts: Sequence[Verdict], rows: Sequence[Row], extra: Sequence[Table] = ()) -> str:
    """The page. ``extra`` tables go to their families."""
    names = ", ".join(run.manifest.name for run in runs)
    texts = Texts()
    tables, cases = Tables(texts), Cases(runs, rows, texts)
    sections: list[_Section] = [("s-verdicts", "Verdicts", list(_verdicts(verdicts, runs, tables)))]
    sections += [_family(name, runs, verdicts, rows, extra, tables) for name in _families(verdicts, rows, extra)]
    sections += [_of_table(table, tables) for table in _tail(runs, rows)]
    sections.append(("s-recompute", "How to compute it again", list(_recompute(runs, tables))))
    kept = [item for item in sections if item[2]]
    data = verdict_data(verdicts, cases, texts)
    data |= {"cases": cases.told, "tables": tables.stored, "names": list(cases.names), "texts": list(texts.known)}
    body = [*_head(names, runs, verdicts, kept), *(section(*item) for item in kept), "</main>", _footer()]
    return page(f"frugalbench: {names}", body, data)


def _head(names: str, runs: Sequence[Run], verdicts: Sequence[Verdict], sections: Sequence[_Section]) -> Iterator[str]:
    links = "".join(f'<li><a href="#{safe.html(name)}">{safe.html(title)}</a></li>' for name, title, _ in sections)
    counts = "".join(
        f'<li class="{outcome.value.replace(" ", "-")}"><b>{number}</b>{outcome.value}</li>'
        for outcome in Outcome
        if (number := sum(verdict.verdict is outcome for verdict in verdicts))
    )
    yield '<a class="skip" href="#s-verdicts">Skip to the verdicts</a>'
    yield f"<header><h1>frugalbench: {safe.html(names)}</h1>"
    yield f'<p class="note">{safe.html("; ".join(map(_where, runs)))}</p>'
    yield f'<ul class="counts" aria-label="{safe.html(counts_text(verdicts))}">{counts}</ul>'
    yield f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>'
    problems = [problem for run in runs for problem in run.problems]
    yield from (f'<p class="inconclusive">{safe.html(problem)}</p>' for problem in problems)


def _where(run: Run) -> str:
    manifest, machine = run.manifest, run.manifest.machine_before
    name = machine_label({"name": machine.get("cpu_model"), **machine})
    return f"{manifest.run_id}: {name}, {manifest.started}, revision {manifest.revision or 'unknown'}, {manifest.state}"


def _verdicts(verdicts: Sequence[Verdict], runs: Sequence[Run], tables: Tables) -> Iterator[str]:
    yield from verdicts_html(verdicts)
    for table in (machines_table(verdicts, runs), published_table(verdicts)):
        if table.rows:
            yield f"<h3>{safe.html(table.title)}</h3>"
            yield tables.html(table)
    absent = untested_table(verdicts)
    if absent.rows:
        summary = f"Not tested, and why ({len(absent.rows)} reasons)"
        yield f"<details><summary>{summary}</summary>{tables.html(absent)}</details>"
    if not charts.available():
        hint = safe.html(EXTRA_HINT)
        yield f'<p class="note">Tables only: charts need altair and vl-convert, <code>{hint}</code></p>'


def _families(verdicts: Sequence[Verdict], rows: Sequence[Row], extra: Sequence[Table]) -> list[str]:
    present = dict.fromkeys(
        [
            *(family_of(v.claim) for v in verdicts if v.ratio),
            *(family_of(r.workload) for r in rows),
            *(table.family for table in extra if table.family),
        ]
    )
    return [f for f in FAMILIES if f in present] + [f for f in present if f not in FAMILIES]


def _family(
    family: str,
    runs: Sequence[Run],
    verdicts: Sequence[Verdict],
    rows: Sequence[Row],
    extra: Sequence[Table],
    tables: Tables,
) -> _Section:
    own = [r for r in rows if family_of(r.workload) == family]
    found = [*cases_tables(own).values(), *(table for table in extra if table.family == family)]
    mine = [v for v in verdicts if family_of(v.claim) == family]
    parts = beside([*_charts(family, runs, mine, own, rows), *family_parts(family, runs, mine, tables)])
    drawn = [f"<h3>{safe.html(table.title)}</h3>{tables.html(table)}" for table in found]
    parts += drawn[:MOST_OPEN]
    if rest := drawn[MOST_OPEN:]:
        parts.append(f"<details><summary>{len(rest)} more tables</summary>{''.join(rest)}</details>")
    return anchor(family), FAMILIES.get(family, family), parts


def _charts(
    family: str, runs: Sequence[Run], verdicts: Sequence[Verdict], own: Sequence[Row], rows: Sequence[Row]
) -> list[str]:
    """What answers the family's question, then how near its cases come to the machine's limits."""
    if not charts.available():
        return []
    drawn: list[str | None] = [charts.forest_svg(verdicts, "Ratio, interval and threshold")]
    if family == "moe":
        drawn += _few(charts.saving_svgs([item for run in runs for item in savings(run)]))
    if family == "quant":
        drawn += _few(charts.pareto_svgs([point for run in runs for point in run_points(run)]))
    if family == "machine":
        drawn += [charts_machine.roofline_svg([r for r in rows if r.run == run.manifest.run_id], run) for run in runs]
    drawn += [charts_machine.per_joule_svg(own), charts_machine.per_flop_svg(own)]
    drawn.append(charts.roofline_svg(own, "How near each case comes to what this machine can do"))
    return [svg for svg in drawn if svg]


def _few(found: list[str]) -> list[str]:
    left = len(found) - MOST_CHARTS
    return [*found[:MOST_CHARTS], *([f'<p class="note">{left} more such charts are left out</p>'] if left > 0 else [])]


def _tail(runs: Sequence[Run], rows: Sequence[Row]) -> Iterator[Table]:
    yield facts_table(rows)
    yield absent_table(rows)
    yield from noise_tables(runs, rows)
    yield machine_table(runs, rows)
    yield _self_test(runs)


def _of_table(table: Table, tables: Tables) -> _Section:
    return anchor(table.title), table.title, [tables.html(table)] if table.rows else []


def _self_test(runs: Sequence[Run]) -> Table:
    """What each run knew of its machine's noise."""
    lines = tuple((Cell(run.manifest.name), _floor(run), Cell(_self_tested(run))) for run in runs)
    return Table("Self-test", (("run", False), ("A/A floor", True), ("where it comes from", False)), lines)


def _floor(run: Run) -> Cell:
    floor = run.manifest.floor
    return Cell(DASH if floor is None else f"{100 * floor:.2g}%", hint="" if floor else "the run recorded no floor")


def _self_tested(run: Run) -> str:
    notes = [note for note in run.manifest.notes if "self-test" in note]
    return "; ".join(notes) or "the run does not say whether its machine was self-tested"


def _recompute(runs: Sequence[Run], tables: Tables) -> Iterator[str]:
    yield "<p>Everything here follows from <code>manifest.json</code> and <code>records.jsonl</code> of each run.</p>"
    for run in runs:
        where, manifest = shlex.quote(str(run.path)), run.manifest
        config = shlex.quote(str(manifest.config.get("path") or manifest.name))
        commands = (
            (f"frugalbench verdicts {where}", "the verdicts, from the stored records"),
            (f"frugalbench report {where} --format html --output report.html", "this page"),
            (f"frugalbench report {where} --format csv --output cases.csv", "one line per case"),
            (f"frugalbench run {config} --seed {manifest.seed}", "measures again"),
        )
        lines = tuple((Cell(command), Cell(what)) for command, what in commands)
        versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
        note = f"claims {manifest.claims_hash}, schema version {manifest.schema_version}, revision {manifest.revision}"
        yield tables.html(
            Table(f"Commands for {manifest.name}", (("command", False), ("gives", False)), lines, (note, versions))
        )


def _footer() -> str:
    words = "; ".join(f"<b>{tier.value}</b>: {safe.html(text)}" for tier, text in _TIERS.items())
    return (
        f"<footer><p>How a number was obtained: {words}. Hover over a number for its source; a dash tells its reason "
        "on hover and on focus.</p>"
        "<p>Times are medians of replicate medians; intervals are 95%, Student's t over replicates, unless a row "
        "says otherwise. MFU and MBU are shares of peaks measured in the same run.</p></footer>"
    )
