"""The block view at a small shape: right answers in all arms and regimes, and what would be cheaper is caught."""

import numpy as np
import pytest

from frugalbench.specs import moe_block, moe_inputs
from frugalbench.specs import moe_ffn as spec
from workloads.moe_sessions import SEED, Bench

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")

from frugalbench.workloads import moe_reference  # noqa: E402
from frugalbench.workloads.layers import decoder_block  # noqa: E402

VARIANTS = ("dense-equal-total", "dense-equal-active-native", "moe-transformers", "moe-sorted", "moe-native")
OPTIONS = {
    "view": "block", "shape": "own", "d_model": 48, "d_expert": 16, "experts": 16, "top_k": 4, "n_shared": 1,
    "heads": 6, "kv_heads": 2, "head_dim": 10, "context": 40, "variants": list(VARIANTS), "stream_bytes": 350_000,
    "decode_tokens": [3], "batch_tokens": [9], "prefill_tokens": [33], "training_tokens": [10],
}  # fmt: skip
ATTENTION = ("attention_norm", "qkv", "merge", "ffn_norm")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("scratch"), **OPTIONS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_arm_gives_the_reference_in_every_regime(bench, variant):
    session = bench.load(variant)
    for regime in spec.REGIMES:
        found = bench.verify(session, variant, regime).verification
        rotation = spec.rotation(bench.case(variant, regime).params, regime)
        assert found.passed, (regime, found)
        assert found.what.startswith(f"{rotation} of {rotation} positions")
        assert 0 < found.error < 1e-5


