"""Experts and dense twins with weights of 8 and 4 bits: their answers, bytes and refusals."""

import numpy as np
import pytest

from frugalbench import native_build
from frugalbench.schema import FrugalbenchError
from frugalbench.specs import moe_ffn as spec
from frugalbench.specs.base import Settings
from workloads.moe_sessions import SEED, Bench, Machine

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")
if native_build.find_compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

ARMS = ("dense-equal-total-native", "dense-equal-active-native", "moe-native")
OPTIONS = {
    "shape": "own", "d_model": 192, "d_expert": 144, "experts": 6, "top_k": 2, "n_shared": 1, "variants": list(ARMS),
    "regimes": ["decode", "batch", "prefill"], "stream_bytes": 100_000, "decode_tokens": [3], "batch_tokens": [16],
    "prefill_tokens": [70],
}  # fmt: skip


def expanded(**options):
    return spec.expand(Settings("moe_ffn", "cpu", 2, SEED, {**OPTIONS, **options}), Machine())


@pytest.mark.parametrize("extra", [{}, {"capacity_factor": 0.75}, {"routing": "zipf-1"}])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_each_arm_gives_what_is_stored_and_stays_near_the_unquantised_answer(tmp_path, weights, extra):
    bench = Bench(tmp_path, **OPTIONS, weights=weights, **extra)
    for variant in ARMS:
        session = bench.load(variant)
        for regime in OPTIONS["regimes"]:
            found = bench.verify(session, variant, regime).verification
            assert found.passed, (variant, regime, found)


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("variant", ARMS)
def test_one_damaged_byte_of_a_weight_is_a_wrong_answer(tmp_path, weights, variant):
    bench = Bench(tmp_path, **OPTIONS, weights=weights)
    session = bench.load(variant)
    layer = session.loaded.layers[0]
    held = layer.experts_held.down
    each = held.numel() // layer.experts_held.experts
    for expert in range(layer.experts_held.experts):
        held[expert * each + 64 : expert * each + 1024] ^= 0x80
    assert not all(bench.passes(session, variant, regime) for regime in OPTIONS["regimes"])


def test_counted_bytes_are_those_of_the_loaded_layer_and_integer_work_is_no_flop(tmp_path):
    for weights, most in (("int8", 1.6), ("int4", 0.95)):
        bench = Bench(tmp_path, **OPTIONS, weights=weights)
        for variant in ARMS:
            case = bench.case(variant, "batch")
            assert bench.load(variant).loaded.layers[0].stored_bytes() == case.cost.weight_bytes
            assert case.cost.weight_bytes < most * case.cost.parameters
            assert case.cost.op > 10 * case.cost.flop
            assert (case.dtype, case.peaks[0]) == (weights, "int8_op_per_s")
            assert f"-{weights}" in case.shape


def test_paper_saving_is_that_of_the_same_layer_in_floating_point():
    def work(**options):
        cases = {arm.cases[0].variant: arm.cases[0].cost for arm in expanded(**options).comparisons[0].arms}
        total = cases["dense-equal-total-native"]
        return (total.flop + total.op) / (cases["moe-native"].flop + cases["moe-native"].op)

    assert work(weights="int4") == pytest.approx(work())


def test_what_has_no_quantised_path_is_skipped_or_refused_in_one_line():
    made = expanded(weights="int8", variants=["moe-sorted", "moe-native"], regimes=["decode", "training"])
    reasons = {(skip.case.variant, skip.case.regime): skip.reason for skip in made.skipped}
    assert "llama.cpp only" in reasons["moe-sorted", "decode"]
    assert "forward only" in reasons["moe-native", "training"]
    with pytest.raises(FrugalbenchError, match="layer view"):
        expanded(weights="int4", view="block")
    with pytest.raises(FrugalbenchError, match="int8"):
        expanded(weights="int9")
    assert np.isfinite([arm.memory_bytes for arm in made.comparisons[0].arms]).all()
