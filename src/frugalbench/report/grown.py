"""Emulated ranks that grow in number or differ in pace, with the estimands of the modelled claims beside them."""

from collections.abc import Iterable, Sequence

from frugalbench.analysis.grown import Grown, Growth, Mixed, growth, mixes
from frugalbench.analysis.load import Run
from frugalbench.analysis.statistics import Interval
from frugalbench.report.tables import LEAST_BOUND, MOST_BOUND, Cell, Table
from frugalbench.units import DASH, significant

_GROWN = ("links", "Mbit/s", "ranks", "units/s", "units/s per rank", "kept per rank")
_MIXED = ("work given out", "units/s", "over the sum of the parts")
_HOW = "emulated: real gloo ranks on shaped links, computing a sleep; a unit of work is one local step of one rank"


def grown_tables(runs: Sequence[Run]) -> list[Table]:
    """Up to two tables for each run that has such scenes."""
    return [table for run in runs for table in (*_growth(run, growth(run)), *_mix(run, mixes(run)))]


def _growth(run: Run, found: Growth) -> Iterable[Table]:
    if found.points:
        columns = tuple((name, name != "links") for name in _GROWN)
        title = f"Growing: what added ranks bring on fast and on slow links ({run.manifest.name})"
        yield Table(title, columns, tuple(map(_line, found.points)), tuple(_growth_notes(found)), "net")


def _growth_notes(found: Growth) -> Iterable[str]:
    yield f"{_HOW}; as many units for each rank whatever their number, nothing overlaps"
    yield "kept per rank: throughput of a rank over that among the fewest ranks"
    if found.area is not None:
        yield f"area under marginal throughput, slow links over fast ones: {_ratio(found.area)} (estimand of net.decay)"


def _line(point: Grown) -> tuple[Cell, ...]:
    return (
        Cell(point.variant),
        Cell(significant(point.link_bytes_per_s and point.link_bytes_per_s * 8e-6)),
        Cell(str(point.ranks)),
        Cell(significant(point.unit_per_s), mark="emulated"),
        Cell(significant(point.unit_per_s / point.ranks), mark="emulated"),
        Cell(_ratio(point.kept), mark="emulated" if point.kept else ""),
    )


def _mix(run: Run, found: Sequence[Mixed]) -> Iterable[Table]:
    if found:
        columns = tuple((name, name != "work given out") for name in _MIXED)
        title = f"Mixing: two ranks and two of half their pace ({run.manifest.name})"
        notes = (
            _HOW,
            "the parts: each pair alone, with as much work for each rank (estimand of net.hetero)",
            "four ranks exchange for longer than two: what shares by speed lose is that, not waiting for the slow pair",
        )
        yield Table(title, columns, tuple(map(_share, found)), notes, "net")


def _share(item: Mixed) -> tuple[Cell, ...]:
    mark = "emulated" if item.over_parts else ""
    return (
        Cell(item.variant),
        Cell(significant(item.unit_per_s), mark="emulated"),
        Cell(_ratio(item.over_parts), mark=mark),
    )


def _ratio(found: Interval | None) -> str:
    if found is None:
        return DASH
    ratio = significant(found.ratio)
    return ratio if found.low is None else f"{ratio} [{_bound(found.low)}, {_bound(found.high)}]"


def _bound(value: float | None) -> str:
    """A bound of a ratio; where two replicates allow anything, its digits would only widen the table."""
    if value is not None and value < LEAST_BOUND:
        return f"<{LEAST_BOUND:g}"
    return f">{MOST_BOUND:g}" if value is not None and value > MOST_BOUND else significant(value)
