"""The table of low-precision formats: bytes by hand, what a processor changes, what does not fit."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from frugalbench.specs import quant_formats as formats

AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})


@pytest.mark.parametrize(
    ("variant", "expected"),
    [  # by hand, 64 outputs x 256 inputs, groups of 32
        ("torch-fp32", 65536),
        ("torch-bf16", 32768),
        ("torch-fp16", 32768),
        ("llama-f16", 32768),
        ("torch-int8-dynamic", 16384 + 16),
        ("ort-int8-dynamic", 16384 + 4 + 1),
        ("ort-int8-qdq", 16384 + 4 + 1),
        ("bnb-int8", 16384 + 64 * 4),
        ("torchao-int8", 16384 + 64 * 4 + 64),
        ("openvino-int8", 16384 + 64 * 4 + 64),
        ("bnb-nf4", 8192 + 256 * 4 + 64),
        ("ort-int8", 16384 + 64 * 8 * 4 + 64 * 8),
        ("ort-int4", 8192 + 64 * 8 * 4 + 64 * 4),
        ("openvino-int4", 8192 + 64 * 8 * 4 + 64 * 4),
        ("torchao-int4", 8192 + 64 * 8 * 2 * 2),
        ("llama-q8_0", 64 * 8 * 34),
        ("llama-q4_0", 64 * 8 * 18),
        ("llama-q4_k", 64 * 144),
    ],
)
def test_weight_bytes_include_scales_and_zero_points(variant, expected):
    fmt = formats.FORMATS[variant]
    assert formats.stored_bytes(fmt.scheme, 64, 256, fmt.bits, 32) == expected


def test_odd_numbers_of_groups_are_padded_by_onnx_runtime_only():
    assert formats.stored_bytes("nbits", 32, 96, 4, 32) == 32 * (48 + 12) + 32 * 2
    assert formats.stored_bytes("grouped", 32, 96, 4, 32) == 32 * (48 + 12) + 32 * 3 // 2


@pytest.mark.parametrize("variant", formats.FORMATS)
def test_every_lossy_format_is_smaller_than_bfloat16(variant):
    fmt = formats.FORMATS[variant]
    share = formats.stored_bytes(fmt.scheme, 4096, 4096, fmt.bits, 32) / (2 * 4096**2)
    assert share <= {32: 2, 16: 1, 8: 0.6, 4: 0.33}[fmt.bits]


@given(
    variant=st.sampled_from(list(formats.FORMATS)),
    n=st.integers(1, 64).map(lambda i: 32 * i),
    k=st.integers(1, 32).map(lambda i: 64 * i),
    group=st.sampled_from([16, 32, 64, 128]),
    stream=st.integers(1, 2**24),
)
def test_copies_cover_the_stream_and_no_more(variant, n, k, group, stream):
    fmt = formats.FORMATS[variant]
    assume(not formats.misfit(fmt, k, group))
    each = formats.stored_bytes(fmt.scheme, n, k, fmt.bits, group) + fmt.materialises * n * k
    copies = formats.count_copies(fmt, n, k, group, stream)
    assert copies >= 2
    assert copies * each >= stream
    assert copies == 2 or (copies - 1) * each < stream


def test_bitsandbytes_is_fused_where_the_processor_allows_it():
    assert formats.resolve("bnb-int8", "cpu", frozenset()).materialises
    assert not formats.resolve("bnb-int8", "cpu", AVX512).materialises
    assert formats.resolve("bnb-nf4", "cpu", AVX512 | {"avx512_bf16"}).peak == "bf16_flop_per_s"
    assert not formats.resolve("bnb-nf4", "cuda", frozenset()).materialises


@pytest.mark.parametrize(
    ("variant", "flags", "group", "integer"),
    [
        ("openvino-int8", {"avx512_vnni"}, 32, True),
        ("openvino-int8", {"avx_vnni"}, 16, True),
        ("openvino-int8", {"avx2"}, 32, False),
        ("openvino-int4", {"avx512_vnni"}, 128, True),
        ("openvino-int4", {"avx512_vnni"}, 16, False),
    ],
)
def test_openvino_multiplies_integers_with_vnni_and_whole_groups(variant, flags, group, integer):
    fmt = formats.resolve(variant, "cpu", frozenset(flags), group)
    assert (fmt.peak == "int8_op_per_s") == (fmt.activations == "group") == (fmt.tie > 0) == integer


@pytest.mark.parametrize(("flags", "peak"), [(set(), "fp32_flop_per_s"), ({"avx512_fp16"}, "fp16_flop_per_s")])
def test_float16_without_arithmetic_of_its_own_is_bound_by_float32(flags, peak):
    assert formats.resolve("torch-fp16", "cpu", frozenset(flags)).peak == peak
    assert formats.resolve("torch-fp16", "cuda", frozenset(flags)).peak == "fp16_flop_per_s"


@pytest.mark.parametrize(
    ("variant", "k", "group", "words"),
    [
        ("openvino-int4", 192, 128, "whole groups of 128 inputs, which do not divide 192"),
        ("torchao-int4", 192, 128, "whole groups of 128 inputs, which do not divide 192"),
        ("torchao-int4", 256, 16, "32, 64 or 128 inputs, not 16"),
        ("llama-q4_k", 4160, 32, "whole groups of 256 inputs, which do not divide 4160"),
    ],
)
def test_what_does_not_fit_says_why(variant, k, group, words):
    assert words in formats.misfit(formats.FORMATS[variant], k, group)


@pytest.mark.parametrize("variant", ["ort-int4", "openvino-int8", "llama-q4_0", "torch-fp32"])
def test_what_pads_or_needs_no_groups_fits(variant):
    assert formats.misfit(formats.FORMATS[variant], 192, 128) == ""


def test_flags_are_read_from_either_kind_of_processor(monkeypatch):
    for text in ("processor\t: 0\nflags\t\t: fpu sse\n", "processor\t: 0\nFeatures\t: fpu sse\n"):
        formats.own_flags.cache_clear()
        monkeypatch.setattr(formats.Path, "read_text", lambda _, text=text: text)
        assert formats.cpu_flags() == {"fpu", "sse"}
    formats.own_flags.cache_clear()
