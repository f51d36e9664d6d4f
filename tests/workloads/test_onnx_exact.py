"""The float64 evaluation of a graph agrees with plain numpy in double precision, far beyond float32."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from frugalbench.workloads.layers.onnx_exact import (
    Conv,
    ExactGraph,
    GlobalMaxPool,
    MatMulNBits,
    PackageConv,
    unpacked,
)
from onnx_files import WIDTH, chain, made, save, weights


def test_a_chain_is_exact(tmp_path):
    x = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    want = 1 / (1 + np.exp(-(np.tanh(np.maximum(x @ w["w1"], 0) @ w["w2"]) @ w["w3"])))
    exact = ExactGraph(save(chain(), tmp_path / "chain.onnx"))
    assert np.abs(exact.run({"x": x})["y"] - want).max() < 1e-14
    assert set(exact.everything({"x": x})) >= set("abcdey")


def test_casts_and_constants_become_double(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["tenth"], value_float=0.1),
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["back"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["back", "tenth"], ["y"]),
    ]
    x = np.full((1, WIDTH), 1 / 3, np.float32)
    found = ExactGraph(save(made(nodes, {}), tmp_path / "cast.onnx")).run({"x": x})["y"]
    assert found.dtype == np.float64
    assert np.abs(found - float(np.float32(1 / 3)) * float(np.float32(0.1))).max() < 1e-16


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([4, 8]), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 9))
def test_n_bit_products_mean_codes_times_scales(bits, n, groups, with_zeros, seed):
    random = np.random.default_rng(seed)
    k = 16 * groups
    codes_NK = random.integers(0, 1 << bits, (n, k))
    scales, zeros = random.random((n, groups)), random.integers(0, 1 << bits, (n, groups))
    x = random.standard_normal((2, k))
    offsets = zeros if with_zeros else np.full((n, groups), 1 << (bits - 1))
    weights_NK = (codes_NK - np.repeat(offsets, 16, axis=1)) * np.repeat(scales, 16, axis=1)
    packed = pack(codes_NK.reshape(n * groups, 16), bits).reshape(n, groups, -1)
    given_zeros = pack(zeros, bits) if with_zeros else None
    kernel = MatMulNBits._run
    (found,) = kernel(None, x, packed, scales.ravel(), given_zeros, K=k, N=n, bits=bits, block_size=16)
    assert np.allclose(found, x @ weights_NK.T, rtol=1e-12, atol=1e-12)


def pack(codes, bits):
    per_byte = 8 // bits
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per_byte))).astype(np.uint8)
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    return (padded.reshape(len(codes), -1, per_byte) << shifts).sum(axis=-1).astype(np.uint8)


def test_codes_come_lowest_first():
    assert unpacked(np.array([[0x21]], np.uint8), 4).tolist() == [[1.0, 2.0]]


def test_an_operator_without_implementation_is_named(tmp_path):
    model = made([helper.make_node("Mystery", ["x"], ["y"], domain="abroad")], {}, domains=("abroad",))
    with pytest.raises(Exception, match="Mystery"):
        ExactGraph(save(model, tmp_path / "custom.onnx"))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 2), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.data()
)
def test_windows_in_one_product_are_what_the_package_convolves(axes, groups, kernel, gap, pad, data):
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    strides = data.draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    x = random.standard_normal((2, 4, *[7] * axes))
    w, bias = random.standard_normal((8, 4 // groups, *[kernel] * axes)), random.standard_normal(8)
    around = [pad, *[pad + 1] * (2 * axes - 1)]
    ours, theirs = (
        kind._run(None, x, w, bias, "NOTSET", [gap] * axes, groups, [kernel] * axes, around, strides)[0]
        for kind in (Conv, PackageConv)
    )
    assert ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_pooling_and_norms_go_by_the_standard_where_the_package_does_not():
    x = np.random.default_rng(3).standard_normal((2, 3, 5))
    (largest,) = GlobalMaxPool._run(None, x)
    assert largest.shape == (2, 3, 1) and (largest[..., 0] == x.max(axis=2)).all()
    stored = [
        np.array([2.0, 3.0, 4.0]),
        np.array([0.1, 0.2, 0.3]),
        np.array([1.0, 2.0, 3.0]),
        np.array([4.0, 1.0, 9.0]),
    ]
    node = helper.make_node("BatchNormalization", list("xsbmv"), ["y"], momentum=0.9)
    names = dict(zip("sbmv", stored, strict=True))
    model = made([node], names, x=(2, 3, 5), opset=9)
    found = ExactGraph(model).run({"x": x})["y"]
    scale, bias, mean, var = (value[:, None] for value in stored)
    assert np.allclose(found, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-12)
