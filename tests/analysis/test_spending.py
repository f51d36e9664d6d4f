"""Looks together spend alpha and never more, early ones little of it."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.analysis.spending import last_level, level, spent

LOOKS = st.sets(st.integers(1, 400), min_size=1, max_size=8).map(lambda found: tuple(sorted(found)))
ALPHAS = st.floats(1e-4, 0.5)


@given(ALPHAS, LOOKS)
def test_planned_looks_spend_alpha_together(alpha: float, looks: tuple[int, ...]) -> None:
    levels = [level(alpha, looks, look) for look in looks]
    assert all(item > 0 for item in levels)
    assert sum(levels) == pytest.approx(alpha)
    for look, total in zip(looks, accumulate(levels), strict=True):
        assert total == pytest.approx(spent(alpha, looks, look))


@given(ALPHAS, LOOKS, st.integers(0, 7), st.integers(0, 500))
def test_an_early_end_spends_alpha_in_all(alpha: float, looks: tuple[int, ...], passed: int, more: int) -> None:
    """Some planned looks are taken, then the time is over: what they spent and the last level make alpha."""
    taken = looks[: min(passed, len(looks) - 1)]
    end = max(taken, default=0) + 1 + more
    before = [look for look in looks if look < end]
    total = sum(level(alpha, looks, look) for look in before) + last_level(alpha, looks, end)
    assert total == pytest.approx(alpha)


@given(ALPHAS, LOOKS, st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_spending_is_convex_and_grows_to_alpha(
    alpha: float, looks: tuple[int, ...], low: int, middle: int, high: int
) -> None:
    low, middle, high = sorted(min(item, looks[-1]) for item in (low, middle, high))
    at = [spent(alpha, looks, item) for item in (low, middle, high)]
    assert 0 <= at[0] <= at[1] <= at[2] <= alpha
    assert at[1] * (high - low) <= at[0] * (high - middle) + at[2] * (middle - low) + 1e-12


@given(ALPHAS, LOOKS)
def test_evenly_planned_looks_may_spend_more_and_more(alpha: float, looks: tuple[int, ...]) -> None:
    even = tuple(looks[0] * (number + 1) for number in range(len(looks)))
    levels = [level(alpha, even, look) for look in even]
    assert all(before < after for before, after in pairwise(levels))


@given(ALPHAS, st.integers(1, 400))
def test_one_look_spends_all(alpha: float, look: int) -> None:
    assert level(alpha, (look,), look) == pytest.approx(alpha) == last_level(alpha, (look,), look)


@given(ALPHAS, LOOKS, st.integers(0, 500))
def test_the_last_look_of_all_gets_at_least_what_a_planned_one_would(
    alpha: float, looks: tuple[int, ...], end: int
) -> None:
    assert last_level(alpha, looks, end) >= level(alpha, looks, end) - 1e-15
    assert last_level(alpha, looks, looks[0]) == alpha


def test_worked_example() -> None:
    """Of 0.05 over 6, 10, 16 and 24 replicates: a quarter of the data may spend an eighth of alpha."""
    levels = [level(0.05, (6, 10, 16, 24), look) for look in (6, 10, 16, 24)]
    assert levels == pytest.approx([0.00625, 0.007198, 0.013768, 0.022783], abs=1e-6)
