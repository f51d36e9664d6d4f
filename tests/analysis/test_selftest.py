"""The self-test's figures on banks whose noise and differences are known, and on banks that hold too little."""

import json
import math
from itertools import product

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from factory import make_record
from frugalbench.analysis.selftest import (
    BLOCK,
    LEAST_FLOOR,
    Bank,
    Kind,
    Live,
    Rate,
    SelfTest,
    document,
    effect_in,
    floor_from,
    rate,
    sentence,
    study,
    too_few,
)
from frugalbench.analysis.statistics import DEFAULT_FLOOR
from frugalbench.schema import Record, Sample, Status

KIND = "compute-bound"
LOOKS = (6, 10, 16, 24)
ARMS = {"same": 100, "same-2": 100, "same-3": 100, "same-4": 100, "plus-2": 102, "plus-5": 105, "plus-10": 110}
REPLICATE_S = 2.0


def records(
    replicates: int, noise: float = 0.01, seed: int = 0, rounds: int = 1, turn: float = 0.0, bias: float = 0.0
) -> list[Record]:
    """A bank: each start of each arm off by normal ``noise`` (log), each turn by ``turn``, all arms by a shared drift.

    With ``bias`` every second identical arm is slower by that much (log) throughout: a fault of the harness.
    """
    rng = np.random.default_rng(seed)
    found = []
    for number in range(1, replicates + 1):
        drift = 0.1 * rng.standard_normal()
        for place, (name, units) in enumerate(ARMS.items()):
            start = math.log(1e-5 * units) + drift + noise * rng.standard_normal() + bias * (place % 2)
            times = np.exp(start + turn * rng.standard_normal(rounds)).tolist()
            found.append(arm(name, units, number, times))
    return found


def arm(name: str, units: int, number: int, times: list[float], **fields: object) -> Record:
    made = make_record(
        name, KIND, "selftest", time_s=times, replicate=number, case_fields={"params": {"units": units}}, **fields
    )
    return msgspec.structs.replace(made, samples=tuple(at(s, REPLICATE_S * number) for s in made.samples))


def at(sample: Sample, begin_s: float) -> Sample:
    return msgspec.structs.replace(sample, start_s=begin_s + 0.01 * sample.round)


def judged(found: list[Record], floor: float = 0.0) -> Kind:
    return study(Bank(KIND, found, 0.05), floor, LOOKS)


# Rates


@given(st.integers(0, 60), st.integers(0, 60))
def test_a_rate_has_its_wilson_interval(hits: int, misses: int) -> None:
    found = rate([True] * hits + [False] * misses)
    if hits + misses == 0:
        assert found == Rate(0, 0, None, None, None)
        return
    expected = stats.binomtest(hits, hits + misses).proportion_ci(method="wilson")
    assert (found.count, found.of) == (hits, hits + misses)
    assert (found.rate, found.low, found.high) == pytest.approx(
        (hits / (hits + misses), expected.low, expected.high), abs=1e-7
    )


def test_no_false_alarm_in_few_trials_promises_little() -> None:
    found = rate([False] * 10)
    assert found.rate == 0 and found.low == 0 and found.high == pytest.approx(0.2775, abs=1e-4)


# The floor


@given(
    st.lists(st.lists(st.floats(0, 0.3), min_size=20, max_size=80), min_size=1, max_size=4),
    st.sampled_from([0.01, 0.05, 0.1]),
)
def test_the_floor_leaves_at_most_alpha_of_all_pairs_and_is_the_smallest(
    excesses: list[list[float]], alpha: float
) -> None:
    floor, every = floor_from(excesses, alpha), [value for bank in excesses for value in bank]
    assert floor >= LEAST_FLOOR
    assert sum(value > math.log1p(floor) + 1e-12 for value in every) <= alpha * len(every)
    if not too_few(len(every), alpha) and floor > LEAST_FLOOR:
        assert sum(value > math.log1p(floor) * 0.999 for value in every) > int(alpha * len(every))


def test_banks_share_one_floor() -> None:
    calm, wild = [0.0] * 40, [0.0] * 36 + [0.02, 0.03, 0.04, 0.05]
    assert floor_from([calm], 0.05) == LEAST_FLOOR
    assert floor_from([wild], 0.05) == pytest.approx(math.expm1(0.03)) == floor_from([wild, []], 0.05)
    assert floor_from([calm, wild], 0.05) == LEAST_FLOOR, "4 of 80"
    assert floor_from([calm, wild, [0.01]], 0.05) == pytest.approx(math.expm1(0.01)), "5 of 81"


