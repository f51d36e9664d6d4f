"""The spec of moe_ffn: arms, copies, costs, seeded inputs. No torch."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import moe_ffn as spec
from frugalbench.specs import moe_inputs as inputs
from frugalbench.specs.base import Settings

MIB = 2**20
DENSE, MOE = spec.DENSE, spec.MOE


@dataclass
class Machine:
    logical_cores: int = 2
    last_level_cache_bytes: int = 32 * MIB

    def installed(self, package):  # noqa: ARG002
        return "1.0"

    gpu_l2_bytes = 50 * 2**20
    gpu_memory_bytes = 80 * 2**30

    def has_cuda(self):
        return False


def expand(machine=None, device="cpu", **options):
    where = "test.toml [[workload]]"
    return spec.expand(Settings("moe_ffn", device, 2, 3, options, where), machine or Machine())


def cases(**options):
    (comparison,) = expand(**options).comparisons
    return {(case.variant, case.regime): case for arm in comparison.arms for case in arm.cases}


def test_without_a_compiler_the_own_kernel_is_skipped(monkeypatch):
    monkeypatch.setattr(spec.native_build, "find_compiler", lambda: None)
    skipped = {skip.case.variant for skip in expand().skipped}
    assert skipped == set(spec.NATIVE) & set(spec.USUAL) != set()


def test_one_comparison_with_a_case_per_arm_and_regime():
    (comparison,) = expand().comparisons
    assert [arm.cases[0].variant for arm in comparison.arms] == list(spec.USUAL)
    assert all([case.regime for case in arm.cases] == list(spec.REGIMES) for arm in comparison.arms)
    ids = [case.id for arm in comparison.arms for case in arm.cases]
    assert len(set(ids)) == len(ids) == 28
    assert [arm.imports for arm in comparison.arms[:2]] == [("torch",), ("torch",)]


def test_the_scaled_shape_is_stated():
    """Widths of qwen3-30b-a3b (d_model 2048, expert width 768, 8 of 128 experts) times a quarter."""
    params = cases(scale=0.25)["moe-sorted", "decode"].params
    wanted = {"d_model": 512, "d_expert": 192, "experts": 128, "top_k": 8, "scale": 0.25, "model": "qwen3-30b-a3b"}
    assert wanted.items() <= params.items()
    assert cases(scale=0.25)["moe-sorted", "decode"].shape == "qwen3-30b-a3b@0.25"


def test_the_dense_twins_have_equal_total_and_equal_active_parameters():
    found = cases()
    experts = 3 * 512 * 192
    moe, total, active = (
        found[name, "decode"].cost for name in ("moe-sorted", "dense-equal-total-native", "dense-equal-active-native")
    )
    router = 512 * 128
    assert moe.parameters == 128 * experts + router
    assert total.parameters == total.active_parameters == 128 * experts
    assert active.parameters == active.active_parameters == 8 * experts
    assert moe.active_parameters == 8 * experts + router
    assert moe.weight_bytes == 4 * moe.parameters


@pytest.mark.parametrize("regime", spec.REGIMES)
def test_flop_is_two_per_active_weight_and_token_and_three_times_that_in_training(regime):
    for case in cases().values():
        if case.regime == regime:
            times = 3 if regime == "training" else 1
            assert case.cost.flop == pytest.approx(
                times * 2 * case.params["tokens"] * case.cost.active_parameters, rel=1e-9
            )
            assert case.cost.token == case.params["tokens"]


def test_traffic_of_a_mixture_lies_between_one_tokens_experts_and_all_of_them():
    found = cases()
    expert_bytes = 4 * 3 * 512 * 192
    one = cases(decode_tokens=[1])["moe-sorted", "decode"].cost.traffic_bytes
    assert 8 * expert_bytes < one < 9 * expert_bytes
    assert one < found["moe-sorted", "decode"].cost.traffic_bytes < found["moe-sorted", "prefill"].cost.traffic_bytes
    assert found["moe-sorted", "prefill"].cost.traffic_bytes < 1.02 * 128 * expert_bytes


@settings(deadline=None)
@given(st.sampled_from([1 / 64, 1 / 16, 0.25]), st.integers(1, 64), st.integers(0, 400))
def test_copies_exceed_the_stream_in_every_arm_and_by_less_than_one_copy(scale, cache_mib, stream_mib):
    machine = Machine(last_level_cache_bytes=cache_mib * MIB)
    (comparison,) = expand(machine, scale=scale, stream_bytes=stream_mib * MIB).comparisons
    wanted = stream_mib * MIB or min(max(4 * cache_mib, 64), 512) * MIB
    for arm in comparison.arms:
        case = arm.cases[0]
        assert case.params["copies"] == math.ceil(wanted / case.cost.weight_bytes)
        assert arm.memory_bytes >= case.params["copies"] * case.cost.weight_bytes


def test_both_mixtures_hold_the_same_layers_and_see_the_same_trace():
    found = cases()
    for regime in spec.REGIMES:
        assert found["moe-transformers", regime].params == found["moe-sorted", regime].params
        traces = [spec.token_batches(3, found[variant, regime].params, regime) for variant in spec.USUAL]
        assert all(np.array_equal(trace, traces[0]) for trace in traces)


SMALL = {
    "model": "small", "d_model": 32, "d_expert": 12, "experts": 128, "top_k": 8, "n_shared": 0, "copies": 2, "d_ff": 0,
    "routing": "router",
}  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from(spec.REGIMES), st.integers(1, 24))
def test_tokens_are_seeded_distinct_and_never_on_a_routing_tie(seed, regime, tokens):
    params = {**SMALL, "tokens": tokens}
    batches = spec.token_batches(seed, params, regime)
    assert batches.shape == (spec.BATCHES[regime], tokens, 32)
    assert batches.dtype == np.float32
    assert np.array_equal(batches, spec.token_batches(seed, params, regime))
    assert not np.array_equal(batches, spec.token_batches(seed + 1, params, regime))
    rows = batches.reshape(-1, 32)
    assert len(np.unique(rows, axis=0)) == len(rows)
    ranked = np.sort(rows.astype(float) @ spec.router_weights(seed, params).astype(float).T, axis=1)
    assert (ranked[:, -8] - ranked[:, -9]).min() > 5e-4


def test_weights_are_seeded_distinct_by_copy_and_scaled_by_fan_in():
    first, again, other = (spec.expert_weights(5, SMALL, copy) for copy in (0, 0, 1))
    for name, fan_in in (("gate_up", 32), ("down", 12)):
        assert np.array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])
        assert first[name].std() == pytest.approx(fan_in**-0.5, rel=0.02)
        assert first[name].dtype == np.float32


def test_several_numbers_of_tokens_make_several_comparisons():
    made = expand(decode_tokens=[1, 4], prefill_tokens=[256, 1024, 4096], regimes=["decode", "prefill"]).comparisons
    tokens = [[case.params["tokens"] for case in item.arms[0].cases] for item in made]
    assert tokens == [[1, 256], [4, 1024], [4096]]
    assert [item.id for item in made] == [
        "moe_ffn/qwen3-30b-a3b@0.25", "moe_ffn/qwen3-30b-a3b@0.25/4-1024", "moe_ffn/qwen3-30b-a3b@0.25/4096",
    ]  # fmt: skip


def test_an_own_shape_is_named_by_its_dimensions():
    found = cases(shape="own", experts=8, top_k=1, n_shared=2)["moe-sorted", "decode"]
    assert found.shape == "1024x512-e8+2-k1"
    assert found.cost.active_parameters == 3 * 3 * 1024 * 512 + 1024 * 8
    assert found.cost.parameters == 10 * 3 * 1024 * 512 + 1024 * 8


def test_shared_experts_are_held_and_active_in_the_twins_as_well():
    found = cases(shape="deepseek-v3-671b", scale=1 / 16)
    expert = 3 * 448 * 128
    assert found["dense-equal-active", "decode"].cost.parameters == 9 * expert
    assert found["dense-equal-total", "decode"].cost.parameters == 257 * expert
    assert found["moe-native", "decode"].cost.active_parameters == 9 * expert + 448 * 256
    assert found["moe-native", "decode"].params["gate"] == "sigmoid"


def test_one_expert_for_all_moves_fewer_bytes_and_the_routing_is_in_every_id():
    usual, one = cases(), cases(routing="one")
    assert one["moe-native", "prefill"].params["experts_hit"] == 8
    assert one["moe-native", "prefill"].cost.traffic_bytes < usual["moe-native", "prefill"].cost.traffic_bytes
    assert one["moe-native", "prefill"].shape == "qwen3-30b-a3b@0.25-one"


def test_what_an_arm_cannot_do_is_skipped_with_its_reason():
    skips = expand(variants=["dense-equal-active", "moe-transformers-batched", "moe-compiled"]).skipped
    found = {(skip.case.variant, skip.case.regime): skip.reason for skip in skips}
    assert set(found) == {("moe-transformers-batched", "prefill"), ("moe-compiled", "training")}
    gpu = {skip.case.id: skip for skip in expand(variants=["dense-equal-active", *spec.ON_GPU]).skipped}
    assert {skip.case.variant for skip in gpu.values()} == {*spec.ON_GPU}
    assert all("NVIDIA" in skip.reason for skip in gpu.values() if skip.case.regime != "training")
    assert "copies expert weights for every token" in found["moe-transformers-batched", "prefill"]


def on_gpu(machine=None, **options):
    made = expand(machine, device="cuda", **{"scale": 1.0, "weights": "bfloat16", "stream_bytes": 0, **options})
    return made, {(case.variant, case.regime): case for arm in made.comparisons[0].arms for case in arm.cases}


def test_a_gpu_takes_16_bits_in_every_arm_but_float32_twins():
    variants = ["dense-equal-total", "dense-equal-active", "moe-grouped", "moe-transformers", "moe-triton"]
    made, found = on_gpu(variants=variants)
    assert {variant for variant, _ in found} == set(variants)
    assert {case.dtype for case in found.values()} == {"bfloat16"}
    twins = {skip.case.variant: skip.reason for skip in made.skipped if skip.case.variant.endswith("-fp32")}
    assert set(twins) == {"dense-equal-total-fp32", "dense-equal-active-fp32"}
    assert all("tensor cores" in reason for reason in twins.values())


def test_vllm_takes_16_bits_forward_and_no_capacity_where_it_is_installed():
    made, found = on_gpu(variants=["moe-vllm"], regimes=["decode", "training"])
    assert made.comparisons[0].arms[0].imports == ("torch", "vllm.model_executor.layers.fused_moe")
    assert found["moe-vllm", "decode"].backend == "vllm" and ("moe-vllm", "training") not in found
    without = Machine()
    without.installed = lambda package: None if package == "vllm" else "1"
    wanted = {
        "pip install vllm, in an environment of its own": on_gpu(without, variants=["moe-vllm"], regimes=["decode"]),
        "measured in 16 bits": on_gpu(variants=["moe-vllm"], regimes=["decode"], weights="float32"),
        "know no capacity": on_gpu(variants=["moe-vllm"], regimes=["decode"], capacity_factor=1),
    }
    for reason, (made, found) in wanted.items():
        assert not found and reason in made.skipped[0].reason


def test_a_gpu_streams_past_its_own_cache():
    variants, layer = ["moe-triton"], 2 * (3 * 128 * 2048 * 768 + 128 * 2048)
    own = {"variants": variants, "shape": "own", "d_model": 512, "d_expert": 256, "experts": 8, "regimes": ["decode"]}
    one = 2 * (3 * 8 * 512 * 256 + 8 * 512)
    _, found = on_gpu(**own)
    assert found["moe-triton", "decode"].params["copies"] == -(-200 * MIB // one)
    unknown = Machine()
    unknown.gpu_l2_bytes = 0
    _, found = on_gpu(unknown, **own)
    assert found["moe-triton", "decode"].params["copies"] == -(-512 * MIB // one)
    made, found = on_gpu(variants=variants)
    assert found["moe-triton", "decode"].params["copies"] == 1
    arm = made.comparisons[0].arms[0]
    assert layer < arm.memory_bytes < 1.3 * layer


def test_calls_on_a_gpu_are_recorded_forward_unless_asked_otherwise():
    _, found = on_gpu(weights="float32", variants=["dense-equal-active"])
    launches = {regime: found["dense-equal-active", regime].params["launch"] for regime in spec.REGIMES}
    assert launches == {"decode": "graph", "batch": "graph", "prefill": "graph", "training": "eager"}
    _, found = on_gpu(variants=["dense-equal-active"], launch="eager")
    assert {case.params["launch"] for case in found.values()} == {"eager"}
    assert "launch" not in cases(launch="graph")["moe-native", "decode"].params
    with pytest.raises(FrugalbenchError, match="did you mean 'graph'"):
        expand(launch="grap")


def test_capacity_is_in_the_name_and_counts_what_is_kept():
    dropless, tight = cases(), cases(capacity_factor=1)
    for regime in spec.REGIMES:
        was, now = dropless["moe-sorted", regime], tight["moe-sorted", regime]
        assert now.shape == "qwen3-30b-a3b@0.25-cap1"
        kept, asked = now.params["kept_choices"], 8 * now.params["tokens"]
        assert 0 < kept < asked
        times = 3 if regime == "training" else 1
        assert was.cost.flop - now.cost.flop == pytest.approx(times * 6 * (asked - kept) * 512 * 192)
        assert now.cost.active_parameters == was.cost.active_parameters
        assert tight["dense-equal-active", regime].cost == dropless["dense-equal-active", regime].cost
    assert "kept_choices" not in dropless["moe-sorted", "decode"].params


def test_more_room_keeps_more_until_nothing_is_dropped():
    kept = [
        cases(capacity_factor=factor, variants=["dense-equal-active", "moe-sorted"])["moe-sorted", "prefill"]
        for factor in (0.5, 1.0, 1.25, 2.0, 16.0)
    ]
    counts = [case.params["kept_choices"] for case in kept]
    assert counts == sorted(counts) and counts[0] < counts[-1] == 8 * 256
    assert kept[-1].cost.flop == cases()["moe-sorted", "prefill"].cost.flop


def test_batches_too_large_to_draw_keep_what_the_formula_says():
    params = {**SMALL, "capacity_factor": 1.0, "tokens": 700, "experts": 64}
    drawn, formula = inputs.trace(3, params, "training"), inputs.expected_trace(params)
    assert drawn["kept_choices"] == pytest.approx(formula["kept_choices"], rel=0.03)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 24))
def test_under_a_capacity_the_order_of_choices_is_clear(seed, tokens):
    params = {**SMALL, "tokens": tokens, "capacity_factor": 1.0}
    rows = spec.token_batches(seed, params, "batch").reshape(-1, 32).astype(float)
    ranked = np.sort(rows @ spec.router_weights(seed, params).astype(float).T, axis=1)[:, ::-1]
    assert (-np.diff(ranked, axis=1)[:, :8]).min() > 5e-4


def test_arms_that_know_no_capacity_are_skipped():
    skips = expand(capacity_factor=1.25, variants=["dense-equal-active", "moe-transformers", "moe-compiled"]).skipped
    reasons = {skip.case.variant: skip.reason for skip in skips if skip.case.regime == "decode"}
    assert "drop nothing" in reasons["moe-transformers"]
    assert "torch.compile" in reasons["moe-compiled"]


def test_every_position_of_the_rotation_is_reached():
    assert spec.rotation({"copies": 3}, "decode") == 8
    assert spec.rotation({"copies": 30}, "decode") == 30
    assert spec.rotation({"copies": 1}, "training") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scael": 0.5}, "unknown key 'scael'; did you mean 'scale'"),
        ({"variants": ["moe-sortd"]}, "unknown variant 'moe-sortd'; did you mean 'moe-sorted'"),
        ({"regimes": ["decoding"]}, "unknown regime 'decoding'; did you mean 'decode'"),
        ({"shape": "qwen3-30b"}, "unknown shape 'qwen3-30b'; did you mean 'qwen3-30b-a3b'"),
        ({"scale": "half"}, "'scale' must be a number"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(FrugalbenchError, match=message) as problem:
        expand(**options)
    assert str(problem.value).startswith("test.toml [[workload]]")


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.0},
        {"scale": -1.0},
        {"scale": 1e-6},
        {"decode_tokens": [0]},
        {"decode_tokens": []},
        {"top_k": 99},
        {"shape": "own", "top_k": 33},
        {"shape": "own", "top_k": 0},
        {"shape": "own", "n_shared": -1},
        {"routing": "skewed"},
        {"routing": "trace:nowhere.csv"},
        {"stream_bytes": -1},
        {"capacity_factor": -0.5},
        {"capacity_factor": float("nan")},
        {"capacity_factor": float("inf")},
        {"capacity_factor": True},
        {"shape": "own", "experts": 600, "top_k": 600, "capacity_factor": 1.0},
        {"variants": []},
        {"regimes": []},
    ],
    ids=str,
)
def test_values_that_no_layer_can_have_are_refused(options):
    with pytest.raises(FrugalbenchError):
        expand(**options)
