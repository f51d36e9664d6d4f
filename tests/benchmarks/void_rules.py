"""Which rule for void rounds helps? Replays stored rounds under several rules; measures nothing. Run by hand:

    python tests/benchmarks/void_rules.py RUN... [--same same,same-2,same-3] [--replicates 6] [--alpha 0.05]

Every rule sees the same rounds of the same run, so all cost the same: one that drops rounds has fewer left. A rule
looks at the environment alone, and drops a round for both arms of a pair. Per comparison and regime it prints

  void       share of rounds (of a pair) that the rule drops
  lost       replicates of a pair with no round left
  spread     standard deviation over replicates of the log-ratio, root mean square over pairs of arms
  vs all     that spread over the one of keeping every round, with its 95% interval (bootstrap over replicates):
             above 1 the rule made the data worse
  false      share of intervals (Student's t over --replicates replicates, no floor) that exclude 1, over the pairs
             of arms named by --same, which do identical work; 2 alpha and more is bad, 0 is not the aim either

and at the end how often each rule was better or worse than keeping everything.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from frugalbench.analysis.load import Run, load_run
from frugalbench.analysis.statistics import counted, interval, latest
from frugalbench.meters.environment import void_reason
from frugalbench.run.schedule import is_steady_load
from frugalbench.schema import Environment, FrugalbenchError, Record, Sample

DRAWS = 1000
Spoilt = Callable[[Environment, int, int], bool]
"""``spoilt(environment, threads, cores)``."""


def _by(*names: str) -> Spoilt:
    """The shipped limits, applied to the named counters alone."""
    hidden = {
        name: None
        for name in (
            "run_delay_s",
            "steal_s",
            "foreign_cpu_s",
            "memory_stall_s",
            "swapped_bytes",
            "throttled",
            "gpu_throttle",
        )
        if name not in names
    }
    return lambda env, threads, cores: void_reason(msgspec.structs.replace(env, **hidden), threads, cores) is not None


@dataclass(frozen=True)
class Rule:
    name: str
    spoilt: Spoilt
    keeps_under_load: bool = False
    """Whether everything is kept where void rounds are common."""


RULES = (
    Rule("keep all", lambda *_: False),
    Rule("steal alone", _by("steal_s")),
    Rule("foreign CPU alone", _by("foreign_cpu_s")),
    Rule("run delay alone", _by("run_delay_s")),
    Rule("ours, but always drops", lambda env, threads, cores: void_reason(env, threads, cores) is not None),
    Rule("ours", lambda env, threads, cores: void_reason(env, threads, cores) is not None, keeps_under_load=True),
)


@dataclass(frozen=True)
class Setting:
    """Counted records of one comparison in one regime: arm, then replicate."""

    name: str
    arms: dict[str, dict[int, Record]]
    cores: int


@dataclass(frozen=True)
class Pair:
    """What a rule leaves of two arms."""

    logs: dict[int, float]
    """Median log-ratio by replicate."""
    rounds: int
    void: int
    lost: int


def settings(run: Run) -> Iterator[Setting]:
    """Every comparison and regime with two arms or more."""
    cores = int(run.manifest.machine_before.get("logical_cores") or 1)
    found: dict[tuple[str, str], dict[str, dict[int, Record]]] = {}
    for record in latest(run.records):
        if counted(record) and record.samples:
            arms = found.setdefault((record.comparison, record.case.regime), {})
            arms.setdefault(record.case.variant, {})[record.replicate] = record
    for (comparison, regime), arms in found.items():
        if len(arms) > 1:
            yield Setting(f"{comparison}, {regime}", arms, cores)


def replay(one: dict[int, Record], other: dict[int, Record], rule: Rule, cores: int) -> Pair:
    """Two arms under one rule."""
    logs, rounds, void, lost = {}, 0, 0, 0
    for replicate in sorted(one.keys() & other.keys()):
        ours, theirs = ({s.round: s for s in arm[replicate].samples} for arm in (one, other))
        common = ours.keys() & theirs.keys()
        bad = {
            number
            for number in common
            if _spoilt(one[replicate], ours[number], rule, cores)
            or _spoilt(other[replicate], theirs[number], rule, cores)
        }
        dropped = set() if rule.keeps_under_load and is_steady_load(len(bad), len(common)) else bad
        left = [math.log(ours[n].time_s / theirs[n].time_s) for n in common - dropped]
        rounds, void, lost = rounds + len(common), void + len(dropped), lost + (not left)
        if left:
            logs[replicate] = median(left)
    return Pair(logs, rounds, void, lost)


def _spoilt(record: Record, sample: Sample, rule: Rule, cores: int) -> bool:
    return rule.spoilt(sample.environment, int(record.case.params.get("threads", cores)), cores)


def spread(rows: Sequence[Sequence[float]]) -> float:
    """Root mean square over pairs of the standard deviation over replicates."""
    variances = [np.var(row, ddof=1) for row in rows if len(row) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else math.nan


def against(pairs: Sequence[Pair], kept: Sequence[Pair], rng: np.random.Generator) -> tuple[float, float, float]:
    """Spread over that of keeping all, with a 95% interval; the same replicates are drawn for both."""
    replicates = sorted({number for pair in kept for number in pair.logs})
    if not any(pair.void for pair in pairs):
        return 1.0, 1.0, 1.0
    if len(replicates) < 3:
        return (math.nan,) * 3
    drawn = [
        _ratio(pairs, kept, [replicates[i] for i in rng.integers(0, len(replicates), len(replicates))])
        for _ in range(DRAWS)
    ]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return _ratio(pairs, kept, replicates), float(low), float(high)


def _ratio(pairs: Sequence[Pair], kept: Sequence[Pair], replicates: Sequence[int]) -> float:
    ours, all_ = ([[p.logs[n] for n in replicates if n in p.logs] for p in side] for side in (pairs, kept))
    whole = spread(all_)
    return spread(ours) / whole if whole else math.nan


def false_verdicts(pairs: Iterable[Pair], size: int, alpha: float) -> tuple[int, int]:
    """Intervals that exclude 1, and how many there were: successive blocks of ``size`` replicates of each pair."""
    wrong = total = 0
    for pair in pairs:
        logs = [pair.logs[number] for number in sorted(pair.logs)]
        for start in range(0, len(logs) - size + 1, size):
            made = interval(logs[start : start + size], 1.0, alpha, 0.0)
            if made is not None and made.low is not None and made.high is not None:
                total += 1
                wrong += not made.low <= 1 <= made.high
    return wrong, total


@dataclass(frozen=True)
class Line:
    """One rule in one setting."""

    rule: str
    void: float
    lost: int
    spread: float
    against: tuple[float, float, float]
    wrong: int
    verdicts: int


def lines(setting: Setting, same: Sequence[str], size: int, alpha: float, rng: np.random.Generator) -> list[Line]:
    """All rules in one setting."""
    names = list(itertools.combinations(setting.arms, 2))
    table = {
        rule.name: [replay(setting.arms[a], setting.arms[b], rule, setting.cores) for a, b in names] for rule in RULES
    }
    found = []
    for rule in RULES:
        pairs = table[rule.name]
        identical = [pair for pair, (a, b) in zip(pairs, names, strict=True) if a in same and b in same]
        rounds = sum(pair.rounds for pair in pairs)
        found.append(
            Line(
                rule=rule.name,
                void=sum(pair.void for pair in pairs) / rounds if rounds else math.nan,
                lost=sum(pair.lost for pair in pairs),
                spread=spread([list(pair.logs.values()) for pair in pairs]),
                against=against(pairs, table[RULES[0].name], rng),
                wrong=(verdicts := false_verdicts(identical, size, alpha))[0],
                verdicts=verdicts[1],
            )
        )
    return found


def show(setting: Setting, found: Sequence[Line]) -> str:
    """One table."""
    replicates = len({number for arm in setting.arms.values() for number in arm})
    head = f"\n{setting.name}: {len(setting.arms)} arms, {replicates} replicates"
    titles = f"{'rule':<22}{'void':>7}{'lost':>6}{'spread':>9}  {'vs all':<20}{'false':>14}"
    rows = [
        f"{x.rule:<22}{x.void:>7.1%}{x.lost:>6}{x.spread:>9.2%}  {_versus(x.against):<20}"
        f"{f'{x.wrong} of {x.verdicts}' if x.verdicts else '-':>14}"
        for x in found
    ]
    return "\n".join((head, titles, *rows))


def _versus(item: tuple[float, float, float]) -> str:
    return "-" if math.isnan(item[0]) else "{:.2f} [{:.2f}, {:.2f}]".format(*item)


def summary(tables: Sequence[Sequence[Line]]) -> str:
    """Settings in which each rule is better or worse than keeping all, by the estimate and beyond doubt."""
    out = [f"\nOver {len(tables)} settings (better or worse than keeping all; in brackets: by the whole interval)"]
    for number, rule in enumerate(RULES[1:], 1):
        ratios = [table[number].against for table in tables if not math.isnan(table[number].against[0])]
        better = f"{sum(r[0] < 0.99 for r in ratios)} ({sum(r[2] < 1 for r in ratios)})"
        worse = f"{sum(r[0] > 1.01 for r in ratios)} ({sum(r[1] > 1 for r in ratios)})"
        wrong, total = (sum(getattr(t[number], what) for t in tables) for what in ("wrong", "verdicts"))
        false = f", false verdicts {wrong} of {total}" if total else ""
        out.append(f"{rule.name:<22}better in {better}, worse in {worse}{false}")
    wrong, total = (sum(getattr(t[0], what) for t in tables) for what in ("wrong", "verdicts"))
    return "\n".join([*out, f"{RULES[0].name:<22}false verdicts {wrong} of {total}" if total else ""]).rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table per setting of every run named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directories written by `frugalbench run`")
    parser.add_argument("--same", default="", help="variants that do identical work, separated by commas")
    parser.add_argument("--replicates", type=int, default=6, help="replicates behind one interval (default 6)")
    parser.add_argument("--alpha", type=float, default=0.05, help="1 - confidence of an interval (default 0.05)")
    parser.add_argument("--seed", type=int, default=1, help="of the bootstrap (default 1)")
    given = parser.parse_args(argv)
    same, rng, tables = given.same.split(","), np.random.default_rng(given.seed), []
    try:
        found = [(run, setting) for path in given.runs for run in [load_run(path)] for setting in settings(run)]
    except FrugalbenchError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    for _, setting in found:
        tables.append(lines(setting, same, max(2, given.replicates), given.alpha, rng))
        print(show(setting, tables[-1]), flush=True)
    print(summary(tables) if tables else "no comparison with two arms and a counted replicate")
    return 0


if __name__ == "__main__":
    sys.exit(main())
