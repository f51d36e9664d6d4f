"""The spec of model_decode: arms, costs, skips, and what it refuses."""

from dataclasses import dataclass

import pytest

from frugalbench import native_build
from frugalbench.schema import FrugalbenchError
from frugalbench.specs import model_decode as spec
from frugalbench.specs import quant_formats
from frugalbench.specs.base import Settings
from frugalbench.specs.decode_formats import FORMATS, misfit
from frugalbench.specs.decode_on_device import ON_DEVICE
from frugalbench.specs.decoder_shape import DecoderShape
from frugalbench.specs.shapes import load_shapes


@dataclass
class Machine:
    logical_cores: int = 2
    last_level_cache_bytes: int = 2**25
    absent: tuple[str, ...] = ()

    def installed(self, package: str) -> str | None:
        return None if package in self.absent else "1.0"

    gpu_l2_bytes = 50 * 2**20
    gpu_memory_bytes = 80 * 2**30

    def has_cuda(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    monkeypatch.setattr(native_build, "find_compiler", lambda: ("c++",))


def expand(machine: Machine | None = None, device: str = "cpu", **options):
    settings = Settings("model_decode", device, threads=2, seed=3, options=options, where="test.toml [[workload]]")
    return spec.expand(settings, machine or Machine())


def cases(expansion):
    return {(case.variant, case.regime): case for arm in expansion.comparisons[0].arms for case in arm.cases}


def test_default_is_one_comparison_of_every_arm_in_two_regimes():
    expansion = expand()
    (comparison,) = expansion.comparisons
    assert comparison.id == "model_decode/qwen3-0.6b"
    assert [arm.cases[0].variant for arm in comparison.arms] == list(FORMATS)
    assert all([case.regime for case in arm.cases] == ["decode", "prefill"] for arm in comparison.arms)
    ids = [case.id for arm in comparison.arms for case in arm.cases]
    assert len(set(ids)) == len(ids) == 2 * len(FORMATS)
    assert "model_decode/native-w4a8/qwen3-0.6b/decode-256/native/cpu" in ids
    assert "model_decode/llama-q4_0/qwen3-0.6b/prefill-128/llama.cpp/cpu" in ids


def test_a_rate_is_in_tokens_of_its_own_regime():
    found = cases(expand(prompt_tokens=64, context=100))
    shape = DecoderShape.of_model(load_shapes()["qwen3-0.6b"], 0, 0)
    for variant, fmt in FORMATS.items():
        decode, prefill = found[variant, "decode"].cost, found[variant, "prefill"].cost
        assert (decode.token, prefill.token) == (1, 64)
        assert decode.flop + decode.op == shape.matrix_flop(1) + shape.attention_flop(1, 100)
        assert prefill.flop + prefill.op == shape.matrix_flop(64) + shape.attention_flop(64, 0)
        assert (decode.op > 0) == fmt.integer
        if fmt.integer:
            assert decode.flop == shape.attention_flop(1, 100)
        assert decode.parameters == decode.active_parameters == shape.parameters
        cache = shape.cache_bytes(1, fmt.cache_value_bytes)
        assert decode.traffic_bytes - prefill.traffic_bytes == (101 - 64) * cache


def test_peaks_are_those_of_the_arithmetic_and_reading_is_the_last(monkeypatch):
    monkeypatch.setattr(quant_formats, "cpu_flags", frozenset)
    found = {name: case.peaks for (name, regime), case in cases(expand()).items() if regime == "decode"}
    assert found["native-w4a8"] == ("int8_op_per_s", "fp32_flop_per_s", "read_bytes_per_s")
    assert found["llama-f16"] == ("fp32_flop_per_s", "read_bytes_per_s")
    assert found["transformers-bf16"] == ("bf16_flop_per_s", "read_bytes_per_s")
    monkeypatch.setattr(quant_formats, "cpu_flags", lambda: frozenset({"avx512_fp16"}))
    assert cases(expand())["llama-f16", "decode"].peaks[0] == "fp16_flop_per_s"


def test_fewer_layers_and_a_smaller_vocabulary_are_in_every_name():
    expansion = expand(layers=4, vocabulary=4096)
    assert expansion.comparisons[0].id == "model_decode/qwen3-0.6b-4of28layers-v4096"
    case = cases(expansion)["native-w4a8", "decode"]
    assert case.shape == "qwen3-0.6b-4of28layers-v4096"
    assert (case.params["layers"], case.params["vocabulary"], case.params["model"]) == (4, 4096, "qwen3-0.6b")
    assert expand(layers=28, vocabulary=151936).comparisons == expand().comparisons


def test_memory_covers_what_is_stored_and_all_arms_of_the_default_fit_24_gib():
    arms = expand().comparisons[0].arms
    assert all(arm.memory_bytes > arm.cases[0].cost.weight_bytes for arm in arms)
    assert sum(arm.memory_bytes for arm in arms) < 16 * 2**30


@pytest.mark.parametrize(
    ("package", "variants", "command"),
    [
        ("llama-cpp-python", ("llama-f16", "llama-q8_0", "llama-q4_0", "llama-q4_k"), "'frugalbench[llama]'"),
        ("gguf", ("llama-f16", "llama-q8_0", "llama-q4_0", "llama-q4_k"), "'frugalbench[llama]'"),
        ("transformers", ("transformers-fp32", "transformers-bf16", "transformers-int8-dynamic"), "transformers"),
    ],
)
def test_a_missing_package_skips_its_arms_with_the_command_that_gets_it(package, variants, command):
    expansion = expand(Machine(absent=(package,)))
    assert {skip.case.variant for skip in expansion.skipped} == set(variants)
    assert {skip.reason for skip in expansion.skipped} == {f"{package} is not installed: pip install {command}"}
    assert not set(variants) & {arm.cases[0].variant for arm in expansion.comparisons[0].arms}


def test_without_a_compiler_the_own_kernel_is_skipped(monkeypatch):
    monkeypatch.setattr(native_build, "find_compiler", lambda: None)
    skipped = {skip.case.variant: skip.reason for skip in expand().skipped}
    assert set(skipped) == {"native-fp32", "native-w8a8", "native-w4a8"}
    assert "C++ compiler" in skipped["native-w8a8"]


def test_a_gpu_has_arms_of_its_own():
    (comparison,) = expand(device="cuda").comparisons
    assert [arm.cases[0].variant for arm in comparison.arms] == list(ON_DEVICE)
    found = cases(expand(device="cuda"))
    assert {case.params["launch"] for case in found.values()} == {"graph"}
    assert cases(expand(device="cuda", launch="eager"))["bnb-nf4", "decode"].params["launch"] == "eager"
    assert not any("launch" in case.params for case in cases(expand()).values())
    assert found["bnb-nf4", "decode"].id == "model_decode/bnb-nf4/qwen3-0.6b/decode-256/transformers/cuda"
    assert expand(device="cuda").comparisons[0].estimate_s < 30 < expand().comparisons[0].estimate_s


def test_weights_of_a_gpu_arm_are_those_of_its_layers_and_a_table_in_half_precision():
    shape = DecoderShape.of_model(load_shapes()["qwen3-0.6b"], 0, 0)
    found = cases(expand(device="cuda"))
    dense, layers = 2 * (shape.table_weights + shape.gains), shape.layers * shape.layer_weights
    assert found["transformers-fp16", "decode"].cost.weight_bytes == 2 * shape.parameters
    assert found["bnb-nf4", "decode"].cost.weight_bytes == dense + layers * (0.5 + 4 / 64)
    assert found["torch-int4", "decode"].cost.weight_bytes == dense + layers * (0.5 + 4 / 128)
    outputs = shape.layers * sum(n for n, _ in shape.matrices().values())
    assert found["bnb-int8", "decode"].cost.weight_bytes == dense + layers + 4 * outputs
    assert found["bnb-int8", "decode"].cost.op == shape.matrix_flop(1)


@pytest.mark.parametrize(
    ("device", "variant", "other"),
    [("cuda", "llama-q4_0", "cpu"), ("cpu", "bnb-nf4", "cuda"), ("cpu", "torch-int4", "cuda")],
)
def test_an_arm_of_another_device_is_skipped_with_where_it_is(device, variant, other):
    expansion = expand(device=device, variants=[variant])
    assert not expansion.comparisons
    assert {skip.reason for skip in expansion.skipped} == {f"{variant} has no arm for {device}; use --device {other}"}


def test_a_model_that_the_int4_kernel_does_not_take():
    shape = DecoderShape(layers=1, d_model=96, heads=2, kv_heads=1, head_dim=64, d_ff=256, vocabulary=300)
    assert "int4 takes multiples of 128 inputs and of 8 outputs, not 96" in misfit(ON_DEVICE["torch-int4"], shape)
    assert "nf4 takes multiples of 64" in misfit(ON_DEVICE["bnb-nf4"], shape)
    assert not misfit(ON_DEVICE["bnb-int8"], shape)


@pytest.mark.parametrize("name", ["llama2-7b", "llama3.1-8b", "qwen3-32b", "deepseek-llm-67b"])
def test_every_dense_shape_expands(name):
    assert cases(expand(shape=name))["native-w4a8", "prefill"].shape == name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shape": "qwen3-30b-a3b"}, "has experts; model_decode computes dense models: llama2-7b, "),
        ({"shape": "deepseek-v3-671b"}, "has experts"),
        ({"shape": "qwen3-0.6"}, "unknown shape 'qwen3-0.6'; did you mean 'qwen3-0.6b'"),
        ({"layers": 29}, "'layers' must be 0 to 28, not 29"),
        ({"layers": -1}, "'layers' must be 0 to 28"),
        ({"vocabulary": 200000}, "'vocabulary' must be 0 to 151936"),
        ({"vocabulary": 3}, "'vocabulary' must be 0 or at least 64"),
        ({"prompt_tokens": 0}, "'prompt_tokens' must be 1 to"),
        ({"context": 0}, "'context' must be 1 to"),
        ({"context": 2**30}, "'context' must be 1 to"),
        ({"variants": []}, "'variants' is empty"),
        ({"variants": ["native-w5a8"]}, "unknown variant 'native-w5a8'; did you mean 'native-w"),
        ({"layer": 3}, "unknown key 'layer'"),
        ({"launch": "graphs"}, "unknown launch 'graphs'; did you mean 'graph'"),
        ({"context": 1.5}, "'context' must be an integer"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(options, said):
    with pytest.raises(FrugalbenchError, match=r"^test\.toml \[\[workload\]\]: ") as problem:
        expand(**options)
    assert said in str(problem.value)
    assert "\n" not in str(problem.value)
