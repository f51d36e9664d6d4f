"""The spec of quantized_linear: costs by formula, copies, skips, and what it refuses."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import quantized_linear as spec
from frugalbench.specs.base import Settings

MIB = 2**20


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

    def has_cuda(self) -> bool:
        return self.cuda


def expand(machine: Machine | None = None, device: str = "cpu", **options):
    settings = Settings("quantized_linear", device, threads=2, seed=3, options=options, where="test.toml [[workload]]")
    return spec.expand(settings, machine or Machine())


def by_variant(expansion):
    return {arm.cases[0].variant: arm.cases for arm in expansion.comparisons[0].arms}


def test_default_is_one_comparison_of_every_variant_in_two_regimes():
    expansion = expand()
    (comparison,) = expansion.comparisons
    assert comparison.id == "quantized_linear/4096x4096"
    assert not expansion.skipped
    assert list(by_variant(expansion)) == list(spec.FORMATS)
    assert all([c.regime for c in arm.cases] == ["decode", "prefill"] for arm in comparison.arms)
    ids = [case.id for arm in comparison.arms for case in arm.cases]
    assert len(set(ids)) == len(ids) == 20


@pytest.mark.parametrize(
    ("variant", "expected"),
    [  # by hand, 64 outputs x 128 inputs, groups of 32
        ("torch-fp32", 32768),
        ("torch-bf16", 16384),
        ("torch-int8-dynamic", 8192 + 16),
        ("bnb-int8", 8192 + 256),
        ("bnb-nf4", 4096 + 128 * 4 + 64),
        ("ort-int8", 8192 + 64 * 4 * 4 + 64 * 4),
        ("ort-int4", 4096 + 64 * 4 * 4 + 64 * 2),
    ],
)
def test_weight_bytes_include_scales_and_zero_points(variant, expected):
    cases = by_variant(expand(shape="64x128", variants=[variant], prefill_tokens=8))[variant]
    for case, tokens, width in zip(cases, (1, 8), (2, 2) if variant == "torch-bf16" else (4, 4), strict=True):
        assert case.cost.weight_bytes == expected
        assert case.cost.traffic_bytes == expected + width * tokens * (64 + 128)
        assert case.cost.token == tokens
        assert case.cost.flop + case.cost.op == 2 * tokens * 64 * 128


def test_integer_arms_count_operations_and_float_arms_flop(monkeypatch):
    monkeypatch.setattr(spec, "cpu_flags", frozenset)
    cases = by_variant(expand())
    integer = {name for name, (case, _) in cases.items() if case.cost.op}
    assert integer == {"torch-int8-dynamic", "ort-int8-acc4", "ort-int4-acc4"}
    for name, (case, _) in cases.items():
        assert (case.cost.flop == 0) == (name in integer)
        assert (case.peaks[0] == "int8_op_per_s") == (name in integer)
        assert case.peaks[1] == "read_bytes_per_s"


def test_bitsandbytes_is_fused_where_the_processor_allows_it(monkeypatch):
    flags = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"})
    assert spec.resolve("bnb-int8", "cpu", frozenset()).materialises
    assert not spec.resolve("bnb-int8", "cpu", flags).materialises
    assert spec.resolve("bnb-nf4", "cpu", flags).peak == "bf16_flop_per_s"
    monkeypatch.setattr(spec, "cpu_flags", lambda: flags)
    fused = by_variant(expand())["bnb-nf4"][0]
    monkeypatch.setattr(spec, "cpu_flags", frozenset)
    plain = by_variant(expand())["bnb-nf4"][0]
    assert fused.params["copies"] > plain.params["copies"]
    assert fused.tolerance > plain.tolerance


@pytest.mark.parametrize(("cache", "expected"), [(1 * MIB, 64), (32 * MIB, 128), (1024 * MIB, 512)])
def test_automatic_stream_is_four_caches_within_bounds(cache, expected):
    assert spec.automatic_stream_bytes(cache) == expected * MIB


@given(
    variant=st.sampled_from(list(spec.FORMATS)),
    n=st.integers(1, 64).map(lambda i: 32 * i),
    k=st.integers(1, 32).map(lambda i: 64 * i),
    group=st.sampled_from([16, 32, 64, 128]),
    stream=st.integers(1, 2**24),
)
def test_copies_cover_the_stream_and_no_more(variant, n, k, group, stream):
    fmt = spec.FORMATS[variant]
    each = spec.stored_bytes(fmt.scheme, n, k, fmt.bits, group) + (4 * n * k if fmt.materialises else 0)
    copies = spec.count_copies(fmt, n, k, group, stream)
    assert copies >= 2
    assert copies * each >= stream
    assert copies == 2 or (copies - 1) * each < stream


def test_every_lossy_format_is_smaller_than_bfloat16():
    for variant in spec.FORMATS:
        fmt = spec.FORMATS[variant]
        share = spec.stored_bytes(fmt.scheme, 4096, 4096, fmt.bits, 32) / (2 * 4096**2)
        assert share <= {32: 2, 16: 1, 8: 0.6, 4: 0.33}[fmt.bits]


def test_missing_package_skips_with_the_command_that_gets_it():
    expansion = expand(Machine(absent=("bitsandbytes",)))
    assert {s.case.variant for s in expansion.skipped} == {"bnb-int8", "bnb-nf4"}
    assert all("pip install bitsandbytes" in s.reason for s in expansion.skipped)
    assert "bnb-nf4" not in by_variant(expansion)


def test_cuda_keeps_torch_and_bitsandbytes_only():
    expansion = expand(Machine(cuda=True), device="cuda")
    assert set(by_variant(expansion)) == {"torch-fp32", "torch-bf16", "bnb-int8", "bnb-nf4"}
    assert by_variant(expansion)["bnb-int8"][0].cost.op
    nothing = expand(Machine(), device="cuda")
    assert not nothing.comparisons
    assert len(nothing.skipped) == 20


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"shape": "4096"}, "NxK"),
        ({"shape": "0x64"}, "NxK"),
        ({"shape": "100x64"}, "multiple"),
        ({"shape": "64x100"}, "multiple"),
        ({"decode_tokens": 0}, "decode_tokens"),
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
