"""Whether a device's cache did the work of its memory.

A real workload streams its weights, so arms rotate through more bytes than the last-level cache holds. One that does
not is flattered, on some arms more than on others.
"""

from frugalbench.schema import Case
from frugalbench.units import byte_size, si
from frugalbench.workloads.base import Bound

BEYOND_MEMORY = 1.05
"""Share of the memory's nominal rate that no honest arm passes; what is reached is some nine tenths of it."""


def too_small(bound: Bound) -> str | None:
    """Why a rotation does not stream, where the arm says how many bytes it reads."""
    held_bytes = bound.device.cache_bytes() if bound.device is not None else None
    if held_bytes is None or bound.distinct_bytes is None or bound.distinct_bytes > held_bytes:
        return None
    return (
        f"its rotation reads {byte_size(bound.distinct_bytes)} again and again, which the device's cache of "
        f"{byte_size(held_bytes)} holds: weights would not stream from memory; take more copies or a larger shape"
    )


def too_fast(case: Case, device_s: float | None, byte_per_s: float | None) -> str | None:
    """Why ``device_s`` per call cannot be the time of reading the case's weights at the memory's ``byte_per_s``.

    A call reads the weights that are stored, or, as a mixture does, those of its traffic that it uses.
    """
    if device_s is None or byte_per_s is None or case.cost is None:
        return None
    read_bytes = min(case.cost.weight_bytes, case.cost.traffic_bytes)
    if device_s >= read_bytes / (BEYOND_MEMORY * byte_per_s):
        return None
    rate = si(read_bytes / max(device_s, 1e-12), "B/s")
    return (
        f"{rate} of weights, and the device's memory delivers {si(byte_per_s, 'B/s')} at most: they stayed in the "
        "cache; take more copies or a larger shape"
    )
