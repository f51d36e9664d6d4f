"""The own expert kernel against float64, at sizes that fit no vector, on every instruction set of this machine."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")

from frugalbench import native_build  # noqa: E402
from frugalbench.backends import native_moe  # noqa: E402
from frugalbench.backends.native import Operation, peaks  # noqa: E402

if native_build.find_compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

HERE = [isa for isa in ("portable", "avx2", "avx512", "neon") if isa == "portable" or isa in str(
    [peaks().which(Operation.FMA, number) for number in range(6)])]  # fmt: skip
HERE += [isa for isa in ("avx512_bf16",) if peaks().which(Operation.BF16) == isa]


def drawn(T, D, F, E, K, seed=0):
    """Tokens, choices (different ones per token), mixing weights, expert weights."""
    random = np.random.default_rng([seed, T, D, F, E, K])
    chosen = np.argsort(random.random((T, E)), axis=1)[:, :K].astype(np.int32)
    made = (
        random.standard_normal((T, D)), chosen, random.random((T, K)),
        random.standard_normal((E, 2 * F, D)) / D**0.5, random.standard_normal((E, D, F)) / F**0.5,
    )  # fmt: skip
    return [torch.from_numpy(item if item.dtype == np.int32 else item.astype(np.float32)) for item in made]


def mixture(x, chosen, weight, gate_up, down):
    """The definition, in the precision of its inputs, expert by expert."""
    y = torch.zeros_like(x)
    for t in range(len(x)):
        for k in range(chosen.shape[1]):
            gate, up = (gate_up[chosen[t, k]] @ x[t]).chunk(2)
            y[t] = y[t] + weight[t, k] * (down[chosen[t, k]] @ (torch.nn.functional.silu(gate) * up))
    return y


def double(tensors):
    return [item.double() if item.is_floating_point() else item for item in tensors]


def error(found, wanted):
    return float((found.double() - wanted).abs().max() / wanted.pow(2).mean().sqrt().clamp(min=1e-12))


sizes = st.tuples(
    st.integers(1, 70), st.integers(1, 90), st.integers(1, 80), st.integers(1, 9), st.integers(1, 4)
).filter(lambda s: s[4] <= s[3])


@pytest.mark.parametrize("isa", HERE)
@settings(max_examples=40, deadline=None)
@given(size=sizes)
def test_forward_is_the_definition_at_any_size(isa, size):
    tensors = drawn(*size)
    found, _ = native_moe.kernel(isa).forward(*tensors)
    assert error(found, mixture(*double(tensors))) < 2e-5


@pytest.mark.parametrize("isa", HERE)
@settings(max_examples=25, deadline=None)
@given(size=sizes)
def test_backward_is_the_gradient_of_the_definition(isa, size):
    tensors = drawn(*size)
    kernel = native_moe.kernel(isa)
    y, saved = kernel.forward(*tensors, keep=True)
    upstream = torch.from_numpy(np.random.default_rng(1).standard_normal(y.shape).astype(np.float32))
    found = kernel.backward(upstream, *tensors, saved)
    leaves = [item.requires_grad_() if item.is_floating_point() else item for item in double(tensors)]
    exact = mixture(*leaves)
    exact.backward(upstream.double())
    assert error(y, exact.detach()) < 2e-5
    for gradient, leaf in zip(found, (leaves[0], *leaves[2:]), strict=True):
        assert error(gradient, leaf.grad) < 5e-5


STEP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Unit roundoff."""


