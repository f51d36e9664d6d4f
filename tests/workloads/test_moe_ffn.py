"""The expert layer and its twins at a small shape: right answers in all regimes, and cheating is caught."""

import json

import numpy as np
import pytest

from frugalbench.specs import moe_ffn as spec
from workloads.moe_sessions import SEED, Bench

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")

from frugalbench.workloads import moe_ffn as builder  # noqa: E402
from frugalbench.workloads import moe_reference  # noqa: E402

OPTIONS = {
    "variants": [*spec.DENSE, *spec.MOE], "scale": 1 / 64, "stream_bytes": 700_000, "decode_tokens": [3],
    "batch_tokens": [9], "prefill_tokens": [33], "training_tokens": [10],
}  # fmt: skip
DENSE, MOE = spec.DENSE, tuple(name for name in spec.MOE if name not in ("moe-compiled", *spec.ON_GPU))
VARIANTS = (*DENSE, *MOE)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("scratch"), **OPTIONS)


@pytest.fixture
def loaded(bench):
    return bench.load


ARMS = Bench("", **OPTIONS).arms


def case_of(variant, regime):
    return next(case for case in ARMS[variant].cases if case.regime == regime)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_arm_gives_the_reference_in_every_regime(bench, loaded, variant):
    session = loaded(variant)
    for regime in spec.REGIMES:
        found = bench.verify(session, variant, regime).verification
        rotation = spec.rotation(case_of(variant, regime).params, regime)
        assert found.passed, (regime, found)
        assert found.what.startswith(f"{rotation} of {rotation} positions")
        assert 0 < found.error < 1e-5


def hit_expert(regime):
    """An expert that serves a token in the regime's first batch, which the first layer computes."""
    params = case_of("moe-sorted", regime).params
    x_TD = spec.token_batches(SEED, params, regime)[0].astype(float)
    return int(np.flatnonzero(builder.route(params, SEED, x_TD).any(axis=0))[0])


def element(variant, weight, regime):
    """Index of one weight that the regime's first call multiplies."""
    if variant in DENSE:
        return (3, 5)
    return (hit_expert(regime), 5) if weight == "router" else (hit_expert(regime), 3, 5)


@pytest.mark.parametrize(
    ("variant", "weight"),
    [
        *((v, w) for v in DENSE for w in ("gate_up", "down")),
        *((v, w) for v in MOE for w in ("gate_up", "down", "router")),
    ],
)
def test_one_corrupt_weight_is_caught_in_every_regime(bench, loaded, variant, weight):
    session = loaded(variant)
    tensor = session.loaded.layers[0].weights[weight].data
    for regime in spec.REGIMES:
        assert bench.passes(session, variant, regime), regime
        where = element(variant, weight, regime)
        right = float(tensor[where])
        tensor[where] += 5.0
        assert not bench.passes(session, variant, regime), regime
        tensor[where] = right


@pytest.mark.parametrize("variant", VARIANTS)
def test_exchanged_or_missing_copies_are_caught(bench, loaded, variant):
    """Streaming the same layer again and again instead of distinct ones would be faster."""
    session = loaded(variant)
    layers = session.loaded.layers
    assert len(layers) >= 2
    layers[1] = layers[0]
    assert not bench.passes(session, variant, "decode")


class Stub:
    """In a layer's place: computes nothing."""

    def __init__(self, layer, answer):
        self.layer, self.answer = layer, answer

    def __getattr__(self, name):
        return getattr(self.layer, name)

    def __call__(self, x_TD):
        return self.answer(x_TD)


def stale(layer, kept):
    """The first answer that any layer gave, for ever."""
    return lambda x_TD: kept[0] if kept else kept.append(layer(x_TD)) or kept[0]


CHEATS = {
    "zeros": lambda *_: torch.zeros_like,
    "the input": lambda *_: lambda x_TD: x_TD * 1.0,
    "a stale answer": stale,
    "half of the answer": lambda layer, _: lambda x_TD: layer(x_TD) * 0.5,
    "only the first token": lambda layer, _: lambda x_TD: torch.cat([layer(x_TD[:1]), torch.zeros_like(x_TD[1:])]),
}


@pytest.mark.parametrize("cheat", CHEATS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_deleting_the_computation_is_caught(bench, loaded, variant, cheat):
    session = loaded(variant)
    layers, real = session.loaded.layers, list(session.loaded.layers)
    for regime in spec.REGIMES:
        kept = []
        layers[:] = [Stub(layer, CHEATS[cheat](layer, kept)) for layer in real]
        assert not bench.passes(session, variant, regime), regime


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gradient_that_is_off_by_a_percent_is_caught(bench, loaded, variant):
    for name in loaded(variant).loaded.layers[0].weights:
        session = loaded(variant)
        for layer in session.loaded.layers:
            layer.weights[name].register_hook(lambda gradient: gradient * 1.01)
        assert bench.passes(session, variant, "decode")
        assert not bench.passes(session, variant, "training"), name


def test_both_mixtures_share_a_reference_and_nothing_else_does():
    keys = {(variant, case.regime): builder.reference_key(case) for variant in ARMS for case in ARMS[variant].cases}
    for regime in spec.REGIMES:
        assert keys[MOE[0], regime] == keys[MOE[1], regime]
    assert len(set(keys.values())) == 3 * len(spec.REGIMES)


def test_the_two_forward_and_backward_definitions_agree():
    """The numpy mixture and the autograd one, written apart, give the same float64 output."""
    params = case_of("moe-sorted", "training").params
    x_TD = spec.token_batches(SEED, params, "training")[0].astype(float)
    answers = moe_reference._gradients(params, SEED, x_TD, 0)["y"], builder.sum_experts(params, SEED, x_TD, 0)
    assert np.allclose(*answers, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("variant", MOE)
def test_the_histogram_counts_every_token_copy_once_and_as_routed(loaded, variant):
    session = loaded(variant)
    for case in ARMS[variant].cases:
        counts = session.reply.details[case.id]["router_histogram"]
        params = case.params
        assert len(counts) == params["experts"]
        assert sum(counts) == params["tokens"] * params["top_k"] * spec.BATCHES[case.regime]
        tokens = spec.token_batches(SEED, params, case.regime).reshape(-1, params["d_model"]).astype(float)
        assert counts == (builder.route(params, SEED, tokens) > 0).sum(axis=0).tolist()


def test_dense_arms_have_no_histogram(loaded):
    assert all("router_histogram" not in item for item in loaded(DENSE[0]).reply.details.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_stored_bytes_are_those_of_the_formula(loaded, variant):
    session = loaded(variant)
    for case in ARMS[variant].cases:
        assert session.reply.facts[case.id]["weight_bytes"].value == case.cost.weight_bytes


@pytest.mark.parametrize("variant", [*DENSE[:2], "moe-sorted", "moe-loop"])
@pytest.mark.parametrize("regime", spec.REGIMES)
def test_flop_formula_against_a_counter(loaded, variant, regime):
    from torch.utils.flop_counter import FlopCounterMode

    session = loaded(variant)
    case = case_of(variant, regime)
    with FlopCounterMode(display=False) as counter:
        session.bound[case.id].call(0)
    assert counter.get_total_flops() == case.cost.flop


def test_the_implementation_that_ran_is_recorded(loaded):
    for variant in VARIANTS:
        details = loaded(variant).reply.details
        kind = "native" if variant in spec.NATIVE else "transformers" if variant in spec.TRANSFORMERS else "torch"
        assert all(item["implementation"].startswith(kind) for item in details.values())
        json.dumps(details)
