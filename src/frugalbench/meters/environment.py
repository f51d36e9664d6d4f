"""What the machine did around a timed window, and whether that spoilt it.

Looks are taken just outside the window, before and after it; a pair costs tens of microseconds.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from frugalbench.meters import counters
from frugalbench.meters.counters import PAGE_BYTES, TICK_S
from frugalbench.meters.gpu_state import Pulse
from frugalbench.meters.gpu_throttle import Reasons
from frugalbench.schema import Environment

MOST_RUN_DELAY = 0.05
"""Share of window x threads that the worker may stand runnable without a core: more, and someone else computed."""
MOST_STEAL = 0.05
"""Share of window x cores that the hypervisor may take; a single tick is the counter's resolution and excused."""
MOST_FOREIGN_CPU = 0.10
"""Share of window x cores that everyone else may use: small daemons come and go on any machine."""
FOREIGN_TICKS_PER_CORE = 2
"""Foreign CPU time below this many ticks per core is rounding: each of the two looks can be off by one."""
MOST_MEMORY_STALL = 0.05
"""Share of the window in which any task may wait for memory: the counter is wall time, so were the task ours, the
window would be longer by at most this share, which is what run delay is allowed."""
SWAP_BYTE_PER_S = 1e9
"""What a fast swap device moves. Pages that would keep it busy for more than :data:`MOST_MEMORY_STALL` of the window
are too many; on a slower device they cost more."""
SPOILING_THROTTLE = ("thermal", "slowdown", "brake")
"""Words in the reasons of a GPU that void a round. A power cap is none: the work under test itself draws that power,
and one arm may draw more than another, so it is recorded and left alone."""


@dataclass(frozen=True)
class Look:
    """Counters at one moment; a window is the difference of two."""

    wall_ns: int
    cpu_ns: int
    run_delay_ns: dict[tuple[int, int], int] | None
    """Run delay per (process, thread)."""
    busy_tick: int | None
    steal_tick: int | None
    major_faults: int
    preemptions: int


@dataclass(frozen=True)
class Strain:
    """What is slower to read, and therefore read further away from the window than a :class:`Look`."""

    throttled: int | None
    memory_stall_us: int | None
    swapped_pages: int | None
    gpu_throttle: tuple[str, ...] | None


class EnvironmentProbe:
    """Takes the environment of one window at a time, in the process that is timed.

    ``pids`` are further processes whose CPU time and run delay count as the worker's own (ranks that it started).
    Commands that the worker starts and waits for count as its own too, when they end; their run delay is not seen.
    ``gpu_reasons`` is asked at both ends of a window why the GPU holds its clocks back, ``gpu_pulse`` at its end for
    its clocks and heat. Make the probe in the worker itself: after a fork the descriptors would still belong to the
    parent.
    """

    def __init__(
        self,
        pids: Sequence[int] = (),
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        gpu_reasons: Reasons | None = None,
        gpu_pulse: Callable[[], Pulse | None] | None = None,
    ) -> None:
        self._proc = proc
        self._pids = (os.getpid(), *pids)
        self._stat = counters.open_file(proc / "stat")
        self._memory = counters.open_file(proc / "pressure" / "memory")
        swap = counters.has_swap(proc)
        self._without_swap = swap is False
        self._vmstat = counters.open_file(proc / "vmstat") if swap else None
        self._threads: dict[tuple[int, int], int] = {}
        cpu0 = sys / "devices/system/cpu/cpu0"
        self._throttle = counters.open_file(cpu0 / "thermal_throttle/package_throttle_count")
        self._clock = counters.open_if_quick(cpu0 / "cpufreq/scaling_cur_freq")
        self._temperature = counters.open_if_quick(counters.temperature_file(sys))
        self._gpu_reasons = gpu_reasons
        self._gpu_pulse = gpu_pulse
        self._begun: tuple[Strain, Look] | None = None

    def begin(self) -> None:
        """First look; call it just before the window."""
        strain = self._strain()
        self._begun = strain, self.look()

    def end(self, quiet_wait_s: float = 0.0, quiet: bool = True) -> Environment:
        """Second look, just after the window. Raises ``RuntimeError`` without a :meth:`begin`."""
        if self._begun is None:
            raise RuntimeError("EnvironmentProbe.end without begin")
        now = self.look()
        clock_khz = counters.number(self._clock)
        gpu = self._gpu_pulse() if self._gpu_pulse is not None else None
        (strained, before), strain = self._begun, self._strain()
        self._begun = None
        millidegrees = counters.number(self._temperature)
        cpu_s = max(0, now.cpu_ns - before.cpu_ns) * 1e-9
        throttles = _grown(strained.throttled, strain.throttled, 1.0)
        return Environment(
            wall_s=(now.wall_ns - before.wall_ns) * 1e-9,
            cpu_s=cpu_s,
            run_delay_s=_delay_s(before.run_delay_ns, now.run_delay_ns),
            steal_s=_grown(before.steal_tick, now.steal_tick, TICK_S),
            foreign_cpu_s=_foreign_s(_grown(before.busy_tick, now.busy_tick, TICK_S), cpu_s),
            quiet_wait_s=quiet_wait_s,
            quiet=quiet,
            clock_hz=None if clock_khz is None else clock_khz * 1e3,
            throttled=None if throttles is None else throttles > 0,
            memory_stall_s=_grown(strained.memory_stall_us, strain.memory_stall_us, 1e-6),
            swapped_bytes=_grown(strained.swapped_pages, strain.swapped_pages, float(PAGE_BYTES)),
            major_faults=now.major_faults - before.major_faults,
            preemptions=now.preemptions - before.preemptions,
            temperature_c=None if millidegrees is None else millidegrees * 1e-3,
            gpu_throttle=_united(strained.gpu_throttle, strain.gpu_throttle),
            gpu_clock_hz=gpu.clock_hz if gpu else None,
            gpu_memory_clock_hz=gpu.memory_clock_hz if gpu else None,
            gpu_temperature_c=gpu.temperature_c if gpu else None,
        )

    def look(self) -> Look:
        """The clocks and counters now."""
        busy, steal = counters.busy_and_steal(self._stat)
        delay = self._run_delay_ns()
        cpu_ns, faults, preemptions = counters.own_use(self._pids[1:])
        return Look(time.perf_counter_ns(), cpu_ns, delay, busy, steal, faults, preemptions)

    def _strain(self) -> Strain:
        return Strain(
            throttled=counters.number(self._throttle),
            memory_stall_us=counters.memory_stall_us(self._memory),
            swapped_pages=0 if self._without_swap else counters.swapped_pages(self._vmstat),
            gpu_throttle=None if self._gpu_reasons is None else self._gpu_reasons(),
        )

    def close(self) -> None:
        """Close the descriptors."""
        single = (self._stat, self._memory, self._vmstat, self._throttle, self._clock, self._temperature)
        for descriptor in (*single, *self._threads.values()):
            if descriptor is not None:
                os.close(descriptor)
        self._stat = self._memory = self._vmstat = self._throttle = self._clock = self._temperature = None
        self._threads = {}

    def _run_delay_ns(self) -> dict[tuple[int, int], int] | None:
        """Run delay of every thread; ``/proc/<pid>/schedstat`` itself knows the main thread only."""
        found: dict[tuple[int, int], int] = {}
        for pid in self._pids:
            for tid in counters.thread_ids(self._proc / str(pid) / "task"):
                delay = self._thread_delay_ns(pid, tid)
                if delay is not None:
                    found[pid, tid] = delay
        for gone in self._threads.keys() - found.keys():
            os.close(self._threads.pop(gone))
        return found or None

    def _thread_delay_ns(self, pid: int, tid: int) -> int | None:
        descriptor = self._threads.get((pid, tid))
        if descriptor is None:
            descriptor = counters.open_file(self._proc / str(pid) / "task" / str(tid) / "schedstat")
            if descriptor is None:
                return None
            self._threads[pid, tid] = descriptor
        return counters.run_delay_ns(descriptor)


