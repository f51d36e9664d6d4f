"""NVIDIA GPU energy through nvidia-ml-py: the board's energy counter, and power integrated as a cross-check.

The counter (``nvmlDeviceGetTotalEnergyConsumption``, millijoules since the driver was loaded, Volta and newer) is the
measurement. Power comes from the field values ``POWER_INSTANT`` or ``POWER_AVERAGE`` (a mean over the last second)
where the driver has them, else from ``nvmlDeviceGetPowerUsage``, which is one or the other depending on the board.
An average lags behind, so it needs windows of many seconds, and it checks no counter.
A board in MIG mode is refused: its counters cover all instances together.
"""

import ctypes
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from frugalbench.meters.base import Availability, Meter, MeterError, first_working
from frugalbench.meters.trace import CounterMeter, TraceMeter

UPDATE_PERIOD_S = 0.1
"""NVML refreshes energy and power about every 100 ms; faster polling returns the same value again."""
AVERAGING_S = 1.0
"""An average covers the last second (``nvml.h``). Over the first two seconds of a load that followed idling it was
recorded 21% low (``tests/meters/traces/nvml_h100.csv``)."""
STUCK_S = 1.0
"""A board never draws nothing, so a counter that stands still for ten of its updates is stuck."""
LIBRARY = "libnvidia-ml.so.1"
DEVICE_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
"""Any of these is there when a driver is (``dxg``: WSL)."""

