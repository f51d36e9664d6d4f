"""The formulas against torch's own counter, against brute force, and against laws."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.specs import accounting as acc

torch = pytest.importorskip("torch")
F = torch.nn.functional
size = st.integers(1, 512)


def counted(function: Callable[[], object]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def swiglu_weights(d_model: int, d_ff: int) -> tuple:
    shapes = ((d_ff, d_model), (d_ff, d_model), (d_model, d_ff))
    return tuple(torch.randn(shape, requires_grad=True) for shape in shapes)


def swiglu(x_TD, weights):
    gate, up, down = weights
    return F.linear(F.silu(F.linear(x_TD, gate)) * F.linear(x_TD, up), down)


def test_linear_matches_counter():
    x, w = torch.randn(5, 7), torch.randn(11, 7)
    assert acc.linear_flop(5, 11, 7) == counted(lambda: F.linear(x, w))


def test_swiglu_forward_matches_counter():
    x, weights = torch.randn(6, 16), swiglu_weights(16, 24)
    assert acc.swiglu_ffn_flop(6, 16, 24) == counted(lambda: swiglu(x, weights))


def test_swiglu_training_step_matches_counter():
    x, weights = torch.randn(6, 16, requires_grad=True), swiglu_weights(16, 24)
    forward_flop = acc.swiglu_ffn_flop(6, 16, 24)
    assert acc.training_flop(forward_flop) == counted(lambda: swiglu(x, weights).sum().backward())


def moe_loop(x_TD, router, experts, top_k: int):
    chosen_TK = (x_TD @ router.T).topk(top_k).indices
    y_TD = torch.zeros_like(x_TD)
    for number, weights in enumerate(experts):
        rows = (chosen_TK == number).any(dim=1).nonzero().squeeze(1)
        if rows.numel():
            y_TD[rows] += swiglu(x_TD[rows], weights)
    return y_TD


def test_moe_matches_counter_for_a_loop_over_experts():
    x, router = torch.randn(9, 16), torch.randn(8, 16)
    experts = [swiglu_weights(16, 12) for _ in range(8)]
    with torch.no_grad():
        assert acc.moe_ffn_flop(9, 16, 12, 8, 2) == counted(lambda: moe_loop(x, router, experts, 2))


def attention(x_BSD, heads: int, kv_heads: int, head_dim: int, projections):
    batch, seq, _ = x_BSD.shape
    q, k, v = (F.linear(x_BSD, w).view(batch, seq, -1, head_dim).transpose(1, 2) for w in projections[:3])
    k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
    y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
    return F.linear(y.transpose(1, 2).reshape(batch, seq, -1), projections[3])


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_transformer_block_matches_counter(kv_heads):
    batch, seq, d_model, heads, d_ff, head_dim = 2, 5, 24, 4, 40, 8
    q_dim, kv_dim = heads * head_dim, kv_heads * head_dim
    dims = ((q_dim, d_model), (kv_dim, d_model), (kv_dim, d_model), (d_model, q_dim))
    projections, weights = [torch.randn(shape) for shape in dims], swiglu_weights(d_model, d_ff)
    x = torch.randn(batch, seq, d_model)
    expected = acc.transformer_block_flop(batch, seq, d_model, heads, d_ff, kv_heads, head_dim)
    assert expected == counted(lambda: swiglu(attention(x, heads, kv_heads, head_dim, projections), weights))


@pytest.mark.parametrize("cached", [0, 6])
@pytest.mark.parametrize("seq", [1, 5])
def test_grouped_attention_behind_a_cache_matches_counter(seq, cached):
    """Causal pairs too: what is run multiplies whole rows, masked or not; the formula counts the mask's ones."""
    batch, d_model, heads, kv_heads, head_dim = 2, 24, 4, 2, 8
    weights = [torch.randn(n * head_dim, d_model) for n in (heads, kv_heads, kv_heads)]
    x, merge = torch.randn(batch, seq, d_model), torch.randn(d_model, heads * head_dim)
    old = [torch.randn(batch, kv_heads, cached, head_dim) for _ in range(2)]
    mask = torch.ones(seq, cached + seq, dtype=torch.bool).tril(cached)

    def run():
        q, k, v = (F.linear(x, w).view(batch, seq, -1, head_dim).transpose(1, 2) for w in weights)
        k, v = (torch.cat(pair, 2).repeat_interleave(heads // kv_heads, 1) for pair in zip(old, (k, v), strict=True))
        scores = (q @ k.transpose(-1, -2)).masked_fill(~mask, -torch.inf)
        return F.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), merge)

    sizes = (batch, seq, d_model, heads, kv_heads, head_dim)
    assert acc.attention_flop(*sizes, cached=cached) == counted(run)
    masked = 4 * batch * heads * head_dim * int((~mask).sum())
    assert acc.attention_flop(*sizes, cached=cached, causal=True) == counted(run) - masked
    assert acc.attended_pairs(seq, cached, causal=True) == int(mask.sum())
    assert acc.attention_parameters(d_model, *sizes[3:]) == sum(w.numel() for w in (*weights, merge))
    assert acc.kv_bytes(batch * cached, kv_heads, head_dim) == sum(item.nbytes for item in old)


def test_encoder_matches_counter():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
    model = torch.nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
    x = torch.randn(2, 6, 32)
    with sdpa_kernel(SDPBackend.MATH):  # the counter sees no FLOP in the fused kernel for CPUs
        assert acc.encoder_flop(3, 32, 4, 64, seq=6, batch=2) == counted(lambda: model(x))


