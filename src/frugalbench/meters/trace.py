"""Meters made of looks: watts that are integrated over the window, or a counter of joules read at its edges.

Times are in seconds on one clock and increase; between two looks a value is taken to change linearly.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite

from frugalbench.meters.base import Availability, Energy, MeterError
from frugalbench.schema import Tier

UNITS = ("W", "J")
"""What a source gives: watts just now, or joules since some moment that does not matter."""


def value_at(times_s: Sequence[float], values: Sequence[float], at_s: float) -> float:
    """The value at ``at_s``; before the first look and after the last one it is theirs."""
    after = bisect_right(times_s, at_s)
    if after == 0:
        return values[0]
    if after == len(times_s):
        return values[-1]
    t0, t1, v0, v1 = times_s[after - 1], times_s[after], values[after - 1], values[after]
    return v0 + (v1 - v0) * (at_s - t0) / (t1 - t0)


def integral(times_s: Sequence[float], watts: Sequence[float], start_s: float, end_s: float) -> float:
    """Joules from ``start_s`` to ``end_s``, by trapezoids."""
    inside = [(t, w) for t, w in zip(times_s, watts, strict=True) if start_s < t < end_s]
    edges = [(at, value_at(times_s, watts, at)) for at in (start_s, end_s)]
    points = [edges[0], *inside, edges[1]]
    return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairwise(points))


def growth(times_s: Sequence[float], joules: Sequence[float], start_s: float, end_s: float) -> float:
    """What a counter of joules grew by between ``start_s`` and ``end_s``. Raises :class:`MeterError` if it fell."""
    for before, after in pairwise(joules):
        if after < before:
            raise MeterError(f"the counter went back from {before:g} to {after:g} J (reset?)")
    return value_at(times_s, joules, end_s) - value_at(times_s, joules, start_s)


def joules_between(unit: str, times_s: Sequence[float], values: Sequence[float], start_s: float, end_s: float) -> float:
    """Joules of a window from looks in ``unit``. Raises :class:`MeterError`."""
    return (integral if unit == "W" else growth)(times_s, values, start_s, end_s)


def never_refused() -> Availability | None:
    """For sources that may always be used when they answer."""
    return None


@dataclass
class Trace:
    """The looks of one window."""

    times_s: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    start_s: float = 0.0
    end_s: float | None = None
    failed: str | None = None
    """Why a look within the window failed, which poisons it."""


@dataclass(frozen=True)
class TraceMeter:
    """A source that is asked for a value now and then: see :data:`UNITS`.

    ``read`` raises :class:`MeterError`. A look is dated halfway between asking and answer.
    """

    name: str
    scope: str
    method: str
    read: Callable[[], float]
    update_period_s: float
    unit: str = "W"
    remedy: str = ""
    refused: Callable[[], Availability | None] = never_refused
    """Why the source must not be used although it answers."""
    clock: Callable[[], float] = time.monotonic
    tier: Tier = Tier.MEASURED

    @property
    def look_period_s(self) -> float:
        return self.update_period_s

    def available(self) -> Availability:
        if (refusal := self.refused()) is not None:
            return refusal
        try:
            value = self._checked()
        except MeterError as error:
            return Availability(False, str(error), self.remedy)
        return Availability(True, f"{self.method}: {value:.6g} {self.unit} now")

    def begin(self) -> Trace:
        trace = Trace()
        self._look(trace)
        trace.start_s = self.clock()
        return trace

    def sample(self, mark: Trace) -> None:
        """One more look within the window; if it fails, the window will end poisoned."""
        try:
            self._look(mark)
        except MeterError as error:
            mark.failed = str(error)

    def stop(self, mark: Trace) -> None:
        """The window is over now, whatever the last look takes."""
        mark.end_s = self.clock()

    def end(self, mark: Trace) -> Energy:
        if mark.failed is not None:
            raise MeterError(mark.failed)
        end_s = self.clock() if mark.end_s is None else mark.end_s
        self._look(mark)
        return Energy(joules_between(self.unit, mark.times_s, mark.values, mark.start_s, end_s))

    def _look(self, trace: Trace) -> None:
        asked_s = self.clock()
        value = self._checked()
        trace.times_s.append((asked_s + self.clock()) / 2)
        trace.values.append(value)

    def _checked(self) -> float:
        value = self.read()
        if not isfinite(value) or value < 0:
            raise MeterError(f"{self.name}: {value:g} {self.unit} is no reading")
        return value


@dataclass(frozen=True)
class CounterMeter:
    """A counter of joules that is quick to read: what it grew by between the window's edges."""

    name: str
    scope: str
    method: str
    read: Callable[[], float]
    """Joules now. Raises :class:`MeterError`."""
    update_period_s: float
    remedy: str = ""
    refused: Callable[[], Availability | None] = never_refused
    tier: Tier = Tier.MEASURED
    stuck_s: float | None = None
    """A counter that did not move in a window so long is stuck; ``None`` where what it covers may draw nothing."""
    clock: Callable[[], float] = time.monotonic

    def available(self) -> Availability:
        if (refusal := self.refused()) is not None:
            return refusal
        try:
            self.read()
        except MeterError as error:
            return Availability(False, str(error), self.remedy)
        return Availability(True, f"{self.method} answers")

    def begin(self) -> tuple[float, float]:
        return self.read(), self.clock()

    def end(self, mark: tuple[float, float]) -> Energy:
        begun_j, begun_s = mark
        now_j, window_s = self.read(), self.clock() - begun_s
        if now_j < begun_j:
            raise MeterError(f"{self.name}: counter went back from {begun_j:g} to {now_j:g} J (driver reloaded?)")
        if now_j == begun_j and self.stuck_s is not None and window_s >= self.stuck_s:
            raise MeterError(f"{self.name}: counter stood at {now_j:g} J for {window_s:.1f} s (stuck?)")
        return Energy(now_j - begun_j)
