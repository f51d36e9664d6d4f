"""Scenes: folding changes nothing, a quiet step is the sum of its bytes, and bad files name place and remedy."""

import math
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench import paths
from frugalbench.cluster import step as closed
from frugalbench.cluster.events import run
from frugalbench.cluster.failures import replay
from frugalbench.cluster.jitter import binomial, slowest
from frugalbench.cluster.placement import achieved_flop_per_s, tokens_of
from frugalbench.cluster.scene import Job, Outer, Scene, SlowDevice, SlowLink, Stragglers, load_scene, shipped_scenes
from frugalbench.cluster.scene_program import build
from frugalbench.cluster.scene_run import parts, play, reference, tdp_w, throughput
from frugalbench.cluster.topology import Cluster, Input
from frugalbench.schema import FrugalbenchError, encode

ALL = 1 << 17


def scene(cluster: str = "uniform", **changes: Any) -> Scene:
    return msgspec.structs.replace(load_scene(cluster), **changes)


def end_s(found: Scene, alike: bool, **values: float) -> float:
    return run(build(found, found.values() | values, alike).program).end_s


@st.composite
def disturbed(draw: st.DrawFn) -> Scene:
    """128 devices of two kinds in two levels, some of them or of their links slow."""
    found = load_scene("mixed")
    number = st.integers(0, 127)
    links = [
        SlowLink(
            level=draw(st.sampled_from(["scale-up", "scale-out"])), device=draw(number), factor=draw(st.floats(1, 9))
        )
        for _ in range(draw(st.integers(0, 3)))
    ]
    paces = [SlowDevice(device=draw(number), factor=draw(st.floats(0.5, 3))) for _ in range(draw(st.integers(0, 3)))]
    split = draw(st.sampled_from(["equal", "proportional"]))
    return msgspec.structs.replace(found, slow_link=tuple(links), slow_device=tuple(paces), split=split, steps=2)


@given(disturbed())
@settings(max_examples=25, deadline=None)
def test_devices_that_are_alike_fold_without_a_difference(found: Scene) -> None:
    folded, single = (build(found, found.values(), alike) for alike in (True, False))
    assert len(folded.leaves) < len(single.leaves) == 128
    assert sum(leaf.copies for leaf in folded.leaves) == 128
    one, all_ = run(folded.program), run(single.program)
    assert one.end_s == pytest.approx(all_.end_s)
    sums = [sum(link.carried_bytes * link.copies for link in outcome.links) for outcome in (one, all_)]
    assert sums[0] == pytest.approx(sums[1])
    busy = [sum(rank.busy_s * rank.copies for rank in outcome.ranks) for outcome in (one, all_)]
    assert busy[0] == pytest.approx(busy[1])


@pytest.mark.parametrize("name", ["two-jobs", "two-sites"])
def test_jobs_and_sites_fold_without_a_difference(name: str) -> None:
    found = scene(name, steps=3)
    if found.outer:
        found = msgspec.structs.replace(found, outer=msgspec.structs.replace(found.outer, local_steps=2))
    assert end_s(found, True) == pytest.approx(end_s(found, False))


@pytest.mark.parametrize(("name", "devices"), [("uniform", 8192), ("uniform", 64), ("islands", 1024), ("nvl72", 72)])
def test_a_step_where_nothing_happens_is_its_bytes_level_by_level(name: str, devices: int) -> None:
    """Without start-up costs, which the engine pays for every bucket, where the backward pass hides all it may."""
    found = scene(name, devices=devices)
    cluster = found.fabric()
    free = {f"{level.name}.alpha_s": 1e-15 for level in cluster.level}
    values = {key: item.value for key, item in cluster.inputs().items()} | free
    expected = level_by_level_s(cluster, devices, values)
    fast = {
        f"{cluster.device}.{level.name}.bytes_per_s": 100 * values[f"{level.name}.bytes_per_s"]
        for level in cluster.level
    }
    fast_values = values | {
        f"{level.name}.bytes_per_s": 100 * values[f"{level.name}.bytes_per_s"] for level in cluster.level
    }
    for mine, theirs_s in (({}, expected), (fast, level_by_level_s(cluster, devices, fast_values))):
        assert end_s(found, True, **free, **mine) == pytest.approx(theirs_s, rel=1e-6)


def level_by_level_s(cluster: Cluster, devices: int, values: dict[str, float]) -> float:
    """A step whose reduction is a ring on each level in turn, overlapped as far as the closed form allows."""
    compute_s = closed.step(cluster, devices, "weak", values).compute_s
    size_bytes, communication_s = values["training.parameters"] * values["training.gradient_bytes_per_parameter"], 0.0
    for span in cluster.levels(devices, values):
        moved_bytes = 2 * (span.ranks - 1) / span.ranks * size_bytes
        communication_s += moved_bytes / (span.bytes_per_s * span.efficiency)
        size_bytes /= span.ranks
    hidden_s = min(values["training.overlap"] * communication_s, closed.BACKWARD_SHARE * compute_s)
    return compute_s + communication_s - hidden_s