_POWER_FIELDS = {"instantaneous": ("NVML_FI_DEV_POWER_INSTANT", 186), "average": ("NVML_FI_DEV_POWER_AVERAGE", 185)}
"""Kind of power to the name and number of its field (``nvml.h``)."""
_AMPERE = 7
"""``NVML_DEVICE_ARCH_AMPERE``: from here on the power usage is an average (``nvml.h``; it excepts the A100, whose
drivers have the fields above)."""
_THROTTLE_BITS = {
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
"""``nvmlClocksEventReason…`` (``nvml.h``); an idle board and clocks that somebody set are no throttling."""
_NO_DRIVER = "install the NVIDIA driver (only with an NVIDIA GPU)"
_MIG_REMEDY = "measure on a whole board (nvidia-smi -mig 0), or with a meter of the machine"


def device_node() -> str | None:
    """The device node that says an NVIDIA driver is present, without touching the driver."""
    return next((node for node in DEVICE_NODES if Path(node).exists()), None)


def has_library() -> bool:
    """Whether the driver's library can be loaded; it is not initialised."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def discover(
    driver: Any = None,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.monotonic,
) -> list[Meter]:
    """Counter and power meters of the boards that CUDA may use, the first one's with the scope ``gpu-board``.

    Further boards have scopes of their own, since a case runs on one. Empty without a driver. ``driver`` is the
    ``pynvml`` module or something that answers like it.
    """
    try:
        driver = driver or _load()
        boards = visible_boards(driver, environ)
    except Exception:  # pynvml raises its own classes, one per error code
        return []
    scopes = ("gpu-board" if place == 0 else f"gpu-board-{place}" for place in range(len(boards)))
    return [m for board, scope in zip(boards, scopes, strict=False) for m in _of_board(driver, board, scope, clock)]


def visible_boards(driver: Any, environ: Mapping[str, str] = os.environ) -> list[int]:
    """NVML's numbers of the boards that CUDA may use, in CUDA's order as far as ``CUDA_VISIBLE_DEVICES`` tells it."""
    count = int(driver.nvmlDeviceGetCount())
    given = environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return list(range(count))
    found: list[int] = []
    for name in given.split(","):
        board = _board_named(driver, name.strip(), count)
        if board is None:
            break  # CUDA ignores what follows a name that it does not know
        found.append(board)
    return found


def _board_named(driver: Any, name: str, count: int) -> int | None:
    if name.isdigit():
        return int(name) if int(name) < count else None
    if name.startswith("MIG-"):
        return _board_of_slice(driver, name, count)
    if not name.startswith("GPU-"):
        return None
    # the first digits are enough where they name one board alone
    found = [board for board in range(count) if _uuid(driver, board).startswith(name)]
    return found[0] if len(found) == 1 else None


def _uuid(driver: Any, board: int) -> str:
    """Empty for a board that does not answer: it is not the one that was named, and the others still are."""
    try:
        return str(driver.nvmlDeviceGetUUID(driver.nvmlDeviceGetHandleByIndex(board)))
    except Exception:  # as above
        return ""


def _board_of_slice(driver: Any, name: str, count: int) -> int | None:
    """The board of which CUDA gets the instance ``name``; before driver 470 it was ``MIG-<uuid of the board>/1/0``."""
    if name.startswith("MIG-GPU-"):
        return _board_named(driver, name.removeprefix("MIG-").partition("/")[0], count)
    try:
        instance = driver.nvmlDeviceGetHandleByUUID(name)
        return int(driver.nvmlDeviceGetIndex(driver.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance)))
    except Exception:  # as above
        return None


def is_lost(driver: Any, board: int) -> bool:
    """Whether a board has fallen off the bus; what else keeps it from answering is no such thing."""
    try:
        driver.nvmlDeviceGetTemperature(driver.nvmlDeviceGetHandleByIndex(board), 0)
    except Exception as error:  # as above
        return type(error).__name__ == "NVMLError_GpuIsLost"
    return False


def _of_board(driver: Any, board: int, scope: str, clock: Callable[[], float]) -> list[Meter]:
    refused = partial(refused_as_mig, driver, board)
    counter = CounterMeter(
        name=f"nvml energy gpu{board}",
        scope=scope,
        method="NVML total energy counter",
        read=lambda: read(driver, board, "nvmlDeviceGetTotalEnergyConsumption") * 1e-3,
        update_period_s=UPDATE_PERIOD_S,
        remedy="the board or its driver has no such counter (Volta and newer have)",
        refused=refused,
        stuck_s=STUCK_S,
        clock=clock,
    )
    kind, watts = power_source(driver, board)
    averaged = kind.startswith("average")
    if averaged and counter.available():
        return [counter]
    power = TraceMeter(
        name=f"nvml power gpu{board}",
        scope=scope,
        method=f"NVML {kind}, integrated",
        read=watts,
        update_period_s=AVERAGING_S if averaged else UPDATE_PERIOD_S,
        remedy="the board or its driver does not tell its power",
        refused=refused,
        clock=clock,
    )
    return [counter, power]


def power_source(driver: Any, board: int) -> tuple[str, Callable[[], float]]:
    """What kind of power ``board`` tells, and how to read it in watts: the most immediate kind that answers."""
    for kind in _POWER_FIELDS:
        look = partial(field_power_w, driver, board, kind)
        try:
            look()
        except MeterError:
            continue
        return f"{kind} power", look
    kind = "average power usage" if _tells_averages(driver, board) else "power usage"
    return kind, lambda: read(driver, board, "nvmlDeviceGetPowerUsage") * 1e-3


def _tells_averages(driver: Any, board: int) -> bool:
    try:
        return read(driver, board, "nvmlDeviceGetArchitecture") >= _AMPERE
    except MeterError:  # not known to older drivers, whose boards are older too
        return False


def field_power_w(driver: Any, board: int, kind: str) -> float:
    """``instantaneous`` or ``average`` watts of a board. Raises :class:`MeterError`."""
    name, number = _POWER_FIELDS[kind]
    try:
        field = getattr(driver, name, number)
        (answer,) = driver.nvmlDeviceGetFieldValues(driver.nvmlDeviceGetHandleByIndex(board), [field])
        code, milliwatt = int(answer.nvmlReturn), int(answer.value.uiVal)
    except Exception as error:  # as above
        raise MeterError(f"gpu{board}: {name} failed: {error}") from error
    if code:
        raise MeterError(f"gpu{board}: {name} failed: NVML error {code}")
    return milliwatt * 1e-3


def refused_as_mig(driver: Any, board: int) -> Availability | None:
    """Why a board in MIG mode is no meter; ``None`` where it is not, or cannot be."""
    try:
        current = driver.nvmlDeviceGetMigMode(driver.nvmlDeviceGetHandleByIndex(board))[0]
    except Exception:  # not supported: most boards
        return None
    detail = f"gpu{board} is in MIG mode: the board's energy is not the instance's"
    return Availability(False, detail, _MIG_REMEDY) if current else None


def throttle_reasons(driver: Any, index: int) -> tuple[str, ...]:
    """Why board ``index`` holds its clocks back just now; empty when it does not. Raises :class:`MeterError`."""
    try:
        bits = read(driver, index, "nvmlDeviceGetCurrentClocksEventReasons")
    except MeterError as error:
        if type(error.__cause__).__name__ != "NVMLError_FunctionNotFound":
            raise
        # the name in older drivers
        bits = read(driver, index, "nvmlDeviceGetCurrentClocksThrottleReasons")
    return tuple(name for bit, name in _THROTTLE_BITS.items() if bits & bit)


def probe(driver: Any = None) -> Availability:
    """Whether the energy of a board can be read, and what power it tells just now."""
    if driver is None and not has_library():
        return Availability(False, f"no NVIDIA driver ({LIBRARY} is not found)", _NO_DRIVER)
    try:
        driver = driver or _load()
        boards = visible_boards(driver)
    except Exception as error:  # as above
        return Availability(False, f"NVML does not answer: {error}", "pip install nvidia-ml-py; then check nvidia-smi")
    if not boards:
        return Availability(False, "NVML shows no board that CUDA may use", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    answer = first_working(discover(driver), Availability(False, "no board answers"))
    return replace(answer, detail=answer.detail + _power_now(driver, boards[0])) if answer else answer


def _power_now(driver: Any, board: int) -> str:
    kind, watts = power_source(driver, board)
    try:
        return f"; {kind} {watts():.0f} W"
    except MeterError:
        return ""


def _load() -> Any:
    """The initialised ``pynvml``. Raises :class:`MeterError` without the driver's library, and pynvml's own errors."""
    if not has_library():
        raise MeterError(f"{LIBRARY} is not found")
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def read(driver: Any, index: int, function: str) -> int:
    """The answer of an NVML function about a board. Raises :class:`MeterError`."""
    try:
        return int(getattr(driver, function)(driver.nvmlDeviceGetHandleByIndex(index)))
    except Exception as error:  # as above
        raise MeterError(f"gpu{index}: {function} failed: {error}") from error
