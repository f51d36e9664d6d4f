"""Real runtimes on small matrices: right answers, and a corrupt weight or a missing computation is caught."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench.specs import quant_formats as formats
from frugalbench.specs import quantized_linear as spec
from frugalbench.specs.base import Settings
from frugalbench.workloads import quantized_linear as builder
from frugalbench.workloads.base import Context, NoPath
from frugalbench.workloads.layers import quant_nbits as nbits
from frugalbench.workloads.layers import quant_ort, quant_ort_graph
from frugalbench.workloads.layers import quant_stored as stored
from frugalbench.workloads.layers import quant_values as values
from workloads.fake_machine import Machine

TESTS = Path(__file__).parents[1]
N, K = 128, 256
MODULES = {"torchao": "torchao", "llama.cpp": "llama_cpp", "openvino": "openvino"}


def marks(name):
    """bitsandbytes is slow to import; what an extra brings may be absent."""
    backend = formats.FORMATS[name].backend
    needed = MODULES.get(backend)
    absent = pytest.mark.skipif(needed is not None and find_spec(needed) is None, reason=f"{needed} is not installed")
    return (absent, pytest.mark.real) if backend in ("bitsandbytes", "torchao") else (absent,)


VARIANTS = [
    pytest.param(name, marks=marks(name)) for name, fmt in formats.FORMATS.items() if fmt.cpu and not fmt.lacking
]
LOSSY = [p for p in VARIANTS if formats.FORMATS[p.values[0]].bits < 32]


@pytest.fixture(autouse=True)
def own_threads(monkeypatch):
    """ONNX Runtime's shared pool would stay for the life of this process, and with it sessions of other tests fail."""
    own = lambda options, threads: setattr(options, "intra_op_num_threads", threads)  # noqa: E731
    monkeypatch.setattr(quant_ort, "_share_threads", own)


@pytest.fixture
def context(tmp_path):
    for name in ("cache", "scratch"):
        (tmp_path / name).mkdir()
    return Context(5, 2, "cpu", tmp_path / "cache", tmp_path / "scratch")


def make_arm(variant, tokens=24, n=N, k=K, stream_bytes=1):
    options = {"shape": f"{n}x{k}", "variants": [variant], "stream_bytes": stream_bytes, "prefill_tokens": tokens}
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
    """Flip the top bit of the code of weight [row, column] of copy 0, in what the arm holds or is made of."""
    CORRUPT[formats.FORMATS[variant].backend](linear, variant, row, column)


def corrupt_torch(linear, variant, row, column):
    if variant == "torch-int8-dynamic":
        weight = linear._layers[0].weight()
        codes = weight.int_repr()
        codes[row, column] ^= -128
        broken = linear._torch._make_per_tensor_quantized_tensor(codes, weight.q_scale(), weight.q_zero_point())
        linear._layers[0].set_weight_bias(broken, None)
        return
    view = linear._weights[0].view(linear._torch.int32 if variant == "torch-fp32" else linear._torch.int16)
    view[row, column] ^= 0x40000000 if variant == "torch-fp32" else 0x4000


