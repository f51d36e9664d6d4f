"""Real gloo ranks on this machine: the sum, the lockstep, the silence between calls, and the end of the children."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from frugalbench.cluster.emulate.lockstep import ORDER_BYTES, REFILL, Order, rank_input
from frugalbench.schema import Case, FrugalbenchError
from frugalbench.specs import allreduce as spec
from frugalbench.specs.base import Expansion, Settings
from frugalbench.workloads import allreduce as builder
from frugalbench.workloads.base import Context


def machine(cores: int = 2) -> Any:
    return SimpleNamespace(logical_cores=cores, installed=lambda _: "1", has_cuda=lambda: False)


def expand(cores: int = 2, device: str = "cpu", **options: Any) -> Expansion:
    settings = Settings(workload="allreduce", device=device, threads=2, seed=5, options=options)
    return spec.expand(settings, machine(cores))


def error(output: np.ndarray, case: Case) -> float:
    expected = builder.reference(case, None)["sum"][0]  # type: ignore[arg-type]
    return float(np.abs(output - expected).max() / np.sqrt(np.mean(expected**2)))


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, tuple[Case, ...]]]:
    arm = expand(sizes_kib=[4, 256, 3]).comparisons[0].arms[0]
    folder = tmp_path_factory.mktemp("allreduce")
    ranks = builder.load(arm, Context(seed=5, threads=2, device="cpu", cache_dir=folder, scratch_dir=folder))
    yield ranks, arm.cases
    ranks.close()


def test_cost_by_formula() -> None:
    (case,) = expand(cores=4, ranks=4, sizes_kib=[8]).comparisons[0].arms[0].cases
    assert case.cost is not None
    assert case.cost.traffic_bytes == 2 * 3 / 4 * 8192
    assert case.cost.flop == 3 * 2048


def test_cases_left_out_say_why() -> None:
    assert "need a core each" in expand(cores=1).skipped[0].reason
    assert "run on the CPU" in expand(device="cuda").skipped[0].reason
    for options, message in (
        ({"ranks": 1}, "'ranks' must be 2 to 8"),
        ({"sizes_kib": [0]}, "positive"),
        ({"size_kib": [1]}, "did you mean 'sizes_kib'"),
    ):
        with pytest.raises(FrugalbenchError, match=message):
            expand(**options)  # type: ignore[arg-type]


def test_orders_survive_the_pipe() -> None:
    order = Order(after=2**40, work=4096, position=7)
    assert Order.unpack(order.pack()) == order and len(order.pack()) == ORDER_BYTES


@pytest.mark.real
def test_sums_are_right_in_any_order_of_sizes_and_after_many_calls(group: Any) -> None:
    ranks, cases = group
    bound = [ranks.bind(case) for case in cases]
    for turn in (0, 1, 2, 1, 1, 0):
        assert error(bound[turn].output(0)["sum"], cases[turn]) <= cases[turn].tolerance
        for index in range(REFILL + 3):
            bound[turn].call(index)
    assert error(bound[2].output(0)["sum"], cases[2]) <= cases[2].tolerance


@pytest.mark.real
def test_timed_calls_reduce_for_real_and_stay_finite(group: Any) -> None:
    ranks, cases = group
    bound, elements = ranks.bind(cases[0]), cases[0].params["elements"]
    bound.output(0)
    once = rank_input(5, 0, elements).astype(np.float64) + rank_input(5, 1, elements)
    for calls in range(2, REFILL + 1):
        buffer = bound.call(0).numpy()
        np.testing.assert_allclose(buffer, once * 2.0 ** (calls - 1), rtol=1e-5, atol=1e-5 * 2.0**calls)
    np.testing.assert_allclose(bound.call(0).numpy(), once, rtol=1e-5, atol=1e-5)


@pytest.mark.real
def test_a_wrong_contribution_is_caught(group: Any) -> None:
    ranks, cases = group
    alone = rank_input(5, 0, cases[1].params["elements"])
    assert error(alone, cases[1]) > 1000 * cases[1].tolerance
    nearly = ranks.bind(cases[1]).output(0)["sum"].copy()
    nearly[7] += 1e-3
    assert error(nearly, cases[1]) > cases[1].tolerance


@pytest.mark.real
def test_followers_use_no_cpu_between_calls(group: Any) -> None:
    ranks, cases = group
    ranks.bind(cases[1]).call(0)
    follower = psutil.Process(ranks.children[0].pid)
    before = sum(follower.cpu_times()[:2])
    time.sleep(0.3)
    assert sum(follower.cpu_times()[:2]) - before <= 0.02


@pytest.mark.real
def test_a_follower_that_cannot_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="rank 1 ended before it joined"):
        builder.Ranks(2, 5, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real
def test_followers_die_with_their_parent() -> None:
    program = (
        "import os, subprocess, sys, time\n"
        "words = [sys.executable, '-m', 'frugalbench.cluster.emulate.rank', '1', '2', '/nowhere/store', '5']\n"
        "child = subprocess.Popen([*words, str(os.getpid())], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.3)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs([child], timeout=5)
    assert not alive


@pytest.mark.real
def test_a_dead_follower_is_an_error_not_a_hang(group: Any) -> None:
    """Last in the file: it leaves the group broken."""
    ranks, cases = group
    bound = ranks.bind(cases[0])
    bound.call(0)
    ranks.children[0].kill()
    ranks.children[0].wait()
    with pytest.raises(RuntimeError):
        bound.call(1)
    folder = Path(ranks.folder.name)
    ranks.close()
    assert not folder.exists()
