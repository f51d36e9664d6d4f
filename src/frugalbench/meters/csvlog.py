"""An external meter that writes a log: a CSV file that grows while we measure.

Columns by name, others are ignored: ``time_s`` (Unix seconds) or ``time`` (ISO 8601 with an offset), and ``watts`` or
``joules`` (a counter). Lines in front that begin with # are comments. A window counts only if rows lie on both sides of
it, without a gap in between.
"""

import csv
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from frugalbench.meters.base import Availability, Energy, Meter, MeterError
from frugalbench.meters.trace import joules_between
from frugalbench.schema import Tier

UPDATE_PERIOD_S = 1.0
GAP_PERIODS = 5.0
"""A gap of more update periods than this between two rows poisons the window."""
PATIENCE_PERIODS = 3.0
"""So many update periods may the log lag behind the end of a window."""
_BEFORE_BYTES = 1 << 16
"""How far before its end at the window's begin the file is read: the last row before the window is in there."""

_TIMES = ("time_s", "time")
_VALUES = {"watts": "W", "joules": "J"}


@dataclass
class CsvMark:
    """A window over a log."""

    offset: int
    """Where in the file to begin to read; may be negative."""
    start_s: float
    end_s: float | None = None


@dataclass(frozen=True)
class CsvMeter:
    """The log at ``path``; ``clock`` tells Unix time."""

    path: Path
    scope: str = "machine"
    update_period_s: float = UPDATE_PERIOD_S
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    tier: Tier = Tier.MEASURED

    @property
    def name(self) -> str:
        return f"csv {self.path.name}"

    @property
    def method(self) -> str:
        return f"log {self.path.name}"

    def available(self) -> Availability:
        remedy = "start the logger; columns: time_s or time, and watts or joules"
        try:
            rows = self._rows(self._size() - _BEFORE_BYTES)
        except MeterError as error:
            return Availability(False, str(error), remedy)
        if not rows.times_s:
            return Availability(False, f"{self.path}: no rows yet", remedy)
        age_s = self.clock() - rows.times_s[-1]
        if not -PATIENCE_PERIODS <= age_s / self.update_period_s <= GAP_PERIODS + PATIENCE_PERIODS:
            late = f"{age_s:.0f} s old" if age_s > 0 else f"{-age_s:.0f} s in the future"
            return Availability(False, f"{self.path}: the last row is {late}", f"{remedy}; both clocks must agree")
        return Availability(True, f"{self.path.name}: {rows.values[-1]:g} {rows.unit} in the last row")

    def begin(self) -> "CsvMark":
        return CsvMark(self._size() - _BEFORE_BYTES, self.clock())

    def stop(self, mark: "CsvMark") -> None:
        """The window is over now; the log may catch up later."""
        mark.end_s = self.clock()

    def end(self, mark: "CsvMark") -> Energy:
        end_s = self.clock() if mark.end_s is None else mark.end_s
        rows = self._rows_until(end_s, mark.offset)
        self._check_cover(rows.times_s, mark.start_s, end_s)
        return Energy(joules_between(rows.unit, rows.times_s, rows.values, mark.start_s, end_s))

    def _rows_until(self, end_s: float, offset: int) -> "Rows":
        """The log up to ``end_s``, or as far as it gets while we are patient."""
        give_up_s = self.clock() + PATIENCE_PERIODS * self.update_period_s
        rows = self._rows(offset)
        while (not rows.times_s or rows.times_s[-1] < end_s) and self.clock() < give_up_s:
            self.sleep(min(0.1, self.update_period_s))
            rows = self._rows(offset)
        return rows

    def _check_cover(self, times_s: list[float], start_s: float, end_s: float) -> None:
        if not times_s or times_s[0] > start_s or times_s[-1] < end_s:
            span = f"from {times_s[0]:.3f} to {times_s[-1]:.3f}" if times_s else "nothing"
            raise MeterError(f"{self.path}: does not cover the window {start_s:.3f} to {end_s:.3f}; it has {span}")
        if any(after <= before for before, after in pairwise(times_s)):
            raise MeterError(f"{self.path}: its times do not increase")
        gap_s = max((b - a for a, b in pairwise(times_s) if b > start_s and a < end_s), default=0.0)
        if gap_s > GAP_PERIODS * self.update_period_s:
            raise MeterError(f"{self.path}: a gap of {gap_s:.3g} s in the window")

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError as error:
            raise MeterError(f"{self.path}: {error.strerror}") from error

    def _rows(self, offset: int) -> "Rows":
        """What was logged from the first whole line after ``offset`` on."""
        try:
            with self.path.open("rb") as file:
                head = file.readline()
                while head.startswith(b"#"):
                    head = file.readline()
                if offset > file.tell():
                    file.seek(offset)
                    file.readline()
                text = (head + file.read()).decode("utf-8-sig", "replace")
        except OSError as error:
            raise MeterError(f"{self.path}: {error.strerror}") from error
        return parse(text, str(self.path))


@dataclass(frozen=True)
class Rows:
    """A log: Unix seconds, and values in ``unit``."""

    times_s: list[float]
    values: list[float]
    unit: str


def parse(text: str, where: str) -> Rows:
    """A log with its heading; a last line without an end is still being written. Raises :class:`MeterError`."""
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole))
    columns = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    when = next((name for name in _TIMES if name in columns), None)
    what = next((name for name in _VALUES if name in columns), None)
    if when is None or what is None:
        missing = "time_s or time" if when is None else "watts or joules"
        raise MeterError(f"{where}: no column {missing}; it has {', '.join(columns) or 'no heading'}")
    pairs = list(_pairs(reader, when, what, where))
    return Rows([at for at, _ in pairs], [value for _, value in pairs], _VALUES[what])


def _pairs(reader: "csv.DictReader[str]", when: str, what: str, where: str) -> Iterator[tuple[float, float]]:
    for row in reader:
        try:
            yield _unix_s(row[when] or "", when), float(row[what] or "")
        except (ValueError, TypeError, OverflowError) as error:
            shown = ", ".join(map(str, row.values()))[:80]
            raise MeterError(f"{where}: a row that cannot be read: {shown}: {error}") from None


def _unix_s(text: str, column: str) -> float:
    if column == "time_s":
        return float(text)
    moment = datetime.fromisoformat(text.strip())
    if moment.tzinfo is None:
        raise ValueError("a time without an offset; write Z or +01:00")
    return moment.timestamp()


def discover(path: str, scope: str = "machine", update_period_s: float | None = None) -> list[Meter]:
    """The one meter; empty without a path."""
    return [CsvMeter(Path(path), scope, update_period_s or UPDATE_PERIOD_S)] if path else []


def probe(path: str = "") -> Availability:
    """Whether the log is being written just now."""
    meters = discover(path)
    if not meters:
        return Availability(False, "not configured", '[energy] meter = "csv", csv = "LOG.csv"')
    return meters[0].available()
