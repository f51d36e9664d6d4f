"""The spec of quantized_linear: comparisons, costs, skips, and what it refuses."""

from dataclasses import dataclass, field

import pytest

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import quant_formats as formats
from frugalbench.specs import quantized_linear as spec
from frugalbench.specs.base import Settings

MIB = 2**20
ON_CPU = [name for name, fmt in formats.FORMATS.items() if fmt.cpu and not fmt.lacking]


@dataclass
class Machine:
    logical_cores: int = 2
    last_level_cache_bytes: int = 32 * MIB
    absent: tuple[str, ...] = ()
    cuda: bool = False
    asked: list[str] = field(default_factory=list)

    def installed(self, package: str) -> str | None:
        self.asked.append(package)
        return None if package in self.absent else "1.0"

    gpu_l2_bytes = 50 * 2**20
    gpu_memory_bytes = 80 * 2**30

    def has_cuda(self) -> bool:
        return self.cuda


def expand(machine: Machine | None = None, device: str = "cpu", **options):
    settings = Settings("quantized_linear", device, threads=2, seed=3, options=options, where="test.toml [[workload]]")
    return spec.expand(settings, machine or Machine())


def by_variant(expansion):
    return {arm.cases[0].variant: arm.cases for arm in expansion.comparisons[0].arms}


def test_default_is_one_comparison_of_the_usual_variants_in_two_regimes():
    expansion = expand()
    (comparison,) = expansion.comparisons
    assert comparison.id == "quantized_linear/4096x4096"
    assert not expansion.skipped
    assert list(by_variant(expansion)) == list(spec.USUAL)
    assert all([c.regime for c in arm.cases] == ["decode", "prefill"] for arm in comparison.arms)
    ids = [case.id for arm in comparison.arms for case in arm.cases]
    assert len(set(ids)) == len(ids) == 20
    assert "quantized_linear/torch-fp32/4096x4096/decode/torch/cpu" in ids


def test_every_variant_can_be_asked_for():
    assert list(by_variant(expand(variants=list(formats.FORMATS)))) == ON_CPU


def test_one_number_means_a_list_of_one():
    assert expand(prefill_tokens=64, decode_tokens=2) == expand(prefill_tokens=[64], decode_tokens=[2])


def test_several_numbers_make_several_comparisons_with_ids_of_their_own():
    expansion = expand(decode_tokens=[1, 4], batch_tokens=[32], prefill_tokens=[256], variants=["torch-fp32"])
    assert [item.id for item in expansion.comparisons] == ["quantized_linear/4096x4096", "quantized_linear/4096x4096/4"]
    points = [[(case.regime, case.params["m"]) for case in item.arms[0].cases] for item in expansion.comparisons]
    assert points == [[("decode", 1), ("batch", 32), ("prefill", 256)], [("decode", 4)]]
    arms = [item.arms[0].id for item in expansion.comparisons]
    cases = [case.id for item in expansion.comparisons for case in item.arms[0].cases]
    assert len(set(arms)) == 2
    assert len(set(cases)) == 4
    assert cases[3] == "quantized_linear/torch-fp32/4096x4096/decode-4/torch/cpu"


def test_a_regime_without_tokens_is_left_out():
    (comparison,) = expand(decode_tokens=[], variants=["torch-fp32"]).comparisons
    assert [case.regime for case in comparison.arms[0].cases] == ["prefill"]


@pytest.mark.parametrize(
    ("variant", "width"), [("torch-bf16", 2), ("torch-fp16", 2), ("torchao-int4", 2), ("ort-int4", 4)]
)
def test_traffic_is_the_weights_once_and_inputs_and_outputs_in_their_type(variant, width):
    cases = by_variant(expand(shape="64x128", variants=[variant], prefill_tokens=8))[variant]
    for case, tokens in zip(cases, (1, 8), strict=True):
        assert case.cost.traffic_bytes == case.cost.weight_bytes + width * tokens * (64 + 128)
        assert case.cost.token == tokens
        assert case.cost.flop + case.cost.op == 2 * tokens * 64 * 128


def test_integer_arms_count_operations_and_float_arms_flop(monkeypatch):
    monkeypatch.setattr(formats, "cpu_flags", frozenset)
    cases = by_variant(expand(variants=list(formats.FORMATS)))
    integer = {name for name, (case, _) in cases.items() if case.cost.op}
    assert integer == {
        "torch-int8-dynamic", "ort-int8-acc4", "ort-int4-acc4", "ort-int8-dynamic", "ort-int8-qdq",
        "torchao-int8-dynamic", "llama-q8_0", "llama-q4_0", "llama-q4_k", "native-w8a8", "native-w4a8",
    }  # fmt: skip
    for name, (case, _) in cases.items():
        assert (case.cost.flop == 0) == (name in integer)
        assert (case.peaks[0] == "int8_op_per_s") == (name in integer)
        assert case.peaks[1] == "read_bytes_per_s"


def test_a_fused_arm_streams_more_copies_and_a_bfloat16_one_is_allowed_more(monkeypatch):
    flags = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"})
    monkeypatch.setattr(formats, "cpu_flags", lambda: flags)
    fused = by_variant(expand())["bnb-nf4"][0]
    monkeypatch.setattr(formats, "cpu_flags", frozenset)
    plain = by_variant(expand())["bnb-nf4"][0]
    assert fused.params["copies"] > plain.params["copies"]
    assert fused.tolerance > plain.tolerance


@pytest.mark.parametrize(("cache", "expected"), [(1 * MIB, 64), (32 * MIB, 128), (1024 * MIB, 512)])
def test_automatic_stream_is_four_caches_within_bounds(cache, expected):
    assert spec.automatic_stream_bytes(cache) == expected * MIB