def test_a_slow_link_stretches_the_exchange_by_its_factor() -> None:
    found = scene(devices=64)
    quick = {"h100-sxm.bf16_dense_flop_per_s": 1e30, "scale-up.alpha_s": 1e-15, "scale-out.alpha_s": 1e-15}
    quick |= {"h100-sxm.scale-up.bytes_per_s": 1e25}
    slow = msgspec.structs.replace(found, slow_link=(SlowLink(level="scale-out", device=9, factor=4.0),))
    assert end_s(slow, True, **quick) == pytest.approx(4 * end_s(found, True, **quick))


def test_an_equal_split_waits_for_the_slower_kind_and_a_proportional_one_does_not() -> None:
    """With free links the mix is exactly what the rates of its kinds say."""
    found = scene("mixed", sequence_token=None)
    free = found.values() | {key: 1e30 for key in found.inputs() if key.endswith("bytes_per_s")}
    free |= {key: 1e-30 for key in found.inputs() if key.endswith("alpha_s")}
    fast, slow = (achieved_flop_per_s(kind, free) for kind in ("a100-sxm-80gb", "ascend-910b"))
    for split, share in (("equal", 2 * slow / (fast + slow)), ("proportional", 1.0)):
        mixed = msgspec.structs.replace(found, split=split)
        assert throughput(mixed, free) / reference(mixed, 0, free)[1] == pytest.approx(share)


def test_parts_hold_every_device_once() -> None:
    assert [part.kinds() for part in parts(load_scene("mixed"))] == [[("a100-sxm-80gb", 64)], [("ascend-910b", 64)]]


@given(st.integers(1, 400), st.floats(1e12, 1e15), st.floats(1e12, 1e15), st.integers(1, 99))
def test_whole_sequences_are_the_best_near_the_proportional_share(
    sequences: int, a: float, b: float, number: int
) -> None:
    kinds, rates = {"a": number, "b": 100 - number}, {"a": a, "b": b}
    found = scene(split="proportional", sequence_token=8)
    whole = tokens_of(kinds, 8.0 * sequences, rates, found)
    exact = tokens_of(kinds, 8.0 * sequences, rates, msgspec.structs.replace(found, sequence_token=None))
    for kind in kinds:
        assert whole[kind] % 8 == 0 and whole[kind] >= 8
        assert abs(whole[kind] - exact[kind]) <= 8
    assert exact["a"] / a == pytest.approx(exact["b"] / b)


def test_local_steps_hide_a_distance_and_overlap_hides_the_rest() -> None:
    shares = []
    for steps, overlap in ((1, False), (64, False), (64, True)):
        outer = Outer(local_steps=steps, overlap=overlap, bytes_per_parameter=Input(value=2.0, source="x"))
        found = scene("islands", devices=1024, steps=64, outer=outer)
        shares.append(throughput(found, found.values()) / reference(found, 0, found.values())[1])
    assert shares[0] < 0.99 < shares[1] < shares[2] < 1.01


def test_two_jobs_on_one_link_lose_and_one_of_them_alone_does_not() -> None:
    found = load_scene("two-jobs")
    slow = found.values() | {"h100-sxm.between sites.bytes_per_s": 1e7}
    both, alone = (throughput(found, slow, 0, only) for only in (None, 0))
    assert both < 0.7 * alone
    packed = msgspec.structs.replace(found, placement="packed")
    assert throughput(packed, slow) == pytest.approx(throughput(packed, slow, only=0))


def test_the_slowest_of_many_drawn_at_once_is_that_of_many_drawn_singly() -> None:
    odd = Stragglers(spread=0.1, pause_share=0.02, pause_s=0.5)
    random = Random(7)
    at_once = sorted(slowest(1.0, 32, odd, random) for _ in range(1500))
    singly = sorted(max(slowest(1.0, 1, odd, random) for _ in range(32)) for _ in range(1500))
    for place in (150, 750, 1350):
        assert at_once[place] == pytest.approx(singly[place], rel=0.03)
    assert sum(slowest(1.0, 1, odd, random) for _ in range(20000)) / 20000 == pytest.approx(1.01, rel=0.005)
    assert sum(binomial(50, 0.1, random) for _ in range(4000)) / 4000 == pytest.approx(5, rel=0.05)


def test_failures_cost_what_the_exponential_law_says() -> None:
    """Expected time of a round of length t with failures at rate r and restarts of length R: (e^rt - 1)(1/r + R)."""
    found = replay(
        10.0,
        1000,
        Random(3),
        device_hours=2000.0,
        restart_s=600.0,
        checkpoint_steps=300,
        checkpoint_s=60.0,
        days=3000.0,
    )
    rate, length = 1000 / (2000 * 3600), 3060.0
    expected = 3000.0 / ((math.exp(rate * length) - 1) * (1 / rate + 600.0))
    assert found.useful_share == pytest.approx(expected, rel=0.01)
    assert found.failures > 10_000


