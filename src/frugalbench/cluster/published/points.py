"""Published figures as rows of a CSV file: read, checked and brought to SI units.

Columns: ``id, system, collective_or_workload, n_devices, message_bytes_or_model, metric, value, unit, source, note``.
A row that cannot be used becomes a :class:`Fault`; the others go on.
"""

import csv
import io
import math
import re
from pathlib import Path

from frugalbench import paths, untrusted
from frugalbench.cluster.hardware import nearest
from frugalbench.schema import Frozen, FrugalbenchError

NEEDED = ("id", "system", "collective_or_workload", "n_devices", "message_bytes_or_model", "metric", "value", "unit")
MOST_BYTES = 64 * 2**20
MOST_VALUE = 1e30

UNITS = {
    "b": 1.0, "byte": 1.0, "bytes": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "pb": 1e15,
    "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "tib": 2.0**40,
    "b/s": 1.0, "bytes/s": 1.0, "kb/s": 1e3, "mb/s": 1e6, "gb/s": 1e9, "tb/s": 1e12, "pb/s": 1e15,
    "mib/s": 2.0**20, "gib/s": 2.0**30, "tib/s": 2.0**40,
    "bit/s": 0.125, "kbit/s": 0.125e3, "mbit/s": 0.125e6, "gbit/s": 0.125e9, "tbit/s": 0.125e12,
    "kbps": 0.125e3, "mbps": 0.125e6, "gbps": 0.125e9, "tbps": 0.125e12,
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "usec": 1e-6, "ms": 1e-3, "msec": 1e-3,
    "s": 1.0, "sec": 1.0, "seconds": 1.0, "min": 60.0, "minutes": 60.0, "h": 3600.0, "hours": 3600.0, "days": 86400.0,
    "flop/s": 1.0, "gflop/s": 1e9, "tflop/s": 1e12, "pflop/s": 1e15, "eflop/s": 1e18,
    "gflops": 1e9, "tflops": 1e12, "pflops": 1e15, "eflops": 1e18, "tops": 1e12,
    "%": 0.01, "percent": 0.01, "fraction": 1.0, "ratio": 1.0, "share": 1.0, "x": 1.0, "1": 1.0, "times": 1.0,
    "tok/s": 1.0, "token/s": 1.0, "tokens/s": 1.0, "samples/s": 1.0, "sequences/s": 1.0,
    "w": 1.0, "kw": 1e3, "mw": 1e6, "j": 1.0, "kj": 1e3, "1/s": 1.0, "events": 1.0,
}  # fmt: skip
"""Factor to SI (bytes, seconds, FLOP/s, shares, watts), by lower-case unit without ``/GPU`` and the like."""
_PER_DEVICE = re.compile(r"\s*(/|per)\s*(gpu|npu|device|chip|accelerator|die|rank)s?$", re.IGNORECASE)
_SIZE = re.compile(r"^([\d.,_]+(?:e[+-]?\d+)?)\s*([kmgt]i?b|bytes?)?$", re.IGNORECASE)
_COUNT = re.compile(r"\d[\d,_]*")
_GRID = re.compile(
    r"(\d+)\s*(?:gpus?|npus?|devices|nodes?)?\s*x\s*(\d+)\s*(?:gpus?|npus?|devices|nodes?)?", re.IGNORECASE
)
_CASED = re.compile(r"([KMGTP]?i?)([bB])(?:/s|ps)")
"""``Gb/s`` and ``Gbps`` are bits, ``GB/s`` and ``GBps`` bytes; all in lower case, ``gb/s`` is bytes, ``gbps`` bits."""


class Point(Frozen, frozen=True, kw_only=True):
    """One published figure."""

    id: str
    system: str
    work: str
    """Collective or workload, as printed."""
    devices: int | None
    size: str
    """Message size or model, as printed."""
    metric: str
    value: float
    """In ``unit``."""
    unit: str
    printed: str
    """The digits of the value as they stand in the file."""
    source: str = ""
    note: str = ""

    @property
    def si(self) -> float:
        """The value in bytes, seconds, FLOP/s, shares or watts."""
        return self.value * self.factor

    @property
    def factor(self) -> float:
        """From the row's unit to SI."""
        return UNITS[_plain(self.unit)]

    @property
    def per_device(self) -> bool:
        """The unit ends in ``/GPU`` or the like."""
        return bool(_PER_DEVICE.search(self.unit))

    @property
    def size_bytes(self) -> float | None:
        """Bytes of the message; ``None`` where the column names a model or is empty."""
        return size_bytes(self.size)

    @property
    def rounding(self) -> float:
        """Half a unit of the last printed digit over the value: what rounding alone may hide."""
        mantissa, _, exponent = self.printed.lower().partition("e")
        digits = len(mantissa.partition(".")[2])
        return 0.5 * 10.0 ** (int(exponent or 0) - digits) / self.value if self.value else math.inf

    def text(self) -> str:
        """Everything that names the scene, in lower case."""
        return f"{self.system} | {self.work} | {self.note}".lower()


