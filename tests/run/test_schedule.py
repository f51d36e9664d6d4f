"""Laws of the pure scheduling functions."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.config import Measure
from frugalbench.run import schedule
from frugalbench.schema import Arm, Comparison
from run.helpers import make_arm, make_comparison

NAMES = st.lists(st.text("abcdef/-", min_size=1, max_size=8), unique=True, max_size=8)
SECONDS = st.floats(1e-6, 1e4)


@given(st.integers(), NAMES, st.integers(0, 30))
def test_an_order_is_a_permutation_that_depends_on_seed_and_place_alone(seed, names, number):
    order = schedule.shuffled(seed, names, "comparison", number)
    assert sorted(order) == sorted(names)
    assert order == schedule.shuffled(seed, list(reversed(names)), "comparison", number)


@pytest.mark.parametrize("vary", ["seed", "place"])
def test_orders_vary_and_no_arm_is_favoured(vary):
    names = ["a", "b", "c"]
    places = [(i, 0) if vary == "seed" else (0, i) for i in range(600)]
    first = [schedule.shuffled(seed, names, "x", number)[0] for seed, number in places]
    assert all(150 < first.count(name) < 250 for name in names)


@given(SECONDS, SECONDS)
def test_calls_fill_the_window_to_within_half_a_call(call_s, window_s):
    calls = schedule.calls_per_sample(call_s, window_s)
    assert calls >= 1
    assert calls == 1 or abs(calls * call_s - window_s) <= 0.5001 * call_s


@given(st.dictionaries(st.text(max_size=4), SECONDS, max_size=6))
def test_slow_is_long_in_itself_and_beside_the_fastest(call_s):
    measure = Measure(slow_call_s=0.25)
    slow = schedule.slow_cases(call_s, measure)
    assert slow <= call_s.keys()
    if call_s:
        fastest = min(call_s, key=call_s.get)
        assert fastest not in slow
        for name, time_s in call_s.items():
            assert (name in slow) == (time_s > 0.25 and time_s > 20 * call_s[fastest])


def test_a_call_that_is_long_for_all_is_not_slow():
    assert schedule.slow_cases({"a": 3.0, "b": 5.0}, Measure()) == set()
    assert schedule.slow_cases({"a": 3.0, "b": 61.0}, Measure()) == {"b"}
    assert schedule.slow_cases({"a": 0.001, "b": 0.2}, Measure(slow_call_s=0.25)) == set()


@given(st.integers(1, 40), st.integers(0, 60))
def test_whatever_is_void_either_enough_rounds_are_good_or_the_load_is_steady(rounds, void):
    """The void rounds come first; rounds go on until enough are good or the attempts are used up."""
    total = min(schedule.attempts(rounds), void + rounds)
    spoilt = min(void, total)
    assert total - spoilt >= rounds or schedule.is_steady_load(spoilt, total)


@given(st.integers(0, 30), st.integers(0, 30))
def test_more_void_rounds_never_make_a_load_less_steady(void, total):
    assert not schedule.is_steady_load(0, total)
    if schedule.is_steady_load(void, total):
        assert 3 * void > total
        assert schedule.is_steady_load(void + 1, total)


@given(st.integers(3, 40), st.floats(-10, 1e4), st.integers(1, 24), st.floats(0, 100), st.floats(1e-3, 100))
def test_affordable_rounds_stay_in_bounds_and_fit(wanted, budget_s, replicates, fixed_s, round_s):
    rounds = schedule.affordable_rounds(wanted, budget_s, replicates, fixed_s, round_s)
    assert schedule.LEAST_ROUNDS <= rounds <= wanted
    if rounds > schedule.LEAST_ROUNDS:
        assert replicates * (fixed_s + rounds * round_s) <= budget_s * (1 + 1e-9)


@given(st.integers(3, 40), st.floats(0, 1e4), st.integers(1, 24), st.floats(0, 100), st.floats(1e-3, 100), SECONDS)
def test_affordable_rounds_are_monotone(wanted, budget_s, replicates, fixed_s, round_s, more):
    def rounds(**change):
        given_ = {"budget_s": budget_s, "replicates": replicates, "fixed_s": fixed_s, "round_s": round_s} | change
        return schedule.affordable_rounds(wanted, **given_)

    assert rounds(budget_s=budget_s + more) >= rounds()
    assert rounds(replicates=replicates + 1) <= rounds()
    assert rounds(fixed_s=fixed_s + more) <= rounds()
    assert rounds(round_s=round_s + more) <= rounds()


def test_fewer_rounds_than_the_least_are_never_raised_when_they_are_what_was_asked_for():
    assert schedule.affordable_rounds(2, 1e6, 1, 0.0, 0.0) == 2
    assert schedule.affordable_rounds(2, 1e6, 1, 0.1, 0.1) == 2


@given(st.floats(0.1, 1e4), st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_shares_of_the_budget_never_sum_to_more_than_is_left(left_s, estimates):
    comparisons = [Comparison(id=str(i), workload="fake", arms=(), estimate_s=e) for i, e in enumerate(estimates)]
    remaining_s = left_s
    for position, comparison in enumerate(comparisons):
        share_s = schedule.share_of_budget(remaining_s, comparison, comparisons[position + 1 :])
        assert 0 < share_s <= remaining_s * (1 + 1e-9)
        remaining_s -= share_s
    assert remaining_s == pytest.approx(0, abs=1e-6 * left_s)


def test_regimes_keep_the_order_of_the_plan():
    comparison = make_comparison(
        make_arm("a", regimes=("prefill", "decode")), make_arm("b", regimes=("decode", "batch"))
    )
    assert schedule.regimes(comparison) == ["prefill", "decode", "batch"]
    assert schedule.regimes(msgspec.structs.replace(comparison, arms=(Arm(id="n", cases=(), imports=()),))) == []
