"""What-ifs on modelled clusters as one self-contained page, or as an SVG file. Nothing here is measured."""

from collections.abc import Mapping, Sequence

from frugalbench.analysis.sweeps import Group
from frugalbench.report import charts, charts_sweep, safe
from frugalbench.report.evidence import Texts
from frugalbench.report.export import EXTRA_HINT
from frugalbench.report.html_tables import Tables
from frugalbench.report.page import page, section
from frugalbench.report.sweeps import beside, drawn, parts
from frugalbench.report.tables import Table
from frugalbench.schema import FrugalbenchError


def whatif_page(
    title: str, groups: Sequence[Group], more: Sequence[Table], assumed: Mapping[str, Sequence[str]], command: str
) -> str:
    """Charts with their points, further tables, assumed inputs by cluster, and the command that computes it again."""
    need_charts()
    texts = Texts()
    tables = Tables(texts)
    sections = [
        ("s-charts", "Charts", beside(part for group in groups for part in parts(drawn(group), tables))),
        ("s-tables", "Tables", [f"<h3>{safe.html(table.title)}</h3>{tables.html(table)}" for table in more]),
        ("s-assumed", "Assumed inputs", list(map(_assumed, assumed.items()))),
        ("s-recompute", "How to compute it again", [f"<p><code>{safe.html(command)}</code></p>"]),
    ]
    kept = [item for item in sections if item[2]]
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in kept)
    body = [
        '<a class="skip" href="#s-charts">Skip to the charts</a>',
        f"<header><h1>{safe.html(title)}</h1>",
        '<p class="note">Everything here is modelled; intervals are those that the ranges of the inputs allow.</p>',
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>',
        *(section(*item) for item in kept),
        "</main>",
    ]
    return page(title, body, {"tables": tables.stored, "texts": list(texts.known)})


def whatif_svg(groups: Sequence[Group]) -> str:
    """All charts of curves, one below the other."""
    need_charts()
    import altair as alt

    height = charts_sweep.HEIGHT
    made = [charts.sized(charts_sweep.curves(alt, g), charts_sweep.title_of(g[0]), height) for g in groups]
    return charts.standalone(alt, made)


def need_charts() -> None:
    """Raises :class:`FrugalbenchError` where nothing can be drawn."""
    if not charts.available():
        raise FrugalbenchError(f"charts need altair and vl-convert, which are not installed.\nInstall: {EXTRA_HINT}")


def _assumed(item: tuple[str, Sequence[str]]) -> str:
    name, lines = item
    listed = "".join(f"<li>{safe.html(line)}</li>" for line in lines) or "<li>none</li>"
    return f"<h3>{safe.html(name)}</h3><ul>{listed}</ul>"
