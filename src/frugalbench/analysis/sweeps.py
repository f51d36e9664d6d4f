"""Curves and maps that a report draws: those that records keep, and that of two emulated sites, from its verdicts.

Nothing is computed here; every point is a stored one, or the ratio and interval of a verdict.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from frugalbench.analysis.grounds import Grounds, grounds
from frugalbench.analysis.load import Run
from frugalbench.analysis.plausible import MOST_POINTS, sweep_fault
from frugalbench.analysis.statistics import counted, latest
from frugalbench.gloo import Network, Wan, Work
from frugalbench.schema import Record, Sweep, Tier, Verdict

CROSS_REGION = "net.cross_region"
MOST_STEPS, MOST_BYTES_PER_S = 2**31, 1e15
Group = tuple[Sweep, ...]
"""Of one figure and unit, over the same inputs."""


def stored(runs: Sequence[Run], workloads: Collection[str]) -> list[Sweep]:
    """What the counted records of some workloads keep; the same sweep in several records is one."""
    records = [latest(record for record in run.records if record.case.workload in workloads) for run in runs]
    valid = [record for found in records for record in found if counted(record)]
    mine = [sweep for record in valid for sweep in (*record.sweeps, *_planes(record))]
    return list({msgspec.json.encode(sweep): sweep for sweep in mine}.values())


class _Plane(msgspec.Struct):
    """A table among a record's details: columns of equal length, one of them the value, ``_low`` and ``_high`` beside
    it where it has bounds."""

    columns: dict[str, list[float | str | None]]
    value: str
    units: dict[str, str] = {}
    threshold: float | None = None


def _planes(record: Record) -> Iterator[Sweep]:
    for held in record.details.values():
        if not isinstance(held, dict) or not {"columns", "value"} <= held.keys():
            continue
        try:
            plane = msgspec.convert(held, _Plane)
        except msgspec.ValidationError:
            continue
        lengths = {len(column) for column in plane.columns.values()}
        if plane.value in plane.columns and len(lengths) == 1 and max(lengths) <= MOST_POINTS:
            yield from (sweep for sweep in _cut(record, plane) if sweep_fault(sweep) is None)


def _cut(record: Record, plane: _Plane) -> Iterator[Sweep]:
    """A sweep for each combination of what is no axis. Axes are the numbers of three different values or more, the two
    with most."""
    bounds = {f"{plane.value}{end}" for end in ("", "_low", "_high")}
    inputs = {name: column for name, column in plane.columns.items() if name not in bounds}
    numbers = [name for name, column in inputs.items() if all(isinstance(item, float) for item in column)]
    wide = sorted((name for name in numbers if len(set(inputs[name])) > 2), key=lambda name: -len(set(inputs[name])))
    axes, rest = wide[:2], [name for name in inputs if name not in wide[:2]]
    lines: dict[str, list[int]] = {}
    for number in range(len(plane.columns[plane.value])):
        words = (_word(inputs[name][number], plane.units.get(name, "")) for name in rest)
        lines.setdefault(", ".join(words), []).append(number)
    for line, at in lines.items():
        yield _line(record, plane, axes, line, at)


def _word(value: float | str | None, unit: str) -> str:
    return f"{value:g} {unit}".strip() if isinstance(value, float) else str(value)


def _line(record: Record, plane: _Plane, axes: Sequence[str], line: str, numbers: Sequence[int]) -> Sweep:
    def column(name: str) -> tuple[float | None, ...]:
        held = plane.columns.get(name) or []
        return tuple(item if isinstance(item := held[n], float) else None for n in numbers if held)

    case, name = record.case, plane.value
    return Sweep(
        figure=f"{name.replace('_', ' ')}, {case.regime}",
        unit=plane.units.get(name, ""),
        line=line or case.variant,
        tier=record.tier,
        over={axis: tuple(item or 0.0 for item in column(axis)) for axis in axes},
        value=column(name),
        low=column(f"{name}_low"),
        high=column(f"{name}_high"),
        least=plane.threshold,
        source=f"{case.variant}: {case.shape}",
    )


def grouped(sweeps: Sequence[Sweep]) -> list[Group]:
    """By what can stand in one chart, in the order of first appearance; lines of one name are numbered."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[Sweep]] = {}
    for sweep in sweeps:
        if any(value is not None for value in sweep.value):
            groups.setdefault((sweep.figure, sweep.unit, tuple(sweep.over)), []).append(sweep)
    return [tuple(_numbered(group)) for group in groups.values()]


