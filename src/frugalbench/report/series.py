"""Samples of a case in the order taken, short enough to embed: as they are, or as quantiles of bins where many.

Times are whole numbers: by how many ten-thousandths they lie above the case's own time, so that thousands of cases
stay small.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from frugalbench.analysis.metrics import replicate_time_s
from frugalbench.schema import Record

MOST_RAW = 64
BINS = 24
UNIT = 10_000


def series(records: Sequence[Record], base_s: float) -> dict[str, Any]:
    """Kept samples, number of void ones, and each replicate; ``base_s`` is the time that :data:`UNIT` stands for.

    ``raw`` lists every kept sample; ``bins`` lists minimum, quartiles, maximum of consecutive samples.
    ``replicates`` lists number, median, samples and void ones.
    """
    kept = [s for r in records for s in r.samples if r.steady_load or s.void is None]
    kept.sort(key=lambda sample: sample.start_s)
    values = [_above(sample.time_s, base_s) for sample in kept]
    found: dict[str, Any] = {"base_s": float(f"{base_s:.6g}"), "samples": len(values)}
    found |= {"raw": values} if len(values) <= MOST_RAW else {"bins": _bins(values)}
    return found | {"replicates": [_replicate(record, base_s) for record in records]}


def _above(time_s: float, base_s: float) -> int:
    return round(UNIT * (time_s / base_s - 1))


def _bins(values: Sequence[int]) -> list[list[int]]:
    edges = [round(place * len(values) / BINS) for place in range(BINS + 1)]
    return [_quantiles(sorted(values[low:high])) for low, high in pairwise(edges)]


def _quantiles(values: Sequence[int]) -> list[int]:
    last = len(values) - 1
    return [values[round(share * last)] for share in (0, 0.25, 0.5, 0.75, 1)]


def _replicate(record: Record, base_s: float) -> list[int | None]:
    time_s = replicate_time_s(record)
    void = sum(sample.void is not None for sample in record.samples)
    return [record.replicate, None if time_s is None else _above(time_s, base_s), len(record.samples), void]


def surroundings(records: Sequence[Record]) -> list[tuple[str, str]]:
    """What the machine did meanwhile, in a word and a figure each; what could not be read says so."""
    found = [sample.environment for record in records for sample in record.samples]
    wall_s = sum(item.wall_s for item in found)
    if not found or not wall_s:
        return []
    lines = [
        (name, _part([getattr(item, field) for item in found], wall_s))
        for name, field in (
            ("waited for a core", "run_delay_s"),
            ("other processes", "foreign_cpu_s"),
            ("stolen by the hypervisor", "steal_s"),
        )
    ]
    clocks = [item.clock_hz for item in found if item.clock_hz is not None]
    lines.append(("clock", f"{median(clocks) / 1e9:.2f} GHz" if clocks else ""))
    throttled = [item.throttled for item in found if item.throttled is not None]
    lines.append(("held back by heat", f"{sum(throttled)} of {len(throttled)} samples" if throttled else ""))
    return lines


def _part(values: Sequence[float | None], wall_s: float) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * sum(known) / wall_s:.2g}% of the time" if known else ""
