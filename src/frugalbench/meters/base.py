"""What every energy meter provides, and the window that turns meters into readings.

A meter is probed by reading it. A window is opened just before the timed calls and closed just after them,
so that joules and seconds come from the same window. A read that fails poisons its own window, no other.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from frugalbench.schema import Reading, Tier


class MeterError(Exception):
    """A counter could not be read, or its values make no sense; the window's joules are unknown."""


@dataclass(frozen=True)
class Availability:
    """Whether a meter gave a value when it was read, and what to do when it did not."""

    ok: bool
    detail: str
    remedy: str = ""

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True)
class Energy:
    """Joules of one window: a value, or an interval (``joule`` is then ``None``), or both."""

    joule: float | None
    low_joule: float | None = None
    high_joule: float | None = None


class Meter(Protocol):
    """One source of energy figures."""

    @property
    def name(self) -> str: ...

    @property
    def scope(self) -> str:
        """What the joules cover: ``cpu-package``, ``cpu-dram``, ``gpu-board`` …"""
        ...

    @property
    def method(self) -> str: ...

    @property
    def tier(self) -> Tier: ...

    @property
    def update_period_s(self) -> float:
        """How often the source itself changes; an energy window lasts at least 20 of these."""
        ...

    def available(self) -> Availability:
        """Reads the source once."""
        ...

    def begin(self) -> Any:
        """An opaque mark. Raises :class:`MeterError`."""
        ...

    def end(self, mark: Any) -> Energy:
        """Energy since ``mark``. Raises :class:`MeterError`. A mark may be ended more than once."""
        ...


class Window:
    """One window over several meters. Make it, run the calls, then :meth:`close` it."""

    def __init__(self, meters: Sequence[Meter], clock: Callable[[], float] = time.monotonic) -> None:
        self._meters = tuple(meters)
        self._clock = clock
        self._marks = [_attempt(meter.begin) for meter in self._meters]
        self.start_s = clock()

    def sample(self) -> None:
        """Let meters that integrate power look once; call it from time to time within a long window."""
        for meter, (mark, error) in zip(self._meters, self._marks, strict=True):
            look = getattr(meter, "sample", None)
            if look is not None and error is None:
                _attempt(partial(look, mark))

    def close(self, calls: int, round_number: int | None = None, origin_s: float = 0.0) -> tuple[Reading, ...]:
        """One reading per meter, the last begun read first; ``origin_s`` is zero of the run's monotonic clock."""
        window_s = self._clock() - self.start_s
        ended = [self._end(index) for index in reversed(range(len(self._meters)))]
        return tuple(
            Reading(
                joule=energy.joule,
                low_joule=energy.low_joule,
                high_joule=energy.high_joule,
                scope=meter.scope,
                method=meter.method,
                tier=meter.tier,
                window_s=window_s,
                calls=calls,
                start_s=self.start_s - origin_s,
                round=round_number,
                error=error,
            )
            for meter, (energy, error) in zip(self._meters, reversed(ended), strict=True)
        )

    def _end(self, index: int) -> tuple[Energy, str | None]:
        mark, error = self._marks[index]
        if error is not None:
            return Energy(None), error
        energy, error = _attempt(partial(self._meters[index].end, mark))
        return (Energy(None), error) if error is not None else (energy, None)


def _attempt(action: Callable[[], Any]) -> tuple[Any, str | None]:
    """The result of ``action``, or why the meter failed; a meter's bug must not take the measurement down."""
    try:
        return action(), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}" if not isinstance(error, MeterError) else str(error)