def corrupt_bitsandbytes(linear, variant, row, column):
    if variant == "bnb-int8":
        linear._layers[0].state.CB[row, column] ^= -128
        return
    with linear._torch.inference_mode():
        linear._layers[0].weight.data.view(-1)[(row * K + column) // 2] ^= 0x80


def corrupt_onnxruntime(linear, _, row, column):
    corrupt_file(linear, row, column)
    linear.open()


def corrupt_file(linear, row, column):
    bits = linear._spec.bits
    place = column * N + row if linear._spec.scheme == "int8-tensor" else row * K + column
    at = place * bits // 8 + (3 if bits == 32 else 0)
    path = linear._file(0)
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40 if bits == 32 else 0x80
    path.write_bytes(content)


def corrupt_openvino(linear, variant, row, column):
    broken = linear._codes.parts(0)[0]
    if variant == "openvino-fp32":
        broken[row, column] = -3 * broken[row, column] - 1
    else:
        broken.reshape(N, -1)[row, column * linear._bits // 8] ^= 0x80
    linear._requests[0] = linear._ready(0)


def corrupt_torchao(linear, variant, row, column):
    with linear._torch.inference_mode():
        codes = linear._layers[0].weight.qdata
        if variant == "torchao-int4":
            codes[row, column // 2] ^= 0x80
        else:
            codes[row, column] ^= -128


def corrupt_llama(linear, variant, row, column):
    rows = linear._codes.parts(0)[0]
    at = {"llama-f16": 2 * column + 1, "llama-q8_0": 34 * (column // 32) + 2 + column % 32}
    at |= {"llama-q4_0": 18 * (column // 32) + 2 + column % 16, "llama-q4_k": 16 + column % 128}
    rows[row, at[variant]] ^= 0x40 if variant == "llama-f16" else 0x80
    linear._ggml.write(linear._matrices[0], rows)


def corrupt_native(linear, variant, row, column):
    """Of 4-bit weights some code of the row's panel: inputs 64 to 127 of it begin with as many bytes of scales."""
    data, panel = linear._packed[0].data, row // 16
    if variant == "native-fp32":
        data[4 * ((panel * K + column) * 16 + row % 16) + 3] ^= 0x40
    elif variant == "native-w8a8":
        data[panel * K * 16 + column // 4 * 64 + row % 16 * 4 + column % 4] ^= 0x80
    else:
        data[panel * (K // 64) * (64 + 512) + 64 + 7] ^= 0x80


CORRUPT = {
    "native": corrupt_native,
    "torch": corrupt_torch,
    "bitsandbytes": corrupt_bitsandbytes,
    "onnxruntime": corrupt_onnxruntime,
    "openvino": corrupt_openvino,
    "torchao": corrupt_torchao,
    "llama.cpp": corrupt_llama,
}


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


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("wrong", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_every_scheme(variant, wrong, context, monkeypatch):
    def spoilt(*where):
        made = values.drawn(*where)
        made[77, 131] = wrong
        return made

    monkeypatch.setattr(builder, "drawn", spoilt)
    with pytest.raises(RuntimeError, match=rf"weight \[77, 131\] is {wrong}: such a matrix is not quantised"):
        builder.load(make_arm(variant), context)


@pytest.mark.parametrize("variant", VARIANTS)
def test_copies_that_hold_moved_rows_answer_as_the_matrix_does_that_they_stand_for(variant, context):
    fmt = formats.resolve(variant, "cpu", formats.cpu_flags())
    each = formats.stored_bytes(fmt.scheme, N, K, fmt.bits, 32) + fmt.materialises * N * K
    arm = make_arm(variant, stream_bytes=6 * each)
    loaded = builder.load(arm, context)
    case, moved_copy = arm.cases[1], 5
    bound = loaded.bind(case)
    assert bound.rotation > moved_copy
    x_CK = values.projection(case.params["m"]) @ values.inputs(5, moved_copy, case.params["m"], K).astype(np.float64)
    exact = values.digest(x_CK @ values.weights(5, moved_copy, N, K).astype(np.float64).T)
    output = bound.output(moved_copy)
    for name, array in exact.items():
        error = np.sqrt(((output[name] - array) ** 2).mean() / (array**2).mean())
        assert error <= case.params["format_tolerance"]
    if bound.own_definition:
        assert distance(output, bound.own_definition(moved_copy)) <= case.tolerance
    loaded.close()


def test_a_library_that_is_not_there_has_no_path(context, monkeypatch):
    from frugalbench.workloads.layers import ggml

    monkeypatch.setattr(ggml.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(NoPath, match=r"pip install 'frugalbench\[llama\]'"):
        builder.load(make_arm("llama-q4_0"), context)


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.real
def test_what_torchao_refuses_is_no_path_with_its_own_words(context, monkeypatch):
    from torchao.quantization import Int4WeightOnlyConfig

    from frugalbench.workloads.layers.quant_torchao import TorchAo

    monkeypatch.setattr(TorchAo, "_config", lambda _: Int4WeightOnlyConfig(group_size=32, set_inductor_config=False))
    with pytest.raises(NoPath, match="has no kernel for this scheme here"):
        builder.load(make_arm("torchao-int4"), context)


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


@pytest.mark.parametrize(
    ("variant", "ops", "kernel"),
    [
        ("ort-fp32", ["Gemm"], "Gemm"),
        ("ort-int8", ["MatMulNBits"], "MatMulNBits 8 bits"),
        ("ort-int4-acc4", ["MatMulNBits"], "MatMulNBits 4 bits, accuracy_level 4"),
        ("ort-int8-dynamic", ["DynamicQuantizeMatMul"], "DynamicQuantizeMatMul"),
        ("ort-int8-qdq", ["QuantizeLinear", "MatMulIntegerToFloat"], "QuantizeLinear + MatMulIntegerToFloat"),
    ],
)
def test_nodes_of_the_asked_kind_run_on_the_cpu_provider(variant, ops, kernel, context):
    loaded = builder.load(arm := make_arm(variant), context)
    details = loaded.bind(arm.cases[0]).details
    assert details["placement"] == [{"op": op, "provider": "CPUExecutionProvider"} for op in ops]
    assert details["kernel"] == kernel
    assert not list(context.scratch_dir.glob("ort-*"))


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
@pytest.mark.parametrize(
    ("variant", "precision"), [("openvino-fp32", "f32"), ("openvino-int8", "u8"), ("openvino-int4", "u4")]
)
def test_openvino_multiplies_the_compressed_weights_in_one_node(variant, precision, context):
    kernel = builder.load(make_arm(variant), context).linear.kernel
    assert kernel.startswith("FullyConnected ")
    assert kernel.split(",")[0].endswith(f" {precision}")
    assert " + " not in kernel


def test_the_dynamic_format_is_what_onnxruntimes_own_quantiser_writes(tmp_path):
    import onnx
    from onnx import helper, numpy_helper
    from onnxruntime.quantization import QuantType, quantize_dynamic

    w = values.weights(1, 0, 96, 128)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", 1, ["m", 128])], [helper.make_tensor_value_info("y", 1, ["m", 96])],
        [numpy_helper.from_array(np.ascontiguousarray(w.T), "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m.onnx")
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx", weight_type=QuantType.QInt8)
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    codes, scale, zero = quant_ort_graph.quantise_tensor(w)
    np.testing.assert_allclose(found["w_scale"], scale[0], rtol=1e-6)
    assert found["w_zero_point"] == zero[0] == 0
    assert np.abs(found["w_quantized"].T.astype(int) - codes).max() <= 1
    assert (codes != found["w_quantized"].T).mean() < 1e-3


SHARED = """
import os, sys
from dataclasses import replace
from pathlib import Path
from frugalbench.workloads import quantized_linear as builder
from frugalbench.workloads.base import Context
from workloads.test_quantized_linear import K, N, make_arm

def tasks(): return len(os.listdir("/proc/self/task"))
folder = Path(sys.argv[1])
context = Context(5, 2, "cpu", folder, folder)
builder.load(make_arm("ort-fp32"), context)
before = tasks()
builder.load(make_arm("ort-fp32", stream_bytes=16 * N * K), context)
print(tasks() - before)
try: builder.load(make_arm("ort-fp32"), replace(context, threads=3))
except RuntimeError as problem: print(problem)
"""


def test_all_sessions_of_a_process_share_one_pool(tmp_path):
    assert make_arm("ort-fp32", stream_bytes=16 * N * K).cases[0].params["copies"] > 1
    command = [sys.executable, "-c", SHARED, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=TESTS).stdout.splitlines()
    assert found == ["0", "this process already computes with 2 threads, not 3"]


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
    codes, scales, zeros = nbits.quantise_nbits(w, bits, group)
    assert codes.shape == theirs[0].shape
    np.testing.assert_allclose(scales, theirs[1].reshape(scales.shape), rtol=1e-6)
    groups = scales.shape[1]
    for ours, official in ((codes, theirs[0]), (zeros, theirs[2].reshape(zeros.shape))):
        steps = np.abs(nbits.unpack(ours, bits).astype(int) - nbits.unpack(official, bits))[:, :groups]
        assert steps.max() <= 1
        assert (steps > 0).mean() < 1e-3


@given(
    codes=st.lists(st.integers(0, 15), min_size=1, max_size=33).map(lambda c: np.array([c], np.uint8)),
)
def test_unpacking_undoes_packing(codes):
    assert np.array_equal(nbits.unpack(nbits.pack(codes, 4), 4)[:, : codes.shape[1]], codes)


def test_bfloat16_rounds_like_torch():
    import torch

    x = values.inputs(3, 0, 4, 1024)
    assert np.array_equal(stored.bfloat16(x), torch.from_numpy(x).bfloat16().double().numpy())


def test_float16_rounds_like_torch():
    import torch

    x = values.inputs(3, 0, 4, 1024)
    assert np.array_equal(stored.float16(x), torch.from_numpy(x).half().double().numpy())


@given(seed=st.integers(0, 2**16), positive=st.booleans())
@settings(max_examples=30, deadline=None)
def test_dynamic_rounding_agrees_with_onnx_itself(seed, positive):
    from onnx.reference.ops.op_dynamic_quantize_linear import DynamicQuantizeLinear

    x = np.random.default_rng(seed).normal(size=(3, 64)).astype(np.float32)
    x = np.abs(x) if positive else x
    codes, scale, zero = DynamicQuantizeLinear.eval(x)
    official = (codes.astype(np.float64) - zero) * float(scale)
    steps = np.abs(stored.tensor_uint8(x) - official) / float(scale)
    assert (steps > 1e-3).mean() <= 0.02
    assert steps.max() <= 1.01
