"""Counters of the kernel in ``/proc`` and ``/sys``, read through descriptors that stay open: microseconds a look.

A counter that cannot be read is ``None``, never 0.
"""

import os
import resource
import time
from collections.abc import Iterable
from pathlib import Path

TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
"""Resolution of ``/proc/stat``."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_SLOW_LOOK_S = 200e-6
_PROCESSOR_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "x86_pkg_temp", "cpu-thermal", "soc_thermal")
"""Names that the kernel's drivers give to the sensor on the processor; others sit on disks and boards."""


def busy_and_steal(descriptor: int | None) -> tuple[int | None, int | None]:
    """Ticks of user, nice, system, irq and softirq, and of steal, over all cores (guest time is part of user)."""
    fields = read(descriptor, 256).split(maxsplit=10)[1:9]
    if len(fields) < 8:
        return None, None
    user, nice, system, idle, _, irq, softirq, steal = map(int, fields)
    busy = user + nice + system + irq + softirq
    return (busy, steal) if busy + idle else (None, None)  # sandboxes that do not count show zeros


def run_delay_ns(descriptor: int) -> int | None:
    """Second field of a thread's ``schedstat``."""
    fields = read(descriptor).split()
    return int(fields[1]) if len(fields) > 1 else None


def memory_stall_us(descriptor: int | None) -> int | None:
    """``total`` of the line ``some`` in ``/proc/pressure/memory``: time in which any task waited for memory."""
    line = read(descriptor, 96).partition(b"\n")[0]
    total = line.rpartition(b"total=")[2]
    return int(total) if line.startswith(b"some") and total.isdigit() else None


def swapped_pages(descriptor: int | None) -> int | None:
    """Pages that went to and came from swap since boot: ``pswpin + pswpout`` of ``/proc/vmstat``, one after the other.

    The kernel writes the whole file for each look, so this one is slow (22 us); open it only where there is swap.
    """
    text = read(descriptor, 8192)
    fields = text[text.find(b"\npswpin ") + 1 :].split(maxsplit=4)[:4]
    return int(fields[1]) + int(fields[3]) if len(fields) == 4 and fields[2] == b"pswpout" else None


def has_swap(proc: Path) -> bool | None:
    """Whether any swap is switched on; ``None`` when that cannot be read."""
    try:
        return len((proc / "swaps").read_text().splitlines()) > 1
    except OSError:
        return None


def own_use(others: Iterable[int] = ()) -> tuple[int, int, int]:
    """CPU nanoseconds, page faults that read from disk, and involuntary context switches.

    Of this process and of the children that it has reaped; CPU time also of the processes ``others``. One of these
    that has ended counts no longer by itself; when it was a child it has moved to the reaped ones.
    """
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    reaped_ns = round((children.ru_utime + children.ru_stime) * 1e9)
    cpu_ns = time.process_time_ns() + reaped_ns + sum(_other_cpu_ns(pid) for pid in others)
    return cpu_ns, own.ru_majflt + children.ru_majflt, own.ru_nivcsw + children.ru_nivcsw


def _other_cpu_ns(pid: int) -> int:
    try:
        return time.clock_gettime_ns((~pid) << 3 | 2)
    except OSError:
        return 0


def temperature_file(sys: Path) -> Path | None:
    """The processor's sensor in millidegrees Celsius: the first such ``hwmon``, else thermal zone; ``None`` without."""
    for pattern, name, value in (("hwmon/hwmon*", "name", "temp1_input"), ("thermal/thermal_zone*", "type", "temp")):
        for folder in sorted((sys / "class").glob(pattern)):
            try:
                if (folder / name).read_text().strip() in _PROCESSOR_SENSORS:
                    return folder / value
            except OSError:
                continue
    return None


def thread_ids(folder: Path) -> list[int]:
    """Names in ``/proc/<pid>/task``; none when the process is gone."""
    try:
        return [int(name) for name in os.listdir(folder)]  # noqa: PTH208 (runs around every window)
    except OSError:
        return []


def open_file(path: Path) -> int | None:
    """A descriptor to look through, ``None`` when the file cannot be opened."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def open_if_quick(path: Path | None) -> int | None:
    """Some files take milliseconds to work out (the clock of a core, a sensor behind a slow bus): left alone."""
    descriptor = None if path is None else open_file(path)
    if descriptor is None:
        return None
    started_s = time.perf_counter()
    read(descriptor)
    if time.perf_counter() - started_s < _SLOW_LOOK_S:
        return descriptor
    os.close(descriptor)
    return None


def read(descriptor: int | None, size: int = 128) -> bytes:
    """The first ``size`` bytes, empty when unreadable."""
    try:
        return b"" if descriptor is None else os.pread(descriptor, size, 0)
    except OSError:
        return b""


def number(descriptor: int | None) -> int | None:
    """A file that holds one whole number."""
    text = read(descriptor).strip()
    return int(text) if text.removeprefix(b"-").isdigit() else None
