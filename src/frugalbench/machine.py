"""The machine in front of you: what it has, what it is called, and how to tell it from another.

Also re-exports what watches it while something is timed (:mod:`frugalbench.meters.environment`) and what it can and
cannot measure (:mod:`frugalbench.meters.capabilities`).
"""

import hashlib
import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from frugalbench.meters import gpu_state, kfd
from frugalbench.meters.capabilities import Capability, ProbeResult, capabilities, deep_probes, why_no_engine
from frugalbench.meters.environment import (
    EnvironmentProbe,
    has_running_thread,
    pss_bytes,
    void_reason,
    wait_until_quiet,
)
from frugalbench.meters.nvml import device_node

__all__ = [
    "Capability",
    "EnvironmentProbe",
    "Machine",
    "ProbeResult",
    "available_bytes",
    "capabilities",
    "deep_probes",
    "has_running_thread",
    "load_average",
    "pss_bytes",
    "throttle_count",
    "void_reason",
    "wait_until_quiet",
    "why_no_engine",
]

_X86_VECTORS = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16")
_X86_TILES = ("amx_tile", "amx_int8", "amx_bf16")
_ARM = ("neon", "asimddp", "i8mm", "bf16", "sve")
FLAGS = (*_X86_VECTORS, *_X86_TILES, *_ARM)
"""Instruction sets that decide which kernels run (``/proc/cpuinfo``'s names; ``asimd`` is shown as ``neon``)."""

UNKNOWN_CACHE_BYTES = 32 * 2**20
"""Assumed last-level cache where the system shows none: larger than most, so buffers still exceed the real one."""

_SIZE = {"K": 2**10, "M": 2**20, "G": 2**30}
_UNLIMITED_BYTES = 2**60
"""Control groups write "no limit" as ``max`` (version 2) or as a number near 2**63 (version 1)."""


@dataclass(frozen=True)
class Machine:
    """What stays the same while the machine is up. Make one with :meth:`detect`."""

    cpu_model: str
    architecture: str
    logical_cores: int
    """Cores that this process may use (affinity), not all that exist."""
    physical_cores: int | None
    flags: tuple[str, ...]
    caches: dict[str, int]
    """Bytes per level and kind (``L1d``, ``L2``, ``L3``), summed over the instances of the usable cores."""
    memory_bytes: int | None
    kernel: str
    hypervisor: str | None
    python: str
    governor: str | None
    gpus: tuple[str, ...]
    memory_limit_bytes: int | None = None
    """Of the control group, ``None`` when there is none."""
    cpu_limit_cores: float | None = None

    @classmethod
    def detect(cls, root: Path = Path("/")) -> "Machine":
        """Reads ``/proc`` and ``/sys`` under ``root``; what cannot be read is ``None``."""
        cpuinfo = _cpuinfo(_text(root / "proc/cpuinfo") or "")
        cpus = root / "sys/devices/system/cpu"
        usable = _usable_cores()
        memory_limit, cpu_limit = _cgroup_limits(root)
        return cls(
            cpu_model=cpuinfo.get("model name") or cpuinfo.get("Model") or platform.processor() or "unknown processor",
            architecture=platform.machine(),
            logical_cores=len(usable),
            physical_cores=_physical_cores(cpus, usable),
            flags=_flags(cpuinfo),
            caches=_caches(cpus, usable),
            memory_bytes=_memory_bytes(root),
            kernel=platform.release(),
            hypervisor=_hypervisor(root, cpuinfo),
            python=platform.python_version(),
            governor=_text(cpus / "cpu0/cpufreq/scaling_governor"),
            gpus=_gpus(),
            memory_limit_bytes=memory_limit,
            cpu_limit_cores=cpu_limit,
        )

    @property
    def last_level_cache_bytes(self) -> int:
        """All of the outermost cache that the usable cores share, or :data:`UNKNOWN_CACHE_BYTES`."""
        return self.caches[max(self.caches)] if self.caches else UNKNOWN_CACHE_BYTES

    @property
    def name(self) -> str:
        """Short, for a table row: ``AMD EPYC, 2 cores, 24 GiB``."""
        cores = f"{self.logical_cores} core" + ("s" if self.logical_cores != 1 else "")
        memory = [] if self.memory_bytes is None else [f"{round(self.memory_bytes / 2**30)} GiB"]
        return ", ".join([_short(self.cpu_model), cores, *memory, *(_short(gpu) for gpu in self.gpus)])

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits, equal where results may be continued: hardware, kernel series and virtualisation.

        Memory counts in steps of 256 MiB (the total moves a little at each boot). Load, time and host name do not.
        """
        memory = None if self.memory_bytes is None else round(self.memory_bytes / 2**28)
        series = ".".join(self.kernel.split(".")[:2])
        kept = (self.cpu_model, self.architecture, self.logical_cores, self.physical_cores, self.flags, self.caches)
        limits = (self.cpu_limit_cores, self.governor)
        text = json.dumps([kept, memory, series, self.hypervisor, self.gpus, limits], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def installed(self, package: str) -> str | None:
        """Version of a distribution by its name on the package index, or ``None``. Imports nothing."""
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    def has_cuda(self) -> bool:
        """Whether there is a device that torch calls ``cuda``: NVIDIA's node, or an AMD GPU. Imports nothing."""
        return device_node() is not None or kfd.DEVICE.exists()

    @property
    def gpu_l2_bytes(self) -> int:
        """Last-level cache of the first board that CUDA may use; 0 where the driver does not tell."""
        return next((board.l2_bytes or 0 for board in gpu_state.boards()), 0)

    @property
    def gpu_memory_bytes(self) -> int | None:
        """Memory of that board; ``None`` where the driver does not tell."""
        return next((board.memory_bytes for board in gpu_state.boards()), None)

    def describe(self) -> dict[str, Any]:
        """Everything known, and what it does just now, as plain data for the manifest."""
        fixed = asdict(self) | {"flags": list(self.flags), "gpus": list(self.gpus)}
        now: dict[str, Any] = {"load_average": load_average(), "throttle_count": throttle_count()}
        now["gpu_boards"] = gpu_state.plain()
        cache = {"last_level_cache_bytes": self.last_level_cache_bytes if self.caches else None}
        return {"fingerprint": self.fingerprint, "name": self.name, **fixed, **cache, **now}


