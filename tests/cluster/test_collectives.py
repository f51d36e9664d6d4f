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


def span(ranks: int, rate: float = 100e9, hop_s: float = 3e-6, between: bool = False) -> c.Span:
    return c.Span(ranks=ranks, bytes_per_s=rate, hop_s=hop_s, efficiency=1.0, between=between)


def busbw(size_bytes: float, ranks: int, time_s: float) -> float:
    return c.ring_traffic_bytes(size_bytes, ranks) / time_s


@given(SIZES, RANKS)
def test_busbw_never_exceeds_the_wire_and_tends_to_it_where_hops_are_free(size_bytes: float, ranks: int) -> None:
    assert busbw(size_bytes, ranks, c.all_reduce_s(size_bytes, [span(ranks)])) <= 100e9 * (1 + 1e-9)
    free = c.all_reduce_s(size_bytes, [span(ranks, hop_s=1e-60)])
    assert busbw(size_bytes, ranks, free) == pytest.approx(100e9)


@given(SIZES, st.integers(2, 64), st.integers(2, 64))
def test_two_levels_are_one_fabric_at_the_pace_of_the_narrower(size_bytes: float, node: int, nodes: int) -> None:
    slow = [span(node, 1e12, 1e-60), span(nodes, 1e9, 1e-60, between=True)]
    assert busbw(size_bytes, node * nodes, c.all_reduce_s(size_bytes, slow)) == pytest.approx(min(1e9 * node, 1e12))


@given(st.integers(2, 16), st.integers(2, 16), st.integers(2, 16))
def test_a_third_level_moves_only_shards(node: int, nodes: int, sites: int) -> None:
    inner = [span(node, 1e12, 1e-60), span(nodes, 1e12, 1e-60, between=True)]
    total_s = c.all_reduce_s(1e9, [*inner, span(sites, 1e6, 1e-60, between=True)])
    shard_s = c.ring_traffic_bytes(1e9 / node / nodes, sites) / 1e6
    assert total_s == pytest.approx(shard_s + c.all_reduce_s(1e9, inner))


@given(SIZES, RANKS, st.booleans())
def test_more_ranks_and_more_bytes_never_take_less(size_bytes: float, ranks: int, between: bool) -> None:
    for collective in (c.all_reduce_s, c.all_to_all_s):
        once = collective(size_bytes, [span(ranks, between=between)])
        assert collective(size_bytes, [span(ranks + 1, between=between)]) >= once * (1 - 1e-12)
        assert collective(2 * size_bytes, [span(ranks, between=between)]) > once
        assert collective(size_bytes, [span(1)]) == 0


def test_an_exchange_leaves_the_node_with_all_that_is_for_others() -> None:
    levels = [span(8, 1e15, 1e-60), span(16, 50e9, 1e-60, between=True)]
    assert c.all_to_all_s(1e9, levels) == pytest.approx(1e9 * 120 / 128 / 50e9)


def test_a_tree_wins_small_messages_on_many_nodes() -> None:
    nodes = [span(8), span(512, between=True)]
    assert c.all_reduce_s(4096, nodes) < 2 * (4096 - 512) * 3e-6 / 10


@given(st.floats(1e-7, 1e-3), st.floats(1e-12, 1e-8), st.integers(2, 64))
def test_fit_recovers_what_made_the_times(alpha_s: float, beta_s_per_byte: float, ranks: int) -> None:
    sizes = [4096.0, 65536.0, 2.0**20, 2.0**26, 2.0**32]
    times_s = [2 * (ranks - 1) * (alpha_s + size / ranks * beta_s_per_byte) for size in sizes]
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