@pytest.mark.parametrize("excesses", [[], [[]], [[0.0] * 6, [0.0] * 6, [0.0] * 7]])
def test_too_few_comparisons_keep_the_default_floor(excesses: list[list[float]]) -> None:
    """A self-test that saw almost nothing must not make intervals narrower than on a machine without one."""
    assert floor_from(excesses, 0.05) == pytest.approx(DEFAULT_FLOOR)
    wild = [*excesses[:1], [0.08] * 2]
    assert floor_from(wild, 0.05) == pytest.approx(math.expm1(0.08))


# A bank of known noise


@pytest.fixture(scope="module")
def honest() -> Kind:
    """Replicates with independent normal noise of 1% in each arm's time, and nothing else."""
    return judged(records(BLOCK * 150, seed=5))


def test_identical_arms_are_called_different_at_the_rate_of_alpha(honest: Kind) -> None:
    found = honest.unwidened_false_verdict_rate
    assert found.of == honest.comparisons == 300 and honest.replicates == 150 * BLOCK
    assert found.low is not None and found.high is not None and found.low <= 0.05 <= found.high
    undecided = honest.undecided_rate
    assert undecided.count + honest.false_verdict_rate.count == undecided.of == 300


def test_intervals_hold_the_truth_at_their_confidence(honest: Kind) -> None:
    found = honest.coverage
    assert found.of == 2 * 150 + 3 * 150 and found.rate == pytest.approx(0.95, abs=0.025)


def test_a_champion_from_a_pilot_pays_nothing(honest: Kind) -> None:
    """The best of three identical arms, chosen in a pilot, is called different no oftener than alpha allows."""
    pilot, reused = honest.champion_false_verdict_rate, honest.champion_reused_rate
    assert pilot.of == 150 * BLOCK // (BLOCK + 1) and reused.of == 150
    assert pilot.rate is not None and reused.rate is not None
    assert pilot.rate <= 0.1 and pilot.rate <= reused.rate + 0.02


def test_known_slowdowns_are_found(honest: Kind) -> None:
    two, five, ten = honest.detection
    assert [round(item.percent) for item in honest.detection] == [2, 5, 10]
    assert five.detected.rate is not None and five.detected.rate > 0.95 and ten.detected.rate == 1.0
    assert two.detected.rate is not None and 0.2 < two.detected.rate < 0.9
    assert all(item.wrong.count <= 2 for item in honest.detection)
    for item in honest.detection:
        assert item.detected.count + item.undecided.count + item.wrong.count == item.detected.of == 150


def test_the_smallest_effect_agrees_with_what_was_found(honest: Kind) -> None:
    """1% in each arm is 1.4% in the ratio, and 3.0% is found 4 times in 5 from four replicates (noncentral t)."""
    assert honest.spread == pytest.approx(0.01 * math.sqrt(2), rel=0.1)
    assert honest.smallest_detectable_effect is not None and honest.smallest_detectable_effect_at_most is not None
    assert 0.026 < honest.smallest_detectable_effect < 0.035
    assert honest.smallest_detectable_effect_at_most < honest.smallest_detectable_effect / 1.5


def test_time_is_the_median_replicate_for_two_of_the_arms(honest: Kind) -> None:
    assert honest.pair_replicate_s == pytest.approx(REPLICATE_S * 2 / len(ARMS))
    assert honest.median_time_to_verdict_s == pytest.approx(6 * honest.pair_replicate_s)


def test_components_come_from_the_identical_arms() -> None:
    found = judged(records(300, noise=0.02, rounds=4, turn=0.03, seed=2)).components
    assert found is not None and found.rounds == 4
    assert (found.process, found.turn, found.drift) == pytest.approx((0.02, 0.03, 0.1), rel=0.12)
    assert found.round < 0.005


