"""The alpha-beta model of transfers: what it counts, and that a fit finds what made the times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.interconnect import Wire, all_to_all_terms, fit_wire, uneven_terms
from frugalbench.schema import FrugalbenchError

SIZES = [1024.0, 65536.0, 2.0**20, 2.0**26]
BLOCKS = st.integers(2, 6).flatmap(
    lambda ranks: st.lists(st.lists(st.integers(0, 9), min_size=ranks, max_size=ranks), min_size=ranks, max_size=ranks)
)


@given(st.floats(1e-7, 1e-3), st.floats(1e-12, 1e-8), st.integers(2, 64))
def test_fit_recovers_what_made_the_times(alpha_s: float, beta_s_per_byte: float, ranks: int) -> None:
    made = Wire(alpha_s=alpha_s, beta_s_per_byte=beta_s_per_byte)
    terms = [all_to_all_terms(size, ranks) for size in SIZES]
    found = fit_wire(terms, [made.time_s(term) for term in terms])
    assert found.alpha_s == pytest.approx(alpha_s, rel=1e-4)
    assert found.beta_s_per_byte == pytest.approx(beta_s_per_byte, rel=1e-4)


@given(st.integers(2, 64), st.floats(1.0, 1e9))
def test_equal_blocks_are_a_case_of_unequal_ones(ranks: int, block_bytes: float) -> None:
    found = uneven_terms([[block_bytes] * ranks] * ranks)
    assert found == pytest.approx(all_to_all_terms(ranks * block_bytes, ranks))


@given(BLOCKS)
def test_what_stays_at_home_moves_nothing_and_the_way_back_is_as_long(blocks: list[list[int]]) -> None:
    ranks = range(len(blocks))
    away = [[0 if source == target else blocks[source][target] for target in ranks] for source in ranks]
    back = [[blocks[target][source] for target in ranks] for source in ranks]
    steps, moved = uneven_terms(blocks)
    assert (steps, moved) == uneven_terms(away) == uneven_terms(back)
    total = sum(map(sum, away))
    assert total / len(blocks) <= moved <= total


@pytest.mark.parametrize(("sizes", "times"), [([1.0], [1.0]), ([1.0, 1.0], [1.0, 1.0]), ([1.0, 2.0], [1.0, 0.0])])
def test_fit_refuses_what_cannot_be_fitted(sizes: list[float], times: list[float]) -> None:
    with pytest.raises(FrugalbenchError, match="two distinct sizes"):
        fit_wire([all_to_all_terms(size, 2) for size in sizes], times)
