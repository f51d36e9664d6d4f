"""The simulated device does what it is made for: queue, clock, cache, compiler, recording."""

import random

import pytest

from frugalbench.specs.machine_peaks import MIB
from frugalbench.workloads import simulated
from frugalbench.workloads.simulated import (
    CACHE_BYTES,
    COMPILE_S,
    DRIFT,
    DRIFT_PERIOD_S,
    FLOP_PER_S,
    LAUNCH_S,
    Kernel,
    Simulated,
)

SECOND = Kernel("multiply", "large", 7, flop=FLOP_PER_S)
"""One second of work."""


class Clock:
    """Time that passes when somebody looks, or sleeps."""

    def __init__(self):
        self.now_s = 100 * DRIFT_PERIOD_S - DRIFT_PERIOD_S / 4  # where the device is fastest

    def __call__(self):
        self.now_s += 1e-7
        return self.now_s

    def sleep(self, duration_s):
        self.now_s += duration_s


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(simulated.time, "sleep", made.sleep)
    return made


@pytest.fixture
def device(clock):
    made = Simulated(clock, random.Random(1))
    made.launch(SECOND)
    made.synchronize()
    return made


def timed(clock, device, kernel):
    """Host seconds until the launch returns, and until the queue is empty."""
    begin_s = clock()
    device.launch(kernel)
    returned_s = clock() - begin_s
    device.synchronize()
    return returned_s, clock() - begin_s


def test_a_launch_returns_long_before_its_work_is_done(clock, device):
    returned_s, done_s = timed(clock, device, SECOND)
    assert returned_s == pytest.approx(LAUNCH_S, rel=0.2)
    assert done_s == pytest.approx(1.0, rel=0.15)


def test_events_tell_the_queues_time_and_wait_for_it(clock, device):
    first = device.event()
    device.launch(SECOND)
    device.launch(SECOND)
    last = device.event()
    before_s = clock()
    assert device.elapsed_s(first, last) == pytest.approx(2.0, rel=0.15)
    assert clock() - before_s == pytest.approx(2.0, rel=0.15)


def test_the_first_launch_of_a_shape_compiles(clock, device):
    known = device.compilations()
    other = Kernel("multiply", "small", 1, flop=1.0)
    assert timed(clock, device, other)[0] == pytest.approx(COMPILE_S, rel=0.05)
    assert timed(clock, device, other)[0] < COMPILE_S / 100
    assert device.compilations() == known + 1


@pytest.mark.parametrize(("size", "again"), [(CACHE_BYTES // 2, 0.15), (2 * CACHE_BYTES, 1.0)])
def test_what_fits_the_cache_is_read_faster_the_second_time(clock, device, size, again):
    kernel = Kernel("read", "x", 1, reads=(("buffer", size),))
    device.launch(kernel)
    device.launch(Kernel("read", "x", 1, reads=(("other", 2 * CACHE_BYTES),)))
    device.synchronize()
    cold_s, warm_s = timed(clock, device, kernel)[1], timed(clock, device, kernel)[1]
    assert warm_s / cold_s == pytest.approx(again, rel=0.2)


def test_a_rotation_beyond_the_cache_stays_cold(clock, device):
    """The buffer that was read longest ago is the one that goes, so going round reads memory every time."""
    kernels = [Kernel("read", "x", 1, reads=((f"part {n}", CACHE_BYTES // 2),)) for n in range(4)]
    first_s = [timed(clock, device, kernel)[1] for kernel in kernels][1:]
    later_s = [timed(clock, device, kernel)[1] for _ in range(3) for kernel in kernels]
    assert min(later_s) > 0.8 * max(first_s)


def test_the_clock_drifts_alike_for_every_process(clock):
    def lasts(start_s):
        clock.now_s = start_s
        devices = [Simulated(clock, random.Random(seed)) for seed in (1, 2)]
        return [device._lasts_s(SECOND, start_s) for device in devices]

    fast, slow = lasts(99.75 * DRIFT_PERIOD_S), lasts(100.25 * DRIFT_PERIOD_S)
    assert slow[0] / fast[0] == pytest.approx(1 + DRIFT, rel=0.02)
    assert slow[1] / fast[1] == pytest.approx(1 + DRIFT, rel=0.02)


def test_no_process_reads_faster_than_memory_delivers(clock):
    """Else an honest arm would be refused."""
    size = 100 * MIB
    for seed in range(300):
        device = Simulated(clock, random.Random(seed))
        lasts_s = device._lasts_s(Kernel("read", "x", 1, reads=(("buffer", size),)), 99.75 * DRIFT_PERIOD_S)
        assert size / lasts_s < 1.03 * device.memory_byte_per_s()


def test_a_recorded_call_is_one_launch_and_the_same_work(clock, device):
    def call(index):
        device.zero()
        for _ in range(100 + index):
            device.launch(Kernel("add", "eight", 1))

    replay, how = device.captured(call, 2)
    assert "2 positions" in how
    begin_s = clock()
    replay(3)
    assert clock() - begin_s < 10 * LAUNCH_S
    assert device.read() == 101
    assert timed(clock, device, Kernel("add", "eight", 1))[0] < COMPILE_S


def test_the_answer_counts_every_unit_since_zero(device):
    device.zero()
    for _ in range(5):
        device.launch(SECOND)
    assert device.read() == 35
