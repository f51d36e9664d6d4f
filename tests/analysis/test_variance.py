"""Known components of noise are found again, rounds are spent best, and the smallest effect has the power it states."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from factory import make_record
from frugalbench.analysis.variance import (
    Components,
    best_rounds,
    components,
    pair_variances,
    rounds_for,
    smallest_effect,
)
from frugalbench.schema import Record


def tables(
    replicates: int, arms: int, rounds: int, drift: float, process: float, shared: float, turn: float, seed: int = 0
) -> list[list[list[float]]]:
    """Log times that follow the model, normal noise, arms at levels of their own."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(replicates):
        y = np.arange(arms)[:, None] + drift * rng.standard_normal() + shared * rng.standard_normal((1, rounds))
        y = y + process * rng.standard_normal((arms, 1)) + turn * rng.standard_normal((arms, rounds))
        found.append(y.tolist())
    return found


@pytest.mark.parametrize(
    ("drift", "process", "shared", "turn"),
    [(0.05, 0.02, 0.03, 0.04), (0.0, 0.02, 0.0, 0.02), (0.1, 0.0, 0.0, 0.03), (0.0, 0.0, 0.08, 0.01)],
)
def test_components_are_recovered(drift: float, process: float, shared: float, turn: float) -> None:
    found = components(tables(1500, 4, 6, drift, process, shared, turn))
    assert found is not None and (found.replicates, found.rounds) == (1500, 6.0)
    for name, truth in {"drift": drift, "process": process, "round": shared, "turn": turn}.items():
        assert getattr(found, name) == pytest.approx(truth, rel=0.1, abs=0.004), name


@given(st.integers(0, 10**6), st.lists(st.floats(-5, 5), min_size=3, max_size=3))
@settings(max_examples=30)
def test_levels_of_the_arms_are_no_noise(seed: int, levels: list[float]) -> None:
    plain = tables(5, 3, 4, 0.02, 0.01, 0.02, 0.01, seed)
    moved = [[[y + level for y in row] for row, level in zip(table, levels, strict=True)] for table in plain]
    one, other = components(plain), components(moved)
    assert one is not None and other is not None
    for name in ("drift", "process", "round", "turn"):
        assert getattr(one, name) ** 2 == pytest.approx(getattr(other, name) ** 2, abs=1e-12)


def test_components_of_too_little_are_unknown() -> None:
    good = tables(2, 2, 2, 0, 0, 0, 0.1)
    assert components([]) is None and components(good[:1]) is None
    assert isinstance(components(good), Components)
    assert components([[row[:1] for row in table] for table in good]) is None
    assert components([table[:1] for table in good]) is None
    assert components([*good[:1], []]) is None and components([[], *good]) is not None


def test_variances_of_a_pair() -> None:
    rng = np.random.default_rng(3)
    rounds = [(0.03 * rng.standard_normal() + 0.05 * rng.standard_normal(8)).tolist() for _ in range(3000)]
    found = pair_variances(rounds)
    assert found is not None
    assert np.sqrt(found) == pytest.approx([0.05, 0.03], rel=0.05)
    assert pair_variances([[0.1, 0.2], [0.3]]) is None and pair_variances([]) is None
    assert pair_variances([[0.1, 0.1], [0.1, 0.1], []]) == (0.0, 0.0)


variances = st.floats(1e-6, 1e-1)
times = st.floats(1e-3, 10)


@given(variances, variances, times, times, st.integers(1, 5), st.integers(0, 60))
def test_best_rounds_give_the_narrowest_interval_for_the_time(
    within: float, between: float, fixed_s: float, round_s: float, least: int, more: int
) -> None:
    def cost(rounds: int) -> float:
        return (between + within / rounds) * (fixed_s + rounds * round_s)

    most = least + more
    brute = min(range(least, most + 1), key=cost)
    found = best_rounds(within, between, fixed_s, round_s, least, most)
    assert least <= found <= most
    assert abs(found - brute) <= 1 and cost(found) <= 1.02 * cost(brute)


