"""A question of two arms is judged by the rules of any claim, also when it is replayed on stored records."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import make_reading, make_record, make_run
from frugalbench.analysis.decide import decide
from frugalbench.analysis.duel import answers, conclude, faster, question
from frugalbench.analysis.judge import Evidence, evidence_of
from frugalbench.analysis.load import load_run
from frugalbench.schema import Outcome, Record, Status

LOOKS = (6, 10, 16, 24)
CLAIM = question("versus", "calls", "a", ["b"])


def duel(replicates: int, speed: float = 1.0, noise: float = 0.01, seed: int = 0, rounds: int = 1) -> list[Record]:
    """Arm ``b`` is ``speed`` times as fast as arm ``a``; normal noise of each log time, and a drift that both share."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(1, replicates + 1):
        drift = 0.1 * rng.standard_normal()
        for arm, time_s in (("a", 0.01), ("b", 0.01 / speed)):
            start_s = time_s * math.exp(drift + noise * rng.standard_normal())
            found.append(
                make_record(arm, "calls", "versus", time_s=[start_s] * rounds, replicate=number, comparison="versus")
            )
    return found


def ends(records: list[Record], looks: tuple[int, ...] = LOOKS, floor: float = 0.0) -> tuple[bool | None, int]:
    found = conclude(records, CLAIM, looks, 0.05, floor)
    assert found is not None and found[0].replicates == found[1], "nothing later than the look is seen"
    return faster(found[0]), found[1]


def test_the_clear_case_ends_at_the_first_look_with_the_right_direction() -> None:
    assert ends(duel(24, 1.5)) == (True, 6)
    assert ends(duel(24, 1 / 1.5)) == (False, 6)
    assert ends(duel(24, 1.0)) == (None, 24)


