"""Timing on ranks without orders: every call counts, the slowest rank counts, positions go on. A fake clock."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from frugalbench.workloads import stopwatch
from frugalbench.workloads.ep_timing import Clock, host_s, measure
from frugalbench.workloads.layers.expert_works import Work as Base

SLOWER = 2.0
"""How much longer the other rank takes for everything."""


class Work(Base):
    """Moves the clock by a fixed time per call."""

    def __init__(self, time: Any, call_s: float):
        self.time, self.call_s, self.positions = time, call_s, []

    def once(self, position: int) -> None:
        self.positions.append(position)
        self.time.now_s += self.call_s


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter_ns=lambda: round(found.now_s * 1e9)))
    return found


def clock(time: Any) -> Clock:
    def all_reduce(values: Any, op: Any = None) -> None:
        time.now_s += 1.0
        if op == "max":
            values.mul_(SLOWER)

    dist = SimpleNamespace(all_reduce=all_reduce, ReduceOp=SimpleNamespace(MAX="max"))
    return Clock(SimpleNamespace(dist=dist), "cpu")  # type: ignore[arg-type]


def test_times_are_per_call_of_the_slowest_rank_and_meeting_is_not_timed(time: Any) -> None:
    works: Any = {"short": Work(time, 0.001), "long": Work(time, 0.3)}
    found = host_s(measure(works, clock(time), rounds=4, window_s=0.02, seed=1))
    assert found["short"] == pytest.approx([SLOWER * 0.001] * 4)
    assert found["long"] == pytest.approx([SLOWER * 0.3] * 4)


def test_windows_are_filled_by_the_slowest_rank_and_positions_go_on(time: Any) -> None:
    work = Work(time, 0.003)
    measure({"work": work}, clock(time), rounds=2, window_s=0.02, seed=1)
    calls = 4  # of 6 ms each, 20 ms
    assert work.positions[:6] == [0, 0, 1, 1, 2, 2], "a look: one call that is not timed, one that is"
    assert work.positions[6:] == [3, *range(3, 3 + calls), 3 + calls, *range(3 + calls, 3 + 2 * calls)]


def test_the_order_of_a_round_is_shuffled_the_same_way_on_every_rank(time: Any) -> None:
    first, second = ("".join(_order(time)) for _ in range(2))
    assert first == second
    rounds = [first[at : at + 12 : 2] for at in range(len(first) - 36, len(first), 12)]
    assert all(sorted(found) == list("abcdef") for found in rounds) and len(set(rounds)) > 1


def _order(time: Any) -> list[str]:
    """Names of six works, in the order of their calls: two in a window, of which one is timed."""
    order: list[str] = []

    class Noting(Work):
        def once(self, position: int) -> None:
            super().once(position)
            order.append(self.name)

    works: Any = {name: Noting(time, 0.02) for name in "abcdef"}
    for name, work in works.items():
        work.name = name
    measure(works, clock(time), rounds=3, window_s=0.02, seed=7)
    return order


def test_a_work_is_made_ready_before_each_window_and_bounds_its_calls(time: Any) -> None:
    class Bounded(Work):
        most_calls = 3

        def ready(self) -> None:
            self.positions.append("ready")

    work = Bounded(time, 0.001)
    measure({"work": work}, clock(time), rounds=2, window_s=1.0, seed=1)
    assert work.positions[9:] == ["ready", 3, 3, 4, 5, "ready", 6, 6, 7, 8]
