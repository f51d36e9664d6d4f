"""What every energy meter provides, which of them count, and the window that turns meters into readings.

A meter is probed by reading it. A window is opened just before the timed calls and closed just after them, so that
joules and seconds come from the same window. A read that fails poisons its own window, no other.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Event, Thread
from typing import Any, Protocol

from frugalbench.meters.agreement import cross_check
from frugalbench.schema import Reading, Role, Tier

WHOLE_SCOPES = ("platform", "machine")
"""Scopes that other scopes are parts of; ``machine`` is what the power supply delivers."""
SCOPES = ("cpu-package", "cpu-core", "cpu-uncore", "cpu-dram", "gpu-board", *WHOLE_SCOPES)


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
    """One source of energy figures.

    One that must be looked at within the window has three things more: ``sample(mark)``, ``look_period_s`` (how often),
    and ``stop(mark)`` (the window ends now; costs nothing).
    """

    @property
    def name(self) -> str: ...

    @property
    def scope(self) -> str:
        """What the joules cover: one of :data:`SCOPES`, or a name of its own, which then counts for nothing."""
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


def counting_scopes(scopes: Iterable[str], device: str) -> frozenset[str]:
    """The scopes whose joules add up to what computing on ``device`` costs, none counted twice; empty if none does.

    A part of a package is left out beside its package, and a whole beside its parts: counters near the silicon come
    first, then the platform (CPU only), then the machine. Boards of a GPU that is not the device do not count.
    """
    found = frozenset(scopes)
    processor = found & {"cpu-package", "cpu-dram"}
    if device == "cpu" and "cpu-package" in processor:
        return processor
    if device != "cpu" and "gpu-board" in found:
        return processor | {"gpu-board"}
    wholes = ("platform", "machine") if device == "cpu" else ("machine",)
    return frozenset(next(({whole} for whole in wholes if whole in found), ()))


class Window:
    """One window over several meters. Make it, run the calls, then :meth:`close` it.

    ``counting`` are the scopes that count (``None``: all). A ``watched`` window looks at the meters that need it from
    threads that sleep in between, on any of ``cores``; without it, call :meth:`sample` from time to time. The slowest
    meter is begun first and ended last, so that the time it takes to read falls outside the others' window.
    """

    def __init__(
        self,
        meters: Sequence[Meter],
        clock: Callable[[], float] = time.monotonic,
        counting: Iterable[str] | None = None,
        watched: bool = False,
        cores: Iterable[int] = (),
    ) -> None:
        self._meters = tuple(meters)
        self._clock = clock
        self._counting = None if counting is None else frozenset(counting)
        self._order = sorted(range(len(self._meters)), key=lambda index: -self._meters[index].update_period_s)
        self._marks = {index: _attempt(self._meters[index].begin) for index in self._order}
        self._watch = Watch(self._looks(), frozenset(cores)) if watched else None
        self.start_s = clock()

    def _looks(self) -> dict[int, tuple[Callable[[], Any], float]]:
        """For each meter that is to be looked at within the window: how, and how often in seconds."""
        begun: dict[int, Any] = {i: self._meters[i] for i, (_, error) in self._marks.items() if error is None}
        return {
            index: (partial(_attempt, partial(meter.sample, self._marks[index][0])), meter.look_period_s)
            for index, meter in begun.items()
            if hasattr(meter, "sample")
        }

    def sample(self) -> None:
        """Look once, now, at the meters that need it."""
        for look, _ in self._looks().values():
            look()

    def close(self, calls: int, round_number: int | None = None, origin_s: float = 0.0) -> tuple[Reading, ...]:
        """One reading per meter, in their order; ``origin_s`` is zero of the run's monotonic clock."""
        window_s = self._clock() - self.start_s
        self._stop()
        ended = {index: self._end(index) for index in reversed(self._order)}
        if self._watch is not None:
            self._watch.join()
        readings = [
            self._reading(index, *ended[index], window_s, calls, round_number, origin_s)
            for index in range(len(self._meters))
        ]
        return cross_check(readings, [meter.update_period_s for meter in self._meters])

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        for index, (mark, error) in self._marks.items():
            stop = getattr(self._meters[index], "stop", None)
            if error is None and stop is not None:
                _attempt(partial(stop, mark))

    def _end(self, index: int) -> tuple[Energy, str | None]:
        mark, error = self._marks[index]
        if error is not None:
            return Energy(None), error
        if self._watch is not None:
            self._watch.join(index)
        energy, error = _attempt(partial(self._meters[index].end, mark))
        return (Energy(None), error) if error is not None else (energy, None)

    def _reading(
        self,
        index: int,
        energy: Energy,
        error: str | None,
        window_s: float,
        calls: int,
        number: int | None,
        zero: float,
    ) -> Reading:
        meter = self._meters[index]
        counts = self._counting is None or meter.scope in self._counting or meter.tier is not Tier.MEASURED
        return Reading(
            joule=energy.joule,
            low_joule=energy.low_joule,
            high_joule=energy.high_joule,
            scope=meter.scope,
            method=meter.method,
            tier=meter.tier,
            window_s=window_s,
            calls=calls,
            start_s=self.start_s - zero,
            round=number if counts else None,
            error=error,
            role=Role.GROSS if counts else Role.PART,
        )


class Watch:
    """Threads that look at meters within a window, one each, so that a slow meter does not hold up a quick one.

    They may run on ``cores``, also where the thread that starts them is bound to one of these.
    """

    def __init__(self, looks: dict[int, tuple[Callable[[], Any], float]], cores: frozenset[int] = frozenset()) -> None:
        self._over = Event()
        self._cores = cores
        self._threads = {
            index: Thread(target=self._run, args=(look, period_s), name=f"meter-{index}", daemon=True)
            for index, (look, period_s) in looks.items()
        }
        for thread in self._threads.values():
            thread.start()

    def _run(self, look: Callable[[], Any], period_s: float) -> None:
        if self._cores:
            with suppress(OSError):
                os.sched_setaffinity(0, self._cores)
        while not self._over.wait(period_s):
            look()

    def stop(self) -> None:
        """No new look from now on."""
        self._over.set()

    def join(self, index: int | None = None) -> None:
        """Wait for the look in progress at one meter, or at all."""
        for number, thread in self._threads.items():
            if index is None or index == number:
                thread.join()


def first_working(meters: Sequence[Meter], otherwise: Availability) -> Availability:
    """The first meter's answer that is a yes, else the first answer, else ``otherwise``."""
    answers = [meter.available() for meter in meters]
    return next((answer for answer in answers if answer), answers[0] if answers else otherwise)


def _attempt(action: Callable[[], Any]) -> tuple[Any, str | None]:
    """The result of ``action``, or why the meter failed; a meter's bug must not take the measurement down."""
    try:
        return action(), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}" if not isinstance(error, MeterError) else str(error)
