"""Charts as inline SVG, drawn by altair and vl-convert without a browser or a network.

Text and axes are drawn in the page's own colour, so that they can be read on light and dark. An outcome has a colour
and a shape. Without the ``report`` extra there are no charts: :func:`available` says so.
"""

import importlib.util
import re
from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import Any

from frugalbench.analysis.metrics import PEAKS_WORKLOAD, Row
from frugalbench.analysis.pareto import Point, grouped
from frugalbench.analysis.saving import Saving
from frugalbench.report import safe
from frugalbench.report.tables import arm_text, tier_text
from frugalbench.schema import Outcome, Tier, Verdict

MOST_LINES = 60
MOST_POINTS = 1000
MOST_TITLE = 54
MOST_NAME = 78
"""Letters of a name in a chart; the tables have all of it."""
MARKS = {"measured": "", "emulated": "△ ", "modelled": "◇ ", "published": "□ "}
"""What stands before a name, as in the tables, for how its figure was obtained."""
WIDTH = 400
"""Of what lies between the axes; with them a chart still fits a phone, where its letters stay 8 pixels high."""
_PADDING = {"left": 10, "right": 30, "top": 5, "bottom": 5}
"""Room for a reader's font that is wider than the one the labels were measured with."""
INK = "#010203"
"""Stands for the page's text colour until the SVG is finished."""
_OUTCOMES = {
    Outcome.SUPPORTED.value: ("#2a9d5c", "triangle-right"),
    Outcome.REFUTED.value: ("#d1495b", "triangle-left"),
    Outcome.INCONCLUSIVE.value: ("#c98a00", "circle"),
}
_BOUNDS = {"compute": "#4c78a8", "memory": "#e07b39"}


def available() -> bool:
    """Whether the two packages that draw are installed. Imports nothing."""
    return all(importlib.util.find_spec(name) for name in ("altair", "vl_convert"))


def forest_svg(verdicts: Sequence[Verdict], title: str) -> str | None:
    """Ratios with their intervals and each one's threshold, on a log axis; ``None`` when nothing was decided."""
    data = [_forest_point(v) for v in verdicts if v.ratio is not None and v.ratio > 0][:MOST_LINES]
    if not data:
        return None
    import altair as alt

    base, names = labelled(alt, data)
    scale = alt.Scale(type="log", nice=False, padding=12)
    x = alt.X("ratio:Q", scale=scale, title="ratio (tick: threshold; ◇ modelled, △ emulated)")
    colour = alt.Color("verdict:N", scale=_scale(alt, 0), legend=alt.Legend(title=None, orient="top"))
    rule = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", color=colour)
    tick = base.mark_tick(thickness=2, size=11, color=INK).encode(x=alt.X("threshold:Q", scale=scale))
    shape = alt.Shape("verdict:N", scale=_scale(alt, 1), legend=alt.Legend(title=None, orient="top"))
    point = base.mark_point(filled=True, size=70, opacity=1).encode(x=x, color=colour, shape=shape)
    return finished(alt, rule + tick + point + names, title, len(data))


def roofline_svg(rows: Sequence[Row], title: str) -> str | None:
    """Share of the measured roofline per case, coloured by what bounds it; ``None`` when no share is known."""
    data = [_share_bar(r) for r in rows if r.roofline_share and r.workload != PEAKS_WORKLOAD][:MOST_LINES]
    if not data:
        return None
    import altair as alt

    scale = alt.Scale(domain=list(_BOUNDS), range=list(_BOUNDS.values()))
    base, names = labelled(alt, data)
    bars = base.mark_bar(size=9).encode(
        x=alt.X("share:Q", title="share of the measured roofline", axis=alt.Axis(format="%")),
        color=alt.Color("bound:N", scale=scale, legend=alt.Legend(title="nearest limit", orient="top")),
    )
    return finished(alt, bars + names, title, len(data))


def named(words: Iterable[str], tier: Tier | None) -> str:
    """The name of a row."""
    text = safe.terminal(" ".join(word for word in words if word))
    return MARKS.get(tier_text(tier), "") + (text if len(text) <= MOST_NAME else f"{text[: MOST_NAME - 1]}…")


def labelled(alt: Any, data: Sequence[dict[str, Any]]) -> tuple[Any, Any]:
    """A row for each point, to draw marks in, and the names: above the marks, so that they need no room beside them."""
    rows = [{**point, "row": number} for number, point in enumerate(data)]
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("row:O", axis=None))
    names = base.mark_text(align="left", baseline="bottom", dy=-6, fontSize=9.5, color=INK)
    return base, names.encode(x=alt.value(0), text="label:N")


def saving_svgs(found: Sequence[Saving]) -> list[str]:
    """Per shape that was measured at several numbers of tokens: speed over the equal-active dense layer, by arm."""
    shapes: dict[str, list[dict[str, Any]]] = {}
    for item in found:
        if item.over_active and item.regime != "training" and item.tokens > 0:
            point = {"tokens": item.tokens, "speed": item.over_active.ratio, "arm": item.row.variant}
            shapes.setdefault(safe.terminal(item.shape), []).append({k: _text(v) for k, v in point.items()})
    several = {name: data for name, data in shapes.items() if len({point["tokens"] for point in data}) > 1}
    return [_saving_svg(data[:MOST_POINTS], name) for name, data in several.items()]


def pareto_svgs(found: Sequence[Point]) -> list[str]:
    """Per model, task and regime with two schemes or more: speed against right answers, or against stored bytes where
    nothing was answered; filled points are on the front of all that is known."""
    return [_pareto_svg(key, group[:MOST_LINES]) for key, group in grouped(found).items() if len(group) > 1]


