"""Codes chosen on calibration inputs: they win on these, and are rounded to nearest where nothing is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from frugalbench.workloads.layers import quant_calibrated as calibrated  # noqa: E402
from frugalbench.workloads.layers.quant_calibrated import Calibrated, Moments  # noqa: E402
from frugalbench.workloads.layers.quant_rtn import RoundToNearest  # noqa: E402
from frugalbench.workloads.layers.quant_stored import multiply  # noqa: E402

shapes = st.tuples(
    st.integers(0, 2**32), st.sampled_from([1, 8, 24]), st.sampled_from([16, 40, 64, 96]), st.sampled_from([16, 32])
)


def drawn(seed, n, k, rank=None):
    """Weights (n, k) and inputs (2000, k): channels of unlike size, and related where ``rank`` is below k."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2000, rank or k))
    x = (x @ rng.standard_normal((rank, k)) if rank else x) * np.exp(rng.standard_normal(k))
    return rng.standard_normal((n, k)).astype(np.float32), x + 0.05 * rng.standard_normal(x.shape)


def moments(x):
    return Moments(x.T @ x / len(x), np.abs(x).mean(axis=0))


def layer(made, k):
    return Calibrated(made, k, "cpu")


def answered_error(made, weights, x):
    """Mean squared error of the layer's own answers, summed over outputs."""
    y = layer(made, weights.shape[1]).run(0, torch.from_numpy(x.astype(np.float32))).double().numpy()
    return float(((y - x @ weights.astype(np.float64).T) ** 2).mean(axis=0).sum())


@settings(max_examples=12, deadline=None)
@given(shapes)
def test_related_inputs_let_gptq_beat_rounding_to_nearest_on_them(drawing):
    seed, n, k, group = drawing
    weights, x = drawn(seed, n, k, rank=k // 4)
    made = {f: f(weights, moments(x), group) for f in (calibrated.rtn, calibrated.gptq)}
    errors = [answered_error(item, weights, x) for item in made.values()]
    assert errors[1] <= errors[0]
    for item, error in zip(made.values(), errors, strict=True):
        assert error == pytest.approx(item.error, rel=1e-2)


@settings(max_examples=12, deadline=None)
@given(shapes)
def test_scaled_inputs_are_never_worse_than_rounding_to_nearest_on_them(drawing):
    seed, n, k, group = drawing
    weights, x = drawn(seed, n, k)
    made, plain = (f(weights, moments(x), group) for f in (calibrated.awq, calibrated.rtn))
    assert made.error <= plain.error * (1 + 1e-5)
    assert answered_error(made, weights, x) == pytest.approx(made.error, rel=1e-2)


@settings(max_examples=12, deadline=None)
@given(shapes)
def test_unrelated_inputs_of_one_size_leave_rounding_to_nearest(drawing):
    seed, n, k, group = drawing
    weights, _ = drawn(seed, n, k)
    alike = Moments(3.0 * np.eye(k), np.full(k, 0.7))
    plain = RoundToNearest(lambda _copy: weights, 1, 4, group, "cpu").stored(0)
    gptq, awq = (layer(f(weights, alike, group), k).stored(0) for f in (calibrated.gptq, calibrated.awq))
    assert gptq.fingerprint() == plain.fingerprint()
    assert [part.tobytes() for part in awq.arrays[:2]] == [part.tobytes() for part in plain.arrays]
    assert (awq.arrays[2] == 1).all()


def test_an_exponent_of_zero_scales_nothing():
    assert (calibrated.divisors_of(np.array([0.0, 1e-9, 1.0, 1e4]), 0.0) == 1).all()


@pytest.mark.parametrize("method", [calibrated.gptq, calibrated.awq])
def test_codes_decode_to_what_the_layer_multiplies(method):
    weights, x = drawn(3, 12, 72)
    held = layer(method(weights, moments(x), 32), 72)
    y = held.run(0, torch.from_numpy(x[:5].astype(np.float32))).double().numpy()
    expected = multiply(held.stored(0), weights, x[:5].astype(np.float32).astype(np.float64))
    assert y == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert held.stored_bytes() == 12 * 3 * (16 + 2) + (144 if method is calibrated.awq else 0)


@pytest.mark.parametrize("method", [calibrated.gptq, calibrated.awq])
def test_a_layer_that_saw_nothing_is_rounded_to_nearest(method):
    weights, _ = drawn(4, 6, 64)
    blind = Moments(np.zeros((64, 64)), np.zeros(64))
    assert (method(weights, blind, 32).codes == calibrated.rtn(weights, blind, 32).codes).all()


@pytest.mark.parametrize("damage", ["code", "scale"])
@pytest.mark.parametrize("method", [calibrated.gptq, calibrated.awq])
def test_a_corrupt_store_is_caught(method, damage):
    weights, x = drawn(5, 8, 64)
    held = layer(method(weights, moments(x), 32), 64)
    codes, scales, _ = held._held[0]
    if damage == "code":
        codes.view(-1)[5] ^= 64
    else:
        scales.view(-1)[3] *= 1.5
    with pytest.raises(RuntimeError, match="more than its format allows"):
        multiply(held.stored(0), weights, x[:2])


def test_a_recursion_that_reckons_wrongly_is_caught(monkeypatch):
    weights, x = drawn(6, 8, 64, rank=16)
    true = calibrated._upper
    monkeypatch.setattr(calibrated, "_upper", lambda damped: true(damped) * np.tri(64)[::-1, ::-1] ** 2 * 1.01)
    with pytest.raises(RuntimeError, match="other weights than it had reckoned with"):
        calibrated.gptq(weights, moments(x), 32)


@pytest.mark.parametrize("method", [calibrated.gptq, calibrated.awq])
def test_weights_that_are_not_numbers_are_refused(method):
    weights, x = drawn(7, 4, 32)
    weights[2, 3] = np.nan
    with pytest.raises(RuntimeError, match=r"weight \[2, 3\] is nan"):
        method(weights, moments(x), 32)