@given(variances, times, times)
def test_best_rounds_at_the_edges(variance: float, fixed_s: float, round_s: float) -> None:
    assert best_rounds(variance, 0.0, fixed_s, round_s, 3, 14) == 14
    assert best_rounds(0.0, variance, fixed_s, round_s, 3, 14) == 3
    assert best_rounds(variance, variance, 0.0, round_s, 3, 14) == 3


@pytest.mark.parametrize("replicates", [3, 6, 24])
@pytest.mark.parametrize(("alpha", "floor"), [(0.05, 0.0), (0.01, 0.03)])
def test_the_smallest_effect_has_the_power_that_it_states(replicates: int, alpha: float, floor: float) -> None:
    spread, trials = 0.02, 20000
    effect = smallest_effect(spread, replicates, alpha, floor, power=0.8)
    assert effect is not None
    logs = math.log1p(effect) + spread * np.random.default_rng(1).standard_normal((trials, replicates))
    half = stats.t.ppf(1 - alpha / 2, replicates - 1) * logs.std(axis=1, ddof=1) / math.sqrt(replicates)
    assert np.mean(logs.mean(axis=1) - half > math.log1p(floor)) == pytest.approx(0.8, abs=0.015)


@given(st.floats(0, 0.2), st.integers(2, 60), st.floats(0.001, 0.2), st.floats(0, 0.1))
def test_more_replicates_and_less_noise_find_smaller_effects(
    spread: float, replicates: int, alpha: float, floor: float
) -> None:
    found = smallest_effect(spread, replicates, alpha, floor)
    assert found is not None and found >= floor - 1e-12
    for other in (
        smallest_effect(spread, replicates + 1, alpha, floor),
        smallest_effect(spread / 2, replicates, alpha, floor),
        smallest_effect(spread, replicates, alpha, floor / 2),
        smallest_effect(spread, replicates, min(1.0, 1.5 * alpha), floor),
    ):
        assert other is not None and other <= found + 1e-9


def test_one_replicate_finds_nothing() -> None:
    assert smallest_effect(0.01, 1, 0.05, 0.0) is None and smallest_effect(0.01, 0, 0.05, 0.0) is None


def noisy(count: int, turn: float, process: float, first: int = 1) -> list[Record]:
    """Two arms; turns differ by ``turn`` within a replicate, starts by ``process``."""
    rng = np.random.default_rng(7)
    return [
        make_record(arm, time_s=list(0.01 * np.exp(process * rng.standard_normal() + turn * rng.standard_normal(9))),
                    replicate=number)
        for number in range(first, first + count)
        for arm in ("a", "b")
    ]  # fmt: skip


def test_rounds_follow_the_noise_between_half_and_twice_the_configured_number() -> None:
    assert rounds_for(noisy(8, 0.1, 0.0005), 0.1, 0.1, 8) == 16
    assert rounds_for(noisy(8, 0.0005, 0.1), 0.1, 0.1, 8) == 4
    assert rounds_for(noisy(8, 0.0005, 0.1), 0.1, 0.1, 2) == 3
    between = rounds_for(noisy(40, 0.1, 0.04), 1.0, 0.2, 8)
    assert between is not None and 4 < between < 16


def test_rounds_are_left_alone_before_three_counted_replicates() -> None:
    assert rounds_for([], 1.0, 1.0, 7) is None
    assert rounds_for(noisy(2, 0.1, 0.1), 1.0, 1.0, 7) is None
    assert rounds_for(noisy(3, 0.1, 0.1, first=0), 1.0, 1.0, 7) is None
    assert rounds_for(noisy(3, 0.1, 0.1), 1.0, 1.0, 7) is not None
    assert rounds_for([r for r in noisy(5, 0.1, 0.1) if r.case.variant == "a"], 1.0, 1.0, 7) is None
