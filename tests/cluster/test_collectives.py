"""Closed forms against their laws and against published nccl-tests tables (``data/network/points.csv``)."""

import csv
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench import paths
from frugalbench.analysis.alphabeta import fit_alpha_beta, median_miss, misses
from frugalbench.cluster import collectives as c
from frugalbench.schema import FrugalbenchError

LINK = c.Link(alpha_s=3e-6, bytes_per_s=100e9)
SIZES = st.floats(1.0, 1e11)
RANKS = st.integers(2, 4096)


def published(system: str) -> dict[float, dict[str, float]]:
    """Metric by size for one system: ``busbw`` in GB/s, ``time`` in microseconds."""
    found: dict[float, dict[str, float]] = {}
    with paths.data("network", "points.csv").open() as file:
        for row in csv.DictReader(file):
            if row["system"] == system and row["metric"] in ("busbw", "time"):
                found.setdefault(float(row["message_bytes_or_model"]), {})[row["metric"]] = float(row["value"])
    return found


@pytest.mark.parametrize(("system", "ranks"), [("8x A100-SXM NVLink3 NVSwitch", 8), ("GB200 NVL72", 72)])
def test_busbw_is_what_nccl_tests_prints(system: str, ranks: int) -> None:
    points = published(system)
    assert len(points) >= 3
    for size_bytes, row in points.items():
        busbw = c.busbw_bytes_per_s(size_bytes, row["time"] * 1e-6, ranks)
        assert busbw == pytest.approx(row["busbw"] * 1e9, rel=0.005)


@pytest.mark.parametrize(
    ("system", "limit"), [("8x A100-SXM NVLink3 NVSwitch", 0.16), ("8x H200 NVLink4 NVSwitch", 0.11)]
)
def test_half_of_a_table_predicts_the_other_half(system: str, limit: float) -> None:
    sizes = sorted(published(system))
    times_s = [2 * 7 / 8 * size / (published(system)[size]["busbw"] * 1e9) for size in sizes]
    fit = fit_alpha_beta(sizes[::2], times_s[::2], ranks=8)
    miss = median_miss(fit, sizes[1::2], times_s[1::2])
    print(f"{system}: alpha {fit.alpha_s * 1e6:.2f} us, median miss {100 * miss:.1f}%")
    assert miss < limit
    flat = [statistics.median(times_s[::2])] * len(sizes[1::2])
    assert miss < statistics.median(abs(f / t - 1) for f, t in zip(flat, times_s[1::2], strict=True)) / 2


@given(SIZES, RANKS)
def test_ring_busbw_tends_to_the_wire_and_never_exceeds_it(size_bytes: float, ranks: int) -> None:
    busbw = c.busbw_bytes_per_s(size_bytes, c.ring_all_reduce_s(size_bytes, ranks, LINK), ranks)
    assert busbw <= LINK.bytes_per_s * (1 + 1e-9)
    free = c.Link(alpha_s=1e-30, bytes_per_s=100e9)
    assert c.busbw_bytes_per_s(size_bytes, c.ring_all_reduce_s(size_bytes, ranks, free), ranks) == pytest.approx(100e9)


@given(SIZES, st.integers(2, 64), st.integers(2, 64))
def test_hierarchy_of_equal_free_links_moves_what_one_ring_moves(size_bytes: float, inner: int, outer: int) -> None:
    link = c.Link(alpha_s=1e-30, bytes_per_s=100e9)
    nested = c.hierarchical_all_reduce_s(size_bytes, [(inner, link), (outer, link)])
    assert nested == pytest.approx(c.ring_all_reduce_s(size_bytes, inner * outer, link))


@given(SIZES, RANKS)
def test_more_ranks_and_more_bytes_never_take_less(size_bytes: float, ranks: int) -> None:
    assert c.all_reduce_s(size_bytes, ranks + 1, LINK) >= c.all_reduce_s(size_bytes, ranks, LINK) * (1 - 1e-12)
    assert c.all_reduce_s(2 * size_bytes, ranks, LINK) > c.all_reduce_s(size_bytes, ranks, LINK)


def test_tree_wins_small_messages_on_many_ranks_and_ring_wins_large_ones_on_few() -> None:
    assert c.tree_all_reduce_s(4096, 1024, LINK) < c.ring_all_reduce_s(4096, 1024, LINK)
    assert c.ring_all_reduce_s(1e9, 4, LINK) < c.tree_all_reduce_s(1e9, 4, LINK)
    assert c.all_reduce_s(1e9, 1, LINK) == 0


@given(st.floats(1e-7, 1e-3), st.floats(1e-12, 1e-8), st.integers(2, 64))
def test_fit_recovers_what_made_the_times(alpha_s: float, beta_s_per_byte: float, ranks: int) -> None:
    link = c.Link(alpha_s=alpha_s, bytes_per_s=1 / beta_s_per_byte)
    sizes = [4096.0, 65536.0, 2.0**20, 2.0**26, 2.0**32]
    times_s = [c.ring_all_reduce_s(size, ranks, link) for size in sizes]
    fit = fit_alpha_beta(sizes, times_s, ranks)
    assert fit.alpha_s == pytest.approx(alpha_s, rel=1e-4)
    assert fit.beta_s_per_byte == pytest.approx(beta_s_per_byte, rel=1e-4)
    assert max(map(abs, misses(fit, sizes, times_s))) < 1e-4


@pytest.mark.parametrize(("sizes", "times"), [([1.0], [1.0]), ([1.0, 1.0], [1.0, 1.0]), ([1.0, 2.0], [1.0, 0.0])])
def test_fit_refuses_what_cannot_be_fitted(sizes: list[float], times: list[float]) -> None:
    with pytest.raises(FrugalbenchError, match="alpha-beta"):
        fit_alpha_beta(sizes, times, 2)


def test_fit_keeps_both_terms_at_least_zero() -> None:
    falling = fit_alpha_beta([1e3, 1e6], [1e-3, 1e-4], 2)
    steep = fit_alpha_beta([1e3, 1e6], [1e-9, 1e-3], 2)
    assert falling.beta_s_per_byte == 0 and falling.alpha_s > 0
    assert steep.alpha_s == 0 and steep.beta_s_per_byte > 0