def test_the_floor_cures_a_biased_harness() -> None:
    """Arms that differ by 2% throughout although they do the same work: false alarms until the floor widens enough."""
    bank = Bank(KIND, records(BLOCK * 30, noise=0.005, bias=0.02, seed=8), 0.05)
    sick = study(bank, 0.0, LOOKS)
    assert sick.unwidened_false_verdict_rate.rate is not None and sick.unwidened_false_verdict_rate.rate > 0.9
    floor = floor_from([bank.excess()], 0.05)
    assert 0.012 < floor < 0.03
    cured = study(bank, floor, LOOKS)
    assert cured.false_verdict_rate.rate is not None and cured.false_verdict_rate.rate <= 0.05
    assert cured.unwidened_false_verdict_rate == sick.unwidened_false_verdict_rate
    assert cured.smallest_detectable_effect and sick.smallest_detectable_effect
    assert cured.smallest_detectable_effect > sick.smallest_detectable_effect + 0.9 * floor


def test_truth_and_pairs_follow_the_units_of_work() -> None:
    bank = Bank(KIND, records(2), 0.05)
    assert bank.truth("same", "plus-5") == pytest.approx(100 / 105)
    assert bank.pairs() == [("same", "same-2"), ("same-3", "same-4")]
    assert bank.slowed == ["plus-2", "plus-5", "plus-10"]


@given(st.integers(0, 20), st.integers(1, 8))
def test_blocks_are_disjoint_and_numbered_afresh(replicates: int, size: int) -> None:
    bank = Bank(KIND, records(replicates), 0.05)
    blocks = bank.blocks(size)
    assert len(blocks) == replicates // size
    assert all({r.replicate for r in block} == set(range(1, size + 1)) for block in blocks)
    times = [r.samples[0].start_s for block in blocks for r in block]
    assert times == sorted(times) and len(set(times)) == size * len(blocks)


def test_only_whole_counted_replicates_of_the_kind_enter() -> None:
    found = records(3)
    found += [arm("same", 100, 4, [0.001])]
    found += [msgspec.structs.replace(r, replicate=5, interrupted=True) for r in found[:7]]
    found += [msgspec.structs.replace(r, replicate=0) for r in found[:7]]
    found += [make_record("same", "memory-bound", "selftest", replicate=1, case_fields={"params": {"units": 100}})]
    bank = Bank(KIND, found, 0.05)
    assert len(bank.replicates) == 3 and all(len(rows) == len(ARMS) for rows in bank.replicates)


# Banks that hold too little


