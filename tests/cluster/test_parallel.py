"""Cuts of a training step: laws, agreement with the step that published runs were fitted by, and what cannot be."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench.cli.main import main
from frugalbench.cluster import parallel, splits, training, trillion, whatif, zero
from frugalbench.cluster.layout import Split
from frugalbench.cluster.published.constants import shipped
from frugalbench.cluster.published.names import Place
from frugalbench.cluster.published.training_rows import machine
from frugalbench.cluster.splits import Wanted
from frugalbench.cluster.topology import load
from frugalbench.schema import FrugalbenchError

UNIFORM, SLOW = load("uniform"), load("fragmented")
KIMI, DENSE = splits.known_shape("kimi-k2"), trillion.DENSE


def values(shape=KIMI, cluster=UNIFORM, **changes: float) -> dict[str, float]:
    return {name: item.value for name, item in parallel.inputs(cluster, shape).items()} | changes


def split(**changes) -> Split:
    base = {"devices": 2048, "sequence": 4096, "batch": 4096, "tensor": 8, "pipeline": 16, "interleave": 2}
    return Split(**(base | changes))


def test_a_dense_step_is_the_one_that_published_runs_were_fitted_by() -> None:
    known = shipped()
    place = Place(device="h100-sxm", devices=2048, node=8, scaleup_bytes_per_s=450e9, scaleout_bytes_per_s=50e9)
    made = machine(place, known.collective, known.training.product)
    model = training.Model(layers=128, hidden=24576, heads=192, ffn=90112, vocab=128256, kv_heads=8, gated=True)
    layout = training.Layout(
        devices=2048, batch=4096, sequence=4096, tensor=8, pipeline=16, interleave=2, overlap=0.8, sharded=False,
        fused_attention=True, sequence_parallel=True,
    )  # fmt: skip
    theirs = known.training.stack["other"] * training.step(model, layout, made, known.training.traffic).step_s
    ours = parallel.step(UNIFORM, DENSE, split(), values(DENSE)).step_s
    assert ours == pytest.approx(theirs, rel=0.1)
    assert model.parameters == pytest.approx(DENSE.parameters, rel=0.01)
    assert DENSE.parameters == pytest.approx(KIMI.parameters, rel=0.01)


def test_the_busiest_rank_sets_the_pace_of_experts() -> None:
    steps = [
        parallel.step(UNIFORM, KIMI, split(expert=16), values(**{"experts.imbalance": busy})) for busy in (1.0, 1.5)
    ]
    assert steps[1].expert_s > steps[0].expert_s and steps[1].products_s > steps[0].products_s
    alone = [parallel.step(UNIFORM, KIMI, split(), values(**{"experts.imbalance": busy})) for busy in (1.0, 1.5)]
    assert alone[0] == alone[1] and alone[0].expert_s == 0


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8, 16, 32]), st.sampled_from([1, 2, 4, 8]))
def test_cutting_more_never_needs_more_memory(tensor: int, pipeline: int, expert: int) -> None:
    base = parallel.memory_bytes(KIMI, split(tensor=tensor, pipeline=pipeline, expert=expert, recompute=True))
    assert (
        parallel.memory_bytes(KIMI, split(tensor=tensor, pipeline=pipeline, expert=2 * expert, recompute=True)) < base
    )
    weights = KIMI.parameters / (tensor * pipeline) / expert * (zero.WEIGHT_BYTES + zero.GRADIENT_BYTES)
    assert base > weights


@given(st.sampled_from(["scale-up", "scale-out"]), st.floats(1.1, 100.0), st.booleans())
def test_slower_links_never_help(level: str, factor: float, inner: bool) -> None:
    centre, cut = values(), split(expert=8, pipeline_inner=inner)
    name = f"{level}.bytes_per_s"
    slower = centre | {name: centre[name] / factor}
    before = parallel.step(UNIFORM, KIMI, cut, centre).step_s
    assert parallel.step(UNIFORM, KIMI, cut, slower).step_s >= before * (1 - 1e-12)


def test_mfu_is_the_models_own_operations_over_the_peak() -> None:
    cut, centre = split(recompute=True), values(DENSE)
    found = parallel.step(UNIFORM, DENSE, cut, centre)
    core = 3 * 128 * 4096 * 192 * 256
    flop = (6 * DENSE.active_parameters + core) * 4096 * 4096
    assert parallel.mfu(found, cut, centre) == pytest.approx(flop / found.step_s / 2048 / 989e12)


def test_the_search_returns_the_fastest_cut_and_only_cuts_that_fit() -> None:
    rows = whatif.cuts("uniform", "kimi-k2", 1024, Wanted())
    assert [row.token_per_s.value for row in rows] == sorted((row.token_per_s.value for row in rows), reverse=True)
    for row in rows:
        assert row.memory_bytes <= row.memory_limit_bytes == 80e9
        assert row.tensor * row.pipeline * row.data == row.devices == 1024
        assert row.token_per_s.low <= row.token_per_s.value <= row.token_per_s.high
        assert 0 < row.mfu.high < 1
    (chosen,) = whatif.cuts("uniform", "kimi-k2", None, Wanted(tensor=8, pipeline=16, data=8, expert=8))
    assert chosen.devices == 1024 and chosen.token_per_s.value <= rows[0].token_per_s.value


ranks = st.sampled_from([2, 4, 8, 64, 512])


@given(st.floats(1e6, 1e12), ranks)
def test_what_a_stage_of_zero_sends_and_keeps(parameters: float, n: int) -> None:
    """Volumes and bytes of the paper: 2, 2 and 3 times the parameters; 16 bytes fall to 4 + 12/n, 2 + 14/n and 16/n."""
    sent = [zero.sent_bytes(parameters, n, stage, 1.0) for stage in zero.STAGES]
    assert sent[0] == pytest.approx(2 * 2 * parameters * (n - 1) / n)
    assert sent[1] == pytest.approx(sent[0]) and sent[2] == pytest.approx(1.5 * sent[0])
    kept = [zero.state_bytes(parameters, n, stage) / parameters for stage in zero.STAGES]
    assert kept == pytest.approx([4 + 12 / n, 2 + 14 / n, 16 / n])
    assert all(zero.state_bytes(parameters, 2 * n, s) < zero.state_bytes(parameters, n, s) for s in zero.STAGES)
    assert zero.sent_bytes(parameters, n, 1, 8.0) == sent[0]
    assert zero.sent_bytes(parameters, n, 3, 8.0) == pytest.approx(8 * sent[2])


@settings(deadline=None)
@given(st.sampled_from([1, 2, 3]), st.sampled_from([1, 8]), st.sampled_from([512, 2048]))
def test_memory_falls_with_stage_and_with_replicas(stage: int, expert: int, devices: int) -> None:
    def need(stage: int, devices: int) -> float:
        cut = split(zero=stage, expert=expert, devices=devices, batch=2 * devices, recompute=True)
        return parallel.memory_bytes(KIMI, cut)

    assert need(stage, 2 * devices) < need(stage, devices)
    assert stage == 3 or need(stage + 1, devices) < need(stage, devices)


def test_sharded_weights_cost_time_where_nothing_hides_them() -> None:
    bare = values(DENSE, **{"training.overlap": 0.0, "training.gradient_bytes_per_parameter": 2.0})
    cuts = [split(pipeline=1, interleave=1, batch=256, zero=stage) for stage in zero.STAGES]
    assert cuts[0].microbatches == 1
    first, second, third = (parallel.step(UNIFORM, DENSE, cut, bare).gradient_s for cut in cuts)
    assert second == pytest.approx(first, rel=0.1) and third == pytest.approx(1.5 * first, rel=0.1)
    assert parallel.exchanged_bytes(DENSE, cuts[2]) == pytest.approx(1.5 * parallel.exchanged_bytes(DENSE, cuts[0]))


@settings(deadline=None)
@given(st.sampled_from([2, 8, 32]), st.booleans(), st.sampled_from([KIMI, DENSE]))
def test_zero_bubble_schedules_wait_less_and_only_the_second_holds_more(pipeline: int, recompute: bool, shape) -> None:
    cuts = [
        split(pipeline=pipeline, interleave=1, recompute=recompute, schedule=schedule)
        for schedule in ("1f1b", "zb-h1", "zb-h2")
    ]
    bubbles = [parallel.step(UNIFORM, shape, cut, values(shape)).bubble_s for cut in cuts]
    memory = [parallel.memory_bytes(shape, cut) for cut in cuts]
    assert bubbles[0] > bubbles[1] > bubbles[2] >= 0
    assert memory[0] == memory[1] < memory[2]


def test_with_products_alone_the_bubbles_are_those_of_the_paper() -> None:
    """``F = B = W``: 3, 1 and 0 of them for every stage but one."""
    cut = split(pipeline=8, interleave=1)
    weights_s = 1.0
    found = [
        parallel._bubble_s(msgspec.structs.replace(cut, schedule=schedule), 3 * weights_s, weights_s)
        for schedule in ("1f1b", "zb-h1", "zb-h2")
    ]
    assert found == [21.0, 7.0, 0.0]


def test_parts_of_a_sequence_gather_keys_and_values() -> None:
    whole, parts = split(sequence=32768, batch=512), split(sequence=32768, batch=512, context=4)
    before, after = (parallel.step(UNIFORM, DENSE, cut, values(DENSE)) for cut in (whole, parts))
    assert before.context_s == 0 < after.context_s
    assert after.products_s == pytest.approx(before.products_s)
    assert parts.replicas == whole.data == 4 * parts.data and parts.microbatches == 4 * whole.microbatches
    assert parallel.memory_bytes(DENSE, parts) < parallel.memory_bytes(DENSE, whole)
    level = values(DENSE, **{"scale-out.bytes_per_s": 1e9})
    assert parallel.step(UNIFORM, DENSE, parts, level).context_s > after.context_s


def test_the_command_takes_them_and_tells_what_all_rows_share(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["simulate", "uniform", "--model", "deepseek-llm-67b", "--devices", "512", "--tp", "8"]
    assert main([*base, "--cp", "4", "--sequence", "32768", "--zero", "3", "--schedule", "zb-h1"]) == 0
    said = capsys.readouterr().out
    assert "All rows: CP 4, ZeRO 3, zb-h1." in said and "sequences of 32768" in said
    assert main([*base, "--cp", "3"]) == 2
    assert "4096 tokens do not divide by CP 3; use --sequence 4095" in capsys.readouterr().err
    assert main(["simulate", "uniform", "--zero", "3"]) == 2
    assert "--zero needs --model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "devices", "wanted", "message"),
    [
        ("kimi", None, {}, "did you mean 'kimi-k2'"),
        ("kimi-k2", 2048, {"tensor": 16}, "domain of 8 devices; the nearest that does is 8"),
        ("kimi-k2", 2048, {"pipeline": 62}, "61 layers; the nearest that does is 61"),
        ("kimi-k2", 2048, {"tensor": 8, "pipeline": 16, "expert": 5}, "over 16 replicas; the nearest that does is 4"),
        ("qwen3-8b", 64, {"expert": 2}, "no experts; the nearest that does is 1"),
        ("kimi-k2", 100, {"tensor": 8, "pipeline": 3}, "use --devices 96"),
        ("kimi-k2", 8, {}, "does not fit: at least .* of 80 GB"),
        ("kimi-k2", 10000, {}, "has 1 to 8192"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_with_the_nearest(model: str, devices: int, wanted: dict, message: str) -> None:
    with pytest.raises(FrugalbenchError, match=message):
        whatif.cuts("uniform", model, devices, Wanted(**wanted))


def test_a_device_without_figures_is_named() -> None:
    unknown = msgspec.structs.replace(UNIFORM, device="mlu590")
    with pytest.raises(FrugalbenchError, match="mlu590"):
        parallel.inputs(unknown, KIMI)
