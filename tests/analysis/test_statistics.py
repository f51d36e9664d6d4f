"""Intervals, void rounds and Holm's procedure, against independent computations, simulations and laws."""

import math
import statistics as plain

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from factory import make_reading, make_record, scaled
from frugalbench.analysis import statistics
from frugalbench.analysis.judge import decide_outcome
from frugalbench.schema import Outcome, Record, Status, Tier

settings.register_profile("same-every-time", derandomize=True, deadline=None)
settings.load_profile("same-every-time")
LOGS = st.lists(st.floats(-3, 3), min_size=2, max_size=10)
TIMES = st.lists(st.floats(1e-6, 10), min_size=1, max_size=7)
P_VALUES = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.floats(0, 1), min_size=1, max_size=8)


def logs_of(base: list[Record], new: list[Record], metric: str = "time") -> tuple[float, ...]:
    return statistics.pair_logs(base, new, metric, statistics.void_rounds([*base, *new]))


def pair(base_s: list[float], new_s: list[float], **fields: object) -> tuple[list[Record], list[Record]]:
    return [make_record("dense", time_s=base_s, **fields)], [make_record("moe", time_s=new_s, **fields)]


# The interval


@pytest.mark.parametrize("count", [2, 4, 9])
@pytest.mark.parametrize("alpha", [0.05, 0.0125])
def test_interval_is_students_t(count: int, alpha: float) -> None:
    logs = list(np.random.default_rng(count).normal(0.2, 0.1, count))
    low, high = stats.t.interval(1 - alpha, count - 1, loc=np.mean(logs), scale=stats.sem(logs))
    found = statistics.interval(logs, factor=2.0, alpha=alpha, floor=0.0)
    assert found is not None
    assert (found.ratio, found.low, found.high) == pytest.approx([2 * math.exp(x) for x in (np.mean(logs), low, high)])
    assert (found.confidence, found.replicates) == (1 - alpha, count)


def test_interval_of_nothing_and_of_one() -> None:
    assert statistics.interval([], 1.0, 0.05, 0.0) is None
    found = statistics.interval([math.log(2)], 1.0, 0.05, 0.03)
    assert found is not None and found.ratio == pytest.approx(2)
    assert (found.low, found.high, found.replicates) == (None, None, 1)


@given(LOGS, st.floats(0.001, 0.5))
def test_the_floor_widens_both_sides_by_its_ratio(logs: list[float], floor: float) -> None:
    bare, wide = (statistics.interval(logs, 1.0, 0.05, item) for item in (0.0, floor))
    assert wide.ratio == bare.ratio
    assert wide.high / bare.high == pytest.approx(1 + floor)
    assert bare.low / wide.low == pytest.approx(1 + floor)


@given(LOGS, st.floats(0.01, 100))
def test_a_factor_moves_all_three_numbers(logs: list[float], factor: float) -> None:
    one, scaled_by = statistics.interval(logs, 1.0, 0.05, 0.03), statistics.interval(logs, factor, 0.05, 0.03)
    for name in ("ratio", "low", "high"):
        assert getattr(scaled_by, name) == pytest.approx(factor * getattr(one, name))


def simulated(ratio: float, spread: float, floor: float, count: int = 2000) -> list[statistics.Interval]:
    rng = np.random.default_rng(20260101)
    draws = rng.normal(math.log(ratio), spread, (count, 4))
    return [statistics.interval(list(row), 1.0, 0.05, floor) for row in draws]


def test_coverage_with_four_replicates() -> None:
    found = simulated(1.3, 0.05, floor=0.0)
    assert 0.93 <= np.mean([item.low <= 1.3 <= item.high for item in found]) <= 0.99


@pytest.mark.parametrize("direction", ["at_least", "at_most"])
@pytest.mark.parametrize("spread", [0.005, 0.02, 0.1])
def test_equal_arms_are_rarely_told_apart(direction: str, spread: float) -> None:
    outcomes = [
        decide_outcome(direction, 1.0, item.low, item.high)
        for item in simulated(1.0, spread, floor=statistics.DEFAULT_FLOOR)
    ]
    assert np.mean([item is not Outcome.INCONCLUSIVE for item in outcomes]) < 0.05


@pytest.mark.parametrize(("ratio", "expected"), [(1.5, Outcome.SUPPORTED), (1 / 1.5, Outcome.REFUTED)])
def test_an_effect_well_past_the_threshold_is_decided(ratio: float, expected: Outcome) -> None:
    found = simulated(ratio, 0.02 * math.sqrt(2), floor=statistics.DEFAULT_FLOOR)
    assert np.mean([decide_outcome("at_least", 1.0, item.low, item.high) is expected for item in found]) >= 0.99