def test_encoder_pooler_is_one_product_per_sequence():
    plain = acc.encoder_flop(2, 32, 4, 64, seq=6, batch=3)
    assert acc.encoder_flop(2, 32, 4, 64, seq=6, batch=3, pooler=True) - plain == 2 * 3 * 32 * 32


@given(tokens=size, d_model=size, d_ff=size, times=st.integers(2, 9))
def test_linear_in_tokens(tokens, d_model, d_ff, times):
    for formula in (acc.swiglu_ffn_flop, acc.mlp_flop, acc.router_flop):
        assert formula(times * tokens, d_model, d_ff) == times * formula(tokens, d_model, d_ff)
    once = acc.moe_ffn_flop(tokens, d_model, d_ff, 8, 2)
    assert acc.moe_ffn_flop(times * tokens, d_model, d_ff, 8, 2) == times * once


@given(tokens=size, d_model=size, d_ff=size, experts=st.integers(1, 64))
def test_moe_with_every_expert_active_is_dense_plus_router(tokens, d_model, d_ff, experts):
    dense = acc.swiglu_ffn_flop(tokens, d_model, experts * d_ff) + acc.router_flop(tokens, d_model, experts)
    assert acc.moe_ffn_flop(tokens, d_model, d_ff, experts, experts) == dense
    held = acc.moe_ffn_parameters(d_model, d_ff, experts)
    assert acc.moe_ffn_active_parameters(d_model, d_ff, experts, experts) == held


@given(d_model=size, d_ff=size, experts=st.integers(1, 64), data=st.data())
def test_flop_is_twice_the_active_parameters_per_token(d_model, d_ff, experts, data):
    top_k = data.draw(st.integers(1, experts))
    active = acc.moe_ffn_active_parameters(d_model, d_ff, experts, top_k)
    assert acc.moe_ffn_flop(1, d_model, d_ff, experts, top_k) == 2 * active


@given(batch=st.integers(1, 8), seq=st.integers(1, 64))
def test_attention_grows_with_the_square_of_the_sequence(batch, seq):
    growth = acc.attention_flop(batch, 2 * seq, 64, 4) - 2 * acc.attention_flop(batch, seq, 64, 4)
    assert growth == 2 * (2 * 2 * batch * 64 * seq * seq)


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 5, 2), (2, 4, 2), (3, 4, 1), (2, 5, 3)])
def test_distinct_experts_equals_enumeration(tokens, experts, top_k):
    choices = list(itertools.combinations(range(experts), top_k))
    hits = [len(set(itertools.chain(*draw))) for draw in itertools.product(choices, repeat=tokens)]
    assert acc.expected_distinct_experts(tokens, experts, top_k) == pytest.approx(np.mean(hits))


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 5, 2), (2, 4, 2), (3, 4, 1), (2, 5, 3), (3, 3, 3)])
@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_kept_choices_equal_enumeration(tokens, experts, top_k, capacity):
    choices = list(itertools.combinations(range(experts), top_k))
    kept = [
        np.minimum(np.bincount(list(itertools.chain(*draw))), capacity).sum()
        for draw in itertools.product(choices, repeat=tokens)
    ]
    assert acc.expected_kept_choices(tokens, experts, top_k, capacity) == pytest.approx(np.mean(kept))


@given(tokens=st.integers(1, 10**7), experts=st.integers(1, 512), factor=st.floats(0.05, 3), data=st.data())
def test_kept_choices_bounds(tokens, experts, factor, data):
    top_k = data.draw(st.integers(1, experts))
    capacity = int(np.ceil(factor * tokens * top_k / experts))
    kept = acc.expected_kept_choices(tokens, experts, top_k, capacity)
    assert 0 < kept <= min(tokens * top_k, experts * capacity) * (1 + 1e-9)
    assert capacity < tokens or kept == pytest.approx(tokens * top_k)


@given(tokens=st.integers(1, 4096), experts=st.integers(1, 512), data=st.data())
def test_distinct_experts_bounds(tokens, experts, data):
    top_k = data.draw(st.integers(1, experts))
    hit = acc.expected_distinct_experts(tokens, experts, top_k)
    assert top_k * (1 - 1e-9) <= hit <= min(experts, tokens * top_k) * (1 + 1e-9)
    assert acc.expected_distinct_experts(tokens + 1, experts, top_k) >= hit


def test_moe_traffic_of_one_token_reads_exactly_its_experts():
    expected = (3 * 2 * 16 * 12 + 16 * 8) * 4 + 2 * 16 * 4
    # 2 experts of 16 x 12, the 16 x 8 router, one token in and out
    assert acc.moe_ffn_traffic_bytes(1, 16, 12, 8, 2) == pytest.approx(expected)


def test_linear_traffic_by_hand():
    assert acc.linear_traffic_bytes(2, 10, 64, weight_bytes=720, activation_bytes=4) == 720 + (128 + 20) * 4


@pytest.mark.parametrize("top_k", [0, 9])
def test_impossible_top_k_is_refused(top_k):
    with pytest.raises(ValueError, match="top_k"):
        acc.moe_ffn_flop(1, 16, 12, 8, top_k)


def test_impossible_heads_are_refused():
    with pytest.raises(ValueError, match="head_dim"):
        acc.attention_flop(1, 4, 30, 4)