def _pareto_svg(key: tuple[str, str, str], group: Sequence[Point]) -> str:
    import altair as alt

    model, task, regime = map(safe.terminal, key)
    data = [
        {
            "speed": point.token_per_s,
            "good": 100 * point.accuracy.value if point.accuracy else point.stored_bytes / 1e6,
            "scheme": safe.terminal(point.scheme),
            "front": "on the front" if point.front else "beaten",
        }
        for point in group
    ]
    title, scale = (
        ("right answers, %", alt.Scale(zero=False, padding=12))
        if task
        else ("stored, MB", alt.Scale(type="log", padding=12))
    )
    base = alt.Chart(alt.Data(values=data)).encode(
        x=alt.X("speed:Q", scale=alt.Scale(type="log", nice=False, padding=20), title="token/s"),
        y=alt.Y("good:Q", scale=scale, title=title),
    )
    colours = alt.Scale(domain=["on the front", "beaten"], range=["#2a9d5c", "#8a8f98"])
    shapes = alt.Scale(domain=["on the front", "beaten"], range=["circle", "cross"])
    marks = base.mark_point(filled=True, size=70, opacity=1).encode(
        color=alt.Color("front:N", scale=colours, legend=alt.Legend(title=None, orient="top")),
        shape=alt.Shape("front:N", scale=shapes, legend=alt.Legend(title=None, orient="top")),
    )
    names = base.mark_text(align="left", dx=7, color=INK).encode(text="scheme:N")
    where = f"{model} on {task}" if task else model
    return finished(alt, marks + names, f"Trade-offs of {where}, {regime}", 1, height=260)


def _text(value: Any) -> Any:
    return safe.terminal(value) if isinstance(value, str) else value


def _saving_svg(data: list[dict[str, Any]], shape: str) -> str:
    import altair as alt

    values = sorted({point["tokens"] for point in data})
    x = alt.X("tokens:Q", scale=alt.Scale(type="log", base=2), axis=alt.Axis(values=values), title="tokens")
    y = alt.Y("speed:Q", scale=alt.Scale(type="log", nice=False), title="speed / dense of equal active parameters")
    lines = (
        alt.Chart(alt.Data(values=data)).mark_line(point=True).encode(x=x, y=y, color=alt.Color("arm:N", title=None))
    )
    even = alt.Chart(alt.Data(values=[{"speed": 1.0}])).mark_rule(color=INK, strokeDash=[4, 4]).encode(y="speed:Q")
    return finished(alt, lines + even, f"What the mixture {shape} pays out", 1, height=260)


def _forest_point(verdict: Verdict) -> dict[str, Any]:
    words = (verdict.claim, verdict.regime, arm_text(verdict.arm) if verdict.arm else "", verdict.candidate or "")
    exact = verdict.low is None and verdict.high is None
    return {
        "label": named(words, verdict.tier),
        "ratio": verdict.ratio,
        "low": verdict.ratio if exact or not verdict.low or verdict.low <= 0 else verdict.low,
        "high": verdict.ratio if exact or verdict.high is None else verdict.high,
        "threshold": verdict.threshold if verdict.threshold > 0 else None,
        "verdict": verdict.verdict.value,
    }


def _share_bar(row: Row) -> dict[str, Any]:
    bound = "compute" if (row.mfu or 0) >= (row.mbu or 0) else "memory"
    label = named((row.variant, row.shape, row.regime, row.backend), row.tier)
    return {"label": label, "share": row.roofline_share, "bound": bound}


def _scale(alt: Any, which: int) -> Any:
    return alt.Scale(domain=list(_OUTCOMES), range=[pair[which] for pair in _OUTCOMES.values()])


def finished(alt: Any, chart: Any, title: str, lines: int, height: Any = None, says: str = "") -> str:
    """Drawn and ready for the page; ``says`` is what a reader hears of it beside its title."""
    span = 1 if height else max(1, round(lines / 11))
    height = height or (alt.Step(32) if lines > 1 else 44)
    return _inline(_svg(sized(chart, title, height), "transparent"), title, says, span)


def sized(chart: Any, title: str, height: Any) -> Any:
    """The chart with its title, in as many lines as it takes, and its place."""
    return chart.properties(title=wrap(title, MOST_TITLE) or title, width=WIDTH, height=height)


def standalone(alt: Any, parts: Sequence[Any]) -> str:
    """A file of its own, dark on white: one :func:`sized` chart below the other."""
    chart = alt.vconcat(*parts, spacing=30).resolve_scale(color="independent", shape="independent")
    return _svg(chart, "#ffffff").replace(INK, "#1c1e21")


def _svg(chart: Any, background: str) -> str:
    import vl_convert

    text = {"labelColor": INK, "titleColor": INK, "labelLimit": WIDTH}
    axis = {**text, "domainColor": INK, "tickColor": INK, "gridColor": INK, "gridOpacity": 0.15}
    chart = chart.properties(background=background, padding=_PADDING).configure_title(color=INK, anchor="start")
    chart = chart.configure_axis(**axis).configure_legend(**text).configure_view(stroke=None)
    return str(vl_convert.vegalite_to_svg(chart.to_dict()))


def _inline(svg: str, title: str, says: str, span: int) -> str:
    """Ready to stand in a page: in the page's ink, scrolling on narrow screens, without an XML prologue; one name for
    the whole in place of one for each mark."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", svg)
    name = safe.html(f"Chart: {title}; {says + '; ' if says else ''}its numbers are in the tables")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
    style = f' style="grid-row:span {span}"' if span > 1 else ""
    return f'<div class="scroll chart"{style} role="region" tabindex="0" aria-label="{safe.html(title)}">{svg}</div>'
