"""Real runtimes on small matrices: right answers, and a corrupt weight or a missing computation is caught."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench.specs import quantized_linear as spec
from frugalbench.specs.base import Settings
from frugalbench.workloads import quantized_linear as builder
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers import quant_stored as stored
from frugalbench.workloads.layers import quant_values as values

N, K = 128, 256
BNB = pytest.mark.real
VARIANTS = [pytest.param(name, marks=BNB if name.startswith("bnb") else ()) for name in spec.FORMATS]
LOSSY = [p for p in VARIANTS if p.values[0] not in ("torch-fp32", "ort-fp32")]


class Machine:
    logical_cores = 2
    last_level_cache_bytes = 2**20

    def installed(self, package):  # noqa: ARG002
        return "1"

    def has_cuda(self):
        return False


@pytest.fixture
def context(tmp_path):
    for name in ("cache", "scratch"):
        (tmp_path / name).mkdir()
    return Context(5, 2, "cpu", tmp_path / "cache", tmp_path / "scratch")


def make_arm(variant, tokens=24, n=N, k=K):
    options = {"shape": f"{n}x{k}", "variants": [variant], "stream_bytes": 1, "prefill_tokens": tokens}
    expansion = spec.expand(Settings("quantized_linear", "cpu", 2, 5, options), Machine())
    return expansion.comparisons[0].arms[0]


def distance(found, wanted):
    """Max abs error / rms, over all arrays: how a case's tolerance is meant."""
    assert found.keys() == wanted.keys()
    return max(np.abs(found[name] - wanted[name]).max() / np.sqrt((wanted[name] ** 2).mean()) for name in wanted)


