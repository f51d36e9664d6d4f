"""What an NVIDIA board is and how it is set, by NVML and the CUDA driver; its clocks and heat beside a timed window.
Of AMD's boards what the kernel tells (:mod:`frugalbench.meters.kfd`).

Nothing here changes a board. Serial numbers and uuids are not kept: results are handed on.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

from frugalbench.meters import kfd, nvml
from frugalbench.meters.gpu_throttle import bound_to_board

_COMPUTE_MODES = {0: "default", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}
"""``nvmlComputeMode_t`` (``nvml.h``)."""
_SM_CLOCK, _MEMORY_CLOCK, _GPU_TEMPERATURE = 1, 2, 0
"""``NVML_CLOCK_SM``, ``NVML_CLOCK_MEM``, ``NVML_TEMPERATURE_GPU`` (``nvml.h``)."""
_ASK_DRIVER_S = 30.0
_AFFINITY_WORDS = 64
_ATTRIBUTES = {"l2_bytes": 38, "multiprocessors": 16, "major": 75, "minor": 76}
"""``CUdevice_attribute`` (``cuda.h``): L2_CACHE_SIZE, MULTIPROCESSOR_COUNT, COMPUTE_CAPABILITY_MAJOR and _MINOR."""
_ASK_DRIVER = """
import ctypes, json, sys
cuda, wanted = ctypes.CDLL("libcuda.so.1"), json.loads(sys.argv[1])
count, device, value, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
size = ctypes.c_size_t()
def ok(code):
    if code:
        sys.exit(f"CUDA error {code}")
ok(cuda.cuInit(0))
ok(cuda.cuDriverGetVersion(ctypes.byref(version)))
ok(cuda.cuDeviceGetCount(ctypes.byref(count)))
found = []
for number in range(count.value):
    ok(cuda.cuDeviceGet(ctypes.byref(device), number))
    board = {"cuda_version": version.value}
    for name, attribute in wanted.items():
        ok(cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
        board[name] = value.value
    ok(cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device))
    board["memory_bytes"] = size.value
    found.append(board)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Board:
    """One board that CUDA may use. ``None`` where the driver does not tell."""

    name: str
    driver: str | None = None
    cuda_version: str | None = None
    """The newest CUDA that the driver serves."""
    compute_capability: str | None = None
    multiprocessors: int | None = None
    memory_bytes: int | None = None
    l2_bytes: int | None = None
    """Of its last-level cache: AMD's Infinity Cache where there is one."""
    power_limit_w: float | None = None
    default_power_limit_w: float | None = None
    most_clock_hz: float | None = None
    most_memory_clock_hz: float | None = None
    persistence: bool | None = None
    compute_mode: str | None = None
    mig: bool | None = None
    mps: bool | None = None
    """Whether a client of the multi-process service is on the board."""
    foreign_processes: int | None = None
    """Processes that compute on the board now; before a run none of them is ours."""


@dataclass(frozen=True)
class Pulse:
    """Clocks and heat at one moment."""

    clock_hz: float | None
    memory_clock_hz: float | None
    temperature_c: float | None


@cache
def boards() -> tuple[Board, ...]:
    """The boards that CUDA may use, in CUDA's order; empty without a driver that answers. Asked once a process."""
    return boards_now()


def boards_now() -> tuple[Board, ...]:
    """The same as they are set now, with whoever else computes on them now."""
    if nvml.device_node() is None:
        return tuple(_of_amd(gpu) for gpu in kfd.gpus())
    try:
        driver = nvml._load()
        numbers = nvml.visible_boards(driver)
    except Exception:  # the binding has a class of its own for each error code
        return ()
    return tuple(describe(driver, number, facts) for number, facts in zip(numbers, _padded(numbers), strict=False))


