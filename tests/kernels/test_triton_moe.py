"""The Triton expert kernel in Triton's interpreter, on the CPU: the same text that a GPU would compile."""

import os

import pytest

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="needs Triton (its interpreter runs without a GPU)")

from frugalbench.workloads.layers import triton_ffn  # noqa: E402


@pytest.fixture(scope="module")
def kernel():
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    triton_ffn.kernel.cache_clear()
    try:
        yield triton_ffn.kernel()
    finally:
        triton_ffn.kernel.cache_clear()
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before


def definition(x, chosen, weight, gate_up, down):
    y = torch.zeros_like(x)
    for t in range(len(x)):
        for k in range(chosen.shape[1]):
            gate, up = (gate_up[chosen[t, k]] @ x[t]).chunk(2)
            y[t] += weight[t, k] * (down[chosen[t, k]] @ (torch.nn.functional.silu(gate) * up))
    return y


@pytest.mark.parametrize(
    ("T", "D", "F", "E", "K"), [(1, 32, 32, 4, 2), (5, 33, 20, 3, 3), (40, 64, 70, 8, 2), (20, 48, 16, 8, 1)]
)
def test_it_is_the_definition_at_any_size(kernel, T, D, F, E, K):
    torch.manual_seed(T)
    x, weight = torch.randn(T, D), torch.rand(T, K)
    chosen = torch.rand(T, E).argsort(1)[:, :K]
    gate_up, down = torch.randn(E, 2 * F, D) / D**0.5, torch.randn(E, D, F) / F**0.5
    found = kernel.mixture(x, chosen, weight, gate_up, down)
    wanted = definition(
        *(item.double() if item.is_floating_point() else item for item in (x, chosen, weight, gate_up, down))
    )
    assert float((found - wanted).abs().max() / wanted.pow(2).mean().sqrt()) < 2e-5


def test_every_copy_has_one_place_in_a_block_of_its_expert(kernel):
    chosen = torch.tensor([[2, 0], [2, 1], [2, 3]] * 9)
    places, owner = kernel.blocks_of(chosen, 5)
    flat = chosen.flatten()
    real = places < len(flat)
    assert sorted(places[real].tolist()) == list(range(len(flat)))
    experts = owner.repeat_interleave(kernel.BLOCK_TOKENS)
    assert (flat[places[real].long()] == experts[real]).all()
    assert (owner == -1).any()