def expected(bound, case, context, index):
    if bound.own_definition:
        return bound.own_definition(index)
    return {name: array[index] for name, array in builder.reference(case, context).items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_arm_computes_its_definition_near_the_unquantised_answer(variant, context):
    arm = make_arm(variant)
    loaded = builder.load(arm, context)
    for case in arm.cases:
        bound, exact = loaded.bind(case), builder.reference(case, context)
        assert bound.rotation == case.params["copies"] == 2
        for index in range(bound.rotation):
            output = bound.output(index)
            assert distance(output, expected(bound, case, context, index)) <= case.tolerance
            for name, array in exact.items():
                rms = np.sqrt(((output[name] - array[index]) ** 2).mean() / (array[index] ** 2).mean())
                assert rms <= case.params["format_tolerance"]
        assert bound.facts["weight_bytes"].value == case.cost.weight_bytes
        assert bound.facts["bf16_bytes"].value == 2 * N * K
        assert bound.details["threads"] == 2
        assert loaded.linear.to_numpy(bound.call(1)).shape == (case.params["m"], N)
    loaded.close()


@pytest.mark.parametrize("variant", VARIANTS)
def test_zeros_and_the_neighbouring_position_are_not_mistaken_for_the_answer(variant, context):
    arm = make_arm(variant)
    loaded = builder.load(arm, context)
    for case in arm.cases:
        bound = loaded.bind(case)
        wanted = expected(bound, case, context, 0)
        assert distance({name: 0 * array for name, array in wanted.items()}, wanted) > 10 * case.tolerance
        assert distance(bound.output(1), wanted) > 10 * case.tolerance
    loaded.close()


def corrupt(linear, variant, row, column):
    """Flip the top bit of the code of weight [row, column] of copy 0, in the arm's own memory."""
    if variant in ("torch-fp32", "torch-bf16"):
        view = linear._weights[0].view(linear._torch.int32 if variant == "torch-fp32" else linear._torch.int16)
        view[row, column] ^= 0x40000000 if variant == "torch-fp32" else 0x4000
    elif variant == "torch-int8-dynamic":
        weight = linear._layers[0].weight()
        codes = weight.int_repr()
        codes[row, column] ^= -128
        broken = linear._torch._make_per_tensor_quantized_tensor(codes, weight.q_scale(), weight.q_zero_point())
        linear._layers[0].set_weight_bias(broken, None)
    elif variant == "bnb-int8":
        linear._layers[0].state.CB[row, column] ^= -128
    elif variant == "bnb-nf4":
        with linear._torch.inference_mode():
            linear._layers[0].weight.data.view(-1)[(row * K + column) // 2] ^= 0x80
    else:
        corrupt_file(linear, row, column)
        linear.open()


def corrupt_file(linear, row, column):
    bits = linear._spec.bits
    at = (row * K + column) * bits // 8 + (3 if bits == 32 else 0)
    path = linear._file(0)
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40 if bits == 32 else 0x80
    path.write_bytes(content)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_flipped_weight_bit_fails_both_regimes(variant, context):
    arm = make_arm(variant)
    loaded = builder.load(arm, context)
    bounds = [loaded.bind(case) for case in arm.cases]
    wanted = [expected(bound, case, context, 0) for bound, case in zip(bounds, arm.cases, strict=True)]
    corrupt(loaded.linear, variant, row=77, column=131)
    for bound, case, answer in zip(bounds, arm.cases, wanted, strict=True):
        assert not distance(bound.output(0), answer) <= case.tolerance
    loaded.close()


@pytest.mark.parametrize("variant", LOSSY)
def test_a_store_that_was_corrupt_before_anyone_looked_is_refused(variant, context):
    loaded = builder.load(arm := make_arm(variant), context)
    corrupt(loaded.linear, variant, row=77, column=131)
    with pytest.raises(RuntimeError, match="stored weight"):
        loaded.bind(arm.cases[0]).own_definition(0)
    loaded.close()


def test_a_later_worker_reads_the_definition_instead_of_computing_it(context, monkeypatch):
    arm = make_arm("torch-bf16")
    first = builder.load(arm, context).bind(arm.cases[0]).own_definition(1)
    monkeypatch.setattr(builder, "multiply", None)
    again = builder.load(arm, context).bind(arm.cases[0]).own_definition(1)
    assert distance(again, first) == 0


def test_onnx_weights_are_cached_shared_between_levels_and_rebuilt_when_damaged(context):
    first = builder.load(make_arm("ort-int4"), context)
    second = builder.load(make_arm("ort-int4-acc4"), context)
    (made,), (found,) = first.artefacts, second.artefacts
    assert (made.cached, found.cached) == (False, True)
    assert found.build_s == made.build_s > 0
    corrupt_file(first.linear, 3, 5)
    (rebuilt,) = builder.load(make_arm("ort-int4"), context).artefacts
    assert not rebuilt.cached
    first.linear._file(1).write_bytes(b"")
    assert not builder.load(make_arm("ort-int4"), context).artefacts[0].cached


@pytest.mark.parametrize(("variant", "op"), [("ort-fp32", "Gemm"), ("ort-int8", "MatMulNBits")])
def test_one_node_of_the_asked_kind_runs_on_the_cpu_provider(variant, op, context):
    loaded = builder.load(arm := make_arm(variant), context)
    details = loaded.bind(arm.cases[0]).details
    assert details["placement"] == [{"op": op, "provider": "CPUExecutionProvider"}]
    assert not list(context.scratch_dir.glob("ort-*"))


def test_all_sessions_of_a_process_share_one_pool(context):
    builder.load(make_arm("ort-fp32"), context)
    with pytest.raises(RuntimeError, match="already computes with 2 threads"):
        builder.load(make_arm("ort-fp32"), replace(context, threads=3))


def test_weights_and_inputs_are_the_same_everywhere_and_distinct_per_copy():
    w = [values.weights(5, copy, 256, 512) for copy in (0, 1)]
    assert np.array_equal(w[0], values.weights(5, 0, 256, 512))
    assert abs(np.corrcoef(w[0].ravel(), w[1].ravel())[0, 1]) < 0.02
    assert w[0].std() * np.sqrt(512) == pytest.approx(1, abs=0.01)
    x = values.inputs(5, 1, 8, 2048)
    assert np.abs(x).min() >= 0.5
    assert (np.abs(x) > 6).any(axis=0).sum() == (np.abs(x) > 6).all(axis=0).sum() == 2
    assert not np.array_equal(x, values.inputs(5, 2, 8, 2048))


@given(m=st.integers(1, 300), token=st.integers(0, 299))
@settings(max_examples=30, deadline=None)
def test_an_error_in_any_token_shows_in_the_projection(m, token):
    y = np.zeros((m, 3))
    y[token % m, 1] = 1.0
    parts = values.digest(values.projection(m) @ y)
    assert abs(parts["signed_sum"][1]) == 1
    assert len(parts["tokens"]) == min(m, 16)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [16, 32, 128])
def test_rounding_agrees_with_onnxruntimes_own_quantiser(bits, group):
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    w = values.weights(1, 0, 96, 384)
    config = DefaultWeightOnlyQuantConfig(block_size=group, bits=bits)
    theirs = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(w.T))
    codes, scales, zeros = stored.quantise_nbits(w, bits, group)
    assert codes.shape == theirs[0].shape
    np.testing.assert_allclose(scales, theirs[1].reshape(scales.shape), rtol=1e-6)
    groups = scales.shape[1]
    for ours, official in ((codes, theirs[0]), (zeros, theirs[2].reshape(zeros.shape))):
        steps = np.abs(stored.unpack(ours, bits).astype(int) - stored.unpack(official, bits))[:, :groups]
        assert steps.max() <= 1
        assert (steps > 0).mean() < 1e-3


@given(
    codes=st.lists(st.integers(0, 15), min_size=1, max_size=33).map(lambda c: np.array([c], np.uint8)),
)
def test_unpacking_undoes_packing(codes):
    assert np.array_equal(stored.unpack(stored.pack(codes, 4), 4)[:, : codes.shape[1]], codes)


def test_bfloat16_rounds_like_torch():
    import torch

    x = values.inputs(3, 0, 4, 1024)
    assert np.array_equal(stored.bfloat16(x), torch.from_numpy(x).bfloat16().double().numpy())
