"""Where the noise of a comparison comes from, and how to spend time against it (Kalibera and Jones, ISMM 2013).

Times of identical arms, on a log scale: ``y[arm, replicate, round] = arm + drift[replicate] + process[arm, replicate]
+ round[replicate, round] + turn[arm, replicate, round]``. Drift and round hit all arms alike and cancel in a paired
ratio. Process (this start's memory layout, placement) and turn do not: more rounds average the turn away, only more
replicates average the process away.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance

from frugalbench.analysis.statistics import counted, latest, round_values, void_rounds
from frugalbench.schema import Record

Table = Sequence[Sequence[float]]
"""Log times of one replicate: rows are arms, columns are rounds."""


@dataclass(frozen=True)
class Components:
    """Standard deviations on a log scale (0.01 is about 1%), of one arm's time."""

    drift: float
    """Between replicates, shared by all arms."""
    process: float
    """Between fresh starts of the same arm, after the drift: limits what rounds can buy."""
    round: float
    """Between rounds of a replicate, shared by all arms."""
    turn: float
    """What is left: one turn against the next."""
    replicates: int
    rounds: float


def components(tables: Sequence[Table]) -> Components | None:
    """Components from replicates of at least two arms and two rounds each; ``None`` with fewer than two of them."""
    whole = [table for table in tables if len(table) >= 2 and min(map(len, table)) >= 2]
    whole = [table for table in whole if len(table) == len(whole[0]) and len(set(map(len, table))) == 1]
    if len(whole) < 2:
        return None
    arms, rounds = len(whole[0]), fmean(len(table[0]) for table in whole)
    turn = fmean(_residual(table) for table in whole)
    between_rounds = fmean(variance(_columns(table)) for table in whole) - turn / arms
    means = [[fmean(row) for row in table] for table in whole]
    process = _residual(_transposed(means)) - turn / rounds
    drift = variance([fmean(row) for row in means]) - process / arms - between_rounds / rounds - turn / arms / rounds
    return Components(_root(drift), _root(process), _root(between_rounds), _root(turn), len(whole), rounds)


def _residual(table: Table) -> float:
    """Mean square of the interaction of a two-way table: what neither its rows nor its columns explain."""
    rows, columns, grand = [fmean(row) for row in table], _columns(table), fmean(map(fmean, table))
    squares = sum(
        (value - rows[i] - columns[j] + grand) ** 2 for i, row in enumerate(table) for j, value in enumerate(row)
    )
    return squares / ((len(rows) - 1) * (len(columns) - 1))


def _columns(table: Table) -> list[float]:
    return [fmean(column) for column in zip(*table, strict=True)]


def _transposed(table: Table) -> list[tuple[float, ...]]:
    return list(zip(*table, strict=True))


def _root(value: float) -> float:
    return math.sqrt(max(0.0, value))


def pair_variances(rounds: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """Variance within and between replicates of one pair's log-ratios, each replicate a list of rounds."""
    usable = [values for values in rounds if len(values) >= 2]
    if len(usable) < 2:
        return None
    within = fmean(variance(values) for values in usable)
    between = variance([fmean(values) for values in usable]) - within / fmean(map(len, usable))
    return within, max(0.0, between)


def best_rounds(within: float, between: float, fixed_s: float, round_s: float, least: int, most: int) -> int:
    """Rounds per replicate that give the narrowest interval for the time: root of both quotients (Kalibera and Jones).

    ``fixed_s`` is what a replicate costs before its first round, ``round_s`` what each round costs.
    """
    if within <= 0 or round_s <= 0:
        return least
    if between <= 0:
        return most
    return max(least, min(most, round(math.sqrt(fixed_s / round_s * within / between))))


def smallest_effect(spread: float, replicates: int, alpha: float, floor: float, power: float = 0.8) -> float | None:
    """Smallest difference (0.03: 3%) that a comparison of ``replicates`` finds with probability ``power``.

    ``spread`` is the standard deviation of the replicates' log-ratios. Noncentral t; ``None`` below two replicates.
    """
    if replicates < 2:
        return None
    from scipy.special import nctdtrinc, stdtrit

    critical = float(stdtrit(replicates - 1, 1 - alpha / 2))
    shift = float(nctdtrinc(replicates - 1, 1 - power, critical))
    return math.expm1(shift * spread / math.sqrt(replicates) + math.log1p(floor))


FEWEST_REPLICATES = 3
"""Below this the variance between replicates is a guess that no spending should rest on."""


def rounds_for(records: Sequence[Record], fixed_s: float, round_s: float, configured: int) -> int | None:
    """Rounds per replicate that suit the noise of a comparison so far, between half and twice the configured number.

    The median over its pairs and regimes of :func:`best_rounds`; ``None`` before three counted replicates.
    """
    least, most = max(3, configured // 2), 2 * configured
    found = [pair_variances(rounds) for rounds in _pairs(latest(records)) if len(rounds) >= FEWEST_REPLICATES]
    wanted = [best_rounds(*item, fixed_s, round_s, least, most) for item in found if item is not None]
    return round(median(wanted)) if wanted else None


def _pairs(records: Sequence[Record]) -> list[list[list[float]]]:
    """Log-ratios of every later arm to the first one, per regime: a list of rounds for each replicate."""
    spoilt = void_rounds(records)
    by_case: dict[tuple[str, str], dict[int, dict[int, float]]] = {}
    for record in records:
        if counted(record):
            bad = spoilt.get((record.comparison, record.case.regime, record.replicate), set())
            rounds = by_case.setdefault((record.case.regime, record.case.variant), {})
            rounds[record.replicate] = round_values(record, "time", bad)
    firsts: dict[str, dict[int, dict[int, float]]] = {}
    pairs = []
    for (regime, _), rounds in by_case.items():
        base = firsts.setdefault(regime, rounds)
        if base is not rounds:
            pairs.append([_logs(base[number], rounds[number]) for number in sorted(base.keys() & rounds.keys())])
    return pairs


def _logs(base: dict[int, float], other: dict[int, float]) -> list[float]:
    return [math.log(base[number] / other[number]) for number in sorted(base.keys() & other.keys())]
