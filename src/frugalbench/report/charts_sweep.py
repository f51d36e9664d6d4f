"""Charts of a figure over its inputs: curves over one, a map over two. Lines differ in shape and dash as well as
colour, cells of a map in their mark."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from frugalbench.analysis.sweeps import Group
from frugalbench.report import safe
from frugalbench.report.charts import INK, finished
from frugalbench.report.columns import unit_of
from frugalbench.schema import Sweep, Tier
from frugalbench.units import si, significant

HEIGHT = 260
MOST_CURVES, MOST_MAPS, MOST_CELLS, MOST_LABELS = 8, 24, 1200, 14
"""Of one group; what is left out stands in the table."""
LOG_FROM = 50.0
"""Where every line spans more the axis is a log one; where only some do, their decay should look like it."""
_COLOURS = ("#2f7fc1", "#e07b39", "#2a9d5c", "#b05fc4", "#c98a00", "#8a8f98", "#d1495b", "#2a9d8f")
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [10, 4], [4, 4], [1, 3], [12, 2])
_STATES = {"✓ keeps it": "#2a9d5c", "? depends on the inputs": "#c98a00", "✗ does not": "#d1495b"}
_PLAIN = {
    "steps_between_exchanges": "steps between exchanges",
    "local_steps": "steps between exchanges",
    "between_sites_bit_per_s": "bandwidth between sites",
    "wan_bit_per_s": "bandwidth between sites",
}


def sweep_svgs(group: Group) -> list[str]:
    """One chart of all curves, or one for each map."""
    if len(group[0].over) == 1:
        return [curves_svg(group)]
    return [map_svg(sweep) for sweep in group if len(sweep.value) <= MOST_CELLS][:MOST_MAPS]


def title_of(sweep: Sweep) -> str:
    """The figure with its tier."""
    return safe.terminal(f"{sweep.figure[:1].upper()}{sweep.figure[1:]} ({sweep.tier.value})")


def input_name(name: str) -> str:
    """The name of an input as an axis shows it, with its unit."""
    unit = "bit/s" if name.endswith("_bit_per_s") else unit_of(name)
    ends = {"bit/s": "_bit_per_s", "bytes/s": "_bytes_per_s"}.get(unit, f"_{unit.lower()}")
    plain = _PLAIN.get(name) or safe.terminal(name.removesuffix(ends).replace("_", " "))
    return f"{plain}, {unit}" if unit else plain


def curves_svg(group: Group) -> str:
    """All curves of a group, for the page."""
    import altair as alt

    shown = group[:MOST_CURVES]
    return finished(alt, curves(alt, group), title_of(group[0]), 1, height=HEIGHT, says="; ".join(map(_ends, shown)))


def curves(alt: Any, group: Group) -> Any:
    """Curves with their bounds: a band where a model gives them, bars where something was timed."""
    shown, (name,) = group[:MOST_CURVES], group[0].over
    data = [point for sweep in shown for point in _curve_points(sweep)]
    x = alt.X("x:Q", scale=_x_scale(alt, data), axis=_x_axis(alt, data), title=input_name(name))
    log = min(p[key] for p in data for key in ("y", "low") if p[key] is not None) > 0 and all(map(_spans, shown))
    y_scale = alt.Scale(type="log", nice=False) if log else alt.Scale(zero=True)
    axis = alt.Axis(format="~s") if max(abs(p["y"]) for p in data) >= 1e3 else alt.Axis()
    y = alt.Y("y:Q", scale=y_scale, axis=axis, title=_y_title(group[0]))
    base = alt.Chart(alt.Data(values=data)).encode(x=x, color=alt.Color("line:N", **_looks(alt, shown, _COLOURS)))
    band = base.mark_area(opacity=0.14) if group[0].tier is Tier.MODELLED else base.mark_rule(strokeWidth=2)
    band = band.encode(y=alt.Y("low:Q", scale=y_scale), y2="high:Q")
    dash, shape = (_looks(alt, shown, kinds) for kinds in (_DASHES, _SHAPES))
    lines = base.mark_line(strokeWidth=2).encode(y=y, strokeDash=alt.StrokeDash("line:N", **dash))
    marks = base.mark_point(filled=True, size=45, opacity=1).encode(y=y, shape=alt.Shape("line:N", **shape))
    layers = band + lines + marks
    if (least := group[0].least) is not None:
        layers += alt.Chart(alt.Data(values=[{"y": least}])).mark_rule(color=INK, strokeDash=[4, 4]).encode(y="y:Q")
    return layers


def _looks(alt: Any, shown: Sequence[Sweep], kinds: Sequence[Any]) -> dict[str, Any]:
    names = [safe.terminal(sweep.line) for sweep in shown]
    legend = alt.Legend(title=None, orient="top", columns=3, symbolSize=120, symbolOpacity=1)
    return {"scale": alt.Scale(domain=names, range=list(kinds[: len(names)])), "legend": legend}


def _curve_points(sweep: Sweep) -> Iterator[dict[str, Any]]:
    (places,) = sweep.over.values()
    for number, (x, y) in enumerate(zip(places, sweep.value, strict=True)):
        if y is not None:
            low, high = bounds_at(sweep, number)
            yield {"x": x, "y": y, "low": low, "high": high, "line": safe.terminal(sweep.line)}


def bounds_at(sweep: Sweep, number: int) -> tuple[float | None, float | None]:
    """Of one point; ``None`` where the sweep has no bounds there."""
    low = sweep.low[number] if sweep.low else None
    return low, sweep.high[number] if sweep.high else None


def _spans(sweep: Sweep) -> bool:
    known = [value for value in sweep.value if value is not None]
    return max(known) > LOG_FROM * min(known)


def _x_scale(alt: Any, data: Sequence[dict[str, Any]]) -> Any:
    places = [point["x"] for point in data]
    if min(places) > 0 and max(places) / min(places) >= 8:
        return alt.Scale(type="log", base=2, nice=False, padding=12)
    return alt.Scale(zero=False, padding=12)


def _x_axis(alt: Any, data: Sequence[dict[str, Any]]) -> Any:
    places = sorted({point["x"] for point in data})
    whole = all(place == int(place) and place < 1e6 for place in places)
    values = places if len(places) <= MOST_LABELS else alt.Undefined
    return alt.Axis(values=values, format=",d" if whole else "~s", grid=False)


def _y_title(sweep: Sweep) -> str:
    asked = f" (dashed: at least {significant(sweep.least)})" if sweep.least is not None else ""
    return safe.terminal(f"{'ratio' if sweep.unit == '1' else sweep.unit}{asked}")


def _ends(sweep: Sweep) -> str:
    """First and last point in words, for those who hear the chart."""
    (name, places), *_ = sweep.over.items()
    known = [(x, y) for x, y in zip(places, sweep.value, strict=True) if y is not None]
    (x0, y0), (x1, y1) = known[0], known[-1]
    return f"{sweep.line}: {significant(y0)} at {x0:g}, {significant(y1)} at {x1:g} {input_name(name)}"


def map_svg(sweep: Sweep) -> str:
    """A cell for each pair of inputs, with its value and whether it reaches what is asked for, its bounds included."""
    import altair as alt

    (x_name, xs), (y_name, ys) = sweep.over.items()
    cells = list(_cells(sweep, (x_name, xs), (y_name, ys)))
    x, y = (_axis_of(alt, axis, name, places) for axis, name, places in (("x", x_name, xs), ("y", y_name, ys)))
    base = alt.Chart(alt.Data(values=cells)).encode(x=x, y=y)
    if sweep.least is None:
        fill = base.mark_rect(color="#2f7fc1").encode(opacity=alt.Opacity("value:Q", legend=None))
    else:
        states = alt.Scale(domain=list(_STATES), range=list(_STATES.values()))
        legend = alt.Legend(title=f"at least {significant(sweep.least)}", orient="top")
        fill = base.mark_rect(opacity=0.4).encode(color=alt.Color("state:N", scale=states, legend=legend))
    words = base.mark_text(color=INK, fontSize=10 if len(set(xs)) < 9 else 8).encode(text="text:N")
    title = f"{title_of(sweep)}: {safe.terminal(sweep.line)}"
    return finished(alt, fill + words, title, 1, height=alt.Step(22), says=_region(sweep, cells))


def _cells(sweep: Sweep, x: tuple[str, Sequence[float]], y: tuple[str, Sequence[float]]) -> Iterator[dict[str, Any]]:
    short = len(set(x[1])) > MOST_LABELS
    for number, value in enumerate(sweep.value):
        if value is not None:
            state = _state(sweep, value, *bounds_at(sweep, number))
            shown = _short(value, sweep.unit)
            text = state[:1] if short else f"{shown} {state[:1]}".strip()
            at = {"x": place_text(x[0], x[1][number]), "y": place_text(y[0], y[1][number])}
            yield {**at, "value": value, "state": state, "text": text}


def _state(sweep: Sweep, value: float, low: float | None, high: float | None) -> str:
    if sweep.least is None:
        return ""
    sure, depends, no = _STATES
    if (value if low is None else low) >= sweep.least:
        return sure
    return no if (value if high is None else high) < sweep.least else depends


def _axis_of(alt: Any, axis: str, name: str, places: Sequence[float]) -> Any:
    order = [place_text(name, place) for place in sorted(set(places), reverse=axis == "y")]
    encode = alt.X if axis == "x" else alt.Y
    return encode(f"{axis}:O", sort=order, title=input_name(name), axis=alt.Axis(labelAngle=-40 if axis == "x" else 0))


def place_text(name: str, place: float) -> str:
    """One value of an input, without its unit unless that takes a prefix."""
    if name.endswith("_per_s") and place:
        return si(place, "bit/s" if name.endswith("_bit_per_s") else unit_of(name))
    return f"{place:,.0f}" if place == math.floor(place) and abs(place) < 1e9 else significant(place)


def _short(value: float, unit: str) -> str:
    return f"{100 * value:.0f}" if unit == "1" else significant(value, 2)


def _region(sweep: Sweep, cells: Sequence[dict[str, Any]]) -> str:
    if sweep.least is None:
        return f"{len(cells)} cells"
    counts = {state: sum(cell["state"] == state for cell in cells) for state in _STATES}
    return ", ".join(f"{state[2:]}: {number} of {len(cells)} cells" for state, number in counts.items())