@given(LOGS, st.floats(0.2, 5), st.floats(0.001, 0.3))
def test_p_value_is_the_alpha_at_which_the_interval_touches_the_threshold(
    logs: list[float], threshold: float, floor: float
) -> None:
    p = statistics.p_value(logs, 1.0, threshold, floor)
    if not 1e-9 < p < 0.999:
        return
    wider, narrower = (statistics.interval(logs, 1.0, p * scale, floor) for scale in (0.99, 1.01))
    assert wider.low <= threshold <= wider.high
    assert not narrower.low <= threshold <= narrower.high


def test_p_value_without_spread_or_replicates() -> None:
    assert statistics.p_value([0.5], 1.0, 1.0, 0.0) == 1.0
    assert statistics.p_value([0.5, 0.5], 1.0, 1.0, 0.0) == 0.0
    assert statistics.p_value([0.01, 0.01], 1.0, 1.0, 0.03) == 1.0


# Holm


def test_holm_textbook_example() -> None:
    levels = statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}, 0.05)
    assert levels == pytest.approx({"d": 0.05 / 4, "a": 0.05 / 3, "c": 0.05 / 2, "b": 0.05 / 2})


@given(P_VALUES, st.floats(0.001, 0.2))
def test_holm_laws(p_values: dict[str, float], alpha: float) -> None:
    levels = statistics.holm(p_values, alpha)
    ordered = [levels[name] for name in sorted(p_values, key=lambda name: p_values[name])]
    assert levels.keys() == p_values.keys()
    assert ordered == sorted(ordered)
    assert all(alpha / len(levels) * (1 - 1e-9) <= level <= alpha for level in ordered)


@given(P_VALUES)
def test_holm_rejects_what_adjusted_p_values_reject(p_values: dict[str, float]) -> None:
    levels, worst, adjusted = statistics.holm(p_values, 0.05), 0.0, {}
    for left, name in zip(range(len(p_values), 0, -1), sorted(p_values, key=lambda n: p_values[n]), strict=True):
        worst = max(worst, left * p_values[name])
        adjusted[name] = worst
    if any(abs(value - 0.05) < 1e-9 for value in adjusted.values()):
        return
    assert {n for n in levels if p_values[n] <= levels[n]} == {n for n in adjusted if adjusted[n] <= 0.05}


def test_holm_of_nothing() -> None:
    assert statistics.holm({}, 0.05) == {}


# Rounds and replicates


def test_a_replicate_contributes_the_median_of_its_paired_rounds() -> None:
    base, new = pair([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    assert logs_of(base, new) == pytest.approx([math.log(2)])


def test_drift_that_both_arms_share_cancels() -> None:
    drift = np.exp(np.linspace(0, 2, 7))
    assert logs_of(*pair(list(0.03 * drift), list(0.02 * drift))) == pytest.approx([math.log(1.5)])


@given(TIMES, st.floats(0.01, 100))
def test_scaling_both_arms_changes_nothing(times: list[float], factor: float) -> None:
    base, new = pair(times, times[::-1])
    moved = logs_of([scaled(r, factor) for r in base], [scaled(r, factor) for r in new])
    assert moved == pytest.approx(logs_of(base, new), abs=1e-9)


@given(TIMES, TIMES)
def test_swapping_the_arms_inverts_the_ratio(base_s: list[float], new_s: list[float]) -> None:
    base, new = pair(base_s, new_s)
    assert logs_of(new, base) == pytest.approx([-x for x in logs_of(base, new)], abs=1e-12)


def test_only_rounds_that_both_took_count() -> None:
    base, new = pair([1.0, 1.0, 100.0], [0.5, 0.5])
    assert logs_of(base, new) == pytest.approx([math.log(2)])


def test_replicates_pair_by_number_and_the_rest_is_left_out() -> None:
    base = [make_record("dense", time_s=[1.0 * k], replicate=k) for k in (1, 2, 3)]
    new = [make_record("moe", time_s=[1.0], replicate=k) for k in (3, 1, 5)]
    assert logs_of(base, new) == pytest.approx([math.log(1), math.log(3)])


def test_no_common_round_gives_nothing() -> None:
    base, new = pair([1.0], [1.0], void={0})
    assert logs_of(base, new) == ()


@pytest.mark.parametrize("spoilt", ["dense", "moe", "moe-sorted"])
def test_one_arms_spoilt_turn_voids_the_round_for_all(spoilt: str) -> None:
    base_s, new_s = [2.0, 2.0, 50.0, 50.0, 50.0], [1.0] * 5
    arms = {"dense": base_s, "moe": new_s, "moe-sorted": new_s}
    made = {
        name: make_record(name, time_s=times, void={2, 3, 4} if name == spoilt else ()) for name, times in arms.items()
    }
    void = statistics.void_rounds(made.values())
    assert logs_of([made["dense"]], [made["moe"]]) == pytest.approx([math.log(50 if spoilt == "moe-sorted" else 2)])
    assert statistics.pair_logs([made["dense"]], [made["moe"]], "time", void) == pytest.approx([math.log(2)])


def test_void_rounds_stay_within_their_replicate_and_regime() -> None:
    records = [
        make_record("dense", time_s=[1.0] * 3, replicate=1, void={1}),
        make_record("dense", time_s=[1.0] * 3, replicate=2),
        make_record("dense", "prefill", time_s=[1.0] * 3, replicate=1, void={2}),
    ]
    found = statistics.void_rounds(records)
    assert [sorted(rounds) for rounds in found.values()] == [[1], [], [2]]


def test_a_steady_load_keeps_everything() -> None:
    base, new = pair([1.0, 1.0, 4.0], [1.0, 1.0, 1.0], void={0, 1}, steady_load=True)
    assert logs_of(base, new) == pytest.approx([0.0])
    base, new = pair([1.0, 1.0, 4.0], [1.0, 1.0, 1.0], void={0, 1})
    assert logs_of(base, new) == pytest.approx([math.log(4)])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"status": Status.CAPPED}, True),
        ({"replicate": 0}, False),
        ({"interrupted": True}, False),
        ({"status": Status.FAILED}, False),
        ({"status": Status.SKIPPED}, False),
    ],
)
def test_what_counts(fields: dict, expected: bool) -> None:
    assert statistics.counted(make_record(**fields)) is expected