@given(st.floats(0.7, 1.4), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_asking_the_other_way_round_gives_the_inverse(speed: float, seed: int) -> None:
    records = duel(10, speed, 0.03, seed)
    there = conclude(records, CLAIM, LOOKS, 0.05, 0.01)
    back = conclude(records, question("versus", "calls", "b", ["a"]), LOOKS, 0.05, 0.01)
    assert there is not None and back is not None
    one, other = there[0], back[0]
    assert one.ratio and one.low and one.high and other.ratio and other.low and other.high
    assert (one.ratio, one.low, one.high) == pytest.approx((1 / other.ratio, 1 / other.high, 1 / other.low))
    assert there[1] == back[1] and {faster(one), faster(other)} in ({True, False}, {None})


@given(st.floats(1.0, 1.3), st.floats(0, 0.05), st.floats(0, 0.05), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_wider_floor_never_finds_more(speed: float, floor: float, more: float, seed: int) -> None:
    records = duel(6, speed, 0.03, seed)
    tight, wide = (conclude(records, CLAIM, (6,), 0.05, item) for item in (floor, floor + more))
    assert tight is not None and wide is not None
    assert faster(wide[0]) in (faster(tight[0]), None)


@pytest.mark.parametrize("floor", [0.0, 0.02])
def test_looking_four_times_keeps_the_false_alarm_rate(floor: float) -> None:
    """Identical arms, 300 comparisons: at most about alpha are called different, although each was looked at often."""
    called = [ends(duel(24, seed=seed), floor=floor)[0] is not None for seed in range(300)]
    assert sum(called) / len(called) <= (0.085 if floor == 0 else 0.0)
    if floor == 0:
        naive = [any(ends(duel(look, seed=seed), (look,))[0] is not None for look in LOOKS) for seed in range(100)]
        assert sum(naive) / 100 > sum(called[:100]) / 100


@pytest.mark.parametrize("speed", [1.0, 1.02, 1.3])
@pytest.mark.parametrize("replicates", [3, 6, 8, 10, 24])
def test_a_replay_says_what_the_stored_run_says(tmp_path: Path, replicates: int, speed: float) -> None:
    """The looks that a run takes, its recorded decision and ``evidence_of`` give the verdict of ``conclude``."""
    records = duel(replicates, speed, 0.02, seed=replicates)
    kept, decision = records, None
    for look in (look for look in LOOKS if look <= replicates):
        decision = decide([r for r in records if r.replicate <= look], look, LOOKS, [CLAIM], 0.05, 0.01)
        if decision.stop:
            kept = [r for r in records if r.replicate <= look]
            break
    config = {"measure": {"alpha": 0.05, "looks": list(LOOKS)}}
    made = {"versus": decision} if decision else {}
    run = load_run(make_run(tmp_path / "run", kept, config=config, decisions=made, floor=0.01))
    (row,) = answers(CLAIM, evidence_of(run))
    last = max(r.replicate for r in kept)
    found = conclude(kept, CLAIM, LOOKS, 0.05, 0.01)
    assert found is not None
    if last in LOOKS or last < LOOKS[0]:
        assert msgspec.structs.replace(row, machine="") == found[0] and found[1] == last
    else:
        assert found[1] == max(look for look in LOOKS if look <= last)


def test_only_looks_that_were_planned_are_taken() -> None:
    assert ends(duel(9, 1.5), (4, 8))[1] == 4
    assert ends(duel(9), (4, 8))[1] == 8
    assert ends(duel(3, 1.5), (4, 8)) == (True, 3)


def test_without_a_usable_replicate_there_is_no_answer() -> None:
    assert conclude([], CLAIM, LOOKS, 0.05, 0.0) is None
    assert conclude([r for r in duel(6) if r.case.variant == "a"], CLAIM, LOOKS, 0.05, 0.0) is None
    pilot = [make_record(arm, "calls", "versus", replicate=0) for arm in "ab"]
    assert conclude(pilot, CLAIM, LOOKS, 0.05, 0.0) is None
    spoilt = [
        make_record(arm, "calls", "versus", replicate=number, rounds=2, void=[0, 1] if arm == "a" else [])
        for number in range(1, 7)
        for arm in "ab"
    ]
    assert conclude(spoilt, CLAIM, (6,), 0.05, 0.0) is None
    failed = [make_record(arm, "calls", "versus", status=Status.FAILED, reason="died") for arm in "ab"]
    assert conclude(failed, CLAIM, LOOKS, 0.05, 0.0) is None


def test_one_replicate_is_a_ratio_that_decides_nothing() -> None:
    found = conclude(duel(1, 2.0), CLAIM, LOOKS, 0.05, 0.0)
    assert found is not None
    row, replicates = found
    assert replicates == 1 and row.verdict is Outcome.INCONCLUSIVE and faster(row) is None
    assert row.ratio == pytest.approx(2.0, rel=0.1) and row.low is None and row.high is None


def test_answers_hold_only_what_was_asked() -> None:
    evidence = Evidence(records=tuple(duel(6)), machine="here", alpha=0.05, floor=0.0)
    assert [(row.arm, row.candidate) for row in answers(CLAIM, evidence)] == [("as_shipped", "b")]
    assert [row.arm for row in answers(question("versus", "calls", "a", [], ["b"]), evidence)] == ["best"]
    assert [row.ratio for row in answers(question("versus", "calls", "a", ["c"]), evidence)] == [None]
    assert answers(question("versus", "other", "a", ["b"]), evidence) == []


def test_energy_is_asked_with_its_own_readings() -> None:
    records = [
        make_record(arm, "calls", "versus", replicate=number,
                    readings=tuple(make_reading(joule * (1 + 0.001 * number), round=i) for i in range(3)))
        for number in range(1, 7)
        for arm, joule in (("a", 2.0), ("b", 1.0))
    ]  # fmt: skip
    evidence = Evidence(records=tuple(records), machine="here", alpha=0.05, floor=0.0)
    (row,) = answers(question("versus", "calls", "a", ["b"], metric="energy"), evidence)
    assert row.ratio == pytest.approx(2.0) and faster(row) is True and row.metric == "tokens per joule"
    cold = Evidence(records=tuple(duel(6)), machine="here")
    assert not any(row.ratio for row in answers(question("versus", "calls", "a", ["b"], metric="energy"), cold))
