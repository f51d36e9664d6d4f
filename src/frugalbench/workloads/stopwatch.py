"""The window itself: calls between two synchronisations, by the host's clock and, where there is one, by the device's.

The device's marks lie within the host's window, so its time cannot be the longer one. Where it is, the arm returned
before its work was done, and the host's figure is no time of that work.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from frugalbench.workloads.base import Bound

CLOCKS_DIFFER = 0.01
"""Two quartz clocks differ by some 1e-4 at most; the device's marks are close to, not at, the ends of the window."""
RESOLUTION_S = 20e-6
"""Of short windows: half a microsecond of each of CUDA's events, and what the host needs to wake up."""


@dataclass(frozen=True)
class Elapsed:
    """Seconds of a window."""

    host_s: float
    device_s: float | None

    def __add__(self, other: "Elapsed") -> "Elapsed":
        """Both windows together."""
        known = self.device_s is not None and other.device_s is not None
        both_s = (self.device_s or 0.0) + (other.device_s or 0.0) if known else None
        return Elapsed(self.host_s + other.host_s, both_s)


def timed(work: Callable[[], object], bound: Bound) -> Elapsed:
    """Run ``work`` and time it. Raises ``RuntimeError`` when the device was at it longer than the host waited."""
    device = bound.device
    bound.synchronize()
    begin = time.perf_counter_ns()
    first = device.event() if device is not None else None
    kept = work()
    last = device.event() if device is not None else None
    bound.synchronize()
    host_s = (time.perf_counter_ns() - begin) * 1e-9
    del kept
    if device is None:
        return Elapsed(host_s, None)
    device_s = device.elapsed_s(first, last)
    if device_s > (1 + CLOCKS_DIFFER) * host_s + RESOLUTION_S:
        raise RuntimeError(
            f"the device computed for {device_s * 1e3:.3g} ms of which the host waited for {host_s * 1e3:.3g} ms: "
            "the arm does not synchronise, so its times are none"
        )
    return Elapsed(host_s, device_s)


def compiled(bound: Bound) -> int:
    """Kernels that were compiled or tuned so far, as the arm's device tells; 0 on a processor."""
    return bound.device.compilations() if bound.device is not None else 0
