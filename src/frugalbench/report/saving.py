"""Mixtures of experts: what each way of computing them pays out, beside what the paper promises."""

from collections.abc import Iterator, Sequence

from frugalbench.analysis.load import Run
from frugalbench.analysis.saving import Saving, break_even, savings, skew
from frugalbench.analysis.statistics import Interval
from frugalbench.report.tables import Cell, Table
from frugalbench.units import DASH, interval, seconds, share, significant

_COLUMNS = ("tokens", "arm", "time", "roofline", "speed / active dense", "of saving")


def saving_tables(runs: Sequence[Run]) -> list[Table]:
    """Per run a table for each shape, and one of what skewed routing costs; empty when no run measured mixtures."""
    tables = []
    for run in runs:
        found = savings(run)
        tables += [_table(run, shape, rows) for shape, rows in _by_shape(found).items()]
        tables += [_skew_table(run, skew(found))] if skew(found) else []
    return tables


def _skew_table(run: Run, points: dict[tuple[str, int], dict[str, dict[str, float]]]) -> Table:
    routings = list(dict.fromkeys(name for arms in points.values() for times in arms.values() for name in times))
    titles = ("layer", "tokens", "arm", *routings)
    rows = tuple(
        (
            Cell(layer),
            Cell(str(tokens)),
            Cell(arm.removeprefix("moe-")),
            *(Cell(seconds(times.get(r))) for r in routings),
        )
        for (layer, tokens), arms in points.items()
        for arm, times in arms.items()
    )
    notes = (
        "seconds per call by routing; router: as random weights route, one: every token to the same experts",
        "a skewed batch hits fewer experts, so it moves fewer bytes; its busiest expert takes more of the time",
        "routings were measured one after the other, not turn by turn: no interval, and nothing is decided by it",
    )
    columns = tuple((title, title not in ("layer", "arm")) for title in titles)
    return Table(f"What skewed routing costs ({run.manifest.name})", columns, rows, notes, "moe")


def _by_shape(found: Sequence[Saving]) -> dict[str, list[Saving]]:
    shapes: dict[str, list[Saving]] = {}
    for item in found:
        shapes.setdefault(item.shape, []).append(item)
    return shapes


def _table(run: Run, shape: str, found: Sequence[Saving]) -> Table:
    drops = any(item.dropped_share is not None for item in found)
    title = f"Mixture of experts {shape} ({run.manifest.name})"
    columns = tuple((name, name != "arm") for name in (*_COLUMNS, *(("dropped",) if drops else ())))
    lines = tuple(_line(item) + ((Cell(share(item.dropped_share)),) if drops else ()) for item in found)
    return Table(title, columns, lines, tuple(_notes(found, drops)), "moe")


def _notes(found: Sequence[Saving], drops: bool) -> Iterator[str]:
    yield "speed over the fastest dense layer of equal active parameters, with its 95% interval"
    share_of = "speed over the fastest dense layer of equal total parameters, as a share of the saving on paper"
    yield f"of saving: {share_of}{_paper(found)}"
    yield "roofline: share of the limit set by the FLOP, and the bytes of the experts that the tokens really hit"
    if any(item.view == "block" for item in found):
        yield "a whole block: attention, the same in every arm, is in all times and FLOP"
    if drops:
        yield "dropped: share of routed token copies that found their expert full; they are not computed"
    if sentence := break_even(found):
        yield sentence


def _paper(found: Sequence[Saving]) -> str:
    """The saving on paper; it varies where attention or dropped copies weigh more at some numbers of tokens."""
    ratios = sorted(item.flop_ratio for item in found if item.flop_ratio)
    if not ratios:
        return ""
    ends = dict.fromkeys(significant(ratio) for ratio in (ratios[0], ratios[-1]))
    return f" ({' to '.join(ends)} times fewer FLOP)"


def _line(item: Saving) -> tuple[Cell, ...]:
    training = " training" if item.regime == "training" else ""
    return (
        Cell(f"{item.tokens}{training}"),
        Cell(item.row.variant.removeprefix("moe-"), hint=item.row.case),
        Cell(seconds(item.row.time_s), hint=item.row.source),
        Cell(share(item.row.roofline_share)),
        Cell(_ratio(item.over_active)),
        Cell(share(item.realised), hint=f"{_ratio(item.over_total)} times as fast"),
    )


def _ratio(found: Interval | None) -> str:
    if found is None:
        return DASH
    bounds = interval(found.low, found.high)
    return significant(found.ratio) + ("" if bounds == DASH else f" {bounds}")