def test_time_is_per_unit_of_work() -> None:
    record = make_record(time_s=[0.8])
    assert record.case.cost is not None and record.case.cost.token == 4
    assert statistics.round_values(record, "time", set()) == {0: pytest.approx(0.2)}


# Energy


def energy_record(joules: list[float | None], variant: str = "dense", **fields: object) -> Record:
    readings = tuple(make_reading(j, calls=10, round=i, start_s=float(i), **fields) for i, j in enumerate(joules))
    return make_record(variant, readings=readings)


def test_joules_per_unit_of_work() -> None:
    assert statistics.round_values(energy_record([80.0]), "energy", set()) == {0: pytest.approx(2.0)}


def test_a_poisoned_window_drops_out() -> None:
    base, new = [energy_record([8.0, None, 8.0])], [energy_record([4.0, 1.0, 4.0], "moe")]
    assert set(statistics.round_values(base[0], "energy", set())) == {0, 2}
    assert logs_of(base, new, "energy") == pytest.approx([math.log(2)])


def test_one_failed_scope_poisons_its_whole_window() -> None:
    good = make_reading(40.0, calls=10, round=0)
    bad = make_reading(None, calls=10, round=0, scope="gpu-board", error="counter went backwards")
    for order in ((good, bad), (bad, good)):
        assert statistics.round_values(make_record(readings=order), "energy", set()) == {}


def test_scopes_add_up_and_a_second_method_of_one_scope_does_not() -> None:
    readings = (
        make_reading(40.0, calls=10, round=0),
        make_reading(40.0, calls=10, round=0, scope="gpu-board"),
        make_reading(44.0, calls=10, round=0, scope="gpu-board", method="power integrated"),
    )
    assert statistics.round_values(make_record(readings=readings), "energy", set()) == {0: pytest.approx(2.0)}


def test_modelled_joules_are_no_joules() -> None:
    record = energy_record([80.0], tier=Tier.MODELLED)
    assert statistics.round_values(record, "energy", set()) == {}


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_energy_law_of_inversion(joules: list[float]) -> None:
    base, new = [energy_record(joules)], [energy_record([1.0] * len(joules), "moe")]
    forth = logs_of(base, new, "energy")
    assert forth == pytest.approx([plain.median(math.log(j) for j in joules)], abs=1e-9)
    assert logs_of(new, base, "energy") == pytest.approx([-x for x in forth], abs=1e-9)


def test_t_agrees_with_scipys_distribution() -> None:
    assert statistics.t_quantile(0.975, 3) == pytest.approx(stats.t.ppf(0.975, 3))
    assert statistics.t_cdf(1.7, 5) == pytest.approx(stats.t.cdf(1.7, 5))


def test_records_are_not_changed_by_reading_them() -> None:
    base, new = pair([1.0, 2.0], [1.0, 1.0], void={1})
    before = [msgspec.json.encode(r) for r in (*base, *new)]
    logs_of(base, new)
    assert [msgspec.json.encode(r) for r in (*base, *new)] == before
