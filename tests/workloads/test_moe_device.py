"""Weights and float64 references of the expert layer where a device would draw and compute them, on the CPU."""

import numpy as np
import pytest

from frugalbench.specs import moe_ffn as spec
from frugalbench.specs import moe_inputs
from frugalbench.specs.base import Settings
from frugalbench.workloads.base import Context
from workloads.fake_machine import Machine

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")

from frugalbench.workloads import moe_device_reference, moe_ffn, moe_reference  # noqa: E402
from frugalbench.workloads.layers import drawn, ffn  # noqa: E402

OWN = {
    "shape": "own", "d_model": 48, "d_expert": 40, "experts": 6, "top_k": 2, "heads": 4, "kv_heads": 2, "head_dim": 8,
}  # fmt: skip
NAMED = {"shape": "deepseek-v3-671b", "scale": 0.01}
OPTIONS = {
    "context": 12, "variants": ["dense-equal-total", "moe-sorted"], "decode_tokens": [3], "prefill_tokens": [20],
    "training_tokens": [9], "stream_bytes": 100_000,
}  # fmt: skip
SIXTEEN = {"weights": "bfloat16", "regimes": ["decode", "prefill"]}


def context(tmp_path, device="cpu"):
    return Context(seed=3, threads=2, device=device, cache_dir=tmp_path, scratch_dir=tmp_path)


def cases(layer=OWN, **options):
    made = spec.expand(Settings("moe_ffn", "cpu", 2, 3, {**OPTIONS, **layer, **options}), Machine())
    return [case for arm in made.comparisons[0].arms for case in arm.cases]


@pytest.mark.parametrize(
    "options",
    [{}, SIXTEEN, {"view": "block"}, {"capacity_factor": 0.8, "n_shared": 1}, {"routing": "one"}, {"layer": NAMED}],
)
def test_both_float64_references_agree(monkeypatch, tmp_path, options):
    monkeypatch.setattr(moe_device_reference, "_STRIP", 100)
    for case in cases(**{"regimes": ["decode", "prefill", "training"], **options}):
        wanted = moe_reference.reference(case, context(tmp_path))
        found = moe_device_reference.reference(case, context(tmp_path))
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            assert found[name].dtype == np.float64
            assert np.abs(found[name] - values).max() < 1e-12 * np.sqrt((values**2).mean()), (case.id, name)


def test_a_run_on_a_device_takes_the_device_reference(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(moe_device_reference, "reference", lambda case, _: asked.append(case.id) or {})
    moe_ffn.reference(cases()[0], context(tmp_path, "cuda"))
    assert asked == [cases()[0].id]


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_device_draws_the_distribution_that_numpy_draws_and_the_same_each_time(monkeypatch, kind):
    """``cpu:0`` is a device as ``cuda`` is one, and there without it."""
    params = {"d_model": 256, "d_expert": 96, "experts": 5, "n_shared": 1, "d_ff": 0, "weights": kind}
    monkeypatch.setattr(drawn, "_AT_ONCE", 1000)
    found, again, other = (drawn.weights(3, params, copy, "cpu:0") for copy in (0, 0, 1))
    wide = drawn.weights(3, params, 0, "cpu:0", torch.float32)
    for name, (shape, fan_in, _) in moe_inputs.expert_places(params, 0).items():
        values = found[name]
        assert (values.dtype, tuple(values.shape)) == (getattr(torch, kind), shape)
        assert torch.equal(values, again[name])
        assert not torch.equal(values, other[name])
        assert torch.equal(values.float(), wide[name])
        assert abs(float(values.double().mean())) < 0.02 / fan_in**0.5
        assert float(values.double().var()) * fan_in == pytest.approx(1, rel=0.02)
        assert float(values.double().abs().max()) == pytest.approx((3 / fan_in) ** 0.5, rel=0.01)
    assert not torch.equal(found["gate_up"].flatten()[:1000], found["down"].flatten()[:1000])


@pytest.mark.parametrize(("kind", "waits"), [(ffn.GroupedMoe, False), (ffn.SortedMoe, True), (ffn.LoopMoe, True)])
def test_what_waits_for_the_host_says_so(kind, waits):
    """A meta tensor has no values: whoever asks for one, as a wait for the device would, fails."""
    params = {
        "top_k": 4, "gate": "softmax", "normalise": True, "routed_scale": 1.0, "experts": 16, "n_shared": 1,
    }  # fmt: skip
    sizes = {"gate_up": (17, 64, 32), "down": (17, 32, 32), "router": (16, 32)}
    weights = {name: torch.empty(size, device="meta", dtype=torch.bfloat16) for name, size in sizes.items()}
    layer, x_TD = kind(weights, params), torch.empty(40, 32, device="meta", dtype=torch.bfloat16)
    assert bool(layer.host_waits) is waits
    if waits:
        with pytest.raises((NotImplementedError, RuntimeError)):
            layer(x_TD)
    else:
        assert layer(x_TD).shape == (40, 32)


class Recorder:
    """A device that records: what it is given, it wraps."""

    def synchronize(self):
        pass

    def captured(self, call, rotation):
        return lambda index: ("replayed", call(index % rotation)), f"a graph of {rotation}"


@pytest.mark.parametrize(
    ("variant", "launch", "said"),
    [
        ("moe-grouped", "graph", "a graph of 2"), ("moe-grouped", "eager", "eager"),
        ("moe-sorted", "graph", "eager: the host waits for the lengths of the segments"),
    ],
)  # fmt: skip
def test_calls_are_recorded_where_they_can_be_and_the_record_says_how(monkeypatch, tmp_path, variant, launch, said):
    monkeypatch.setattr(moe_ffn.devices, "of", lambda _: Recorder())
    made = spec.expand(
        Settings("moe_ffn", "cpu", 2, 3, {**OPTIONS, "variants": [variant], "regimes": ["prefill"]}), Machine()
    )
    arm = made.comparisons[0].arms[0]
    case = arm.cases[0]
    case.params["launch"] = launch
    bound = moe_ffn.load(arm, context(tmp_path)).bind(case)
    assert bound.details["launch"] == said
    assert bound.device is not None
    assert isinstance(bound.call(0), tuple) is said.startswith("a graph")
