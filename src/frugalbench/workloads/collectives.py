"""Collectives on ranks that torchrun or Slurm started, over NCCL or gloo; rank 0 prints a table, or lines of JSON.

On one machine::

    torchrun --nproc-per-node 8 -m frugalbench.workloads.collectives --points mine.csv
    frugalbench simulate --against mine.csv

Under Slurm, and across machines, as with :mod:`frugalbench.workloads.ep`.

Sizes go from ``--begin`` to ``--end`` bytes (``64KiB``, ``1GiB``), each ``--factor`` times the one before, as far as
memory goes. Every rank's every value is checked before and after timing. A round is a window of ``--window-s`` of each
operation at each size in shuffled order, begun by all ranks together, the device's queue empty at both ends; the
slowest rank counts, and the median of the rounds. Calls are launched by torch one by one, so small sizes on a GPU hold
what that costs. ``--points FILE`` writes rows for ``frugalbench simulate --against``; ``--system`` names the machine in
them (``"2 nodes x 8 H100 NDR"``), where the driver's name does not say all that the model needs.
Exit status 2: the request is wrong; 1: a wrong answer, or a rank was lost.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from frugalbench import units
from frugalbench.cluster.published.points import size_bytes
from frugalbench.schema import FrugalbenchError
from frugalbench.specs import collectives as spec
from frugalbench.workloads import torchrun
from frugalbench.workloads.ep_timing import Clock, Windows, measure
from frugalbench.workloads.layers.collective_works import Buffers, Collective
from frugalbench.workloads.layers.expert_shard import Exchange

WHERE = "frugalbench.workloads.collectives"
_DEFAULTS = {
    "operations": list(spec.OPERATIONS), "begin": "8", "end": "1GiB", "factor": 8, "rounds": 5, "window_s": 0.1,
    "device": "", "seed": 1, "points": "", "system": "",
}  # fmt: skip
_SHARES = 4
"""Of what is free, one share is for a rank's two buffers: a library keeps copies of its own."""
_SETTINGS = ("NCCL_", "GLOO_", "TORCH_NCCL_")

Works = dict[str, Collective]


def main(argv: Sequence[str]) -> int:
    """The exit status. Only rank 0 speaks."""
    return torchrun.answer(lambda: run(argv))


def run(argv: Sequence[str]) -> list[str]:
    """Join, check, measure; what rank 0 prints. Raises :class:`FrugalbenchError` and :class:`torchrun.WrongAnswer`."""
    parser = torchrun.parser(WHERE, "Time collectives between ranks.", _DEFAULTS)
    parser.add_argument("--json", action="store_true", help="one line of JSON for each operation and size")
    asked = vars(parser.parse_args(argv))
    sizes = _checked(asked, torchrun.ranks(WHERE))
    device = torchrun.join(asked["device"])
    try:
        lines = _measured(asked, sizes, device)
    finally:
        dist.destroy_process_group()
    if asked["points"] and torchrun.leads():
        _write(Path(asked["points"]), spec.points(lines, asked["system"] or _system(lines[0])))
    return [msgspec.json.encode(line).decode() for line in lines] if asked["json"] else _table(lines)


def _checked(asked: dict[str, Any], ranks: int) -> list[int]:
    """The sizes. Refuses what cannot be before the ranks meet."""
    if ranks < 2:
        raise FrugalbenchError(f"{WHERE}: one rank has nobody to exchange with; try --nproc-per-node 2")
    for name in asked["operations"]:
        if name not in spec.OPERATIONS:
            raise FrugalbenchError(f"{WHERE}: unknown operation '{name}'; known: {', '.join(spec.OPERATIONS)}")
    begin, end = (size_bytes(asked[name]) or 0 for name in ("begin", "end"))
    if not spec.VALUE_BYTES <= begin <= end or asked["factor"] < 2:
        raise FrugalbenchError(f"{WHERE}: needs 4 bytes <= --begin <= --end (64KiB, 1GiB), and --factor 2 or more")
    if min(asked["rounds"], asked["window_s"]) <= 0:
        raise FrugalbenchError(f"{WHERE}: --rounds and --window-s must be positive")
    if asked["points"] and torchrun.leads() and not Path(asked["points"]).absolute().parent.is_dir():
        raise FrugalbenchError(f"{WHERE}: --points {asked['points']}: no such folder")
    asked["device"] = torchrun.device_for(asked["device"], WHERE)
    return spec.sizes(int(begin), int(end), asked["factor"])