def _of_amd(gpu: kfd.Gpu) -> Board:
    return Board(
        name=gpu.name, compute_capability=gpu.isa, multiprocessors=gpu.multiprocessors, memory_bytes=gpu.memory_bytes,
        l2_bytes=gpu.cache_bytes, most_clock_hz=gpu.most_clock_hz,
    )  # fmt: skip


def is_amd(board: Board) -> bool:
    """Whether it is one of AMD's, which torch's ``cuda`` is on ROCm."""
    return (board.compute_capability or "").startswith("gfx")


def numbers() -> tuple[int, ...]:
    """Numbers of these boards by which ``nvidia-smi`` (NVML) knows them; AMD's are counted."""
    if nvml.device_node() is None:
        return tuple(range(len(kfd.gpus())))
    try:
        return tuple(nvml.visible_boards(nvml._load()))
    except Exception:  # as above
        return ()


def _padded(numbers: list[int]) -> list[dict[str, int]]:
    """What the CUDA driver says of each board; nothing where it does not answer."""
    told = ask_driver()
    return [told[place] if place < len(told) else {} for place in range(len(numbers))]


@cache
def ask_driver() -> list[dict[str, int]]:
    """Attributes by board, asked once, in a process of its own: after ``cuInit`` our children could not use CUDA."""
    program = [sys.executable, "-I", "-c", _ASK_DRIVER, json.dumps(_ATTRIBUTES)]
    try:
        answer = subprocess.run(program, capture_output=True, timeout=_ASK_DRIVER_S, check=True).stdout
        found: list[dict[str, int]] = json.loads(answer)
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return found


def describe(driver: Any, number: int, facts: dict[str, int]) -> Board:
    """Board ``number`` of NVML; ``facts`` are the CUDA driver's."""
    ask = partial(_asked, driver, number)
    limit, usual = ask("nvmlDeviceGetEnforcedPowerLimit"), ask("nvmlDeviceGetPowerManagementDefaultLimit")
    mig = ask("nvmlDeviceGetMigMode")
    version = facts.get("cuda_version") or _or_none(lambda: int(driver.nvmlSystemGetCudaDriverVersion()))
    return Board(
        name=str(ask("nvmlDeviceGetName") or "unnamed board"),
        driver=_or_none(lambda: str(driver.nvmlSystemGetDriverVersion())),
        cuda_version=f"{version // 1000}.{version % 1000 // 10}" if version else None,
        compute_capability=f"{facts['major']}.{facts['minor']}" if "major" in facts else None,
        multiprocessors=facts.get("multiprocessors"),
        memory_bytes=_memory_bytes(ask, facts, bool(mig and mig[0])),
        l2_bytes=facts.get("l2_bytes"),
        power_limit_w=None if limit is None else limit * 1e-3,
        default_power_limit_w=None if usual is None else usual * 1e-3,
        most_clock_hz=_hertz(ask("nvmlDeviceGetMaxClockInfo", _SM_CLOCK)),
        most_memory_clock_hz=_hertz(ask("nvmlDeviceGetMaxClockInfo", _MEMORY_CLOCK)),
        persistence=_flag(ask("nvmlDeviceGetPersistenceMode")),
        compute_mode=_COMPUTE_MODES.get(ask("nvmlDeviceGetComputeMode")),
        mig=None if mig is None else bool(mig[0]),
        mps=_or_none(lambda: bool(len(ask("nvmlDeviceGetMPSComputeRunningProcesses")))),
        foreign_processes=_or_none(lambda: len(ask("nvmlDeviceGetComputeRunningProcesses"))),
    )


def _memory_bytes(ask: Callable[[str], Any], facts: dict[str, int], sliced: bool) -> int | None:
    """The board's; of one in MIG mode the slice's, which CUDA alone tells."""
    whole: int | None = _or_none(lambda: int(ask("nvmlDeviceGetMemoryInfo").total))
    return facts.get("memory_bytes", whole) if sliced else whole


