"""The own quantised linear kernel against its format's definition, on every instruction set of this machine."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")

from frugalbench import native_build  # noqa: E402
from frugalbench.backends import native_quant  # noqa: E402
from frugalbench.backends.native import Operation, peaks  # noqa: E402
from frugalbench.workloads.layers.quant_native import decode  # noqa: E402
from frugalbench.workloads.layers.quant_stored import grouped_int8, multiply  # noqa: E402

if native_build.find_compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

KNOWN = [peaks().which(Operation.INT8, number) for number in range(6)]
HERE = [isa for isa in ("portable", "avx2", "avx512_vnni") if isa == "portable" or isa in KNOWN]
sizes = st.tuples(st.integers(1, 40), st.integers(1, 150), st.integers(1, 300))


def drawn(M, N, K, spread=1.0):
    random = np.random.default_rng([M, N, K])
    w_NK = random.standard_normal((N, K)).astype(np.float32) * np.float32(spread)
    return random.standard_normal((M, K)).astype(np.float32), w_NK


def error(found, wanted):
    return float(np.abs(found - wanted).max() / max(np.sqrt((wanted**2).mean()), 1e-12))


def run(kernel, x_MK, packed):
    return kernel.layer(packed)(torch.from_numpy(x_MK)).numpy().astype(np.float64)


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("bits", native_quant.BITS)
@settings(max_examples=25, deadline=None)
@given(size=sizes)
def test_products_are_those_of_the_stored_codes(isa, bits, size):
    x_MK, w_NK = drawn(*size)
    kernel = native_quant.kernel(isa)
    packed = kernel.pack(torch.from_numpy(w_NK), bits)
    x = x_MK.astype(np.float64) if bits == 32 else grouped_int8(x_MK, 128)
    wanted = multiply(decode(packed), w_NK, x)
    # One activation on a rounding tie may come out one step apart: a 254th of its range times a large weight.
    step = 0 if bits == 32 else np.abs(x_MK).max() / 127 * np.abs(w_NK).max() / np.sqrt((wanted**2).mean())
    assert error(run(kernel, x_MK, packed), wanted) < 2e-5 + step * 1.01


@pytest.mark.parametrize("bits", native_quant.BITS)
def test_every_instruction_set_stores_the_same_bytes(bits):
    w_NK = torch.from_numpy(drawn(1, 70, 200)[1])
    stored = [native_quant.kernel(isa).pack(w_NK, bits).data for isa in HERE]
    assert all(torch.equal(stored[0], other) for other in stored[1:])


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.0115), (4, 0.064)])
def test_rounding_loses_no_more_than_the_format_allows(bits, limit):
    _, w_NK = drawn(1, 256, 2048)
    packed = native_quant.kernel().pack(torch.from_numpy(w_NK), bits)
    values = decode(packed).rows(0, 256)[0].reshape(256, -1)
    assert np.sqrt(((values - w_NK) ** 2).mean()) < limit
    assert packed.data.numel() * 8 / w_NK.size < bits + (0.52 if bits == 4 else 0.02)


def test_a_row_of_zeros_and_one_lone_outlier():
    w_NK = np.zeros((20, 130), np.float32)
    w_NK[3, 129] = 1e30
    w_NK[5, :] = 1e-30
    for bits in native_quant.BITS:
        values = decode(native_quant.kernel().pack(torch.from_numpy(w_NK), bits)).rows(0, 20)[0].reshape(20, -1)
        assert not values[0].any()
        assert values[3, 129] == pytest.approx(1e30, rel=0.05)
        assert values[5, 0] == pytest.approx(1e-30, rel=0.05)


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("bits", native_quant.BITS)
def test_same_bits_on_any_number_of_threads_and_in_any_company(isa, bits):
    x_MK, w_NK = drawn(9, 200, 300)
    kernel = native_quant.kernel(isa)
    packed = kernel.pack(torch.from_numpy(w_NK), bits)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(kernel, x_MK, packed))
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(found[0], other) for other in found[1:])
    alone = run(kernel, x_MK[4:5].copy(), packed)
    assert error(alone, found[0][4:5]) < 1e-5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bits", native_quant.BITS)
def test_weights_that_are_not_finite_are_refused(bits, bad):
    w_NK = drawn(1, 33, 65)[1]
    w_NK[32, 64] = bad
    with pytest.raises(RuntimeError, match="not a finite number"):
        native_quant.kernel().pack(torch.from_numpy(w_NK), bits)


def test_what_does_not_fit_is_refused():
    kernel = native_quant.kernel()
    x_MK, w_NK = drawn(2, 16, 64)
    packed = kernel.pack(torch.from_numpy(w_NK), 8)
    with pytest.raises(RuntimeError, match="size"):
        kernel.pack(torch.from_numpy(w_NK), 5)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        kernel.layer(packed)(torch.from_numpy(x_MK[:, :32].copy()))
    with pytest.raises(RuntimeError, match="float32"):
        kernel.layer(packed)(torch.from_numpy(x_MK).double())


@pytest.mark.parametrize("bits", native_quant.BITS)
def test_the_operator_passes_torchs_own_checks_and_can_be_exported(bits):
    x_MK, w_NK = drawn(3, 48, 96)
    packed = native_quant.kernel().pack(torch.from_numpy(w_NK), bits)
    torch.library.opcheck(native_quant._linear, (torch.from_numpy(x_MK), packed.data, bits, 48))

    class Layer(torch.nn.Module):
        def forward(self, x):
            return native_quant.linear(x, packed) * 2

    program = torch.export.export(Layer(), (torch.from_numpy(x_MK),))
    assert any("quant_linear" in str(node.target) for node in program.graph.nodes)


def drawn_experts(T, D, F, E, K):
    random = np.random.default_rng([T, D, F, E, K])
    chosen = np.argsort(random.random((T, E)), axis=1)[:, :K].astype(np.int32)
    parts = (
        random.standard_normal((T, D)), random.random((T, K)),
        random.standard_normal((E, 2 * F, D)) / D**0.5, random.standard_normal((E, D, F)) / F**0.5,
    )  # fmt: skip
    x, weight, gate_up, down = (torch.from_numpy(part.astype(np.float32)) for part in parts)
    return x, torch.from_numpy(chosen), weight, gate_up, down


def mixture(x_TD, chosen, weight, packed, rounded):
    """The definition in float64, from the packed bytes, with activations rounded where the kernel rounds them."""
    y_TD = np.zeros(x_TD.shape)
    for t, k in np.ndindex(*chosen.shape):
        gate, up, down = (
            (lambda m: decode(m).rows(0, m.outputs)[0].reshape(m.outputs, -1)[:, : m.inputs])(
                packed.matrix(int(chosen[t, k]), name)
            )
            for name in ("gate", "up", "down")
        )
        x = rounded(x_TD[t : t + 1])[0]
        g = gate @ x
        y_TD[t] += weight[t, k] * (down @ rounded((g / (1 + np.exp(-g)) * (up @ x)).astype(np.float32)[None])[0])
    return y_TD


expert_sizes = st.tuples(
    st.integers(1, 12), st.integers(1, 150), st.integers(1, 90), st.integers(1, 5), st.integers(1, 3)
).filter(lambda s: s[4] <= s[3])


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("bits", native_quant.BITS)
@settings(max_examples=12, deadline=None)
@given(size=expert_sizes)
def test_experts_are_the_mixture_of_the_stored_codes(isa, bits, size):
    x, chosen, weight, gate_up, down = drawn_experts(*size)
    kernel = native_quant.kernel(isa)
    packed = kernel.pack_experts(gate_up, down, bits)
    found = kernel.experts(x, chosen, weight, packed).numpy().astype(np.float64)
    rounded = (lambda v: v.astype(np.float64)) if bits == 32 else (lambda v: grouped_int8(v, 128))
    wanted = mixture(x.numpy(), chosen.numpy(), weight.numpy().astype(np.float64), packed, rounded)
    exact = mixture(
        x.numpy(), chosen.numpy(), weight.numpy().astype(np.float64), packed, lambda v: v.astype(np.float64)
    )
    # Hidden values on a rounding tie may come out a step apart, which is of the size of the rounding's own effect.
    assert error(found, wanted) < 2e-5 + 0.5 * error(wanted, exact)


def test_experts_come_out_the_same_on_any_number_of_threads():
    tensors = drawn_experts(70, 200, 96, 6, 2)
    kernel, before, found = native_quant.kernel(), torch.get_num_threads(), []
    packed = kernel.pack_experts(*tensors[3:], 4)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(kernel.experts(*tensors[:3], packed))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert torch.equal(native_quant.experts(*tensors[:3], packed), found[0])


def test_experts_refuse_what_does_not_fit():
    x, chosen, weight, gate_up, down = drawn_experts(5, 32, 16, 4, 2)
    kernel = native_quant.kernel()
    packed = kernel.pack_experts(gate_up, down, 8)
    with pytest.raises(RuntimeError, match="expert that does not exist"):
        kernel.experts(x, chosen + 4, weight, packed)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        kernel.experts(x[:, :16].contiguous(), chosen, weight, packed)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        kernel.pack_experts(gate_up, gate_up, 8)