def test_missing_package_skips_with_the_command_that_gets_it():
    expansion = expand(Machine(absent=("bitsandbytes",)))
    assert {s.case.variant for s in expansion.skipped} == {"bnb-int8", "bnb-nf4"}
    assert all("pip install bitsandbytes" in s.reason for s in expansion.skipped)
    assert "bnb-nf4" not in by_variant(expansion)


@pytest.mark.parametrize(
    ("package", "variant", "extra"),
    [
        ("torchao", "torchao-int4", "frugalbench[torchao]"),
        ("llama-cpp-python", "llama-q4_0", "frugalbench[llama]"),
        ("openvino", "openvino-int4", "frugalbench[openvino]"),
    ],
)
def test_what_an_extra_brings_is_skipped_with_its_name(package, variant, extra):
    expansion = expand(Machine(absent=(package,)), variants=[variant, "torch-fp32"])
    assert {s.case.variant for s in expansion.skipped} == {variant}
    assert all(s.reason == f"{package} is not installed: pip install '{extra}'" for s in expansion.skipped)


def test_a_group_that_does_not_divide_the_inputs_is_skipped_where_nothing_pads():
    expansion = expand(shape="64x192", group_size=128, variants=["openvino-int4", "ort-int4", "llama-q4_k"])
    assert {s.case.variant for s in expansion.skipped} == {"openvino-int4", "llama-q4_k"}
    assert all("do not divide 192" in s.reason for s in expansion.skipped)
    assert list(by_variant(expansion)) == ["ort-int4"]


def test_cuda_has_the_formats_that_are_at_home_there():
    expansion = expand(Machine(cuda=True), device="cuda", group_size=128)
    cases = by_variant(expansion)
    assert list(cases) == list(spec.USUAL_CUDA)
    assert cases["bnb-int8"][0].cost.op
    assert {case.params["values"] for name in cases if name != "torch-fp32" for case in cases[name]} <= {
        "bfloat16", "float16"
    }  # fmt: skip
    assert cases["torch-fp8"][0].peaks[0] == "fp8_flop_per_s"
    nothing = expand(Machine(), device="cuda")
    assert not nothing.comparisons
    assert len(nothing.skipped) == 2 * len(spec.USUAL_CUDA)


def test_one_token_is_skipped_where_the_library_would_multiply_something_else():
    expansion = expand(Machine(cuda=True), device="cuda", variants=["torch-bf16", "torchao-int8-dynamic"])
    assert [case.regime for case in by_variant(expansion)["torchao-int8-dynamic"]] == ["prefill"]
    (skipped,) = expansion.skipped
    assert "17 tokens or more" in skipped.reason and skipped.case.regime == "decode"


@pytest.mark.parametrize(
    ("device", "variant", "words"),
    [
        ("cpu", "triton-w4a16", "on an NVIDIA GPU only"),
        ("cpu", "torch-fp8", "on an NVIDIA GPU only"),
        ("cuda", "torchao-nvfp4", "compute capability 10.0"),
        ("cuda", "ort-int4", "no CUDA kernel"),
    ],
)
def test_a_format_without_a_kernel_on_the_device_is_skipped_with_its_reason(device, variant, words):
    expansion = expand(Machine(cuda=True), device=device, variants=[variant])
    assert not expansion.comparisons
    assert all(words in skip.reason for skip in expansion.skipped)


@pytest.mark.parametrize(("l2_bytes", "stream"), [(50 * MIB, 200 * MIB), (0, 512 * MIB)])
def test_a_devices_own_cache_decides_what_streams(l2_bytes, stream):
    machine = Machine(cuda=True)
    machine.gpu_l2_bytes = l2_bytes
    case = by_variant(expand(machine, device="cuda", variants=["torch-bf16"]))["torch-bf16"][0]
    assert case.params["copies"] == -(-stream // (2 * 4096**2))


def test_all_but_prefill_are_recorded_on_a_device_unless_asked_otherwise():
    def launches(device, **options):
        cases = by_variant(expand(Machine(cuda=True), device=device, variants=["torch-bf16"], **options))
        return [case.params["launch"] for case in cases["torch-bf16"]]

    assert launches("cpu") == ["eager", "eager"]
    assert launches("cuda") == ["graph", "eager"]
    assert launches("cuda", launch="eager") == ["eager", "eager"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"shape": "4096"}, "NxK"),
        ({"shape": "0x64"}, "NxK"),
        ({"shape": "100x64"}, "multiple"),
        ({"shape": "64x100"}, "multiple"),
        ({"decode_tokens": 0}, "decode_tokens"),
        ({"batch_tokens": [32, 0]}, "batch_tokens"),
        ({"batch_tokens": ["32"]}, "batch_tokens"),
        ({"decode_tokens": [1.5]}, "decode_tokens"),
        ({"decode_tokens": True}, "decode_tokens"),
        ({"decode_tokens": [], "prefill_tokens": []}, "no tokens"),
        ({"variants": []}, "variants"),
        ({"stream_bytes": -1}, "stream_bytes"),
        ({"group_size": 33}, "group_size"),
        ({"variants": ["ort-int3"]}, "did you mean"),
        ({"grup_size": 32}, "group_size"),
        ({"variants": [4]}, "string"),
    ],
)
def test_nonsense_is_refused_with_its_place(options, word):
    with pytest.raises(FrugalbenchError, match=word) as caught:
        expand(**options)
    assert str(caught.value).startswith("test.toml [[workload]]: ")
    assert len(str(caught.value).splitlines()) == 1


def test_unknown_device_is_refused():
    with pytest.raises(FrugalbenchError, match="did you mean"):
        expand(device="cdua")
