"""How often ``compare`` cries wolf, and how often it finds one case of many that became slower. Synthetic records.

``python tests/benchmarks/compare_rates.py --runs 400 --seed 1`` prints a line per condition: the share of pairs of
identical runs with any alarm (goal: at most 5%), the share in which one case of 50, made 5% slower, is named (goal: at
least 90%), the share that a test which knew noise and drift would name (the law: what no procedure with that floor and
5% over all cases passes by much), and the share named when the case is slower by what the first run prints as the
smallest slowdown found four times in five. Conditions: replicates, noise between processes, A/A floor, drift of the
machine between the runs.
"""

import argparse
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent.parent))

from factory import make_case, make_manifest, make_record
from frugalbench.analysis.compare import ALPHA, REGRESSED, compare
from frugalbench.analysis.load import Run
from frugalbench.schema import Plan, Record

_UNLIKE = 0.35
"""Standard deviation of the cases' log noise."""


@dataclass(frozen=True)
class Condition:
    """What the two runs are like."""

    cases: int = 50
    replicates: int = 6
    noise: float = 0.01
    """Standard deviation between processes, on a log scale; cases differ from it by a factor of up to about two."""
    floor: float = 0.005
    shift: float = 0.0
    """Of the machine between the runs, all cases alike."""
    drift: float = 0.0
    """Of the machine between the runs, each case by itself."""
    heavy: bool = False
    """Student's t with 4 degrees of freedom, instead of normal noise."""
    odd: bool = False
    """The same for the drift: now and then a case moves far, as where code or data came to lie elsewhere."""


CONDITIONS = (
    Condition(), Condition(replicates=4), Condition(replicates=10), Condition(noise=0.005), Condition(noise=0.02),
    Condition(noise=0.02, replicates=16), Condition(floor=0.03), Condition(floor=0.03, replicates=10),
    Condition(heavy=True), Condition(shift=0.04), Condition(drift=0.01), Condition(drift=0.03),
    Condition(noise=0.02, floor=0.03), Condition(noise=0.02, floor=0.03, replicates=16), Condition(floor=0.0),
    Condition(drift=0.01, odd=True, floor=0.0), Condition(drift=0.01, odd=True, floor=0.03),
    Condition(cases=10), Condition(cases=10, drift=0.02), Condition(cases=300),
)  # fmt: skip


def noises(condition: Condition, rng: np.random.Generator) -> np.ndarray:
    """Standard deviation of each case."""
    found: np.ndarray = condition.noise * np.exp(_UNLIKE * rng.standard_normal(condition.cases))
    return found


def pair(
    condition: Condition, rng: np.random.Generator, slower: float = 1.0, spreads: np.ndarray | None = None
) -> tuple[Run, Run]:
    """Two runs of the same code; case 0 of the second is ``slower`` times as slow."""
    spreads = noises(condition, rng) if spreads is None else spreads
    wander = (
        rng.standard_t(4, condition.cases) / math.sqrt(2) if condition.odd else rng.standard_normal(condition.cases)
    )
    moved = condition.shift + condition.drift * wander
    moved[0] += math.log(slower)
    sides = [_run(condition, rng, spreads, shift) for shift in (np.zeros(condition.cases), moved)]
    return sides[0], sides[1]


def _run(condition: Condition, rng: np.random.Generator, spreads: np.ndarray, moved: np.ndarray) -> Run:
    records: list[Record] = []
    for number in range(condition.cases):
        case = make_case(id=f"case{number}")
        for replicate in range(1, condition.replicates + 1):
            luck = rng.standard_t(4) / math.sqrt(2) if condition.heavy else rng.standard_normal()
            time_s = 0.01 * math.exp(moved[number] + spreads[number] * luck)
            records.append(
                make_record(case=case, comparison=f"c{number}", replicate=replicate, time_s=[time_s], pss_bytes=None)
            )
    manifest = make_manifest(floor=condition.floor, plan=Plan(seed=1, comparisons=()))
    return Run(Path(tempfile.gettempdir()), manifest, tuple(records))


def alarms(condition: Condition, runs: int, seed: int) -> float:
    """Share of pairs of identical runs of which any case is called regressed or improved."""
    rng = np.random.default_rng(seed)
    return sum(_any(compare(*pair(condition, rng), 0.0).changes) for _ in range(runs)) / runs


def _any(changes: tuple[object, ...]) -> bool:
    return any(change.outcome in (REGRESSED, "improved") for change in changes)  # type: ignore[attr-defined]


def found(condition: Condition, runs: int, seed: int, slower: float = 1.05) -> tuple[float, float]:
    """Share of pairs in which the slower case is named, and in which another one is."""
    rng = np.random.default_rng(seed)
    named = others = 0
    for _ in range(runs):
        names = {c.case for c in compare(*pair(condition, rng, slower), 0.0).changes if c.outcome == REGRESSED}
        named += "case0" in names
        others += bool(names - {"case0"})
    return named / runs, others / runs


def law(condition: Condition, slower: float = 1.05, draws: int = 4000) -> float:
    """Share that a two-sided normal test at 5% over the cases names, given the true noise and drift and no other case
    that stands out. Heavy tails are left out: it is then an orientation."""
    rng = np.random.default_rng(0)
    noise = condition.noise * np.exp(_UNLIKE * rng.standard_normal(draws))
    error = np.sqrt(2 * noise**2 / condition.replicates + condition.drift**2)
    least = stats.norm.ppf(1 - ALPHA / 2 / condition.cases)
    return float(stats.norm.sf(least - (math.log(slower) - math.log1p(condition.floor)) / error).mean())


def promised(condition: Condition, runs: int, seed: int) -> float:
    """Share of pairs in which the case is named, when it is slower by what another pair printed as found in 80%."""
    rng = np.random.default_rng(seed)
    named = 0
    for _ in range(runs):
        spreads = noises(condition, rng)
        least = compare(*pair(condition, rng, spreads=spreads)).changes[0].detectable or 0.0
        again = compare(*pair(condition, rng, 1 + least, spreads), 0.0).changes
        named += again[0].outcome == REGRESSED
    return named / runs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{'any alarm':>10} {'5% found':>9} {'law':>7} {'another named':>14} {'as printed':>11}  condition")
    for condition in CONDITIONS:
        false = alarms(condition, arguments.runs, arguments.seed)
        named, others = found(condition, arguments.runs, arguments.seed + 1)
        told = promised(condition, arguments.runs, arguments.seed + 2)
        print(
            f"{false:>10.1%} {named:>9.1%} {law(condition):>7.1%} {others:>14.1%} {told:>11.1%}  {condition}",
            flush=True,
        )


if __name__ == "__main__":
    main()
