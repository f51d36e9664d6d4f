"""The Triton expert kernel in Triton's interpreter, on the CPU: the same text that a GPU would compile."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="needs the extra 'triton'; its interpreter runs without a GPU")

from frugalbench.workloads.layers import triton_ffn  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own, see the first test")


@pytest.mark.skipif(INTERPRETED, reason="is the process of its own")
def test_all_of_this_file_in_the_interpreter():
    """Triton decides when it is imported whether it interprets, so that takes a process of its own."""
    program = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        program, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "5 passed" in done.stdout


@pytest.fixture(scope="module")
def kernel():
    return triton_ffn.kernel()


def definition(x, chosen, weight, gate_up, down):
    y = torch.zeros_like(x)
    for t in range(len(x)):
        for k in range(chosen.shape[1]):
            gate, up = (gate_up[chosen[t, k]] @ x[t]).chunk(2)
            y[t] += weight[t, k] * (down[chosen[t, k]] @ (torch.nn.functional.silu(gate) * up))
    return y


@inside
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


@inside
def test_every_copy_has_one_place_in_a_block_of_its_expert(kernel):
    chosen = torch.tensor([[2, 0], [2, 1], [2, 3]] * 9)
    places, owner = kernel.blocks_of(chosen, 5)
    flat = chosen.flatten()
    real = places < len(flat)
    assert sorted(places[real].tolist()) == list(range(len(flat)))
    experts = owner.repeat_interleave(kernel.BLOCK_TOKENS)
    assert (flat[places[real].long()] == experts[real]).all()
    assert (owner == -1).any()