def _numbered(group: Sequence[Sweep]) -> Iterator[Sweep]:
    seen: dict[str, int] = {}
    for sweep in group:
        seen[sweep.line] = number = seen.get(sweep.line, 0) + 1
        yield sweep if number == 1 else msgspec.structs.replace(sweep, line=f"{sweep.line} ({number})")


@dataclass(frozen=True)
class _Point:
    """A verdict on two emulated sites, with the link that joined them and how they exchanged."""

    verdict: Verdict
    wan: Wan
    work: Work


def two_sites(runs: Sequence[Run], verdicts: Sequence[Verdict]) -> list[Sweep]:
    """``net.cross_region`` over steps between exchanges and, where runs have several of them, over bandwidth; of what
    was measured twice the last."""
    wanted = [v for v in verdicts if v.claim == CROSS_REGION and v.ratio is not None and v.tier is Tier.EMULATED]
    found = zip(wanted, grounds(runs, wanted) if wanted else (), strict=True)
    points = [point for verdict, basis in found if basis and (point := _point(runs, verdict, basis))]
    kinds: dict[tuple[float, bool], dict[tuple[float, int], _Point]] = {}
    for point in points:
        kinds.setdefault((point.wan.delay_s, point.work.overlap), {})[_place(point)] = point
    several = len({point.wan.rate_bytes_per_s for point in points}) > 1
    return [_sites(*key, sorted(kind.values(), key=_place), several) for key, kind in kinds.items()]


def _place(point: _Point) -> tuple[float, int]:
    return point.wan.rate_bytes_per_s, point.work.steps


def _point(runs: Sequence[Run], verdict: Verdict, basis: Grounds) -> _Point | None:
    """``None`` where the record's parameters describe no two sites."""
    candidates = {case for role, case in basis.cases if role == "candidate"}
    params = next((r.case.params for r in runs[basis.run].records if r.case.id in candidates), {})
    try:
        wan = msgspec.convert(params.get("network"), Network).wan
        work = msgspec.convert(params.get("work"), Work)
    except msgspec.ValidationError:
        return None
    sane = wan is not None and 0 < work.steps < MOST_STEPS and 0 < wan.rate_bytes_per_s < MOST_BYTES_PER_S
    return _Point(verdict, wan, work) if wan is not None and sane else None


def _sites(delay_s: float, overlap: bool, points: Sequence[_Point], several: bool) -> Sweep:
    steps, rates = ([float(p.work.steps) for p in points], [8 * p.wan.rate_bytes_per_s for p in points])
    over = {"between_sites_bit_per_s": tuple(rates)} if several else {}
    link = f"{1e3 * delay_s:g} ms one way" if several else f"{rates[0] / 1e6:g} Mbit/s, {1e3 * delay_s:g} ms one way"
    verdicts = [point.verdict for point in points]
    return Sweep(
        figure=f"speed of two sites over one, {link}",
        unit="1",
        line="overlapped" if overlap else "not overlapped",
        tier=Tier.EMULATED,
        over={**over, "steps_between_exchanges": tuple(steps)},
        value=tuple(v.ratio for v in verdicts),
        low=tuple(v.low for v in verdicts),
        high=tuple(v.high for v in verdicts),
        least=verdicts[0].threshold,
        source=verdicts[0].source,
    )
