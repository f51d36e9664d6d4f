"""Which arm is fastest, said of synthetic records with two, three and four arms, ties and failures."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import make_reading, make_record
from frugalbench.analysis.duel import answers
from frugalbench.analysis.judge import Evidence
from frugalbench.analysis.versus import Pair, Result, claims, number, result, share_alpha, slower_by
from frugalbench.schema import Cost, Record, Status

WORKLOAD, REGIME = "versus", "calls"
CALL = {"case_fields": {"cost": Cost(token=1.0, flop=0.0, weight_bytes=0.0, traffic_bytes=0.0)}}
"""As ``versus`` plans it: the unit of work is a call."""


def arm(
    name: str, time_s: float, replicates: int = 8, noise: float = 0.005, seed: int = 0, **fields: object
) -> list[Record]:
    """Fresh starts of one arm with normal noise of the log time, three rounds each."""
    rng = np.random.default_rng([seed, *name.encode()])
    return [
        make_record(name, REGIME, WORKLOAD, time_s=time_s * math.exp(noise * rng.standard_normal()), replicate=index,
                    rounds=3, noise=noise, seed=seed, comparison=WORKLOAD, **fields)
        for index in range(1, replicates + 1)
    ]  # fmt: skip


def failed(name: str, reason: str = "ValueError: no") -> list[Record]:
    return [make_record(name, REGIME, WORKLOAD, comparison=WORKLOAD, status=Status.FAILED, reason=reason)]


def judged(*arms: list[Record], names: list[str] | None = None, alpha: float = 0.05, floor: float = 0.005) -> Result:
    records = tuple(record for rows in arms for record in rows)
    evidence = Evidence(records=records, machine="here", alpha=alpha, floor=floor)
    return result(evidence, WORKLOAD, REGIME, names or [rows[0].case.variant for rows in arms])


# The leader and the sentence


def test_two_arms() -> None:
    found = judged(arm("a", 0.02), arm("b", 0.01))
    (pair,) = found.pairs
    assert (pair.baseline, pair.candidate, pair.candidate_faster) == ("a", "b", True)
    assert pair.ratio == pytest.approx(2.0, rel=0.02) and pair.low and pair.high
    assert pair.low < pair.ratio < pair.high and pair.replicates == 8
    span = f"{number(pair.low)} to {number(pair.high)}"
    assert found.sentence == f"b is fastest: {number(pair.ratio)} times as fast as a ({span}, 95.0% sure)."


def test_the_first_named_can_win_too() -> None:
    found = judged(arm("a", 0.01), arm("b", 0.02))
    assert found.pairs[0].candidate_faster is False
    assert found.sentence.startswith("a is fastest: 2.0") and " as b " in found.sentence


def test_a_tie_says_what_would_have_been_found() -> None:
    found = judged(arm("a", 0.01), arm("b", 0.01))
    (pair,) = found.pairs
    assert pair.candidate_faster is None and pair.detectable is not None and 0.005 < pair.detectable < 0.05
    assert "cannot be told apart here" in found.sentence and "fastest" not in found.sentence
    assert f"a difference of {pair.detectable:.1%} would have been found four times in five" in found.sentence


def test_three_arms_with_a_clear_order() -> None:
    found = judged(arm("a", 0.03), arm("b", 0.01), arm("c", 0.02))
    assert [(p.baseline, p.candidate) for p in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found.sentence.startswith("b is fastest: ")
    assert " as a (" in found.sentence and " as c (" in found.sentence


def test_two_lead_together_and_beat_the_third() -> None:
    found = judged(arm("a", 0.01), arm("b", 0.01), arm("c", 0.05))
    first, _, second = found.sentence.partition("; ")[0].partition(" and ")
    assert {first, second.split()[0]} == {"a", "b"}
    assert "cannot be told apart" in found.sentence and "times as fast as c" in found.sentence


def test_four_arms_all_alike() -> None:
    found = judged(*(arm(name, 0.01) for name in "abcd"))
    assert len(found.pairs) == 6 and all(pair.candidate_faster is None for pair in found.pairs)
    assert all(name in found.sentence for name in "abcd") and "times as fast" not in found.sentence


def test_four_arms_one_slow_one_fast() -> None:
    found = judged(arm("a", 0.01), arm("b", 0.01), arm("c", 0.002), arm("d", 0.1))
    assert found.sentence.startswith("c is fastest: ") and found.sentence.count("times as fast") == 3


@given(st.permutations([("a", 1.0), ("b", 0.8), ("c", 0.5), ("d", 0.25)]), st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_the_order_of_naming_does_not_matter(order: list[tuple[str, float]], count: int) -> None:
    some = order[:count]
    found = judged(*(arm(name, 0.01 * factor) for name, factor in some))
    fastest = min(some, key=lambda item: item[1])[0]
    assert found.sentence.startswith(f"{fastest} is fastest: ")
    assert len(found.pairs) == count * (count - 1) // 2


# Arms that fail


def test_one_of_two_fails() -> None:
    found = judged(arm("a", 0.01), failed("b"))
    assert found.pairs == () and found.sentence == "Nothing to compare: b: ValueError: no."
    assert [item.problem for item in found.arms] == ["", "ValueError: no"]
    assert found.arms[1].time_s is None and found.arms[1].replicates == found.arms[1].calls == 0


def test_one_of_three_fails_and_the_others_are_compared() -> None:
    for broken in "abc":
        found = judged(*(failed(name) if name == broken else arm(name, 0.01 * at) for at, name in enumerate("abc", 1)))
        fast, slow = [name for name in "abc" if name != broken]
        (pair,) = found.pairs
        assert (pair.baseline, pair.candidate) == (fast, slow)
        assert found.sentence.startswith(f"{fast} is fastest: ")
        assert {item.arm for item in found.arms if item.problem} == {broken}


def test_all_fail() -> None:
    found = judged(failed("a", "one"), failed("b", "two"))
    assert found.sentence == "Nothing to compare: a: one; b: two." and found.void_share == 0.0


def test_nothing_was_measured() -> None:
    found = judged(names=["a", "b"])
    assert found.sentence == "Nothing to compare: no replicate was finished." and found.pairs == found.energy == ()


def test_an_arm_that_failed_later_keeps_what_it_gave() -> None:
    late = make_record("b", REGIME, WORKLOAD, comparison=WORKLOAD, replicate=9, status=Status.FAILED, reason="died")
    found = judged(arm("a", 0.02), [*arm("b", 0.01), late])
    assert found.arms[1].problem == "" and found.pairs[0].candidate_faster is True


def test_one_replicate_gives_a_ratio_without_an_interval() -> None:
    found = judged(arm("a", 0.02, 1), arm("b", 0.01, 1))
    (pair,) = found.pairs
    assert pair.low is pair.high is pair.detectable is pair.candidate_faster is None
    assert "one replicate, no interval" in found.sentence and "cannot be told apart" in found.sentence
    assert pair.turned().low is pair.turned().candidate_faster is None
    assert slower_by(found.pairs, "a") == {}


# Figures


def test_standing_counts_and_the_median() -> None:
    rows = [
        make_record("a", REGIME, WORKLOAD, time_s=[t] * 4, replicate=i, comparison=WORKLOAD, **CALL)
        for i, t in enumerate((9.0, 0.01, 0.03, 0.02))
    ]
    found = judged(rows, arm("b", 0.01))
    a = found.arms[0]
    assert (a.time_s, a.replicates, a.samples, a.calls) == (0.02, 3, 12, 120), "the pilot does not count"


def test_void_samples_are_counted_and_left_out() -> None:
    clean = arm("b", 0.01, 4)
    dirty = [
        make_record("a", REGIME, WORKLOAD, time_s=[0.02, 9.0, 0.02], replicate=i, void=[1], comparison=WORKLOAD, **CALL)
        for i in range(1, 5)
    ]
    found = judged(dirty, clean)
    assert found.void_share == pytest.approx(4 / 24) and found.arms[0].time_s == 0.02 and not found.steady_load
    kept = [make_record("a", REGIME, WORKLOAD, replicate=i, steady_load=True, comparison=WORKLOAD) for i in (1, 2)]
    assert judged(kept, clean).steady_load


def test_energy_has_pairs_of_its_own() -> None:
    readings = {name: tuple(make_reading(joule, round=i) for i in range(3)) for name, joule in (("a", 3.0), ("b", 1.0))}
    found = judged(*(arm(name, 0.01, readings=rows) for name, rows in readings.items()))
    (pair,) = found.energy
    assert pair.metric == "energy" and pair.ratio == pytest.approx(3.0) and pair.candidate_faster is True
    assert found.pairs[0].metric == "time" and judged(arm("a", 0.01), arm("b", 0.01)).energy == ()


ratios = st.floats(0.01, 100)
pairs = st.builds(
    Pair,
    baseline=st.just("a"), candidate=st.just("b"), metric=st.sampled_from(["time", "energy"]), ratio=ratios,
    low=st.none() | ratios, high=st.none() | ratios, confidence=st.none() | st.floats(0.5, 1),
    candidate_faster=st.sampled_from([None, True, False]), detectable=st.none() | st.floats(0, 1),
    replicates=st.integers(1, 50),
)  # fmt: skip


@given(pairs)
def test_turning_twice_is_nothing(pair: Pair) -> None:
    once, twice = pair.turned(), pair.turned().turned()
    assert (once.baseline, once.candidate) == ("b", "a")
    assert once.candidate_faster is (None if pair.candidate_faster is None else not pair.candidate_faster)
    assert (once.low is None, once.high is None) == (pair.high is None, pair.low is None)
    for name in Pair.__dataclass_fields__:
        before, after = getattr(pair, name), getattr(twice, name)
        assert after == (pytest.approx(before) if isinstance(before, float) else before), name


@given(ratios, st.floats(1, 1.5))
def test_turning_keeps_the_interval_around_the_ratio(ratio: float, width: float) -> None:
    pair = Pair("a", "b", "time", ratio, ratio / width, ratio * width, 0.95, None, None, 6).turned()
    assert pair.low is not None and pair.high is not None
    assert pair.low * (1 - 1e-9) <= pair.ratio <= pair.high * (1 + 1e-9)


@pytest.mark.parametrize(
    ("time_s", "least", "most"), [(0.01, -3, 0), (0.0105, 3, 5), (0.02, 95, 100), (0.005, -60, -49)]
)
def test_slower_by_is_what_the_whole_interval_says(time_s: float, least: float, most: float) -> None:
    found = judged(arm("a", 0.01), arm("b", time_s))
    percent = slower_by(found.pairs, "a")["b"]
    assert least < percent < most
    assert (percent > 0) is (found.pairs[0].candidate_faster is False)


def test_slower_by_asks_only_about_the_first() -> None:
    found = judged(arm("a", 0.01), arm("b", 0.02), arm("c", 0.04))
    assert set(slower_by(found.pairs, "a")) == {"b", "c"} and set(slower_by(found.pairs, "b")) == {"c"}


# Questions


@given(st.integers(2, 6))
def test_each_pair_is_asked_once(count: int) -> None:
    names = [f"arm {i}" for i in range(count)]
    asked = [
        (claim.rule.baselines[0], name)  # type: ignore[union-attr]
        for claim in claims(WORKLOAD, REGIME, names)
        for name in claim.rule.as_shipped  # type: ignore[union-attr]
    ]
    assert asked == [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    assert len({claim.id for claim in claims(WORKLOAD, REGIME, names)}) == count - 1


def test_alpha_is_shared_so_that_any_wrong_answer_stays_rare() -> None:
    """Four identical arms, six questions: about alpha of the runs, not of the questions, hold a wrong answer."""
    assert [share_alpha(0.06, arms) for arms in (1, 2, 3, 4)] == pytest.approx([0.06, 0.06, 0.03, 0.02])
    alpha, wrong = share_alpha(0.05, 4), 0
    for seed in range(200):
        records = tuple(r for name in "abcd" for r in arm(name, 0.01, 6, 0.01, seed))
        evidence = Evidence(records=records, machine="", alpha=alpha, floor=0.0)
        rows = [row for claim in claims(WORKLOAD, REGIME, list("abcd")) for row in answers(claim, evidence)]
        wrong += any(row.verdict.value in ("supported", "refuted") for row in rows)
    assert wrong / 200 <= 0.08


@given(st.floats(0.001, 1000))
def test_ratios_near_one_get_a_digit_more(ratio: float) -> None:
    text = number(ratio)
    assert float(text.replace(",", "")) == pytest.approx(ratio, rel=0.006)
    assert len(text.partition(".")[2]) == 3 or not 0.8 < ratio < 1.25