def ailment() -> str | None:
    """Why nothing could compute on the board that CUDA would take first: no driver answers, or the board is lost.

    ``None`` where there is no device node, where it answers, and where NVML is missing and CUDA itself answers.
    """
    node = nvml.device_node()
    if node is None:
        return kfd.ailment(kfd.gpus()) if kfd.DEVICE.exists() else None
    try:
        driver = nvml._load()
        found = nvml.visible_boards(driver)
        count = int(driver.nvmlDeviceGetCount())
    except Exception as error:  # as above
        if ask_driver():
            return None
        return (
            f"{node} is there, and neither NVML ({error}) nor CUDA answers: `nvidia-smi` must work first; load the "
            "driver (sudo modprobe nvidia), or give the container its libraries (--gpus all)"
        )
    if not count:
        return f"{node} is there, and the driver finds no board; see `dmesg` and `nvidia-smi`"
    if found and nvml.is_lost(driver, found[0]):
        reset = f"sudo nvidia-smi -r -i {found[0]}"
        return f"GPU {found[0]} is lost; see `dmesg` for Xid, and reset it ({reset}) or restart"
    return None


def plain() -> list[dict[str, Any]]:
    """The boards as plain data for the manifest."""
    return [asdict(board) for board in boards_now()]


def near_cores(device: str, usable: frozenset[int]) -> frozenset[int]:
    """Those of the ``usable`` cores that are closest to a CUDA device; all of them where the driver does not tell."""
    look = bound_to_board(device, _affinity)
    return ((look() if look is not None else None) or frozenset()) & usable or usable


def _affinity(driver: Any, number: int) -> frozenset[int]:
    """Cores of the memory node that board ``number`` hangs on (``nvmlDeviceGetCpuAffinity``: words of a bit mask)."""
    words = driver.nvmlDeviceGetCpuAffinity(driver.nvmlDeviceGetHandleByIndex(number), _AFFINITY_WORDS)
    return frozenset(64 * place + bit for place, word in enumerate(words) for bit in range(64) if int(word) >> bit & 1)


def memory_byte_per_s(driver: Any, number: int) -> float | None:
    """Most that the memory of board ``number`` delivers: its largest clock, two transfers a cycle, the bus's width.

    By this an H100 SXM has 3.35 TB/s (2619 MHz, 5120 bit), an A100 40GB 1.56 TB/s, as their data sheets say.
    """
    clock_hz = _hertz(_asked(driver, number, "nvmlDeviceGetMaxClockInfo", _MEMORY_CLOCK))
    bits = _asked(driver, number, "nvmlDeviceGetMemoryBusWidth")
    return None if clock_hz is None or not bits else 2 * clock_hz * bits / 8


def pulse_of(device: str) -> Callable[[], Pulse | None] | None:
    """What tells clocks and heat of a CUDA device; ``None`` for any other, and where NVML does not answer."""
    return bound_to_board(device, pulse)


def pulse(driver: Any, number: int) -> Pulse:
    """Clocks and heat of board ``number`` now."""
    ask = partial(_asked, driver, number)
    degrees = ask("nvmlDeviceGetTemperature", _GPU_TEMPERATURE)
    return Pulse(
        clock_hz=_hertz(ask("nvmlDeviceGetClockInfo", _SM_CLOCK)),
        memory_clock_hz=_hertz(ask("nvmlDeviceGetClockInfo", _MEMORY_CLOCK)),
        temperature_c=None if degrees is None else float(degrees),
    )


def _asked(driver: Any, number: int, function: str, *arguments: Any) -> Any:
    return _or_none(lambda: getattr(driver, function)(driver.nvmlDeviceGetHandleByIndex(number), *arguments))


def _or_none(ask: Callable[[], Any]) -> Any:
    """What NVML answers; ``None`` for what the board or its driver does not support."""
    try:
        return ask()
    except Exception:  # as above
        return None


def _hertz(megahertz: int | None) -> float | None:
    return None if megahertz is None else megahertz * 1e6


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)