@pytest.mark.parametrize("replicates", range(14))
def test_a_short_bank_knows_little_and_says_so(replicates: int) -> None:
    found = judged(records(replicates))
    assert found.comparisons == 2 * (replicates // BLOCK) and found.unusable == 0
    assert (found.smallest_detectable_effect is None) is (replicates < 2)
    assert (found.smallest_detectable_effect_at_most is None) is (replicates < 2)
    assert (found.coverage.rate is None) is (replicates < BLOCK)
    assert (found.pair_replicate_s is None) is (replicates < 2)
    assert (found.median_time_to_verdict_s is None) is (replicates < LOOKS[0])
    whole = self_test(found)
    assert json.loads(json.dumps(document(whole)))
    if replicates < 2:
        assert "Too few replicates" in sentence([found], 0.05, 0.0, LOOKS)


def spoilt(found: list[Record], numbers: set[int], arms: tuple[str, ...] = ("same-2",)) -> list[Record]:
    """The same with every sample of some arms void in some replicates, and no steady load."""
    return [
        msgspec.structs.replace(r, samples=tuple(msgspec.structs.replace(s, void="steal") for s in r.samples))
        if r.replicate in numbers and r.case.variant in arms
        else r
        for r in found
    ]


def test_a_block_without_a_usable_replicate_is_skipped_and_counted() -> None:
    found = judged(spoilt(records(3 * BLOCK), set(range(1, BLOCK + 1))))
    assert (found.comparisons, found.unusable) == (5, 1)
    assert found.coverage.of == 5 + 9 and found.false_verdict_rate.of == 5
    assert found.void_share == pytest.approx(1 / 3 / len(ARMS))
    assert all(item.detected.of == 3 for item in found.detection)


@pytest.mark.parametrize("good", range(3))
def test_a_bank_of_spoilt_replicates_is_no_crash(good: int) -> None:
    """Nothing is left of the second block and only ``good`` replicates of the first."""
    numbers = set(range(good + 1, 2 * BLOCK + 1))
    everything = spoilt(records(2 * BLOCK), numbers, tuple(ARMS))
    found = judged(everything)
    usable = 1 if good else 0
    assert (found.comparisons, found.unusable) == (2 * usable, 10 - 5 * usable)
    assert found.coverage.of == (5 if good == 2 else 0), "one replicate has no interval, which is no miss"
    assert (found.spread is None) is (good < 2)
    assert len(Bank(KIND, everything, 0.05).excess()) == 2 * usable
    assert found.champion_reused_rate.of == usable and found.champion_false_verdict_rate.of == (1 if good == 2 else 0)


def test_a_bank_whose_work_failed_is_empty() -> None:
    failed = [
        make_record(
            name, KIND, "selftest", status=Status.FAILED, reason="no torch", case_fields={"params": {"units": units}}
        )
        for name, units in ARMS.items()
    ]
    found = judged(failed)
    assert found.replicates == found.comparisons == 0 and found.spread is None
    assert found.problem == "no torch" and judged(records(1)).problem == ""
    assert study(Bank("memory-bound", failed, 0.05), 0.0, LOOKS).replicates == 0


def test_a_bank_without_slowed_or_without_twins() -> None:
    only = [r for r in records(12) if r.case.variant in ("same", "same-2")]
    found = judged(only)
    assert found.detection == () and found.comparisons == 12 // BLOCK and found.median_time_to_verdict_s is None
    lonely = judged([r for r in records(12) if r.case.variant in ("same", "plus-5")])
    assert lonely.comparisons == 0 and lonely.champion_reused_rate.of == 0 and lonely.coverage.of == 12 // BLOCK


# What is said of it


def self_test(*idle: Kind, live: tuple[Live, ...] = (), loaded: tuple[Kind, ...] = ()) -> SelfTest:
    return SelfTest(
        machine="Test CPU", fingerprint="0" * 16, device="cpu", quick=False, ended="2026-01-01T00:00:00Z", wall_s=1.0,
        alpha=0.05, aa_floor=0.01, sentence="", idle=idle, loaded=loaded, live=live, runs="here",
    )  # fmt: skip


def make_live(percent: float = 0.0, faster: bool | None = None) -> Live:
    return Live(
        condition="idle", kind=KIND, percent=percent, faster=faster, ratio=1.0, low=0.9, high=1.1, truth=1.0,
        replicates=6, time_s=9.0,
    )  # fmt: skip


@pytest.mark.parametrize(("percent", "faster"), list(product([0.0, 5.0], [None, True, False])))
def test_a_live_comparison_is_right_when_it_says_what_is_so(percent: float, faster: bool | None) -> None:
    assert make_live(percent, faster).right is (faster is (False if percent else None))


def test_the_document_gives_each_figure_per_kind_of_work(honest: Kind) -> None:
    found = json.loads(
        msgspec.json.encode(document(self_test(honest, live=(make_live(5.0, False),), loaded=(honest,))))
    )
    for name in (
        "comparisons", "false_verdict_rate", "undecided_rate", "coverage", "detection", "smallest_detectable_effect",
        "median_time_to_verdict_s", "unusable", "champion_false_verdict_rate", "components",
    ):  # fmt: skip
        assert list(found[name]) == list(found["loaded"][name]) == [KIND], name
    assert found["coverage"][KIND]["of"] == 750 and found["aa_floor"] == 0.01
    assert list(found["detection"][KIND]) == ["2", "5", "10"]
    assert found["detection"][KIND]["10"]["detected"]["rate"] == 1.0
    assert found["live"][0]["right"] is True and "idle" not in found


def test_the_sentence_states_effect_and_time(honest: Kind) -> None:
    effect, time_s = effect_in(honest, 20.0, 0.05, 0.0, LOOKS) or (0.0, 0.0)
    assert 0.005 < effect < 0.02 and time_s == pytest.approx(24 * REPLICATE_S * 2 / 7)
    text = sentence([honest], 0.05, 0.0, LOOKS)
    assert text == f"Your machine tells {effect:.1%} of {KIND} work from nothing in {time_s:.0f} s."
    less = effect_in(honest, 5.0, 0.05, 0.0, LOOKS)
    assert less is not None and less[0] > effect and less[1] <= 5.0
    assert effect_in(honest, 0.5, 0.05, 0.0, LOOKS) is None
