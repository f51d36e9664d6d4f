"""A metric over runs: points with intervals, the level between two changes, and a mark where it changes."""

from collections.abc import Iterator, Sequence
from typing import Any

from frugalbench.analysis.history import Level, Point, Series
from frugalbench.report import safe
from frugalbench.report.charts import INK, finished
from frugalbench.report.columns import unit_of
from frugalbench.units import significant

MOST_RUNS = 400
"""Drawn of one series, the last ones; its table has all."""
_MARK, _CHANGE = "#2f7fc1", "#c2571a"


def history_svg(series: Series) -> str:
    """One series; runs in the order in which they started."""
    import altair as alt

    first = max(0, len(series.points) - MOST_RUNS)
    points = [_point(number, point) for number, point in enumerate(series.points)][first:]
    scale = alt.Scale(domain=[first + 0.5, len(series.points) + 0.5], nice=False)
    x = alt.X("run:Q", scale=scale, title="runs, in the order of their start", axis=alt.Axis(tickMinStep=1, grid=False))
    y_axis = alt.Axis(format="~s") if max(point["value"] for point in points) >= 1e4 else alt.Axis()
    y = alt.Y("value:Q", scale=alt.Scale(zero=False, padding=12), title=metric_title(series.metric), axis=y_axis)
    base = alt.Chart(alt.Data(values=points)).encode(x=x)
    bars = base.mark_rule(color=_MARK, strokeWidth=2).encode(y="low:Q", y2="high:Q")
    dots = base.mark_point(filled=True, color=_MARK, size=50, opacity=1).encode(y=y)
    levels = alt.Chart(alt.Data(values=list(_levels(series, first)))).mark_rule(color=INK, strokeDash=[1, 2])
    levels = levels.encode(x="from:Q", x2="to:Q", y="value:Q")
    changes = alt.Chart(alt.Data(values=list(_changes(series, first)))).encode(x="run:Q")
    lines = changes.mark_rule(color=_CHANGE, strokeWidth=2, strokeDash=[6, 3])
    words = changes.mark_text(color=INK, align="left", dx=4, lineBreak="\n", fontWeight="bold")
    words = words.encode(text="text:N", y=alt.value(6))
    title = safe.terminal(f"{series.case} on {series.machine_name or series.machine}")
    return finished(alt, bars + levels + lines + dots + words, title, 1, height=220, says=_says(series))


def metric_title(metric: str) -> str:
    """The metric with its unit."""
    unit = unit_of(metric)
    return f"{metric}, {unit}" if unit else metric


def _point(number: int, point: Point) -> dict[str, Any]:
    return {"run": number + 1, "value": point.value, "low": point.low, "high": point.high}


def _levels(series: Series, first: int) -> Iterator[dict[str, Any]]:
    for level in series.levels():
        if level.last >= first:
            yield {"from": max(level.first, first) + 0.6, "to": level.last + 1.4, "value": level.value}


def _changes(series: Series, first: int) -> Iterator[dict[str, Any]]:
    """Drawn between the last run of the old level and the first of the new one, which is named."""
    for step in series.steps or ():
        if step.at >= first:
            revision = safe.terminal((step.revision or "no revision")[:9])
            yield {"run": step.at + 0.5, "text": f"×{significant(step.ratio)}\n{revision}"}


def changes_text(series: Series) -> str:
    """How often the level changes."""
    if series.steps is None:
        return "changes were not looked for"
    return f"{len(series.steps)} change{'' if len(series.steps) == 1 else 's'} of level"


def _says(series: Series) -> str:
    levels: Sequence[Level] = series.levels()
    told = [f"{significant(level.value)} in runs {level.first + 1} to {level.last + 1}" for level in levels]
    return f"{series.metric}: {', then '.join(told)}; {changes_text(series)}"
