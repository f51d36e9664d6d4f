"""Charts of what the machine allows and what each case makes of it: the roofline, tokens per joule, tokens per FLOP.

A tier has a shape as well as a colour.
"""

from collections.abc import Sequence
from typing import Any

from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import PEAKS_WORKLOAD, Row, measured_peaks
from frugalbench.report import safe
from frugalbench.report.charts import INK, MOST_LINES, finished, labelled, named
from frugalbench.report.tables import FAMILIES, family_of, tier_text
from frugalbench.schema import Tier

MOST_CASES = 4000
_TIERS = {
    Tier.MEASURED.value: ("#2f7fc1", "circle"),
    Tier.EMULATED.value: ("#2a9d8f", "triangle-up"),
    Tier.MODELLED.value: ("#b05fc4", "diamond"),
    Tier.PUBLISHED.value: ("#b05fc4", "square"),
}
_FAMILY_COLOURS = ("#2f7fc1", "#e07b39", "#2a9d5c", "#b05fc4", "#c98a00", "#8a8f98")


def roofline_svg(rows: Sequence[Row], run: Run) -> str | None:
    """Every case of a run below the peaks that it measured, on log axes; ``None`` without a case or a peak.

    x: operations per byte of least traffic; y: operations per second. Cases that would cover each other are drawn once.
    """
    roofs = _roofs(run)
    points = _distinct([_roof_point(row) for row in rows if _has_roof(row)])[:MOST_CASES]
    if not points or not roofs:
        return None
    import altair as alt

    ends = min(p["intensity"] for p in points) / 2, max(p["intensity"] for p in points) * 2
    lines = [line for name, peak, read in roofs for line in _roof_lines(name, peak, read, *ends)]
    x = alt.X(
        "intensity:Q",
        scale=alt.Scale(type="log"),
        title="operations per byte moved",
        axis=alt.Axis(format="~s", grid=False),
    )
    y = alt.Y(
        "rate:Q", scale=alt.Scale(type="log"), title="operations per second", axis=alt.Axis(format="~s", grid=False)
    )
    roof = alt.Chart(alt.Data(values=lines)).mark_line(color=INK, strokeDash=[4, 3], opacity=0.7)
    roof = roof.encode(x=x, y=y, detail="name:N")
    names = alt.Chart(alt.Data(values=[line for line in lines if line["last"]]))
    names = names.mark_text(align="right", dy=-6, color=INK).encode(x="intensity:Q", y="rate:Q", text="name:N")
    families = list(dict.fromkeys(p["family"] for p in points))
    colour = alt.Scale(domain=families, range=list(_FAMILY_COLOURS[: len(families)]))
    dots = alt.Chart(alt.Data(values=points)).mark_point(filled=True, size=45, opacity=0.8)
    dots = dots.encode(
        x=x,
        y=y,
        color=alt.Color("family:N", scale=colour, legend=alt.Legend(title=None, orient="top")),
        shape=alt.Shape("tier:N", scale=_scale(alt, 1), legend=_legend(alt, {p["tier"] for p in points})),
    )
    title = f"Roofline: {len(points)} points of {run.manifest.name} below its measured peaks"
    return finished(alt, roof + names + dots, safe.terminal(title), 1, height=340)


def _has_roof(row: Row) -> bool:
    return row.workload != PEAKS_WORKLOAD and bool(row.bytes_per_s and (row.flop_per_s or row.op_per_s))


def _roof_point(row: Row) -> dict[str, Any]:
    rate = (row.flop_per_s or 0.0) + (row.op_per_s or 0.0)
    family = family_of(row.workload)
    return {
        "intensity": float(f"{rate / (row.bytes_per_s or 1.0):.3g}"),
        "rate": float(f"{rate:.3g}"),
        "family": safe.terminal(FAMILIES.get(family, family)),
        "tier": tier_text(row.tier),
    }


