"""Cuts of a training step: laws, agreement with the step that published runs were fitted by, and what cannot be."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.cluster import parallel, splits, training, trillion, whatif
from frugalbench.cluster.parallel import Split
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
    weights = KIMI.parameters / (tensor * pipeline) / expert * parallel.WEIGHT_BYTES
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
