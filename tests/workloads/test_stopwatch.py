"""The window by two clocks: what it refuses, and what it counts as built inside it."""

import gc
import weakref
from types import SimpleNamespace

import pytest

from frugalbench.workloads import stopwatch
from frugalbench.workloads.base import Bound
from frugalbench.workloads.device import Recorded
from frugalbench.workloads.stopwatch import Elapsed, compiled, timed


class Clock:
    """Host time that moves only when told."""

    def __init__(self, monkeypatch):
        self.now_ns = 0
        monkeypatch.setattr(stopwatch.time, "perf_counter_ns", lambda: self.now_ns)

    def pass_s(self, seconds):
        self.now_ns += round(seconds * 1e9)


class Queue:
    """A device whose queue takes ``busy_s`` for each call."""

    def __init__(self, clock, busy_s):
        self.clock, self.busy_s, self.free_at_s, self.built = clock, busy_s, 0.0, 0

    def launch(self, _index):
        self.free_at_s = max(self.free_at_s, self.clock.now_ns * 1e-9) + self.busy_s

    def synchronize(self):
        self.clock.pass_s(max(0.0, self.free_at_s - self.clock.now_ns * 1e-9))

    def event(self):
        return max(self.free_at_s, self.clock.now_ns * 1e-9)

    def elapsed_s(self, first, last):
        return last - first

    def compilations(self):
        return self.built


@pytest.fixture
def queue(monkeypatch):
    return Queue(Clock(monkeypatch), 0.004)


def test_both_clocks_tell_the_window(queue):
    bound = Bound(call=queue.launch, output=lambda _: {}, synchronize=queue.synchronize, device=queue)
    found = timed(lambda: [queue.launch(0) for _ in range(5)], bound)
    assert found.host_s == pytest.approx(0.02)
    assert found.device_s == pytest.approx(0.02)


def test_an_arm_that_returns_before_its_work_is_done_has_no_time(queue):
    bound = Bound(call=queue.launch, output=lambda _: {}, device=queue)
    with pytest.raises(RuntimeError, match=r"computed for 20 ms of which the host waited for 0 ms: .* synchronise"):
        timed(lambda: [queue.launch(0) for _ in range(5)], bound)


def test_a_processor_has_one_clock_and_compiles_nothing(monkeypatch):
    clock = Clock(monkeypatch)
    bound = Bound(call=lambda _: None, output=lambda _: {})
    assert timed(lambda: clock.pass_s(0.5), bound) == Elapsed(0.5, None)
    assert compiled(bound) == 0


def test_windows_add_up_and_an_unknown_part_makes_the_sum_unknown():
    assert Elapsed(1.0, 0.9) + Elapsed(2.0, 1.9) == Elapsed(3.0, 0.9 + 1.9)
    assert (Elapsed(1.0, 0.9) + Elapsed(2.0, None)).device_s is None


class Tensor:
    """Something that an arm holds."""


def test_a_recorded_call_keeps_what_it_reads():
    """A graph knows addresses only: freed inputs would be overwritten by whatever comes next."""

    def bound():
        held = Tensor()
        graph = SimpleNamespace(replay=lambda: None)
        return Recorded(lambda _index: held, [graph], ["answer"]), weakref.ref(held)

    recorded, gone = bound()
    gc.collect()
    assert gone() is not None and recorded(3) == "answer"
    del recorded
    gc.collect()
    assert gone() is None