@pytest.mark.parametrize(
    ("variant", "weight"),
    [*(("dense-equal-total", w) for w in ATTENTION), *(("moe-native", w) for w in (*ATTENTION, "gate_up", "router"))],
)
def test_corrupt_weights_are_caught_in_every_regime(bench, variant, weight):
    session = bench.load(variant)
    tensor = session.loaded.layers[0].weights[weight].data
    flat = tensor.view(-1)
    for regime in spec.REGIMES:
        assert bench.passes(session, variant, regime), regime
        kept = flat.clone()
        flat[: max(1, len(flat) // 4)] += 3.0
        assert not bench.passes(session, variant, regime), regime
        flat.copy_(kept)


def coarse_experts(layer):
    """Right to three digits: small beside the block's input."""
    ffn = layer.ffn
    layer.ffn = lambda x_TD: ffn(x_TD) * (1 + 1e-3 * torch.sign(x_TD))


def attention_off(layer):
    layer.attend = lambda x_TD, place: torch.zeros_like(x_TD)  # noqa: ARG005


def no_positions(layer):
    def attend(x_TD, place):
        flat = decoder_block.Place(torch.ones(()), torch.zeros(()), place.keys, place.values)
        return decoder_block.Block.attend(layer, x_TD, flat)

    layer.attend = attend


def no_cache(layer):
    def attend(x_TD, place):
        keys = None if place.keys is None else place.keys[:, :, -1:]
        values = None if place.values is None else place.values[:, :, -1:]
        return decoder_block.Block.attend(layer, x_TD, decoder_block.Place(place.cos, place.sin, keys, values))

    layer.attend = attend


@pytest.mark.parametrize(
    ("cheat", "regimes"),
    [
        (coarse_experts, spec.REGIMES), (attention_off, spec.REGIMES), (no_positions, spec.REGIMES),
        (no_cache, moe_block.CACHED),
    ],
)  # fmt: skip
def test_cheaper_computation_is_caught(bench, cheat, regimes):
    session = bench.load("moe-sorted")
    for layer in session.loaded.layers:
        cheat(layer)
    for regime in regimes:
        assert not bench.passes(session, "moe-sorted", regime), regime


def test_reading_the_same_cache_again_and_again_is_caught(bench):
    session = bench.load("moe-native")
    caches = session.loaded.caches
    caches.keys[3:6], caches.values[3:6] = caches.keys[:3].clone(), caches.values[:3].clone()
    assert not bench.passes(session, "moe-native", "decode")


@pytest.mark.parametrize("name", [*ATTENTION, "down"])
def test_a_gradient_that_is_off_by_a_percent_is_caught(bench, name):
    session = bench.load("moe-native")
    for layer in session.loaded.layers:
        layer.weights[name].register_hook(lambda gradient: gradient * 1.01)
    assert bench.passes(session, "moe-native", "decode")
    assert not bench.passes(session, "moe-native", "training")


@pytest.mark.parametrize("variant", ["dense-equal-total", "moe-sorted"])
@pytest.mark.parametrize("regime", spec.REGIMES)
def test_flop_formula_against_a_counter(bench, variant, regime):
    """The counter sees nothing in the fused kernel, and the plain one multiplies masked pairs, which are no work."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    session, case = bench.load(variant), bench.case(variant, regime)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        session.bound[case.id].call(0)
    T, H, C = case.params["tokens"], case.params["heads"], case.params["head_dim"]
    masked = 0 if regime in moe_block.CACHED else 4 * H * C * T * (T - 1) // 2 * (3 if regime == "training" else 1)
    assert counter.get_total_flops() == case.cost.flop + masked


def test_the_two_definitions_agree(bench):
    """Attention in numpy and as autograd follows it, written apart, give the same float64 output."""
    case = bench.case("moe-sorted", "prefill")
    x_TD = spec.token_batches(SEED, case.params, "prefill")[0].astype(float)
    (wanted,) = moe_reference._answers(case, SEED, 0, range(1), x_TD[None])
    found = moe_reference._gradients({**case.params, "tokens": len(x_TD)}, SEED, x_TD, 0)
    assert all(np.allclose(found[name], wanted[name], rtol=1e-11, atol=1e-13) for name in ("y", "added"))


def test_a_block_routes_as_the_layer_does_in_every_copy(bench):
    session = bench.load("moe-sorted")
    for regime in spec.REGIMES:
        case = bench.case("moe-sorted", regime)
        tokens = spec.token_batches(SEED, case.params, regime)
        router_ED = moe_inputs.router_weights(SEED, case.params)
        wanted = [np.sort(np.argsort(-(x_TD @ router_ED.T), axis=1)[:, :4], axis=1) for x_TD in tokens]
        for position, taken in enumerate(session.loaded._inputs(case, torch.from_numpy(tokens))):
            layer = session.loaded.layers[position % len(session.loaded.layers)]
            with torch.inference_mode():
                found = layer.ffn.choose(layer.ffn_input(*taken))[0]
            assert np.array_equal(np.sort(found.numpy(), axis=1), wanted[position % len(tokens)])


def test_the_record_says_how_attention_ran_and_what_is_stored(bench):
    for variant in VARIANTS:
        reply = bench.load(variant).reply
        for case in bench.arms[variant].cases:
            assert reply.details[case.id]["attention"] == "FLASH_ATTENTION"
            assert reply.details[case.id]["implementation"].endswith("scaled_dot_product_attention")
            assert reply.facts[case.id]["weight_bytes"].value == case.cost.weight_bytes


def test_the_caches_are_what_was_planned(bench):
    session = bench.load("moe-native")
    params = bench.case("moe-native", "decode").params
    caches = session.loaded.caches
    assert caches.keys.nbytes + caches.values.nbytes == params["sequences"] * moe_block.sequence_bytes(params)
    held = sum(t.nbytes for layer in session.loaded.layers for t in layer.parameters())
    assert bench.arms["moe-native"].memory_bytes >= held + caches.keys.nbytes + caches.values.nbytes


def test_exchanged_or_missing_copies_are_caught(bench):
    session = bench.load("moe-sorted")
    assert len(session.loaded.layers) >= 2
    session.loaded.layers[1] = session.loaded.layers[0]
    assert not bench.passes(session, "moe-sorted", "decode")
