"""Chosen routings: what is asked for is what the router does, in float32 and float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import moe_ffn as spec
from frugalbench.specs import routing
from frugalbench.specs.shapes import load_shapes

E, K, D = 16, 4, 48


def tokens(kind, count=40, seed=0):
    random = np.random.default_rng(seed)
    router = random.standard_normal((E, D)).astype(np.float32) / D**0.5
    chosen = routing.drawn(kind, count, E, K, random)
    return routing.steered(random.standard_normal((count, D), dtype=np.float32), router, chosen), router, chosen


@pytest.mark.parametrize("kind", ["uniform", "zipf-0", "zipf-1.2", "zipf-10", "one"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_router_sends_each_token_where_the_trace_says(kind, seed):
    x, router, chosen = tokens(kind, seed=seed)
    found = np.argsort(-(x @ router.T), axis=1)[:, :K]
    assert (np.sort(found) == np.sort(chosen)).all()
    assert all(len(set(row)) == K for row in chosen.tolist())


def test_one_sends_all_tokens_to_the_same_experts():
    assert len(np.unique(tokens("one")[2])) == K


def test_more_skew_loads_the_busiest_expert_more():
    loads = [np.bincount(tokens(f"zipf-{s}", 4000)[2].ravel(), minlength=E).max() for s in (0, 0.5, 1, 2)]
    assert loads == sorted(loads)
    assert loads[0] == pytest.approx(4000 * K / E, rel=0.1)


def test_zipf_draws_by_rank():
    """With one expert per token the shares are those of the law, 1 / rank^S."""
    random = np.random.default_rng(5)
    counts = np.sort(np.bincount(routing.drawn("zipf-1", 40_000, 8, 1, random).ravel(), minlength=8))[::-1]
    wanted = 1 / np.arange(1, 9)
    assert counts / 40_000 == pytest.approx(wanted / wanted.sum(), abs=0.01)


def test_a_trace_is_followed(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("0,1,2,3\n4,5,6,7\n15,14,13,12\n")
    found = routing.drawn(f"trace:{path}", 2, E, K, np.random.default_rng(0))
    assert found.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1,2\n", "line 1: 3 experts; the layer chooses 4"),
        ("0,1,2,3\n0,1,2,16\n", "line 2: expert 16; the layer has 0 to 15"),
        ("0,1,2,2\n", "names an expert twice"),
        ("0,1,2,x\n", "something else than whole numbers"),
        ("", "an empty trace"),
        ("0,1,2,3\n", "a trace of 1 tokens; the regime takes 2"),
    ],
)
def test_a_trace_that_does_not_fit_is_refused(tmp_path, text, message):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(FrugalbenchError, match=message):
        routing.drawn(f"trace:{path}", 2, E, K, np.random.default_rng(0))


def test_a_missing_trace_is_named(tmp_path):
    with pytest.raises(FrugalbenchError, match="nowhere"):
        routing.read_trace(tmp_path / "nowhere.csv", E, K)


@pytest.mark.parametrize("text", ["zipf", "zipf-", "zipf-x", "zipf--1", "zipf-nan", "zipf-11", "skewed", ""])
def test_an_unknown_routing_says_what_there_is(text):
    with pytest.raises(ValueError, match="'router', 'uniform', 'zipf-S'"):
        routing.check(text)


def test_more_experts_than_widths_cannot_be_steered():
    random = np.random.default_rng(0)
    with pytest.raises(FrugalbenchError, match="as many widths"):
        routing.steered(random.random((3, 4)), random.random((8, 4)), np.zeros((3, 1), int))


def test_gates_are_of_known_models():
    assert set(routing.GATES) <= set(load_shapes())


@pytest.mark.parametrize("kind", ["router", "uniform", "one"])
def test_hits_are_those_of_the_batches(kind):
    layer = {"model": "m", "d_model": D, "experts": E, "top_k": K, "routing": kind, "tokens": 5}
    batches = spec.token_batches(3, layer, "batch")
    router = spec.router_weights(3, layer)
    hits = [len(np.unique(np.argsort(-(x @ router.T), axis=1)[:, :K])) for x in batches]
    assert spec.experts_hit(3, layer, "batch") == np.mean(hits)
    assert kind != "one" or spec.experts_hit(3, layer, "batch") == K


choices = st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32)).map(
    lambda drawn: np.random.default_rng(drawn[3]).random((drawn[0], drawn[1])).argsort(1)[:, : drawn[2]]
)


@given(choices, st.integers(1, 12))
def test_no_expert_is_above_its_capacity_and_only_full_ones_drop(chosen, most):
    kept = routing.kept(chosen, most)
    load = np.bincount(chosen[kept], minlength=9)
    assert kept.shape == chosen.shape
    assert load.max() <= most
    assert (load[chosen[~kept]] == most).all()


@given(choices, st.integers(1, 12))
def test_places_go_by_rank_then_by_token(chosen, most):
    """Whoever is dropped found the expert full of earlier ranks, or of earlier tokens of the same rank."""
    kept = routing.kept(chosen, most)
    for token, rank in np.argwhere(~kept):
        earlier = [(r, t) for t, r in np.argwhere(kept & (chosen == chosen[token, rank]))]
        assert all(place < (rank, token) for place in earlier)


@given(choices, st.sampled_from([0.1, 0.5, 1.0, 1.25, 2.0, 9.0]))
def test_capacity_is_the_share_of_an_even_load_rounded_up(chosen, factor):
    tokens, top_k = chosen.shape
    for experts in (top_k, 9):
        most = routing.capacity(factor, tokens, experts, top_k)
        assert most >= factor * tokens * top_k / experts * (1 - 1e-12) > most - 1 - 1e-9
        if factor >= experts / top_k:
            assert routing.kept(chosen, most).all()


def test_capacity_is_exact_in_the_decimal_as_written():
    assert routing.capacity(1.1, 100, 10, 1) == 11
    assert routing.capacity(0.07, 100, 1, 1) == 7


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["uniform", "zipf-1", "one"]))
def test_ranked_steering_keeps_the_order_of_choices(seed, kind):
    random = np.random.default_rng(seed)
    router = random.standard_normal((E, D)).astype(np.float32) / D**0.5
    chosen = routing.drawn(kind, 30, E, K, random)
    x = routing.steered(random.standard_normal((30, D), dtype=np.float32), router, chosen, ranked=True)
    assert np.array_equal(np.argsort(-(x @ router.T), axis=1)[:, :K], chosen)
