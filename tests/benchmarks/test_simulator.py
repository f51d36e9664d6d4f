"""How fast the cluster model answers: closed form, and one folded step of 8,192 devices. How many events a second the
engine plays: ``test_events.py``. The goals are speeds, so they run by hand: ``pytest -m goal -s tests/benchmarks``.
"""

import time
from collections.abc import Callable

import pytest

from frugalbench.cluster import collectives, parallel, splits, step
from frugalbench.cluster.events import run
from frugalbench.cluster.scene import load_scene
from frugalbench.cluster.scene_program import build
from frugalbench.cluster.splits import Wanted
from frugalbench.cluster.topology import load

GOAL_PER_S = 10_000
GOAL_STEP_S = 1.0
DEVICES = 8192
LEAST = 500
"""Configurations that a rate rests on."""

UNIFORM = load("uniform")


def all_reduces() -> int:
    """Message sizes from a kibibyte to 16 GiB on every number of devices."""
    values, done = {name: item.value for name, item in UNIFORM.inputs().items()}, 0
    for devices in UNIFORM.device_counts():
        spans = UNIFORM.levels(devices, values)
        for doubling in range(48):
            assert collectives.all_reduce_s(2.0 ** (10 + doubling / 2), spans) > 0
            done += 1
    return done


def data_parallel_steps() -> int:
    """Every number of devices, strong and weak, over as many rates of the network."""
    values, done = {name: item.value for name, item in UNIFORM.inputs().items()}, 0
    for factor in range(1, 33):
        changed = values | {"scale-out.bytes_per_s": values["scale-out.bytes_per_s"] * factor / 8}
        for devices in UNIFORM.device_counts():
            for scaling in ("strong", "weak"):
                assert step.step(UNIFORM, devices, scaling, changed).token_per_s > 0
                done += 1
    return done


def cuts() -> Callable[[], int]:
    """A mixture of a trillion parameters, every way to cut it over 8,192 devices that fits."""
    shape = splits.known_shape("kimi-k2")
    values = {name: item.value for name, item in parallel.inputs(UNIFORM, shape).items()}
    every = splits.candidates(UNIFORM, shape, DEVICES, 4096, Wanted())

    def play() -> int:
        for split in every:
            assert parallel.step(UNIFORM, shape, split, values).step_s > 0
        return len(every)

    return play


MADE = {"all-reduces": lambda: all_reduces, "data-parallel steps": lambda: data_parallel_steps, "cuts of a step": cuts}


def per_s(play: Callable[[], int], rounds: int = 5) -> float:
    """The best of a few rounds, by this process's own CPU time."""
    rates = []
    for _ in range(rounds):
        start_s = time.process_time()
        done = play()
        rates.append(done / (time.process_time() - start_s))
    return max(rates)


def folded_step() -> int:
    """From the description to the last event; the number of events."""
    found = load_scene("uniform")
    assert found.size() == DEVICES and found.steps == 1
    built = build(found, found.values(), alike=True)
    assert sum(leaf.copies for leaf in built.leaves) == DEVICES
    return run(built.program).events


@pytest.mark.goal
@pytest.mark.parametrize("name", MADE)
def test_configurations_per_second(name) -> None:
    play = MADE[name]()
    count, found = play(), per_s(play)
    print(f"{name}: {found:,.0f} configurations per second, of {count:,}")
    assert count >= LEAST and found >= GOAL_PER_S


@pytest.mark.goal
def test_a_folded_step() -> None:
    events = folded_step()
    step_s = 1 / per_s(lambda: (folded_step(), 1)[1])
    print(f"one folded step of {DEVICES:,} devices: {step_s * 1e3:.1f} ms, {events} events")
    assert step_s <= GOAL_STEP_S
