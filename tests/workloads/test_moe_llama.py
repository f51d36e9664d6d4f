"""The mixture and its dense twins in llama.cpp's library, in every format of the layer."""

import pytest

from frugalbench.specs import moe_ffn as spec
from frugalbench.specs.base import Settings
from workloads.moe_sessions import SEED, Bench, Machine

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")

OPTIONS = {
    "shape": "own", "d_model": 192, "d_expert": 160, "experts": 6, "top_k": 2, "n_shared": 1,
    "variants": [*spec.LLAMA, "moe-sorted"], "regimes": ["decode", "batch", "prefill"], "stream_bytes": 700_000,
    "decode_tokens": [3], "batch_tokens": [16], "prefill_tokens": [70],
}  # fmt: skip


class Without(Machine):
    def installed(self, package):
        return None if package == "llama-cpp-python" else "1"


def reasons(machine, **options):
    made = spec.expand(Settings("moe_ffn", "cpu", 2, SEED, {**OPTIONS, **options}), machine)
    return {(skip.case.variant, skip.case.regime): skip.reason for skip in made.skipped}


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "float16", "int8", "int4"])
def test_each_arm_gives_the_reference_and_a_corrupt_weight_is_caught(tmp_path, weights):
    pytest.importorskip("llama_cpp")
    bench = Bench(tmp_path, **OPTIONS, weights=weights)
    for variant in spec.LLAMA:
        session = bench.load(variant)
        for regime in OPTIONS["regimes"]:
            case, found = bench.case(variant, regime), bench.verify(session, variant, regime).verification
            assert found.passed, (variant, regime, found)
            assert session.reply.facts[case.id]["weight_bytes"].value == case.cost.weight_bytes
            assert "GGML" in session.reply.details[case.id]["implementation"]
        layer = session.loaded.layers[0]
        weights_of = layer.source()["down"] * 1.5
        layer.tensors["down"], _ = layer.ggml.held(layer.type, weights_of[: getattr(layer, "experts", None)])
        layer._graphs.clear()
        assert not any(bench.passes(session, variant, regime) for regime in OPTIONS["regimes"])


@pytest.mark.parametrize(
    "gate", [{"shape": "deepseek-v3-671b", "scale": 1 / 56}, {"shape": "olmoe-1b-7b", "scale": 1 / 16}]
)
def test_every_gate_routes_as_the_reference(tmp_path, gate):
    pytest.importorskip("llama_cpp")
    bench = Bench(tmp_path, **{**OPTIONS, **gate, "regimes": ["batch"]})
    assert bench.passes(bench.load("moe-llama"), "moe-llama", "batch")


def test_what_llama_cannot_take_is_skipped_with_its_reason():
    assert "pip install" in reasons(Without())["moe-llama", "decode"]
    assert ("moe-sorted", "decode") not in reasons(Without())
    assert "forward only" in reasons(Machine(), regimes=["training"])["moe-llama", "training"]
    assert "no capacity" in reasons(Machine(), capacity_factor=1.0)["moe-llama", "batch"]
    assert "blocks of 32" in reasons(Machine(), weights="int4", d_expert=144)["moe-llama", "batch"]
    assert reasons(Machine(), d_expert=144).get(("moe-llama", "batch")) is None
