"""Electricity: what the same work costs over the ratio of prices, and where two systems break even."""

from collections.abc import Iterator
from typing import Any

from frugalbench.analysis.electricity import BreakEven
from frugalbench.report import safe
from frugalbench.report.charts import INK, finished
from frugalbench.report.tables import Cell, Table
from frugalbench.schema import Quantity
from frugalbench.units import significant

_COLOURS = ("#2f7fc1", "#e07b39", "#2a9d5c", "#b05fc4", "#c98a00", "#d1495b")
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
_COLUMNS = ("prices", "price ratio", "low", "high", "cost ratio", "low", "high", "tier")


def break_even_svg(found: BreakEven) -> str:
    """The line with its band, the range of break-even price ratios, and each pair of quoted prices with its bounds."""
    import altair as alt

    pairs, ends = list(_pairs(found)), _ends(found)
    log = alt.Scale(type="log", nice=False)
    x = alt.X("x:Q", scale=log, title="price of a kWh, first system's over the second's", axis=alt.Axis(grid=False))
    y = alt.Y("y:Q", scale=log, title="electricity per token, first over second", axis=alt.Axis(grid=False))
    line = alt.Chart(alt.Data(values=[_line(found, at) for at in ends]))
    band = line.mark_area(color="#8a8f98", opacity=0.22).encode(x=x, y=alt.Y("low:Q", scale=log), y2="high:Q")
    centre = line.mark_line(color=INK, strokeWidth=1.5).encode(x=x, y=y)
    even = alt.Chart(alt.Data(values=[{"y": 1.0}])).mark_rule(color=INK, strokeDash=[4, 4]).encode(y="y:Q")
    at = alt.Chart(alt.Data(values=[_span(found.price)]))
    zone = at.mark_rect(color="#c98a00", opacity=0.16).encode(x=alt.X("low:Q", scale=log), x2="high:Q")
    mark = at.mark_rule(color="#c98a00", strokeWidth=2, strokeDash=[6, 3]).encode(x="value:Q")
    told = at.mark_text(color=INK, align="left", dx=4, baseline="top", text="break-even")
    told = told.encode(x="value:Q", y=alt.value(4))
    corner = alt.Chart(alt.Data(values=[{"x": ends[1], "y": 1.0}]))
    told += corner.mark_text(color=INK, align="right", dy=-6, text="same cost").encode(x="x:Q", y="y:Q")
    names = [pair["name"] for pair in pairs]
    key = alt.Legend(title=None, orient="top", columns=1, symbolSize=110)
    colour = alt.Color("name:N", scale=alt.Scale(domain=names, range=list(_COLOURS)), legend=key)
    shape = alt.Shape("name:N", scale=alt.Scale(domain=names, range=list(_SHAPES)), legend=key)
    base = alt.Chart(alt.Data(values=pairs))
    across = base.mark_rule(strokeWidth=2).encode(x=alt.X("x_low:Q", scale=log), x2="x_high:Q", y=y, color=colour)
    up = base.mark_rule(strokeWidth=2).encode(x=x, y=alt.Y("y_low:Q", scale=log), y2="y_high:Q", color=colour)
    dots = base.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, color=colour, shape=shape)
    layers = zone + band + even + mark + centre + across + up + dots + told
    return finished(alt, layers, title_of(found), 1, height=280, says=_says(found))


def title_of(found: BreakEven) -> str:
    """With the two systems and the tier."""
    return safe.terminal(f"Cost of electricity, {found.systems} ({found.joule.tier.value})")


def break_even_table(found: BreakEven) -> Table:
    """The points of the chart."""
    rows = tuple(_row(pair.name, pair.price, pair.cost) for pair in found.pairs)
    even = found.price
    both = Quantity(value=1.0, low=1.0, high=1.0, unit="1", tier=even.tier, source="both cost the same")
    notes = (
        f"joules per token, first over second: {_text(found.joule)}; the line is this times the price ratio",
        "bounds are those of the model's inputs and of conflicting quotations, not of noise",
    )
    columns = tuple((name, name not in ("prices", "tier")) for name in _COLUMNS)
    return Table(title_of(found), columns, (*rows, _row("break-even", even, both)), notes, "net")


def _row(name: str, price: Quantity, cost: Quantity) -> tuple[Cell, ...]:
    figures = [Cell(significant(v), hint=q.source) for q in (price, cost) for v in (q.value, q.low, q.high)]
    return (Cell(name), *figures, Cell(cost.tier.value, mark=cost.tier.value))


def _text(quantity: Quantity) -> str:
    return f"{significant(quantity.value)} [{significant(quantity.low)}, {significant(quantity.high)}]"


def _says(found: BreakEven) -> str:
    pairs = "; ".join(f"{pair.name}: price ratio {_text(pair.price)}, cost {_text(pair.cost)}" for pair in found.pairs)
    return f"breaks even at a price ratio of {_text(found.price)}; {pairs}"


def _pairs(found: BreakEven) -> Iterator[dict[str, Any]]:
    for pair in found.pairs[: len(_SHAPES)]:
        price, cost = _span(pair.price), _span(pair.cost)
        bounds = {"x_low": price["low"], "x_high": price["high"], "y_low": cost["low"], "y_high": cost["high"]}
        yield {"name": safe.terminal(pair.name), "x": price["value"], "y": cost["value"], **bounds}


def _span(quantity: Quantity) -> dict[str, float | None]:
    return {"low": quantity.low, "value": quantity.value, "high": quantity.high}


def _ends(found: BreakEven) -> tuple[float, float]:
    """A little beyond all prices of the chart."""
    prices = [found.price, *(pair.price for pair in found.pairs)]
    known = [bound for price in prices for bound in (price.low, price.high) if bound]
    return min(known) / 1.2, max(known) * 1.2


def _line(found: BreakEven, price: float) -> dict[str, float]:
    joule = found.joule
    low, value, high = ((part or 0.0) * price for part in (joule.low, joule.value, joule.high))
    return {"x": price, "y": value, "low": low, "high": high}
