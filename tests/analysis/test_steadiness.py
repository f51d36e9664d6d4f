"""Modes and trends: how often noise is taken for them, and how often they are found. Seeds are fixed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.analysis.steadiness import DRIFT_ALPHA, drift, least_apart, modes, round_modes

NOISES = {
    "normal": lambda rng, n: 0.05 * rng.standard_normal(n),
    "lognormal": lambda rng, n: 0.05 * np.exp(0.5 * rng.standard_normal(n)),
    "t3": lambda rng, n: 0.05 * rng.standard_t(3, n),
    "exponential": lambda rng, n: 0.05 * rng.exponential(size=n),
    "uniform": lambda rng, n: 0.2 * rng.random(n),
}
SERIES = 1500
TIMES = st.lists(st.floats(1e-6, 1e3), min_size=0, max_size=40)


def times(logs) -> list[float]:
    return [float(value) for value in np.exp(logs)]


def found(test, draw, series: int = SERIES) -> float:
    """Share of ``series`` draws in which ``test`` finds something."""
    return sum(test(draw()) is not None for _ in range(series)) / series


@pytest.mark.parametrize("n", [8, 12, 20, 40, 100, 200])
@pytest.mark.parametrize("noise", NOISES)
def test_noise_with_one_mode_is_called_bimodal_in_less_than_one_percent(noise, n):
    rng = np.random.default_rng([n, len(noise)])
    assert found(modes, lambda: times(NOISES[noise](rng, n))) < 0.01


@pytest.mark.parametrize("n", [8, 20, 60, 200])
@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_called_a_trend_in_less_than_one_percent(noise, n):
    rng = np.random.default_rng([n, len(noise), 1])
    assert found(drift, lambda: times(NOISES[noise](rng, n))) < 0.01


def two_modes(rng, n, apart=1.2, within=0.02, slow=0.7):
    return times(within * rng.standard_normal(n) + math.log(apart) * (rng.random(n) < slow))


@pytest.mark.parametrize("slow", [0.3, 0.5, 0.7])
def test_two_modes_20_percent_apart_are_found_in_nine_of_ten(slow):
    rng = np.random.default_rng(7)
    assert found(modes, lambda: two_modes(rng, 40, slow=slow)) > 0.9
    result = modes(two_modes(rng, 4000, slow=slow))
    assert result.ratio == pytest.approx(1.2, rel=0.01)
    assert result.slow_share == pytest.approx(slow, abs=0.03)
    assert 1.03 < result.boundary < 1.17


def test_modes_nearer_than_the_floor_are_not_told_apart():
    exact = [1.0] * 20 + [1.029] * 20
    assert modes(exact) is None
    assert modes([1.0] * 20 + [1.031] * 20).ratio == pytest.approx(1.031)


def test_a_few_outliers_are_no_mode():
    steady = times(0.01 * np.random.default_rng(3).standard_normal(40))
    assert modes([*steady[3:], 1.5, 1.51, 1.52]) is None
    assert modes([*steady[4:], 1.5, 1.51, 1.52, 1.49]).slow_share == pytest.approx(0.1)


def test_one_of_two_kinds_of_process_is_found_in_the_medians_of_eight():
    medians = [1.0, 1.205, 1.003, 1.198, 1.2, 0.998, 1.001, 1.202]
    assert modes(medians).slow_share == 0.5
    assert modes(medians[:7]) is None  # too few to say


def test_fewer_values_need_a_wider_gap():
    needed = [least_apart(n) for n in range(8, 60)]
    assert needed == sorted(needed, reverse=True)
    assert needed[-1] == least_apart(10**6) == 7


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_units_do_not_matter(seed, unit):
    values = two_modes(np.random.default_rng(seed), 40, within=0.005, slow=0.5)
    once, again = modes(values), modes([value * unit for value in values])
    assert again.ratio == pytest.approx(once.ratio) and again.slow_share == once.slow_share


@given(TIMES)
def test_modes_are_what_they_say(values):
    result = modes(values)
    if result is not None:
        assert result.ratio >= 1.03
        assert 0 < result.slow_share < 1
        slow = sum(value > result.boundary for value in values)
        assert slow == round(result.slow_share * len(values))


def test_modes_within_processes_are_not_modes_between_them():
    rng = np.random.default_rng(11)
    alternating = [two_modes(rng, 10, slow=0.4) for _ in range(6)]
    assert round_modes(alternating).ratio == pytest.approx(1.2, rel=0.02)
    split = [times(0.01 * rng.standard_normal(10) + 0.18 * (number % 2)) for number in range(6)]
    assert modes([value for part in split for value in part]) is not None
    assert round_modes(split) is None


def test_luck_of_processes_is_not_taken_for_modes_of_rounds():
    rng = np.random.default_rng(13)

    def draw():
        return [times(0.1 * rng.standard_normal() + 0.01 * rng.standard_t(3, 9)) for _ in range(6)]

    assert sum(round_modes(draw()) is not None for _ in range(600)) < 6


def test_a_trend_is_found_with_its_size_and_sign():
    rng = np.random.default_rng(2)
    slope = math.log(1.2) * np.arange(60) / 59
    up = drift(times(slope + 0.02 * rng.standard_normal(60)))
    assert up.change == pytest.approx(0.13, abs=0.02) and up.p < DRIFT_ALPHA  # middles of the outer thirds
    assert drift(times(-slope)).change < -0.1
    assert drift(times(slope / 10)) is None  # under the floor
    assert drift([1.0] * 50) is None and drift([]) is None


def test_a_perfect_order_of_eight_is_a_trend_and_of_seven_is_not():
    assert drift([1.0 + 0.02 * i for i in range(8)]) is not None
    assert drift([1.0 + 0.02 * i for i in range(7)]) is None


@given(st.lists(st.floats(0.1, 10), min_size=0, max_size=40))
def test_a_trend_turned_round_is_a_trend_the_other_way(values):
    forward, backward = drift(values), drift(values[::-1])
    assert (forward is None) == (backward is None)
    if forward and backward:
        assert (1 + forward.change) * (1 + backward.change) == pytest.approx(1)
        assert forward.p == pytest.approx(backward.p)
