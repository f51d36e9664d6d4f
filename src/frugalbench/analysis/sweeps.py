"""Curves and maps that a report draws: those that records keep, and that of two emulated sites, from its verdicts.

Nothing is computed here; every point is a stored one, or the ratio and interval of a verdict.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from frugalbench.analysis.grounds import Grounds, grounds
from frugalbench.analysis.load import Run
from frugalbench.analysis.statistics import counted, latest
from frugalbench.gloo import Network, Wan, Work
from frugalbench.schema import Sweep, Tier, Verdict

CROSS_REGION = "net.cross_region"
MOST_STEPS, MOST_BYTES_PER_S = 2**31, 1e15
Group = tuple[Sweep, ...]
"""Of one figure and unit, over the same inputs."""


def stored(runs: Sequence[Run], workloads: Sequence[str]) -> list[Sweep]:
    """What the counted records of some workloads keep; the same sweep in several records is one."""
    records = [record for run in runs for record in latest(run.records) if counted(record)]
    mine = [sweep for record in records if record.case.workload in workloads for sweep in record.sweeps]
    return list({msgspec.json.encode(sweep): sweep for sweep in mine}.values())


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
        figure=f"speed of two sites over one, {link} between them",
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