def _measured(asked: dict[str, Any], sizes: list[int], device: str) -> list[spec.Line]:
    exchange = Exchange(dist)
    most = torchrun.agreed(torchrun.free_bytes(device) // (2 * _SHARES), device)
    fitting = [size for size in sizes if size <= most]
    if not fitting:
        raise FrugalbenchError(f"{WHERE}: {sizes[0]} bytes are more than the {most} that a rank's memory has room for")
    if len(fitting) < len(sizes):
        torchrun.progress(f"sizes above {units.byte_size(fitting[-1])} are left out: memory has no room for them")
    inputs = spec.patterns(asked["seed"], exchange.ranks)
    buffers = Buffers(max(fitting) // spec.VALUE_BYTES, inputs, exchange.rank, device)
    works = _works(asked["operations"], fitting, exchange.ranks, buffers)
    clock = Clock(exchange, device)
    with torch.inference_mode():
        torchrun.progress(f"checking {len(works)} results on {exchange.ranks} ranks")
        before = _checked_works(works, clock, last=False)
        windows = measure(works, clock, asked["rounds"], asked["window_s"], asked["seed"], torchrun.progress)
        after = _checked_works(works, clock, last=True)
    errors = [max(pair) for pair in zip(before, after, strict=True)]
    return _lines(works, windows, errors, device)


def _works(operations: Iterable[str], sizes: Iterable[int], ranks: int, buffers: Buffers) -> Works:
    """By name; sizes that come to the same number of values are one, those too small for a value each are none."""
    found: Works = {}
    for name in dict.fromkeys(operations):
        for count in dict.fromkeys(spec.elements(name, size, ranks) for size in sizes):
            if count:
                found[f"{name}-{count}"] = Collective(dist, name, count, buffers)
    if not found:
        raise FrugalbenchError(f"{WHERE}: --end is too small for a value of each of {ranks} ranks")
    return found


def _checked_works(works: Works, clock: Clock, last: bool) -> list[float]:
    """Every work's error at its first or last place, of the worst rank. All ranks end if one is wrong."""
    errors = clock.greatest([_finite(work.error(work.places - 1 if last else 0)) for work in works.values()])
    for work, error in zip(works.values(), errors, strict=True):
        if error > 0:
            size = work.count * spec.VALUE_BYTES
            raise torchrun.WrongAnswer(f"{work.operation} of {size} bytes: wrong answer: error {error:.3g}, allowed 0")
    return errors


def _finite(error: float) -> float:
    """A number that a maximum over ranks keeps, also for one that is none."""
    return error if error < sys.float_info.max else sys.float_info.max


def _lines(works: Works, windows: Windows, errors: list[float], device: str) -> list[spec.Line]:
    surroundings = {
        "rounds": len(next(iter(windows.values()))),
        "ranks": dist.get_world_size(),
        "ranks_per_node": torchrun.ranks_here(),
        "device": torchrun.device_name(device),
        "transport": _transport(),
        "settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)},
        "torch": str(torch.__version__),
    }
    return [
        _line(work, windows[name], error, surroundings)
        for (name, work), error in zip(works.items(), errors, strict=True)
    ]


def _line(work: Collective, windows: Any, error: float, surroundings: dict[str, Any]) -> spec.Line:
    times_s = [window.host_s for window in windows]
    device_s = [window.device_s for window in windows if window.device_s is not None]
    size = work.count * spec.VALUE_BYTES
    algbw, busbw = spec.rates(work.operation, size, median(times_s), surroundings["ranks"])
    return spec.Line(
        operation=work.operation,
        size_bytes=size,
        in_place=work.operation in spec.IN_PLACE,
        time_s=median(times_s),
        low_s=min(times_s),
        high_s=max(times_s),
        device_time_s=median(device_s) if device_s else None,
        algbw_bytes_per_s=algbw,
        busbw_bytes_per_s=busbw,
        error=error,
        **surroundings,
    )


def _transport() -> str:
    """The library between the ranks, with its version where it has one."""
    name = str(dist.get_backend())
    return f"{name} {'.'.join(map(str, torch.cuda.nccl.version()))}" if name == "nccl" else name


def _system(line: spec.Line) -> str:
    """A machine's name as published tables write it."""
    nodes = line.ranks // line.ranks_per_node
    return f"{nodes} nodes x {line.ranks_per_node} {line.device}" if nodes > 1 else f"{line.ranks}x {line.device}"


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise FrugalbenchError(f"{WHERE}: --points {path}: cannot be written: {problem.strerror}") from None


_COLUMNS = ("operation", "size", "in place", "time", "rounds", "device", "algbw", "busbw")


def _table(lines: list[spec.Line]) -> list[str]:
    """A head, and a row for each operation and size."""
    first = lines[0]
    head = (
        f"{first.ranks} ranks ({first.ranks_per_node} a machine), {first.device}, {first.transport}, float32; "
        f"measured: per call of the slowest rank, median of {first.rounds} rounds; every value right"
    )
    rows = [_COLUMNS, *(_row(line) for line in lines)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_COLUMNS))]
    return [head, *(_aligned(row, widths) for row in rows)]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    numbers = zip(row[1:], widths[1:], strict=True)
    return f"{row[0]:<{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in numbers)


def _row(line: spec.Line) -> tuple[str, ...]:
    between = f"{units.seconds(line.low_s)} to {units.seconds(line.high_s)}"
    bandwidths = (units.si(value, "B/s") for value in (line.algbw_bytes_per_s, line.busbw_bytes_per_s))
    shown = (units.seconds(line.time_s), between, units.seconds(line.device_time_s), *bandwidths)
    return (line.operation, units.byte_size(line.size_bytes), "yes" if line.in_place else "no", *shown)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
