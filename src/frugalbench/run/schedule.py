"""Whose turn it is: pure functions of seeds, call times and budgets. No clock, no process."""

import math
import random
from collections.abc import Mapping, Sequence
from statistics import stdev

from frugalbench.config import Measure
from frugalbench.schema import Comparison

LEAST_ROUNDS = 3
"""Fewer rounds than this give no median worth the name."""
SLOW_FACTOR = 20.0
"""A case is slow only beside its neighbours: a long call that all arms share is no reason to cap any."""
STEADY_SHARE = 1 / 3
"""Above this share of void rounds the load is steady, and every round is kept."""
METER_UPDATES = 20
"""An energy window is at least this many updates of the meter long."""


def shuffled(seed: int, items: Sequence[str], *where: object) -> list[str]:
    """``items`` in an order that depends on the seed and the place in the run alone."""
    order = sorted(items)
    random.Random("/".join(map(str, (seed, *where)))).shuffle(order)
    return order


def calls_per_sample(call_s: float, window_s: float) -> int:
    """Calls that fill a window of ``window_s``; at least one."""
    return max(1, math.ceil(window_s / max(call_s, 1e-9) - 0.5))


def slow_cases(call_s: Mapping[str, float], measure: Measure) -> set[str]:
    """Cases so slow beside their neighbours in the same regime that they get one round a replicate."""
    if not call_s:
        return set()
    fastest = min(call_s.values())
    return {case for case, time_s in call_s.items() if time_s > measure.slow_call_s and time_s > SLOW_FACTOR * fastest}


def attempts(rounds: int) -> int:
    """Largest number of rounds started to get ``rounds`` that no disturbance spoilt."""
    return rounds + math.ceil(rounds / 2)


def spread(times_s: Sequence[float]) -> float:
    """Standard deviation of the logarithm of positive times; 0 where there are fewer than two."""
    logs = [math.log(time_s) for time_s in times_s if time_s > 0]
    return stdev(logs) if len(logs) > 1 else 0.0


def is_steady_load(void: int, total: int) -> bool:
    """Whether void rounds were too common to be set aside."""
    return total > 0 and void > STEADY_SHARE * total


def affordable_rounds(wanted: int, budget_s: float, replicates: int, fixed_s: float, round_s: float) -> int:
    """Rounds per replicate that ``replicates`` fresh starts can afford within ``budget_s``, at most ``wanted``."""
    if round_s <= 0 or replicates <= 0:
        return wanted
    fits = int((budget_s / replicates - fixed_s) / round_s)
    return max(min(LEAST_ROUNDS, wanted), min(wanted, fits))


def share_of_budget(left_s: float, comparison: Comparison, waiting: Sequence[Comparison]) -> float:
    """Part of the remaining time that ``comparison`` may use; ``waiting`` are those after it."""
    weights = [max(item.estimate_s, 0.1) for item in (comparison, *waiting)]
    return left_s * weights[0] / sum(weights)


def regimes(comparison: Comparison) -> list[str]:
    """The comparison's regimes, in the order of the plan."""
    return list(dict.fromkeys(case.regime for arm in comparison.arms for case in arm.cases))
