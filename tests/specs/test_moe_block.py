"""The block view of moe_ffn: whose attention, how it is scaled, what it costs, how it is named. No torch."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import moe_block as block
from frugalbench.specs import moe_ffn as spec
from frugalbench.specs import moe_inputs as inputs
from frugalbench.specs.base import Settings
from frugalbench.specs.shapes import load_shapes

MIB = 2**20
SETTINGS = Settings("moe_ffn", "cpu", 2, 3, {}, "test.toml [[workload]]")


class Machine:
    logical_cores = 2
    last_level_cache_bytes = 8 * MIB

    def installed(self, package):  # noqa: ARG002
        return "1.0"

    gpu_l2_bytes = 50 * 2**20
    gpu_memory_bytes = 80 * 2**30

    def has_cuda(self):
        return False


def expand(**options):
    options = {"view": "block", **options}
    return spec.expand(Settings("moe_ffn", "cpu", 2, 3, options, "test.toml [[workload]]"), Machine())


def cases(**options):
    (comparison,) = expand(**options).comparisons
    return {(case.variant, case.regime): case for arm in comparison.arms for case in arm.cases}


def test_the_models_heads_are_scaled_and_stated():
    """qwen3-30b-a3b has 32 query heads on 4 key heads of 128."""
    params = cases(scale=0.25)["moe-sorted", "decode"].params
    assert {"heads": 8, "kv_heads": 1, "head_dim": 128, "d_model": 512, "context": 512}.items() <= params.items()
    half = cases(scale=0.5)["moe-sorted", "decode"].params
    assert (half["heads"], half["kv_heads"], half["head_dim"]) == (16, 2, 128)


@given(
    st.sampled_from([s for s in load_shapes().values() if s.n_experts and s.attn in block.BUILT]),
    st.floats(1e-3, 1.0),
)
def test_heads_divide_and_stay_near_the_scale(shape, scale):
    found = block.model_attention(SETTINGS, shape, scale)
    assert found["head_dim"] == shape.head_dim
    assert found["heads"] % found["kv_heads"] == 0 and found["heads"] >= 1
    if round(shape.n_kv_heads * scale) >= 1:
        assert found["heads"] / found["kv_heads"] == shape.n_heads / shape.n_kv_heads
        assert abs(found["kv_heads"] - shape.n_kv_heads * scale) <= 0.5
    else:
        assert found["kv_heads"] == 1 and abs(found["heads"] - max(1, shape.n_heads * scale)) <= 0.5


def test_block_and_layer_stay_apart():
    layer, whole = cases(view="layer"), cases()
    assert {case.shape for case in layer.values()} == {"qwen3-30b-a3b@0.25"}
    assert {case.shape for case in whole.values()} == {"qwen3-30b-a3b@0.25-block"}
    assert not {case.id for case in layer.values()} & {case.id for case in whole.values()}
    assert not {"view", "heads"} & set(layer["moe-sorted", "decode"].params)
    long = cases(context=2048, capacity_factor=1.25)["moe-sorted", "decode"]
    assert long.shape == "qwen3-30b-a3b@0.25-block-ctx2048-cap1.25"
    own = cases(shape="own", routing="one")["moe-sorted", "decode"]
    assert own.shape == "1024x512-e32-k2-block-h16-4x64-one"


def test_every_arm_gets_the_same_attention_and_the_same_trace():
    layer, whole = cases(view="layer"), cases()
    attention = 2 * 512 * 128 * (8 + 1) + 2 * 512
    for key, case in whole.items():
        assert case.cost.parameters - layer[key].cost.parameters == attention
        assert case.cost.active_parameters - layer[key].cost.active_parameters == attention
        assert case.params.get("experts_hit") == layer[key].params.get("experts_hit")
        surplus = {case.cost.flop - layer[key].cost.flop, whole["moe-sorted", key[1]].cost.flop
                   - layer["moe-sorted", key[1]].cost.flop}  # fmt: skip
        assert len(surplus) == 1


def test_flop_by_hand():
    """8 heads of 128 on one key head, width 512: projections 2 x 512 x 128 x 18 a token, and 4 x 8 x 128 a pair."""
    layer, whole = cases(view="layer"), cases()
    more = {
        regime: whole["moe-sorted", regime].cost.flop - layer["moe-sorted", regime].cost.flop for regime in spec.REGIMES
    }
    token, pair = 2 * 512 * 128 * 18, 4 * 8 * 128
    assert more["decode"] == 4 * (token + 513 * pair)
    assert more["batch"] == 16 * (token + 513 * pair)
    assert more["prefill"] == 256 * token + 256 * 257 // 2 * pair
    assert more["training"] == 3 * (64 * token + 64 * 65 // 2 * pair)


def test_traffic_counts_the_caches_of_decoding():
    layer, whole = cases(view="layer"), cases()
    more = {
        r: whole["moe-sorted", r].cost.traffic_bytes - layer["moe-sorted", r].cost.traffic_bytes for r in spec.REGIMES
    }
    weights = 4 * (2 * 512 * 128 * 9 + 2 * 512)
    assert more["decode"] == weights + 4 * 513 * 2 * 128 * 4
    assert more["prefill"] == weights
    assert more["training"] == 3 * weights


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(1, 400), st.integers(1, 300))
def test_caches_exceed_the_stream_alike_in_every_arm(context, stream_mib, tokens):
    made = expand(context=context, stream_bytes=stream_mib * MIB, batch_tokens=[tokens], regimes=["decode", "batch"])
    for arm in made.comparisons[0].arms:
        params = arm.cases[0].params
        one = 2 * (context + 1) * 128 * 4
        assert params["sequences"] == max(math.ceil(stream_mib * MIB / one), tokens, 4)
        held = params["copies"] * arm.cases[0].cost.weight_bytes + params["sequences"] * one
        assert arm.memory_bytes >= held
        for case in arm.cases:
            groups = params["sequences"] // case.params["tokens"]
            assert block.groups(case.params, case.regime) == groups >= 1
            assert spec.rotation(case.params, case.regime) >= groups


def test_arms_that_decode_nothing_hold_no_cache():
    (comparison,) = expand(regimes=["prefill", "training"]).comparisons
    for arm in comparison.arms:
        assert arm.memory_bytes == (arm.cases[0].params["copies"] + 1) * arm.cases[0].cost.weight_bytes


SMALL = {
    "model": "small", "d_model": 40, "d_expert": 12, "experts": 16, "top_k": 4, "n_shared": 0, "routing": "router",
    "view": "block", "heads": 4, "kv_heads": 2, "head_dim": 6, "context": 9, "sequences": 8, "tokens": 5,
}  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 20))
def test_attention_writes_nothing_that_the_router_reads(seed, copy):
    weights = block.weights(seed, SMALL, copy)
    router_ED = inputs.router_weights(seed, SMALL)
    assert np.abs(router_ED @ weights["merge"]).max() < 1e-6
    assert np.linalg.norm(weights["merge"]) > 1
    behind_norm = block.router(seed, SMALL, copy) * weights["ffn_norm"]
    assert np.allclose(behind_norm, router_ED, rtol=1e-6, atol=1e-9)


def test_weights_and_caches_are_seeded_and_distinct():
    first, again, other = (block.weights(5, SMALL, copy) for copy in (0, 0, 1))
    for name, array in first.items():
        assert np.array_equal(array, again[name]) and not np.array_equal(array, other[name])
        assert array.dtype == np.float32
    assert first["qkv"].shape == (8 * 6, 40) and first["merge"].shape == (40, 24)
    assert not np.array_equal(first["attention_norm"], first["ffn_norm"])
    caches = [block.cached(5, SMALL, sequence) for sequence in range(8)]
    assert all(cache.shape == (2, 2, 9, 6) for cache in caches)
    assert len({cache.tobytes() for cache in caches}) == 8
    assert np.std(caches) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": "blocks"}, "unknown view 'blocks'; did you mean 'block'"),
        ({"shape": "deepseek-v3-671b"}, "builds mha and gqa attention, and deepseek-v3-671b has mla"),
        ({"shape": "gpt-oss-20b"}, r"gpt-oss-20b has gqa\+swa"),
        ({"shape": "qwen3-next-80b-a3b"}, r"qwen3-next-80b-a3b has gdn\+gqa"),
        ({"context": 0}, "'context' must be at least 1"),
        ({"context": "long"}, "'context' must be an integer"),
        ({"shape": "own", "heads": 0}, "'heads'.* must be at least 1"),
        ({"shape": "own", "heads": 6}, "6 'heads' do not share 4 'kv_heads' evenly"),
        ({"shape": "own", "head_dim": 33}, "'head_dim' 33 must be even"),
        ({"scale": 1 / 16}, r"more widths \(128\) than experts \(128\); raise 'scale'"),
    ],
)
def test_a_block_that_cannot_be_is_refused(options, message):
    with pytest.raises(FrugalbenchError, match=message) as problem:
        expand(**options)
    assert str(problem.value).startswith("test.toml [[workload]]")
    assert "\n" not in str(problem.value)