class Fault(Frozen, frozen=True, kw_only=True):
    """A row that could not be used."""

    line: int
    id: str
    reason: str


def published() -> list[Point]:
    """The figures that come with the package."""
    return read(paths.data("network", "points.csv"))[0]


def read(path: Path | str) -> tuple[list[Point], list[Fault]]:
    """Every usable row, and every other one with its line.

    Raises :class:`FrugalbenchError` where the file cannot be read, is no CSV or lacks a column.
    """
    rows = _rows(Path(path))
    header = {name.strip(): i for i, name in enumerate(rows[0][1])} if rows else {}
    for name in NEEDED:
        if name not in header:
            raise FrugalbenchError(
                f"{path}: no column '{name}'{nearest(name, list(header))} Needed: {', '.join(NEEDED)}"
            )
    points: list[Point] = []
    faults: list[Fault] = []
    seen: set[str] = set()
    for line, cells in rows[1:]:
        found = _point(header, cells, seen)
        if isinstance(found, Point):
            seen.add(found.id)
            points.append(found)
        else:
            name = cells[header["id"]].strip() if len(cells) > header["id"] else ""
            faults.append(Fault(line=line, id=name, reason=found))
    return points, faults


def size_bytes(text: str) -> float | None:
    """Bytes of ``1048576``, ``64 MiB``, ``1e9`` or ``8 GB``; ``None`` for anything else."""
    found = _SIZE.match(text.strip())
    if not found:
        return None
    unit = (found[2] or "b").lower()  # not "10B": that is a model
    try:
        size = float(found[1].replace(",", "").replace("_", "")) * UNITS[unit]
    except (ValueError, KeyError):
        return None
    return size if 0 < size <= MOST_VALUE else None


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    try:
        text = untrusted.read_bounded(path, MOST_BYTES).decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""))
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except OSError as problem:
        raise FrugalbenchError(f"{path}: cannot be read: {problem.strerror}") from None
    except (ValueError, csv.Error) as problem:
        raise FrugalbenchError(f"{path}: not a CSV file in UTF-8: {untrusted.shown(problem, 200)}") from None


def _point(header: dict[str, int], cells: list[str], seen: set[str]) -> Point | str:
    if len(cells) <= max(header[name] for name in NEEDED):
        return f"{len(cells)} columns where {len(header)} are named"
    row = {name: cells[i].strip() for name, i in header.items() if i < len(cells)}
    if reason := untrusted.fault(row):
        return f"holds {reason}"
    if reason := _fault(row, seen):
        return reason
    return Point(
        id=row["id"],
        system=row["system"],
        work=row["collective_or_workload"],
        devices=_count(row["n_devices"]),
        size=row["message_bytes_or_model"],
        metric=row["metric"],
        value=_number(row["value"]),
        unit=row["unit"],
        printed=row["value"],
        source=row.get("source", ""),
        note=row.get("note", ""),
    )


def _fault(row: dict[str, str], seen: set[str]) -> str:
    if not row["id"] or row["id"] in seen:
        return f"the id '{row['id']}' occurs twice" if row["id"] else "no id"
    if not row["metric"]:
        return "no metric"
    value = _number(row["value"])
    if not math.isfinite(value) or abs(value) > MOST_VALUE:
        return f"the value '{row['value']}' is not a number"
    if value < 0 and row["metric"] != "error":
        return f"the value {row['value']} is negative"
    if _plain(row["unit"]) not in UNITS:
        return f"unknown unit '{row['unit']}'{nearest(_plain(row['unit']), list(UNITS))}"
    if row["n_devices"].startswith("-") or row["message_bytes_or_model"].startswith("-"):
        return "a negative number of devices or bytes"
    return "" if (_count(row["n_devices"]) or 1) > 0 else "no devices"


def _plain(unit: str) -> str:
    plain = _PER_DEVICE.sub("", unit.strip()).strip()
    if found := _CASED.fullmatch(plain):
        return f"{found[1].lower()}{'b' if found[2] == 'B' else 'bit'}/s"
    return plain.lower()


def _number(text: str) -> float:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return math.nan


def _count(text: str) -> int | None:
    """The first whole number: ``up to 112 H100`` is 112, ``8 GPUs x 16 nodes`` 128; ``8.0`` is taken as 8."""
    if grid := _GRID.fullmatch(text):
        return int(grid[1][:7]) * int(grid[2][:7])
    found = _COUNT.search(text)
    return int(found[0].replace(",", "").replace("_", "")[:15]) if found else None
