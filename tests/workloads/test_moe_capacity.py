"""Experts of limited capacity: every arm drops what the definition drops, and computes no more."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench.specs import moe_ffn as spec
from frugalbench.specs import routing
from workloads.moe_sessions import SEED, Bench

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")

from frugalbench.workloads import moe_reference  # noqa: E402
from frugalbench.workloads.layers import ffn, triton_ffn  # noqa: E402

MOE = ("moe-loop", "moe-grouped", "moe-sorted", "moe-native")
OPTIONS = {
    "shape": "own", "d_model": 48, "d_expert": 16, "experts": 8, "top_k": 3, "n_shared": 1, "capacity_factor": 0.75,
    "variants": ["dense-equal-active", *MOE], "stream_bytes": 100_000, "decode_tokens": [4], "batch_tokens": [16],
    "prefill_tokens": [65], "training_tokens": [20],
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("scratch"), **OPTIONS)


@pytest.mark.parametrize("options", [{}, {"view": "block", "heads": 4, "kv_heads": 2, "head_dim": 8, "context": 5}])
@pytest.mark.parametrize("variant", MOE)
def test_each_arm_gives_the_reference_in_every_regime(tmp_path_factory, variant, options):
    bench = Bench(tmp_path_factory.mktemp("scratch"), **OPTIONS, **options)
    session = bench.load(variant)
    for regime in spec.REGIMES:
        found = bench.verify(session, variant, regime).verification
        assert found.passed, (regime, found)
        assert 0 < found.error < 1e-5


@pytest.mark.parametrize("kind", ["zipf-1", "one"])
def test_a_chosen_routing_has_an_order_of_choices(tmp_path, kind):
    bench = Bench(tmp_path, **{**OPTIONS, "variants": ["moe-sorted"], "routing": kind})
    session = bench.load("moe-sorted")
    assert all(bench.passes(session, "moe-sorted", regime) for regime in spec.REGIMES)


def test_all_arms_drop_alike_and_the_record_says_how_much(bench):
    for regime in spec.REGIMES:
        case = bench.case("moe-sorted", regime)
        params, T = case.params, case.params["tokens"]
        most = -(-3 * 3 * T // (4 * 8))  # ceil(0.75 · T · 3 / 8)
        wanted = []
        for x_TD in spec.token_batches(SEED, params, regime).astype(float):
            asked_TE = moe_reference.route({**params, "capacity_factor": 0.0}, SEED, x_TD)[:, :8] > 0
            wanted.append(1 - np.minimum(asked_TE.sum(axis=0), most).sum() / (3 * T))
        assert sum(wanted) > 0
        for variant in MOE:
            reply, name = bench.load(variant).reply, bench.case(variant, regime).id
            details, fact = reply.details[name], reply.facts[name]["dropped_share"]
            assert details["dropped_share"] == pytest.approx(wanted)
            assert fact.value == pytest.approx(np.mean(wanted)) == pytest.approx(1 - params["kept_choices"] / (3 * T))
            assert max(details["busiest_expert_tokens"]) == details["expert_capacity_tokens"] == most
            assert sum(details["router_histogram"]) == 3 * T * spec.BATCHES[regime]


@pytest.mark.parametrize("variant", ["moe-loop", "moe-sorted"])
@pytest.mark.parametrize("regime", spec.REGIMES)
def test_flop_formula_against_a_counter(bench, variant, regime):
    """What is dropped is not computed; the formula holds the mean over the batches."""
    from torch.utils.flop_counter import FlopCounterMode

    session, case = bench.load(variant), bench.case(variant, regime)
    counted = []
    for index in range(spec.BATCHES[regime]):
        with FlopCounterMode(display=False) as counter:
            session.bound[case.id].call(index)
        counted.append(counter.get_total_flops())
    assert np.mean(counted) == pytest.approx(case.cost.flop)
    router_flop = 2 * case.params["tokens"] * 48 * 8 * (3 if regime == "training" else 1)
    assert case.cost.flop - router_flop < bench.case("dense-equal-active", regime).cost.flop


def dropless(layer):
    layer.capacity_factor = 0.0


def roomier(layer):
    layer.capacity_factor *= 1.5


def shared_out(layer):
    """Gives the weights of dropped experts to those that are left."""
    copies = type(layer).copies

    def renormalised(x_TD):
        token, expert, weight = copies(layer, x_TD)
        routed = (expert < layer.experts).float()
        left = torch.zeros(len(x_TD)).index_add_(0, token, weight * routed)
        return token, expert, torch.where(routed > 0, weight / left[token], weight)

    layer.copies = renormalised


def last_first(layer):
    """Serves the tokens from the last to the first."""
    copies = type(layer).copies

    def backwards(x_TD):
        token, expert, weight = copies(layer, x_TD.flip(0))
        return len(x_TD) - 1 - token, expert, weight

    layer.copies = backwards


@pytest.mark.parametrize("other", [dropless, roomier, shared_out, last_first])
@pytest.mark.parametrize("variant", ["moe-sorted", "moe-native"])
def test_another_rule_is_caught(bench, variant, other):
    session = bench.load(variant)
    for layer in session.loaded.layers:
        other(layer)
    for regime in ("batch", "prefill", "training"):
        assert not bench.passes(session, variant, regime), regime


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 8), st.sampled_from([0.3, 1.0, 1.25, 2.0]), st.data())
def test_the_arms_the_plan_and_the_reference_keep_the_same_copies(tokens, experts, top_k, factor, data):
    top_k = min(top_k, experts)
    shared = data.draw(st.integers(0, 2))
    seed = data.draw(st.integers(0, 2**32))
    torch.manual_seed(seed)
    params = {
        "top_k": top_k, "gate": "softmax", "normalise": True, "routed_scale": 1.0, "experts": experts,
        "n_shared": shared, "capacity_factor": factor, "tokens": tokens,
    }  # fmt: skip
    layer = ffn.Mixture({"router": torch.randn(experts, 16)}, params)
    with torch.no_grad():
        x_TD = torch.randn(tokens, 16)
        token_S, expert_S, _ = layer.copies(x_TD)
        chosen_TK = layer.choose(x_TD)[0].numpy()
    found_TE = np.zeros((tokens, experts + shared))
    np.add.at(found_TE, (token_S.numpy(), expert_S.numpy()), 1)
    wanted_TE = moe_reference._served(chosen_TK, params)
    planned_TE = np.zeros((tokens, experts))
    kept_TK = routing.kept(chosen_TK, routing.capacity(factor, tokens, experts, top_k))
    np.put_along_axis(planned_TE, chosen_TK, kept_TK.astype(float), axis=1)
    assert np.array_equal(found_TE[:, :experts], wanted_TE)
    assert np.array_equal(planned_TE, wanted_TE)
    assert (found_TE[:, experts:] == 1).all()
    assert (np.diff(expert_S.numpy()) >= 0).all()


@pytest.mark.parametrize("shared", [0, 1])
def test_triton_takes_dropped_choices_as_negative_experts(monkeypatch, shared):
    """Only how it is called: a stand-in computes in the kernel's place."""
    torch.manual_seed(0)
    held = 4 + shared
    weights = {"gate_up": torch.randn(held, 12, 8), "down": torch.randn(held, 8, 6), "router": torch.randn(4, 8)}
    params = {
        "top_k": 2, "gate": "softmax", "normalise": True, "routed_scale": 1.0, "experts": 4, "n_shared": shared,
        "capacity_factor": 0.75,
    }  # fmt: skip
    loop, layer = ffn.LoopMoe(weights, params), triton_ffn.TritonMoe(weights, params)

    class StandIn:
        @staticmethod
        def choose(logits_TE, top_k, gate, normalise, scale, shared, dtype):
            assert (shared, dtype) == (params["n_shared"], torch.float32)
            one_E = torch.eye(logits_TE.shape[1])
            return loop.with_shared(*ffn.chosen(logits_TE, one_E, top_k, gate, normalise, scale))

        @staticmethod
        def mixture(x_TD, expert_TK, weight_TK, *_, plan):
            assert plan is None
            assert (expert_TK < 0).any()
            return loop.mix(x_TD, expert_TK, weight_TK)

    monkeypatch.setattr(triton_ffn, "kernel", lambda: StandIn)
    x_TD = torch.randn(9, 8)
    assert torch.allclose(layer(x_TD), loop(x_TD), atol=1e-5)
