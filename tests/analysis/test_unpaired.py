"""Welch's test, the moderated spread and the drift between runs, against independent code and seeded simulations."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from frugalbench.analysis.unpaired import Drift, Prior, Samples, drift, error_of, held, prior

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from compare_rates import Condition, alarms, found


def sample(rng: np.random.Generator, base: int = 6, new: int = 6, shift: float = 0.0, spread: float = 0.01) -> Samples:
    return Samples(tuple(spread * rng.standard_normal(base)), tuple(shift + spread * rng.standard_normal(new)))


def test_without_a_prior_it_is_welchs_test() -> None:
    rng = np.random.default_rng(3)
    case = Samples(tuple(rng.normal(0, 1, 5)), tuple(rng.normal(0.5, 3, 8)))
    test = held(case, Prior(), Drift(), 0.0)
    assert test is not None
    expected = stats.ttest_ind(case.new, case.base, equal_var=False)
    bounds = expected.confidence_interval(0.95)
    assert test.interval(0.05) == pytest.approx((bounds.low, bounds.high))
    assert test.p_value == pytest.approx(expected.pvalue)


@given(st.floats(0.9, 1.1), st.floats(0.001, 0.1), st.floats(0.0, 0.05), st.floats(-0.05, 0.05), st.floats(0.001, 0.2))
def test_the_interval_excludes_1_exactly_where_p_is_below_alpha(
    ratio: float, spread: float, floor: float, shift: float, alpha: float
) -> None:
    case = sample(np.random.default_rng(7), shift=math.log(ratio), spread=spread)
    test = held(case, Prior(), Drift(shift, 0.01, 20), floor)
    assert test is not None
    low, high = test.interval(alpha)
    if abs(test.p_value - alpha) > 1e-9:
        assert (low > 0 or high < 0) is (test.p_value < alpha)


def test_detectable_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(11)
    known = Prior(1e6, 1e-4)
    one = held(sample(rng), known, Drift(), 0.005)
    assert one is not None
    least = math.log1p(one.detectable(0.01))
    tests = [held(sample(rng, shift=least), known, Drift(), 0.005) for _ in range(1500)]
    assert np.mean([t.p_value < 0.01 for t in tests if t]) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("count", [3, 6])
def test_what_could_be_found_is_found_though_the_noise_is_only_estimated(count: int) -> None:
    rng, named = np.random.default_rng(12), []
    for _ in range(1500):
        spread = 0.01 * math.exp(0.3 * rng.standard_normal())
        first = held(sample(rng, count, count, spread=spread), Prior(), Drift(), 0.005)
        assert first is not None
        shift = math.log1p(first.detectable(0.01))
        again = held(sample(rng, count, count, shift, spread), Prior(), Drift(), 0.005)
        named.append(again is not None and again.p_value < 0.01)
    assert np.mean(named) == pytest.approx(0.8, abs=0.04)


def test_the_prior_is_that_of_the_cases() -> None:
    rng = np.random.default_rng(5)
    alike = prior([sample(rng) for _ in range(200)])
    assert alike.freedom > 50 and math.sqrt(alike.variance) == pytest.approx(0.01, rel=0.1)
    unlike = prior([sample(rng, spread=10.0 ** rng.uniform(-4, -1)) for _ in range(200)])
    assert unlike.freedom < 3, "cases that have nothing in common lend each other nothing"
    assert prior([sample(rng)] * 2) == Prior()


def test_a_prior_steadies_towards_itself() -> None:
    case = sample(np.random.default_rng(1), spread=0.001)
    assert error_of(case, Prior())[0] < error_of(case, Prior(10, 1e-4))[0] < error_of(case, Prior(100, 1e-4))[0]


def test_drift_is_seen_from_eight_cases_on() -> None:
    rng = np.random.default_rng(2)
    cases = [sample(rng, shift=0.04 + 0.03 * rng.standard_normal()) for _ in range(60)]
    moved = drift(cases, prior(cases))
    assert moved.shift == pytest.approx(0.04, abs=0.015) and moved.spread == pytest.approx(0.03, abs=0.012)
    assert drift(cases[:7], Prior()) == Drift()
    still = [sample(rng) for _ in range(60)]
    assert drift(still, prior(still)).spread < 0.006


def test_constant_times_are_survived() -> None:
    flat = Samples((0.0, 0.0), (0.1, 0.1))
    test = held(flat, Prior(), Drift(), 0.03)
    assert test is not None and test.p_value == 0.0 and test.interval(0.05)[0] > 0
    assert held(Samples((0.0,), (0.1, 0.1)), Prior(), Drift(), 0.0) is None
    assert prior([flat] * 9) == Prior() and drift([flat] * 9, Prior()).shift == pytest.approx(0.1)


def test_alarms_are_rare_and_one_slower_case_of_fifty_is_named() -> None:
    """The goals, on fewer pairs than ``tests/benchmarks/compare_rates.py`` takes."""
    assert alarms(Condition(), 12, 1) <= 0.1
    named, others = found(Condition(), 12, 2)
    assert named >= 0.75 and others <= 0.17
