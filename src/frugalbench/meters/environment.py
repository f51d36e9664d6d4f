"""What the machine did around a timed window, and whether that spoilt it.

Read from ``/proc`` through descriptors that stay open; a look costs tens of microseconds.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from frugalbench.schema import Environment

TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
"""Resolution of ``/proc/stat``."""

MOST_RUN_DELAY = 0.05
"""Share of window x threads that the worker may stand runnable without a core: more, and someone else computed."""
MOST_STEAL = 0.05
"""Share of window x cores that the hypervisor may take; a single tick is the counter's resolution and excused."""
MOST_FOREIGN_CPU = 0.10
"""Share of window x cores that everyone else may use: small daemons come and go on any machine."""
FOREIGN_TICKS_PER_CORE = 2
"""Foreign CPU time below this many ticks per core is rounding: each of the two looks can be off by one."""

_SLOW_LOOK_S = 200e-6


@dataclass(frozen=True)
class Look:
    """Counters at one moment; a window is the difference of two."""

    wall_ns: int
    cpu_ns: int
    run_delay_ns: dict[tuple[int, int], int] | None
    """Run delay per (process, thread)."""
    busy_tick: int | None
    steal_tick: int | None
    throttled: int | None


class EnvironmentProbe:
    """Takes the environment of one window at a time, in the process that is timed.

    ``pids`` are further processes whose CPU time and run delay count as the worker's own (ranks that it started).
    Make it in the worker itself: after a fork the descriptors would still belong to the parent.
    """

    def __init__(self, pids: Sequence[int] = (), proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._proc = proc
        self._pids = (os.getpid(), *pids)
        self._stat = _open(proc / "stat")
        self._threads: dict[tuple[int, int], int] = {}
        cpu0 = sys / "devices/system/cpu/cpu0"
        self._throttle = _open(cpu0 / "thermal_throttle/package_throttle_count")
        self._clock = _open_if_quick(cpu0 / "cpufreq/scaling_cur_freq")
        self._begun: Look | None = None

    def begin(self) -> None:
        """First look; call it just before the window."""
        self._begun = self.look()

    def end(self, quiet_wait_s: float = 0.0, quiet: bool = True) -> Environment:
        """Second look, just after the window. Raises ``RuntimeError`` without a :meth:`begin`."""
        now, before = self.look(), self._begun
        if before is None:
            raise RuntimeError("EnvironmentProbe.end without begin")
        self._begun = None
        clock_khz = _number(self._clock)
        cpu_s = max(0, now.cpu_ns - before.cpu_ns) * 1e-9
        return Environment(
            wall_s=(now.wall_ns - before.wall_ns) * 1e-9,
            cpu_s=cpu_s,
            run_delay_s=_delay_s(before.run_delay_ns, now.run_delay_ns),
            steal_s=_ticks_s(before.steal_tick, now.steal_tick),
            foreign_cpu_s=_foreign_s(_ticks_s(before.busy_tick, now.busy_tick), cpu_s),
            quiet_wait_s=quiet_wait_s,
            quiet=quiet,
            clock_hz=None if clock_khz is None else clock_khz * 1e3,
            throttled=None if before.throttled is None or now.throttled is None else now.throttled > before.throttled,
        )

    def look(self) -> Look:
        """All counters now."""
        busy, steal = _busy_and_steal(self._stat)
        delay = self._run_delay_ns()
        throttled = _number(self._throttle)
        cpu_ns = time.process_time_ns() + sum(_other_cpu_ns(pid) for pid in self._pids[1:])
        return Look(time.perf_counter_ns(), cpu_ns, delay, busy, steal, throttled)

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in (self._stat, self._throttle, self._clock, *self._threads.values()):
            if descriptor is not None:
                os.close(descriptor)
        self._stat = self._throttle = self._clock = None
        self._threads = {}

    def _run_delay_ns(self) -> dict[tuple[int, int], int] | None:
        """Second field of every thread's ``schedstat``; ``/proc/<pid>/schedstat`` itself knows the main thread only."""
        found: dict[tuple[int, int], int] = {}
        for pid in self._pids:
            for tid in _thread_ids(self._proc / str(pid) / "task"):
                delay = self._thread_delay_ns(pid, tid)
                if delay is not None:
                    found[pid, tid] = delay
        for gone in self._threads.keys() - found.keys():
            os.close(self._threads.pop(gone))
        return found or None

    def _thread_delay_ns(self, pid: int, tid: int) -> int | None:
        descriptor = self._threads.get((pid, tid))
        if descriptor is None:
            descriptor = _open(self._proc / str(pid) / "task" / str(tid) / "schedstat")
            if descriptor is None:
                return None
            self._threads[pid, tid] = descriptor
        fields = _read(descriptor).split()
        return int(fields[1]) if len(fields) > 1 else None


def void_reason(environment: Environment, threads: int, cores: int) -> str | None:
    """Why the environment spoilt a window, or ``None``. Looks at the environment only, never at the time measured.

    ``threads`` compute threads of the worker on ``cores`` usable cores; an unreadable counter spoils nothing.
    """
    window_s = environment.wall_s
    delay_limit_s = MOST_RUN_DELAY * window_s * threads
    steal_limit_s = max(MOST_STEAL * window_s * cores, TICK_S * 1.5)
    foreign_limit_s = max(FOREIGN_TICKS_PER_CORE * TICK_S * cores, MOST_FOREIGN_CPU * window_s * cores)
    checks = (
        ("run delay", environment.run_delay_s, delay_limit_s),
        ("steal", environment.steal_s, steal_limit_s),
        ("foreign CPU", environment.foreign_cpu_s, foreign_limit_s),
    )
    for name, value_s, limit_s in checks:
        if value_s is not None and value_s > limit_s:
            return f"{name} {value_s * 1e3:.1f} ms above {limit_s * 1e3:.1f} ms"
    return None


def has_running_thread(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether any thread of ``pid`` but the caller's is running or runnable. ``OSError`` when the process is gone.

    The state in ``/proc`` is exact. The process's CPU clock is not: seen from outside it moves only with the scheduler
    tick, so a spinning pool looks asleep for milliseconds.
    """
    caller = str(threading.get_native_id())
    for task in os.scandir(proc / str(pid) / "task"):
        if task.name == caller:
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            stat = Path(task.path, "stat").read_text()
            if stat[stat.rindex(")") + 2] == "R":
                return True
    return False


def wait_until_quiet(
    pid: int,
    limit_s: float,
    pause_s: float = 0.0003,
    running: Callable[[int], bool] = has_running_thread,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[float, bool]:
    """Wait until two looks in a row find no thread of ``pid`` running, at most ``limit_s``; pools spin on after work.

    Returns the seconds waited and whether it became quiet. A process that is gone is quiet.
    """
    started_s = time.monotonic()
    still = 0
    try:
        while still < 2:
            still = 0 if running(pid) else still + 1
            waited_s = time.monotonic() - started_s
            if still < 2 and waited_s >= limit_s:
                return waited_s, False
            if still < 2:
                sleep(pause_s)
    except OSError:
        pass
    return time.monotonic() - started_s, True


def pss_bytes(pid: int, proc: Path = Path("/proc")) -> int | None:
    """Proportional set size of a process, ``None`` when unreadable or gone."""
    try:
        text = (proc / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return None
    line = next((line for line in text.splitlines() if line.startswith("Pss:")), None)
    return None if line is None else int(line.split()[1]) * 1024


def _busy_and_steal(descriptor: int | None) -> tuple[int | None, int | None]:
    """Ticks of user, nice, system, irq and softirq, and of steal, over all cores (guest time is part of user)."""
    fields = _read(descriptor, 256).split(maxsplit=10)[1:9]
    if len(fields) < 8:
        return None, None
    user, nice, system, idle, _, irq, softirq, steal = map(int, fields)
    busy = user + nice + system + irq + softirq
    return (busy, steal) if busy + idle else (None, None)  # sandboxes that do not count show zeros


def _delay_s(before: dict[tuple[int, int], int] | None, now: dict[tuple[int, int], int] | None) -> float | None:
    """Sum over threads alive at the end; one that is new, or took a number over, counts from zero."""
    if before is None or now is None:
        return None
    total_ns = 0
    for thread, value in now.items():
        start = before.get(thread, 0)
        total_ns += value - start if value >= start else value
    return total_ns * 1e-9


def _ticks_s(before: int | None, now: int | None) -> float | None:
    return None if before is None or now is None else max(0, now - before) * TICK_S


def _foreign_s(busy_s: float | None, own_s: float) -> float | None:
    return None if busy_s is None else max(0.0, busy_s - own_s)


def _other_cpu_ns(pid: int) -> int:
    try:
        return time.clock_gettime_ns((~pid) << 3 | 2)
    except OSError:
        return 0


def _thread_ids(folder: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(folder)]  # noqa: PTH208 (runs around every window)
    except OSError:
        return []


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _open_if_quick(path: Path) -> int | None:
    """Some kernels take milliseconds to work out the clock of a core; such a file is left alone."""
    descriptor = _open(path)
    if descriptor is None:
        return None
    started_s = time.perf_counter()
    _read(descriptor)
    if time.perf_counter() - started_s < _SLOW_LOOK_S:
        return descriptor
    os.close(descriptor)
    return None


def _read(descriptor: int | None, size: int = 128) -> bytes:
    try:
        return b"" if descriptor is None else os.pread(descriptor, size, 0)
    except OSError:
        return b""


def _number(descriptor: int | None) -> int | None:
    text = _read(descriptor).strip()
    return int(text) if text.isdigit() else None
