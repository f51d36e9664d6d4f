"""Collectives between ranks: which, of how many bytes, what each rank puts in, what must come out, and their rates.

Sizes and rates are those of nccl-tests (NVIDIA/nccl-tests, ``doc/PERFORMANCE.md``, read 2026-11-22): a size is the
larger of a rank's two buffers, ``algbw`` is size / time, ``busbw`` is ``algbw`` times a factor that makes it comparable
with a link's rate. What nccl-tests prints is followed, also where switches reduce: 2(n-1)/n of an all-reduce.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from frugalbench.cluster.pipelined import bus_factor
from frugalbench.cluster.published.points import NEEDED
from frugalbench.schema import Frozen

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, BROADCAST = OPERATIONS = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast",
)  # fmt: skip
IN_PLACE = (ALL_REDUCE, BROADCAST)
"""As torch.distributed offers them: the result takes the input's place. The others fill a second buffer."""
VALUE_BYTES = 4
"""float32."""
PERIOD = 8191
"""Values after which a rank's input repeats: a prime, so that no block of a usual size begins where another does."""
_MOST = 512
SCALE = 2.0**-110
"""Of the whole numbers put in: all-reduces in place grow by the number of ranks each, and must stay finite."""
GROWTH_BITS = 200
"""By how much they may grow: 2**-110 x 512 x 2**200 is below float32's 2**128."""


class Line(Frozen, frozen=True, kw_only=True):
    """One operation at one size. Rates in bytes/s; times are per call, of the slowest rank."""

    operation: str
    size_bytes: int
    in_place: bool
    time_s: float
    """Median over rounds."""
    low_s: float
    """Least of the rounds."""
    high_s: float
    """Most of them."""
    device_time_s: float | None
    """Median by the device's events; ``None`` on a processor."""
    algbw_bytes_per_s: float
    busbw_bytes_per_s: float
    error: float
    """Largest error of any rank over the answer's root mean square, before and after timing; whole numbers add up
    exactly, so anything but 0 is refused."""
    rounds: int
    ranks: int
    ranks_per_node: int
    device: str
    transport: str
    settings: dict[str, str]
    """NCCL's and gloo's environment variables."""
    torch: str
    tier: str = "measured"


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer: ``count`` values of a repeating period, from its value ``offset`` on."""

    period: np.ndarray
    """Float64 (PERIOD)."""
    offset: int
    count: int


def sizes(begin_bytes: int, end_bytes: int, factor: int) -> list[int]:
    """From the first on, each ``factor`` times the one before, up to and with the last that fits."""
    found = [begin_bytes]
    while found[-1] * factor <= end_bytes:
        found.append(found[-1] * factor)
    return found


def elements(operation: str, size_bytes: int, ranks: int) -> int:
    """Values of the larger buffer: a multiple of the ranks where it is cut into blocks; 0 where there is too little."""
    blocks = 1 if operation in IN_PLACE else ranks
    return size_bytes // VALUE_BYTES // blocks * blocks


def patterns(seed: int, ranks: int) -> np.ndarray:
    """What the ranks put in, one period each, float64 (ranks, PERIOD): whole numbers but 0, scaled."""
    drawn = np.random.default_rng([seed, ranks]).integers(1, _MOST + 1, (ranks, PERIOD))
    signs = np.random.default_rng([seed, ranks, 1]).choice([-1.0, 1.0], (ranks, PERIOD))
    return np.asarray(drawn * signs * SCALE)


def answer(operation: str, rank: int, count: int, begin: int, inputs: np.ndarray) -> list[Piece]:
    """What ``rank`` holds afterwards; every rank's input is ``count`` values (of an all-gather ``count / ranks``) from
    value ``begin`` of its repeated period on."""
    ranks, block = len(inputs), count // len(inputs)
    if operation == ALL_REDUCE:
        return [Piece(inputs.sum(0), begin, count)]
    if operation == BROADCAST:
        return [Piece(inputs[0], begin, count)]
    if operation == REDUCE_SCATTER:
        return [Piece(inputs.sum(0), begin + rank * block, block)]
    first = begin + (rank * block if operation == ALL_TO_ALL else 0)
    return [Piece(inputs[source], first, block) for source in range(ranks)]


def most_uses(operation: str, ranks: int) -> int | None:
    """How often a buffer may be used before it must be filled anew; ``None``: always."""
    return GROWTH_BITS // max(1, (ranks - 1).bit_length()) if operation == ALL_REDUCE else None


def rates(operation: str, size_bytes: float, time_s: float, ranks: int) -> tuple[float, float]:
    """``algbw`` and ``busbw``, bytes/s."""
    algbw = size_bytes / time_s
    return algbw, algbw * bus_factor(operation, ranks)


def points(lines: Iterable[Line], system: str) -> str:
    """Time and ``busbw`` as rows that ``frugalbench simulate --against`` reads, under ``system``'s name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*NEEDED, "source", "note"])
    for line in lines:
        writer.writerows(_rows(line, system))
    return text.getvalue()


def _rows(line: Line, system: str) -> Sequence[Sequence[object]]:
    where = "in place" if line.in_place else "out of place"
    work = f"{line.operation} fp32 torch.distributed {line.transport.split()[0]}"
    source = f"measured by frugalbench.workloads.collectives, torch {line.torch}"
    note = "; ".join([where, f"{line.ranks_per_node} ranks per node", *(f"{k}={v}" for k, v in line.settings.items())])
    name = f"{line.operation}-{line.ranks}-{line.size_bytes}"
    shown = (("time", line.time_s * 1e6, "us"), ("busbw", line.busbw_bytes_per_s / 1e9, "GB/s"))
    return [
        [f"{name}-{metric}", system, work, line.ranks, line.size_bytes, metric, f"{value:.6g}", unit, source, note]
        for metric, value, unit in shown
    ]