@pytest.mark.parametrize("name", shipped_scenes())
def test_shipped_scenes_play(name: str) -> None:
    found = load_scene(name)
    played = play(msgspec.structs.replace(found, steps=min(found.steps, 70)))
    assert len(played.links) >= 2 and played.leaves <= 4 and played.assumptions
    for job in played.jobs:
        assert job.token_per_s.low <= job.token_per_s.value <= job.token_per_s.high
        assert 0 < job.kept < 1.01 and 0 <= job.waiting_share < 1
        assert job.step_s.median_s <= job.step_s.p95_s <= job.step_s.longest_s
        assert (job.device_j is None) == (found.power is None) and job.link_j is None
        assert job.token_per_s.value * job.step_s.mean_s == pytest.approx(job.step_token)
    assert b'"device_j":null' in encode(played) or found.power


def test_joules_need_a_tdp_that_was_read() -> None:
    assert tdp_w("a100-sxm-80gb") is not None
    assert tdp_w("ascend-910b") is None and tdp_w("ascend-910c") is None
    found = load_scene("power")
    (job,) = play(found).jobs
    assert found.power is not None and job.device_j is not None
    idle, busy = (
        getattr(found.power, key).value * 400 * 128 * job.step_s.mean_s for key in ("idle_share", "busy_share")
    )
    assert job.device_j.value == pytest.approx(busy - job.waiting_share * (busy - idle))


def test_equal_seeds_give_equal_outcomes_and_others_differ() -> None:
    found = scene(devices=64, steps=5, stragglers=Stragglers(spread=0.1))
    assert play(found) == play(found)
    assert play(found).duration_s != play(msgspec.structs.replace(found, seed=2)).duration_s


def test_every_number_of_a_shipped_scene_is_sourced() -> None:
    for name in shipped_scenes():
        text = (paths.shipped("configs") / "scenes" / f"{name}.toml").read_text()
        assert text.count("value =") == text.count("source =")


BASE = (Path(__file__).parents[2] / "configs" / "scenes" / "mixed.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('cluster = "uniform"', 'cluster = "unifrom"', "did you mean 'uniform'"),
        ('device = "a100-sxm-80gb"', 'device = "a100-sxm-80g"', "did you mean 'a100-sxm-80gb'"),
        ('device = "a100-sxm-80gb"', 'device = "rtx-4090"', "recalled"),
        ("sequence_token = 8192", "sequence_tokens = 8192", "did you mean 'sequence_token'"),
        ("sequence_token = 8192", "sequence_token = -1", "must be positive"),
        ('split = "proportional"', 'split = "fair"', "split"),
        ("devices = 128", "devices = 100", "asks for 128 devices of 100"),
        ("devices = 128", f"devices = {ALL + 1}", "1 to 131072"),
        ("devices = 128", "devices = 130", "nearest numbers that do are 128 and 136"),
        ("high = 0.56", "high = 1.56", "cannot exceed 1"),
        ("value = 0.514", "value = -0.514", "must be positive"),
        ("sequence_token = 8192", 'pooled = ["scale-outt"]', "did you mean 'scale-out'"),
        ("sequence_token = 8192", 'pooled = ["scale-up"]', "innermost level"),
        ("sequence_token = 8192", "job = [{ name = 'a', devices = 200 }]", "take 200 of 128"),
        ("sequence_token = 8192", "slow_device = [{ device = 128, factor = 2.0 }]", "devices are 0 to 127"),
        ("sequence_token = 8192", "slow_device = [{ device = 1, factor = 0.0 }]", "'factor' must be positive"),
        ("sequence_token = 8192", "stragglers = { spread = -0.1 }", "spread of 0 to 3"),
        ("sequence_token = 8192", "job = [{ name = 'a', devices = 12 }]", "whole groups"),
        ("sequence_token = 8192", "steps = 0", "'steps' must be 1 to"),
    ],
)
def test_bad_scenes_name_place_and_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in BASE
    path = tmp_path / "bad.toml"
    path.write_text(BASE.replace(old, new))
    with pytest.raises(FrugalbenchError, match=message) as caught:
        play(load_scene(path))
    assert str(caught.value).count("\n") <= 1


def test_too_much_is_refused_before_it_is_played() -> None:
    found = scene(devices=8192, steps=1000)
    with pytest.raises(FrugalbenchError, match="more than 4,000,000"):
        build(found, found.values(), alike=False)
    with pytest.raises(FrugalbenchError, match="did you mean 'two-jobs'"):
        load_scene("two-job")
    assert scene(job=(Job(name="x", devices=8),), devices=16).jobs()[0].devices == 8