def sixteen(tensors, kind):
    """Tokens and expert weights in ``kind``, mixing weights as they are."""
    x, chosen, weight, gate_up, down = tensors
    return [x.to(kind), chosen, weight, gate_up.to(kind), down.to(kind)]


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("kind", STEP)
@settings(max_examples=15, deadline=None)
@given(size=sizes, scale=st.sampled_from([1.0, 2.0**-18]))
def test_sixteen_bits_are_the_definition_rounded_once(isa, kind, size, scale):
    """Subnormal weights of float16 too; the answer is the exact one to the last rounding, but for ties, and where the
    processor multiplies bfloat16 but for the rounding of hidden values."""
    x, chosen, weight, gate_up, down = drawn(*size)
    tensors = sixteen([x, chosen, weight, gate_up * scale, down * 4], kind)
    kernel = native_moe.kernel(isa)
    found, _ = kernel.forward(*tensors)
    exact, hidden = mixture(*double(tensors)), 0.0
    if kernel.path_of(kind) == "avx512_bf16":
        hidden = 1.01 * STEP[kind] * magnitude(*double(tensors))
    assert found.dtype is kind
    off = (found.double() - exact).abs()
    smallest = 2.0**-25 if kind is torch.float16 else 0.0  # half a step of a subnormal float16
    assert bool((off <= 1.01 * STEP[kind] * exact.abs() + smallest + 2e-5 * exact.pow(2).mean().sqrt() + hidden).all())


def magnitude(x, chosen, weight, gate_up, down):
    """Sum of the absolute terms of each output: times a step, what rounding every hidden value can do to it at most."""
    y = torch.zeros_like(x)
    for t in range(len(x)):
        for k in range(chosen.shape[1]):
            gate, up = (gate_up[chosen[t, k]] @ x[t]).chunk(2)
            hidden = (torch.nn.functional.silu(gate) * up).abs()
            y[t] = y[t] + weight[t, k] * (down[chosen[t, k]].abs() @ hidden)
    return y


def test_bfloat16_is_multiplied_as_floats_where_the_processor_has_nothing_better():
    assert peaks().which(Operation.BF16) in (None, "avx512_bf16")
    best = native_moe.kernel().path_of(torch.bfloat16)
    assert best == (peaks().which(Operation.BF16) or native_moe.kernel().path)
    assert {native_moe.kernel(isa).path_of(torch.bfloat16) for isa in HERE if isa != "avx512_bf16"} <= {*HERE}
    assert all(native_moe.kernel(isa).path_of(torch.float16) == native_moe.kernel(isa).path for isa in HERE)


def test_a_whole_layer_of_sixteen_bits_routes_and_computes_as_its_parts():
    for kind in STEP:
        x, _, _, gate_up, down = sixteen(drawn(21, 70, 40, 7, 2), kind)
        router = (torch.randn(6, 70) / 70**0.5).to(kind)
        kernel = native_moe.kernel()
        expert, weight = kernel.route(x.float(), router.float(), 2, "sigmoid")
        shared = torch.full((21, 1), 6, dtype=torch.int32), torch.ones(21, 1)
        parts = torch.cat([expert, shared[0]], 1), torch.cat([weight, shared[1]], 1)
        wanted, _ = kernel.forward(x, *parts, gate_up, down)
        assert torch.equal(kernel.layer(router, gate_up, down, 2, "sigmoid")(x), wanted)


@pytest.mark.parametrize("kind", STEP)
@pytest.mark.parametrize(("T", "K"), [(1, 1), (5, 2), (300, 1)])
def test_any_number_of_threads_gives_the_same_sixteen_bits(kind, T, K):
    tensors, threads, answers = sixteen(drawn(T, 130, 96, 6, K), kind), torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            answers.append(native_moe.kernel().forward(*tensors)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(answers[0], other) for other in answers[1:])


@pytest.mark.parametrize(("T", "K"), [(1, 1), (4, 2), (5, 1), (16, 2), (33, 4), (300, 1)])
def test_any_number_of_threads_gives_the_same_bits(T, K):
    tensors = drawn(T, 130, 96, 6, K)
    answers = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3, 1):
            torch.set_num_threads(number)
            y, saved = native_moe.kernel().forward(*tensors, keep=True)
            answers.append((y, *native_moe.kernel().backward(y, *tensors, saved)))
    finally:
        torch.set_num_threads(threads)
    for other in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], other, strict=True))


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("T", "D", "E", "K"), [(1, 64, 8, 2), (7, 33, 5, 5), (50, 96, 64, 6)])
def test_routing_is_that_of_torch(gate, normalise, T, D, E, K):
    x, router = torch.randn(T, D), torch.randn(E, D) / D**0.5
    expert, weight = native_moe.kernel().route(x, router, K, gate, normalise, 2.5)
    logits = x.double() @ router.double().T
    scores = logits.softmax(1) if gate == "softmax" else logits.sigmoid()
    values, wanted = scores.topk(K, dim=1)
    values = 2.5 * (values / values.sum(1, keepdim=True) if normalise else values)
    assert torch.equal(expert.long(), wanted)
    assert torch.allclose(weight.double(), values, rtol=1e-5)


