"""Experts and dense twins with weights, inputs and outputs of 16 bits: answers, bytes, baselines and refusals."""

import numpy as np
import pytest

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import moe_ffn as spec
from frugalbench.specs import moe_sixteen as sixteen
from frugalbench.specs.base import Settings
from frugalbench.specs.moe_cost import TWINS
from frugalbench.specs.quant_formats import cpu_flags
from workloads.moe_sessions import SEED, Bench, Machine

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")

MIXTURES = tuple(name for name in spec.MOE if name not in ("moe-compiled", *spec.ON_GPU))
ARMS = (*spec.DENSE, *TWINS, *MIXTURES)
OPTIONS = {
    "shape": "own", "d_model": 192, "d_expert": 144, "experts": 6, "top_k": 2, "n_shared": 1,
    "variants": [*spec.DENSE, *spec.MOE], "regimes": ["decode", "batch", "prefill"], "stream_bytes": 700_000,
    "decode_tokens": [3], "batch_tokens": [16], "prefill_tokens": [60],
}  # fmt: skip


def expanded(**options):
    return spec.expand(Settings("moe_ffn", "cpu", 2, SEED, {**OPTIONS, **options}), Machine())


@pytest.fixture(scope="module", params=sixteen.SIXTEEN)
def bench(request, tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("scratch"), **OPTIONS, weights=request.param)


@pytest.mark.parametrize("variant", ARMS)
def test_each_arm_gives_the_reference_and_holds_the_bytes_that_are_counted(bench, variant):
    session = bench.load(variant)
    for regime in OPTIONS["regimes"]:
        case, found = bench.case(variant, regime), bench.verify(session, variant, regime).verification
        assert found.passed, (regime, found)
        assert session.reply.facts[case.id]["weight_bytes"].value == case.cost.weight_bytes
        assert found.error > 0 if case.dtype == "float32" else found.error > sixteen.tolerance(case.params) / 100


def test_the_own_kernel_says_what_multiplied_and_names_that_roof(bench):
    session = bench.load("moe-native")
    case = bench.case("moe-native", "prefill")
    pairs = "avx512_bf16" in cpu_flags() and case.dtype == "bfloat16"
    found = session.reply.details[case.id]["implementation"]
    assert ("avx512_bf16" in found) == pairs and f"weights of {case.dtype}" in found
    assert case.peaks[0] == ("bf16_flop_per_s" if pairs else "fp32_flop_per_s")


@pytest.mark.parametrize("variant", ["dense-equal-total", "moe-transformers", "moe-sorted", "moe-native"])
def test_one_corrupt_weight_is_caught(bench, variant):
    session = bench.load(variant)
    tensor = session.loaded.layers[0].weights["down"].data
    tensor[(..., 3, 5)] += 5.0
    assert not any(bench.passes(session, variant, regime) for regime in OPTIONS["regimes"])


def test_a_mixture_of_sixteen_bits_stands_beside_dense_layers_of_both_widths():
    """A processor or library that is slow at 16 bits would otherwise hand the mixture a weak baseline."""
    found = expanded(weights="bfloat16").comparisons[0].arms
    cases = {arm.cases[0].variant: arm.cases[0] for arm in found}
    for name in spec.DENSE:
        narrow, wide = cases[name], cases[name + sixteen.FP32_TWIN]
        assert (narrow.dtype, wide.dtype) == ("bfloat16", "float32")
        assert wide.cost.weight_bytes == 2 * narrow.cost.weight_bytes
        assert wide.cost.flop == narrow.cost.flop
        tokens = [spec.token_batches(SEED, case.params, "decode") for case in (narrow, wide, cases["moe-native"])]
        assert np.array_equal(tokens[0], tokens[1])
        assert np.array_equal(tokens[0], tokens[2])
    assert not any(arm.id.endswith(sixteen.FP32_TWIN) for arm in expanded().comparisons[0].arms)


def test_every_claim_on_experts_takes_the_float32_twins_as_baselines():
    from frugalbench.analysis.claims import load_claims

    rules = [claim.rule for claim in load_claims() if getattr(claim.rule, "workload", "") == spec.WORKLOAD]
    assert len(rules) >= 4
    for rule in rules:
        assert {name for name in TWINS if name.removesuffix(sixteen.FP32_TWIN) in rule.baselines} <= {*rule.baselines}


@pytest.mark.parametrize("kind", sixteen.SIXTEEN)
def test_values_are_rounded_as_torch_rounds_them(kind):
    random = np.random.default_rng(3)
    values = (random.standard_normal(20_000) * 10.0 ** random.integers(-8, 4, 20_000)).astype(np.float32)
    wanted = torch.from_numpy(values).to(getattr(torch, kind)).float().numpy()
    assert np.array_equal(sixteen.rounded(values, {"weights": kind}), wanted)


def test_what_has_no_path_of_sixteen_bits_is_skipped_or_refused_in_one_line():
    made = expanded(weights="float16", variants=["moe-triton", "moe-native"], regimes=["decode", "training"])
    reasons = {(skip.case.variant, skip.case.regime): skip.reason for skip in made.skipped}
    assert "forward only" in reasons["moe-native", "training"]
    assert ("moe-triton", "decode") in reasons
    with pytest.raises(FrugalbenchError, match="layer view"):
        expanded(weights="float16", view="block")
    with pytest.raises(FrugalbenchError, match="bfloat16"):
        expanded(weights="bfloat15")