def void_reason(environment: Environment, threads: int, cores: int, most_cpu_share: float | None = None) -> str | None:
    """Why the environment spoilt a window, or ``None``. Looks at the environment only, never at the time measured.

    ``threads`` compute threads of the worker on ``cores`` usable cores, of which no more than ``most_cpu_share`` may be
    busy, whoever keeps them so; an unreadable counter spoils nothing.
    """
    if most_cpu_share is not None and (busy := _cpu_share(environment, cores)) > most_cpu_share:
        return f"{busy:.0%} of the cores busy, above {most_cpu_share:.0%}"
    if environment.throttled:
        return "CPU throttled"
    if held := [reason for reason in environment.gpu_throttle or () if _spoils(reason)]:
        return f"GPU throttled: {', '.join(held)}"
    swap_limit_bytes = MOST_MEMORY_STALL * environment.wall_s * SWAP_BYTE_PER_S
    if environment.swapped_bytes is not None and environment.swapped_bytes > swap_limit_bytes:
        return f"swapping {environment.swapped_bytes / 1e6:.1f} MB above {swap_limit_bytes / 1e6:.1f} MB"
    return _lost_time(environment, threads, cores)


def _cpu_share(environment: Environment, cores: int) -> float:
    return (environment.cpu_s + (environment.foreign_cpu_s or 0.0)) / (environment.wall_s * cores)


def _lost_time(environment: Environment, threads: int, cores: int) -> str | None:
    window_s = environment.wall_s
    delay_limit_s = MOST_RUN_DELAY * window_s * threads
    steal_limit_s = max(MOST_STEAL * window_s * cores, TICK_S * 1.5)
    foreign_limit_s = max(FOREIGN_TICKS_PER_CORE * TICK_S * cores, MOST_FOREIGN_CPU * window_s * cores)
    checks = (
        ("run delay", environment.run_delay_s, delay_limit_s),
        ("steal", environment.steal_s, steal_limit_s),
        ("foreign CPU", environment.foreign_cpu_s, foreign_limit_s),
        ("memory stall", environment.memory_stall_s, MOST_MEMORY_STALL * window_s),
    )
    for name, value_s, limit_s in checks:
        if value_s is not None and value_s > limit_s:
            return f"{name} {value_s * 1e3:.1f} ms above {limit_s * 1e3:.1f} ms"
    return None


def _spoils(reason: str) -> bool:
    return any(word in reason.lower() for word in SPOILING_THROTTLE)


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


def _united(before: tuple[str, ...] | None, now: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if before is None and now is None:
        return None
    return tuple(sorted({*(before or ()), *(now or ())}))


def _delay_s(before: dict[tuple[int, int], int] | None, now: dict[tuple[int, int], int] | None) -> float | None:
    """Sum over threads alive at the end; one that is new, or took a number over, counts from zero."""
    if before is None or now is None:
        return None
    total_ns = 0
    for thread, value in now.items():
        start = before.get(thread, 0)
        total_ns += value - start if value >= start else value
    return total_ns * 1e-9


def _grown(before: int | None, now: int | None, unit: float) -> float | None:
    """How far a counter went, in its unit; a counter that went back stands still."""
    return None if before is None or now is None else max(0, now - before) * unit


def _foreign_s(busy_s: float | None, own_s: float) -> float | None:
    return None if busy_s is None else max(0.0, busy_s - own_s)
