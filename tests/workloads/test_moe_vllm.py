"""vLLM's experts with a stand-in at its boundary: what it is given, and that the sum is the layer's."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from frugalbench.workloads.layers.ffn import SortedMoe  # noqa: E402
from frugalbench.workloads.layers.vllm_ffn import VllmMoe  # noqa: E402

PARAMS = {"top_k": 2, "gate": "softmax", "normalise": True, "routed_scale": 1.0, "experts": 5, "n_shared": 0}


def fused_topk(hidden_states, gating_output, topk, renormalize):
    assert len(hidden_states) == len(gating_output)
    weights, ids = gating_output.float().softmax(dim=-1).topk(topk, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True) if renormalize else weights, ids.int(), ids


def fused_experts(hidden_states, w1, w2, topk_weights, topk_ids):
    """As vLLM's: gate above up, SiLU of the gate; its kernels read int32 choices and float32 weights."""
    assert (topk_ids.dtype, topk_weights.dtype) == (torch.int32, torch.float32)
    assert w1.shape[1] == 2 * w2.shape[2] and w1.shape[2] == w2.shape[1] == hidden_states.shape[1]
    y_TD = torch.zeros_like(hidden_states)
    for token, (ids, weights) in enumerate(zip(topk_ids.tolist(), topk_weights, strict=True)):
        for expert, weight in zip(ids, weights, strict=True):
            gate, up = (w1[expert] @ hidden_states[token]).chunk(2)
            y_TD[token] += weight * (w2[expert] @ (torch.nn.functional.silu(gate) * up))
    return y_TD


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    """The package, as far as it is asked."""
    own = SimpleNamespace(fused_topk=fused_topk, fused_experts=fused_experts)
    layers = ModuleType("vllm.model_executor.layers")
    layers.fused_moe = own
    for name in ("vllm", "vllm.model_executor"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.model_executor.layers", layers)
    monkeypatch.setitem(sys.modules, "vllm.model_executor.layers.fused_moe", own)


@pytest.mark.parametrize(
    "changes",
    [{}, {"normalise": False, "routed_scale": 2.5}, {"gate": "sigmoid"}, {"n_shared": 1, "routed_scale": 2.5}],
)
def test_the_answer_is_that_of_the_other_mixtures(changes):
    params, draw = {**PARAMS, **changes}, torch.Generator().manual_seed(3)
    experts = params["experts"] + params["n_shared"]
    sizes = {"gate_up": (experts, 24, 16), "down": (experts, 16, 12), "router": (params["experts"], 16)}
    weights = {name: torch.randn(size, generator=draw) for name, size in sizes.items()}
    x_TD = torch.randn(7, 16, generator=draw)
    with torch.inference_mode():
        found, wanted = VllmMoe(dict(weights), params)(x_TD), SortedMoe(dict(weights), params)(x_TD)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def test_its_own_routing_is_used_and_may_be_recorded(monkeypatch):
    asked = []
    library = sys.modules["vllm.model_executor.layers"].fused_moe
    monkeypatch.setattr(library, "fused_topk", lambda **given: asked.append(given["topk"]) or fused_topk(**given))
    layer = VllmMoe({"gate_up": torch.ones(5, 4, 3), "down": torch.ones(5, 3, 2), "router": torch.eye(5, 3)}, PARAMS)
    layer(torch.ones(2, 3))
    assert asked == [2] and not layer.host_waits