def test_a_bias_joins_the_choice_and_not_the_weight():
    x, router = torch.randn(6, 32), torch.randn(4, 32) / 6
    bias = torch.tensor([0.0, 0.0, 50.0, 0.0])
    expert, weight = native_moe.kernel().route(x, router, 1, "sigmoid", False, 1.0, bias)
    assert (expert == 2).all()
    assert torch.allclose(weight[:, 0], (x @ router[2]).sigmoid(), rtol=1e-4)


def test_large_and_small_gates_do_not_overflow():
    tensors = drawn(6, 32, 32, 2, 1)
    tensors[3] = tensors[3] * 300
    found, _ = native_moe.kernel().forward(*tensors)
    assert torch.isfinite(found).all()
    assert error(found, mixture(*double(tensors))) < 2e-5


def test_what_does_not_fit_is_refused_in_one_sentence():
    kernel = native_moe.kernel()
    x, chosen, weight, gate_up, down = drawn(5, 32, 16, 4, 2)
    with pytest.raises(RuntimeError, match="expert that does not exist"):
        kernel.forward(x, chosen + 4, weight, gate_up, down)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        kernel.forward(x, chosen, weight[:, :1], gate_up, down)
    with pytest.raises(RuntimeError, match="contiguous float32"):
        kernel.forward(x.double(), chosen, weight, gate_up, down)
    with pytest.raises(RuntimeError, match="contiguous float32"):
        kernel.forward(torch.randn(32, 5).T, chosen, weight, gate_up, down)
    with pytest.raises(RuntimeError, match="all of one format"):
        kernel.forward(x.half(), chosen, weight, gate_up, down.half())
    with pytest.raises(RuntimeError, match="float32 only"):
        kernel.forward(*sixteen([x, chosen, weight, gate_up, down], torch.float16), keep=True)
    with pytest.raises(RuntimeError, match="no more experts per token"):
        kernel.route(x, torch.randn(4, 32), 5)


def test_padding_is_counted():
    """One token per expert runs as dot products and pads nothing; five to sixteen fill up whole vectors."""
    kernel = native_moe.kernel()
    assert kernel.lanes(torch.arange(4, dtype=torch.int32)[:, None], 4) == 4
    five = torch.zeros((5, 1), dtype=torch.int32)
    assert 5 <= kernel.lanes(five, 4) <= 16


def test_the_operator_is_sound_for_autograd_compile_and_export():
    x, chosen, weight, gate_up, down = drawn(9, 24, 20, 4, 2)
    leaves = [item.requires_grad_() for item in (x, weight, gate_up, down)]
    inputs = (leaves[0], chosen, leaves[1], leaves[2], leaves[3], True)
    torch.library.opcheck(torch.ops.frugalbench.moe_experts, inputs)


def test_export_keeps_the_operator():
    x, chosen, weight, gate_up, down = drawn(9, 24, 20, 4, 2)

    class Layer(torch.nn.Module):
        def forward(self, x, chosen, weight, gate_up, down):
            return native_moe.experts(x, chosen, weight, gate_up, down) * 2

    program = torch.export.export(Layer(), (x, chosen, weight, gate_up, down))
    assert any("moe_experts" in str(node.target) for node in program.graph.nodes)
    wanted = 2 * native_moe.experts(x, chosen, weight, gate_up, down)
    assert torch.equal(program.module()(x, chosen, weight, gate_up, down), wanted)