def _distinct(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({tuple(point.values()): point for point in points}.values())


def _roofs(run: Run) -> list[tuple[str, float, float]]:
    """Name, compute peak and read bandwidth of each measured roof."""
    peaks = measured_peaks(run)
    reads = {device: rate for (device, name), rate in peaks.items() if name == "read_bytes_per_s"}
    return [
        (
            f"{safe.terminal(name.removesuffix('_per_s').replace('_', ' '))} on {safe.terminal(device)}",
            rate,
            reads[device],
        )
        for (device, name), rate in peaks.items()
        if device in reads and not name.endswith("bytes_per_s")
    ]


def _roof_lines(name: str, peak: float, read: float, first: float, last: float) -> list[dict[str, Any]]:
    ridge = peak / read
    stops = [first, *([ridge] if first < ridge < last else []), max(last, ridge)]
    return [
        {"name": name, "intensity": at, "rate": min(peak, at * read), "last": number == len(stops) - 1}
        for number, at in enumerate(stops)
    ]


def per_joule_svg(rows: Sequence[Row]) -> str | None:
    """Tokens per joule: measured ones as points, modelled ones as intervals; ``None`` where nothing is known."""
    data = [point for row in rows for point in _joule_points(row)][:MOST_LINES]
    if not data:
        return None
    import altair as alt

    scale = alt.Scale(type="log", nice=False, padding=12)
    colour = alt.Color("tier:N", scale=_scale(alt, 0), legend=None)
    base, names = labelled(alt, data)
    base = base.encode(color=colour)
    dash = alt.StrokeDash(
        "tier:N", scale=alt.Scale(domain=list(_TIERS), range=[[1, 0], [6, 2], [3, 3], [1, 3]]), legend=None
    )
    span = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", strokeDash=dash)
    legend = _legend(alt, {point["tier"] for point in data})
    mark = base.mark_point(filled=True, size=60, opacity=1).encode(
        x=alt.X("value:Q", scale=scale, title="tokens per joule"),
        shape=alt.Shape("tier:N", scale=_scale(alt, 1), legend=legend),
    )
    return finished(alt, span + mark + names, "Tokens per joule; a modelled interval decides nothing", len(data))


def _joule_points(row: Row) -> list[dict[str, Any]]:
    if row.token_per_joule:
        value = row.token_per_joule
        return [{"label": _label(row, Tier.MEASURED), "tier": "measured", "low": value, "high": value, "value": value}]
    low, high = row.token_per_joule_low, row.token_per_joule_high
    if low and high:
        middle = (low * high) ** 0.5
        return [{"label": _label(row, Tier.MODELLED), "tier": "modelled", "low": low, "high": high, "value": middle}]
    return []


def per_flop_svg(rows: Sequence[Row]) -> str | None:
    """Speed against tokens per FLOP, one point per case: what a saved operation pays; ``None`` below two cases."""
    data = _distinct([_flop_point(row) for row in rows if row.token_per_flop and row.token_per_s])[:MOST_CASES]
    if len(data) < 2:
        return None
    import altair as alt

    regimes = sorted({point["regime"] for point in data})
    log = alt.Scale(type="log", nice=False, padding=16)
    dots = alt.Chart(alt.Data(values=data)).mark_point(filled=True, size=55, opacity=0.85)
    dots = dots.encode(
        x=alt.X("token_per_mflop:Q", scale=log, title="tokens per MFLOP (by formula)", axis=alt.Axis(format="~g")),
        y=alt.Y("token_per_s:Q", scale=log, title="tokens per second", axis=alt.Axis(format="~s")),
        color=alt.Color(
            "regime:N",
            scale=alt.Scale(domain=regimes, range=[_FAMILY_COLOURS[i % 6] for i in range(len(regimes))]),
            legend=alt.Legend(title=None, orient="top", columns=4),
        ),
        shape=alt.Shape("tier:N", scale=_scale(alt, 1), legend=_legend(alt, {point["tier"] for point in data})),
    )
    return finished(alt, dots, "Speed over tokens per FLOP", 1, height=260)


def _flop_point(row: Row) -> dict[str, Any]:
    return {
        "token_per_mflop": float(f"{1e6 * (row.token_per_flop or 0):.3g}"),
        "token_per_s": float(f"{row.token_per_s:.3g}"),
        "regime": safe.terminal(row.regime),
        "tier": tier_text(row.tier),
    }


def _label(row: Row, tier: Tier) -> str:
    return named((row.variant, row.shape, row.regime, row.backend), tier)


def _scale(alt: Any, which: int) -> Any:
    return alt.Scale(domain=list(_TIERS), range=[pair[which] for pair in _TIERS.values()])


def _legend(alt: Any, tiers: set[str]) -> Any:
    """Only the tiers that occur."""
    return alt.Legend(title=None, orient="top", values=[tier for tier in _TIERS if tier in tiers])
