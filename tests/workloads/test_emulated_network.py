"""Real ranks on networks made for the test: what they hold, what the links do to them, and what is left afterwards."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from frugalbench.cluster.emulate import namespaces
from frugalbench.schema import Arm, Case, FrugalbenchError, Tier
from frugalbench.specs import emulated_network as spec
from frugalbench.specs.base import Expansion, Settings
from frugalbench.workloads import emulated_network as builder
from frugalbench.workloads.base import Context
from workloads.fake_machine import Machine

needs_network = pytest.mark.skipif(bool(namespaces.obstacle()), reason=namespaces.obstacle() or "-")


def expand(**options: Any) -> Expansion:
    settings = Settings(workload=spec.WORKLOAD, device="cpu", threads=2, seed=5, options=options)
    return spec.expand(settings, Machine())


def arms(**options: Any) -> list[Arm]:
    return [arm for item in expand(**options).comparisons for arm in item.arms]


@pytest.fixture
def open_scene(tmp_path: Path) -> Iterator[Any]:
    opened = []

    def start(arm: Arm) -> Any:
        folder = tmp_path / str(len(opened))
        opened.append(builder.load(arm, Context(seed=5, threads=2, device="cpu", cache_dir=folder, scratch_dir=folder)))
        return opened[-1]

    yield start
    for scene in opened:
        scene.close()


def error(case: Case, held: np.ndarray) -> float:
    expected = builder.reference(case, None)["held"][0]  # type: ignore[arg-type]
    return float(np.abs(held - expected).max() / np.sqrt(np.mean(expected**2)))


@needs_network
def test_cases_of_all_scenes_are_emulated_and_two_of_them_calibrate() -> None:
    found = expand()
    assert {comparison.tier for comparison in found.comparisons} == {Tier.EMULATED}
    cases = [case for comparison in found.comparisons for arm in comparison.arms for case in arm.cases]
    assert len({case.id for case in cases}) == len(cases) >= 40
    fitted = [case.params["size_bytes"] for case in cases if case.params["calibration"]]
    assert fitted == [256 * 1024, 4096 * 1024]


@needs_network
def test_growing_and_mixed_ranks_are_there_when_asked_for() -> None:
    found = {item.id: item for item in expand(scenes=["growth", "mix"], compute_ms=30.0).comparisons}
    assert list(found) == [f"{spec.WORKLOAD}/{name}" for name in ("growth-r2", "growth-r4", "growth-r8", "mix")]
    for name, comparison in found.items():
        (cases,) = zip(*(arm.cases for arm in comparison.arms), strict=True)
        assert len({case.id for case in cases}) == len(cases)
        assert all(case.cost is not None and case.cost.token == case.params["ranks"] for case in cases), name
    networks = [arm.cases[0].params["network"] for arm in found[f"{spec.WORKLOAD}/growth-r8"].arms]
    rates = [network["ports"][0]["rate_bytes_per_s"] for network in networks]
    assert rates == [100 * spec.MBIT, 25 * spec.MBIT]
    shares = {arm.id: arm.cases[0].params["work"].get("shares") for arm in found[f"{spec.WORKLOAD}/mix"].arms}
    assert shares.pop("shares-by-speed") == pytest.approx([4 / 3, 4 / 3, 2 / 3, 2 / 3])
    assert set(shares.values()) == {None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenes": ["unifrom"]}, "did you mean 'uniform'"),
        ({"ranks": [1]}, "2 to 8"),
        ({"ranks": [9]}, "2 to 8"),
        ({"sizes_kib": []}, "at least one"),
        ({"sizes_kib": [0]}, "positive"),
        ({"local_steps": [4, 4]}, "distinct"),
        ({"rate_mbit": -1.0}, "'rate_mbit' must be positive"),
        ({"wan_delay_ms": 0.0}, "'wan_delay_ms' must be positive"),
        ({"rate": 10}, "did you mean 'rate_mbit'"),
    ],
)
def test_impossible_networks_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FrugalbenchError, match=message):
        expand(**options)


def test_without_namespaces_the_cases_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "obstacle", lambda: "'ip' is missing: apt-get install iproute2")
    found = expand(scenes=["uniform"], ranks=[2])
    assert not found.comparisons
    assert {item.reason for item in found.skipped} == {"'ip' is missing: apt-get install iproute2"}


@pytest.mark.real
@needs_network
def test_ranks_hold_the_sum_and_a_slow_link_takes_its_time(open_scene: Any) -> None:
    (arm,) = arms(scenes=["uniform"], ranks=[2], sizes_kib=[64, 256], rate_mbit=20.0)
    scene = open_scene(arm)
    small, large = arm.cases
    assert error(small, scene.bind(small).output(0)["held"]) < small.tolerance
    bound = scene.bind(large)
    assert error(large, bound.output(0)["held"]) < large.tolerance
    answers = bound.batch(0, 2)
    least_s = (2 * 256 * 1024 - 5 * spec.KIB * 36) / (20 * spec.MBIT)
    assert min(answer["time_s"] for answer in answers) > least_s
    assert scene.facts["kernel"]["ipv4.tcp_congestion_control"] == "reno"


@pytest.mark.real
@needs_network
def test_distance_and_skew_reach_the_ranks_and_nothing_outlives_the_scene(open_scene: Any) -> None:
    options = {"sizes_kib": [8], "wan_delay_ms": 20.0, "rate_mbit": 500.0, "wan_mbit": 500.0}
    far = arms(scenes=["two-sites"], **options)[0]
    scene = open_scene(far)
    bound = scene.bind(far.cases[0])
    bound.batch(0, 1)
    # two halves of an all-reduce, each a word that the receiver is ready and the segment itself
    assert min(answer["time_s"] for answer in bound.batch(0, 1)) > 0.075
    assert scene.facts["delay"] in ("netem", "TUN delay line")
    (skewed,) = arms(scenes=["skewed"], sizes_kib=[12])
    ranks = open_scene(skewed)
    held = ranks.bind(skewed.cases[0]).output(0)["held"]
    assert error(skewed.cases[0], held) == 0.0
    pids = [*scene.pids, *ranks.pids]
    scene.close()
    ranks.close()
    gone, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=5)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE], gone


@pytest.mark.real
@needs_network
def test_shares_by_speed_spare_the_wait_for_the_slow_ranks(open_scene: Any) -> None:
    options = {"exchange_kib": 8, "rate_mbit": 1000.0, "compute_ms": 60.0}
    found = {arm.id: arm for arm in arms(scenes=["mix"], **options)}
    times = {}
    for name in ("equal-shares", "shares-by-speed"):
        (case,) = found[name].cases
        bound = open_scene(found[name]).bind(case)
        assert error(case, bound.output(0)["held"]) < case.tolerance
        bound.batch(0, 1)
        times[name] = min(answer["time_s"] for answer in bound.batch(0, 2)) / 2
    assert times["equal-shares"] > 0.119 > times["shares-by-speed"] > 0.079


@pytest.mark.real
@needs_network
def test_a_rank_that_dies_is_told_and_not_waited_for(open_scene: Any) -> None:
    (arm,) = arms(scenes=["uniform"], ranks=[2], sizes_kib=[64, 256])
    scene = open_scene(arm)
    os.kill(scene.pids[-1], 9)
    with pytest.raises(RuntimeError, match=r"rank|ended"):
        scene.bind(arm.cases[0]).batch(0, 1)
    with pytest.raises(RuntimeError):
        scene.bind(arm.cases[0]).batch(0, 1)


@pytest.mark.real
@needs_network
def test_a_congestion_control_that_cannot_be_had_is_named(open_scene: Any) -> None:
    (arm,) = arms(scenes=["uniform"], ranks=[2], sizes_kib=[64, 256], congestion="nonesuch")
    with pytest.raises(RuntimeError, match="'nonesuch' cannot be had here"):
        open_scene(arm)
