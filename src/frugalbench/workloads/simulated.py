"""A device that is in no machine: what a real one's queue, clock, cache and compiler do to a measurement.

Launching costs the host time; the work runs later, in order, on a queue; the clock drifts; what stayed in the cache is
read faster than memory delivers; the first launch of a kernel on a shape compiles it, or tunes it. Time really passes,
so the whole harness runs on it. The device's memory holds one whole number, the units of work done, by which answers
are checked. Every figure is made up: small and slow beside a card, so that windows hold some calls.
"""

import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from frugalbench.specs.machine_peaks import MIB

LAUNCH_S = 3e-6
"""What a launch costs the host; a recorded call costs one of them."""
KERNEL_S = 2e-6
"""Least time of a kernel."""
COMPILE_S = 0.02
FLOP_PER_S = 4e11
MEMORY_BYTE_PER_S = 5e10
CACHE_BYTE_PER_S = 4e11
CACHE_BYTES = 8 * MIB
DRIFT, DRIFT_PERIOD_S = 0.1, 11.0
"""The clock falls by up to this share and recovers; every process sees the same swing, since the device is one."""
PROCESS_LUCK, KERNEL_LUCK = 0.002, 0.003
"""Spread (standard deviation of log time) of where a process's memory came to lie, and of each kernel."""
_SLEEP_MARGIN_S = 2e-4
"""A sleeping host wakes up late by about this much, so it spins for the rest."""


@dataclass(frozen=True)
class Kernel:
    """One piece of work for the queue."""

    name: str
    shape: str
    units: int
    """What it adds to the number in the device's memory."""
    flop: float = 0.0
    reads: tuple[tuple[str, int], ...] = ()
    """Names and bytes of the buffers that it reads."""


class Simulated:
    """One process's view of the device: see :class:`frugalbench.workloads.device.Device`."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, rng: random.Random | None = None) -> None:
        self._clock = clock
        self._rng = rng or random.Random()
        self._slowness = math.exp(PROCESS_LUCK * self._rng.gauss(0.0, 1.0))
        self._free_at_s = 0.0
        self._compiled: set[tuple[str, str]] = set()
        self._cached: OrderedDict[str, int] = OrderedDict()
        self._recording: list[Kernel] | None = None
        self._units = 0

    def synchronize(self) -> None:
        """Wait until the queue is empty."""
        self._wait(self._free_at_s)

    def event(self) -> float:
        """When the queue gets here."""
        return max(self._free_at_s, self._clock())

    def elapsed_s(self, first: float, last: float) -> float:
        """Between two events; waits for the later one."""
        self._wait(last)
        return last - first

    def compilations(self) -> int:
        """Kernels compiled so far."""
        return len(self._compiled)

    def cache_bytes(self) -> int:
        """Size of the last-level cache."""
        return CACHE_BYTES

    def memory_byte_per_s(self) -> float:
        """Most that memory delivers."""
        return MEMORY_BYTE_PER_S

    def captured(self, call: Callable[[int], object], rotation: int) -> tuple[Callable[[int], object], str]:
        """Kernels of each position, recorded now and replayed in one launch."""
        recorded: list[list[Kernel]] = []
        for index in range(rotation):
            call(index)
            self._recording = []
            call(index)
            recorded.append(self._recording)
            self._recording = None
        return lambda index: self._replay(recorded[index % rotation]), f"recorded, one for each of {rotation} positions"

    def launch(self, kernel: Kernel) -> None:
        """Put ``kernel`` at the end of the queue, compiling it first where it is new."""
        if self._recording is not None:
            self._recording.append(kernel)
            return
        if (kernel.name, kernel.shape) not in self._compiled:
            self._wait(self._clock() + COMPILE_S)
            self._compiled.add((kernel.name, kernel.shape))
        self._wait(self._clock() + LAUNCH_S)
        self._enqueue(kernel)

    def zero(self) -> None:
        """Set the number in memory to zero, in the order of the queue."""
        self.launch(Kernel("zero", "", -self._units))

    def read(self) -> int:
        """The number in memory, once the queue is empty."""
        self.synchronize()
        return self._units

    def _replay(self, kernels: list[Kernel]) -> None:
        self._wait(self._clock() + LAUNCH_S)
        for kernel in kernels:
            self._enqueue(kernel)

    def _enqueue(self, kernel: Kernel) -> None:
        start_s = max(self._free_at_s, self._clock())
        self._free_at_s = start_s + self._lasts_s(kernel, start_s)
        self._units = 0 if kernel.name == "zero" else self._units + kernel.units

    def _lasts_s(self, kernel: Kernel, start_s: float) -> float:
        reading_s = sum(size / self._byte_per_s(name, size) for name, size in kernel.reads)
        steady_s = max(KERNEL_S, kernel.flop / FLOP_PER_S, reading_s)
        drift = 1.0 + DRIFT * (1.0 + math.sin(2 * math.pi * start_s / DRIFT_PERIOD_S)) / 2
        return steady_s * drift * self._slowness * math.exp(KERNEL_LUCK * self._rng.gauss(0.0, 1.0))

    def _byte_per_s(self, name: str, size: int) -> float:
        """How fast a buffer is read, and what the cache holds afterwards: the buffers that were read last."""
        hit = name in self._cached
        self._cached[name] = size
        self._cached.move_to_end(name)
        while sum(self._cached.values()) > CACHE_BYTES:
            self._cached.popitem(last=False)
        return CACHE_BYTE_PER_S if hit else MEMORY_BYTE_PER_S

    def _wait(self, until_s: float) -> None:
        left_s = until_s - self._clock()
        if left_s > 2 * _SLEEP_MARGIN_S:
            time.sleep(left_s - _SLEEP_MARGIN_S)
        while self._clock() < until_s:
            pass
