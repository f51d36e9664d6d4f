"""Emulated ranks that grow in number or differ in pace: what added ranks bring, and what a mix keeps of its parts.

The estimands are those of the modelled ``net.decay`` and ``net.hetero``, at 2 to 8 real ranks: area under the curve of
marginal throughput, slow links over fast ones; throughput of a mix over the sum of what its pairs reach alone.
Descriptive: both claims are judged by their models. A unit of work is one local step of one rank of a mix with equal
shares. A replicate contributes the median of its good rounds; intervals are over replicates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import msgspec

from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import Run
from frugalbench.analysis.statistics import Interval, counted, interval, latest, round_values, void_rounds
from frugalbench.gloo import Network
from frugalbench.schema import Record

WORKLOAD = "emulated_network"
FAST_LINKS, SLOW_LINKS = "fast-links", "slow-links"
FAST_PAIR, SLOW_PAIR = "fast-pair", "slow-pair"
MIXES = ("equal-shares", "shares-by-speed")
ALPHA = 0.05
_MOST_RANKS = 64

Rates = Mapping[int, float]
"""Units of work per second of all ranks, by replicate."""


@dataclass(frozen=True)
class Grown:
    """One number of ranks on one kind of links."""

    variant: str
    ranks: int
    link_bytes_per_s: float | None
    """Of each rank's link, as the record states it."""
    unit_per_s: float
    """Of all ranks; geometric mean over replicates."""
    kept: Interval | None
    """Throughput of a rank over that of a rank among the fewest; ``None`` for the fewest."""


@dataclass(frozen=True)
class Growth:
    """All numbers of ranks, and the area under the curves of marginal throughput."""

    points: tuple[Grown, ...]
    area: Interval | None
    """Slow links over fast ones; ``None`` where one of them has none, or gains nothing by more ranks."""


@dataclass(frozen=True)
class Mixed:
    """One way to give out work in a mix."""

    variant: str
    unit_per_s: float
    over_parts: Interval | None
    """Throughput over the sum of the pairs' alone."""


def growth(run: Run) -> Growth:
    """Of a run's ``growth`` scene; without points where it has none."""
    found, floor = _rates(run, (FAST_LINKS, SLOW_LINKS)), evidence_of(run).floor
    fewest = {variant: min(n for name, n in found if name == variant) for variant, _ in found}
    links = {(r.case.variant, _ranks(r)): _link(r) for r in run.records if r.case.workload == WORKLOAD}
    points = [
        Grown(variant, ranks, links[variant, ranks], _mean(rates), _kept(found, variant, ranks, fewest[variant], floor))
        for (variant, ranks), rates in sorted(found.items())
    ]
    gained = [_gained(found, variant) for variant in (SLOW_LINKS, FAST_LINKS)]
    return Growth(tuple(points), _over(gained[0], gained[1], floor))


def mixes(run: Run) -> list[Mixed]:
    """Of a run's ``mix`` scene."""
    found = {variant: rates for (variant, _), rates in _rates(run, (FAST_PAIR, SLOW_PAIR, *MIXES)).items()}
    parts = [found.get(name, {}) for name in (FAST_PAIR, SLOW_PAIR)]
    alone = {n: parts[0][n] + parts[1][n] for n in parts[0].keys() & parts[1].keys()}
    floor = evidence_of(run).floor
    return [Mixed(name, _mean(found[name]), _over(found[name], alone, floor)) for name in MIXES if name in found]


def _ranks(record: Record) -> int:
    """0 where the record does not say."""
    ranks = record.case.params.get("ranks")
    return ranks if type(ranks) is int and 2 <= ranks <= _MOST_RANKS else 0


def _link(record: Record) -> float | None:
    try:
        network = msgspec.convert(record.case.params.get("network"), Network)
    except msgspec.ValidationError:
        return None
    return network.ports[0].rate_bytes_per_s if network.ports else None


def _rates(run: Run, variants: Sequence[str]) -> dict[tuple[str, int], dict[int, float]]:
    """By variant and number of ranks."""
    every = [r for r in latest(run.records) if r.case.workload == WORKLOAD and r.case.variant in variants]
    spoilt, found = void_rounds(every), dict[tuple[str, int], dict[int, float]]()
    for record in every:
        ranks = _ranks(record)
        if not counted(record) or not ranks:
            continue
        bad = spoilt.get((record.comparison, record.case.regime, record.replicate), set())
        if values := round_values(record, "time", bad).values():
            found.setdefault((record.case.variant, ranks), {})[record.replicate] = 1 / median(values)
    return found


def _kept(
    found: Mapping[tuple[str, int], Rates], variant: str, ranks: int, fewest: int, floor: float
) -> Interval | None:
    if ranks == fewest:
        return None
    most, least = found[variant, ranks], found[variant, fewest]
    return interval(_logs(most, least), fewest / ranks, ALPHA, floor)


def _gained(found: Mapping[tuple[str, int], Rates], variant: str) -> Rates:
    """Area under marginal throughput over ranks: what the most ranks reach above the fewest."""
    counts = sorted(ranks for name, ranks in found if name == variant)
    if len(counts) < 2:
        return {}
    least, most = found[variant, counts[0]], found[variant, counts[-1]]
    return {number: most[number] - least[number] for number in most.keys() & least.keys()}


def _over(ours: Rates, theirs: Rates, floor: float) -> Interval | None:
    logs = _logs(ours, theirs)
    return interval(logs, 1.0, ALPHA, floor) if len(logs) == len(ours.keys() & theirs.keys()) else None


def _logs(ours: Rates, theirs: Rates) -> list[float]:
    """Of the replicates that both have; one that lost by growing has none."""
    both = sorted(ours.keys() & theirs.keys())
    return [math.log(ours[n] / theirs[n]) for n in both if ours[n] > 0 and theirs[n] > 0]


def _mean(rates: Rates) -> float:
    return math.exp(fmean(map(math.log, rates.values())))