def load_average() -> tuple[float, float, float] | None:
    """Runnable tasks over 1, 5 and 15 minutes."""
    try:
        return os.getloadavg()
    except OSError:
        return None


def throttle_count(root: Path = Path("/")) -> int | None:
    """Thermal throttling events since boot, cores and packages added up; ``None`` where no counter is readable."""
    counters = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    counts = [int(text) for path in counters if (text := _text(path)) and text.isdigit()]
    return sum(counts) if counts else None


def _usable_cores() -> list[int]:
    """Numbers of the cores that this process may use; all of them on systems that know no affinity."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _short(name: str) -> str:
    """A processor's or board's name without marks, core counts and clocks."""
    plain = re.sub(r"\((R|TM|C)\)|\bCPU\b|\bProcessor\b|\d+-Core|@.*", " ", name)
    return " ".join(plain.split())


def _cpuinfo(text: str) -> dict[str, str]:
    """Fields of the first processor."""
    lines = (line.partition(":") for line in reversed(text.splitlines()) if ":" in line)
    return {key.strip(): value.strip() for key, _, value in lines}


def _flags(cpuinfo: dict[str, str]) -> tuple[str, ...]:
    found = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    if "asimd" in found:
        found.add("neon")
    return tuple(flag for flag in FLAGS if flag in found)


def _physical_cores(cpus: Path, usable: list[int]) -> int | None:
    folders = [cpus / f"cpu{cpu}/topology" for cpu in usable]
    pairs = {(_text(folder / "physical_package_id"), _text(folder / "core_id")) for folder in folders}
    return None if any(None in pair for pair in pairs) else len(pairs)


def _caches(cpus: Path, usable: list[int]) -> dict[str, int]:
    instances: dict[tuple[str, str], int] = {}
    for cpu in usable:
        for index in sorted((cpus / f"cpu{cpu}/cache").glob("index*")):
            level, kind, size = (_text(index / name) for name in ("level", "type", "size"))
            if level and kind and kind != "Instruction" and size:
                name = f"L{level}" + ("d" if kind == "Data" and level == "1" else "")
                instances[name, _text(index / "shared_cpu_list") or str(cpu)] = _size_bytes(size)
    return {
        level: sum(size for (name, _), size in instances.items() if name == level)
        for level in sorted({name for name, _ in instances})
    }


def _size_bytes(text: str) -> int:
    return int(text[:-1]) * _SIZE[text[-1]] if text[-1] in _SIZE else int(text)


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that processes could still take, as the kernel estimates it and no more than their control group may
    hold; ``None`` where ``/proc`` does not tell."""
    free = _memory_bytes(root, "MemAvailable")
    limit = _cgroup_limits(root)[0]
    return free if free is None or limit is None else min(free, limit)


def _memory_bytes(root: Path, name: str = "MemTotal") -> int | None:
    match = re.search(rf"^{name}:\s+(\d+) kB", _text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _hypervisor(root: Path, cpuinfo: dict[str, str]) -> str | None:
    if "hypervisor" not in cpuinfo.get("flags", "").split():
        return _text(root / "sys/hypervisor/type")
    dmi = root / "sys/class/dmi/id"
    return _text(root / "sys/hypervisor/type") or _text(dmi / "sys_vendor") or "unnamed"


def _gpus() -> tuple[str, ...]:
    """Names by NVML, asked only when a device node says that there is a driver; without one those of AMD's GPUs."""
    if device_node() is None:
        return tuple(gpu.name for gpu in kfd.gpus({}))
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
    except Exception:  # pynvml has one class per error code; a broken driver means no usable board
        return ()


def _cgroup_limits(root: Path) -> tuple[int | None, float | None]:
    """Memory bytes and cores that our control groups allow; the tightest from the root down to our own."""
    memory: list[int] = []
    cores: list[float] = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        base = root / "sys/fs/cgroup" / controllers
        for folder in _ancestors(base, path):
            memory += _limits(folder, ("memory.max", "memory.limit_in_bytes"))
            cores += _cpu_quota(folder)
    return min(memory, default=None), min(cores, default=None)


def _ancestors(base: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part]
    return [base.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]


def _limits(folder: Path, names: tuple[str, ...]) -> list[int]:
    texts = [text for name in names if (text := _text(folder / name)) and text.isdigit()]
    return [int(text) for text in texts if int(text) < _UNLIMITED_BYTES]


def _cpu_quota(folder: Path) -> list[float]:
    version_1 = f"{_text(folder / 'cpu.cfs_quota_us') or 'max'} {_text(folder / 'cpu.cfs_period_us') or 0}"
    fields = (_text(folder / "cpu.max") or version_1).split()
    quota, period = fields[0], fields[-1]
    return [int(quota) / int(period)] if quota.isdigit() and period.isdigit() and int(period) > 0 else []
