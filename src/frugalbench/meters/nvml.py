"""NVIDIA GPU energy through nvidia-ml-py: the board's energy counter, and power integrated as a cross-check.

The counter (``nvmlDeviceGetTotalEnergyConsumption``, millijoules since the driver was loaded, Volta and newer) is the
measurement. Power (``nvmlDeviceGetPowerUsage``, milliwatts) is sampled at both ends of the window and whenever the
caller says so, and integrated by trapezoids; no thread of ours runs beside the measurement.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frugalbench.meters.base import Availability, Energy, Meter, MeterError
from frugalbench.schema import Tier

UPDATE_PERIOD_S = 0.1
"""NVML refreshes energy and power about every 100 ms; faster polling returns the same value again."""
DEVICE_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
"""Any of these is there when a driver is (``dxg``: WSL)."""


@dataclass(frozen=True)
class CounterMeter:
    """The energy counter of one board."""

    driver: Any
    index: int
    scope: str = "gpu-board"
    method: str = "NVML total energy counter"
    tier: Tier = Tier.MEASURED
    update_period_s: float = UPDATE_PERIOD_S

    @property
    def name(self) -> str:
        return f"nvml energy gpu{self.index}"

    def available(self) -> Availability:
        return _available(self.begin, "energy counter")

    def begin(self) -> int:
        """Millijoules now."""
        return _read(self.driver, self.index, "nvmlDeviceGetTotalEnergyConsumption")

    def end(self, mark: int) -> Energy:
        now = self.begin()
        if now < mark:
            raise MeterError(f"gpu{self.index}: energy counter went back from {mark} to {now} mJ (driver reloaded?)")
        return Energy((now - mark) * 1e-3)


@dataclass
class PowerTrace:
    """Power samples of one window: seconds and watts."""

    times_s: list[float] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)
    failed: str | None = None

    def joule(self) -> float:
        """Trapezoidal integral."""
        steps = zip(self.times_s, self.times_s[1:], self.watts, self.watts[1:], strict=False)
        return sum((t1 - t0) * (w0 + w1) / 2 for t0, t1, w0, w1 in steps)


@dataclass(frozen=True)
class PowerMeter:
    """Board power integrated over the window; a cross-check of :class:`CounterMeter`, coarser than it."""

    driver: Any
    index: int
    clock: Callable[[], float] = time.monotonic
    scope: str = "gpu-board"
    method: str = "NVML power, integrated"
    tier: Tier = Tier.MEASURED
    update_period_s: float = UPDATE_PERIOD_S

    @property
    def name(self) -> str:
        return f"nvml power gpu{self.index}"

    def available(self) -> Availability:
        return _available(self.begin, "power")

    def begin(self) -> PowerTrace:
        trace = PowerTrace()
        self._look(trace)
        return trace

    def sample(self, mark: PowerTrace) -> None:
        """One more point in the middle of the window; a failure poisons the window when it ends."""
        try:
            self._look(mark)
        except MeterError as error:
            mark.failed = str(error)

    def end(self, mark: PowerTrace) -> Energy:
        if mark.failed:
            raise MeterError(mark.failed)
        self._look(mark)
        return Energy(mark.joule())

    def _look(self, trace: PowerTrace) -> None:
        milliwatt = _read(self.driver, self.index, "nvmlDeviceGetPowerUsage")
        trace.times_s.append(self.clock())
        trace.watts.append(milliwatt * 1e-3)


def device_node() -> str | None:
    """The device node that says an NVIDIA driver is present, without touching the driver."""
    return next((node for node in DEVICE_NODES if Path(node).exists()), None)


def discover(driver: Any = None, indices: tuple[int, ...] | None = None) -> list[Meter]:
    """Counter and power meters of each board (or of ``indices``); empty without a driver.

    ``driver`` is the ``pynvml`` module or something that answers like it.
    """
    try:
        driver = driver or _load()
        found = range(driver.nvmlDeviceGetCount()) if indices is None else indices
    except Exception:  # pynvml raises its own classes, one per error code
        return []
    return [meter for index in found for meter in (CounterMeter(driver, index), PowerMeter(driver, index))]


def probe(driver: Any = None) -> Availability:
    """Whether the energy counter of the first board can be read."""
    if driver is None and device_node() is None:
        return Availability(False, "no NVIDIA device node", "install the NVIDIA driver (only with an NVIDIA GPU)")
    meters = discover(driver)
    if not meters:
        return Availability(False, "NVML does not answer", "pip install nvidia-ml-py; then check nvidia-smi")
    return meters[0].available()


def _load() -> Any:
    if device_node() is None:
        raise MeterError("no NVIDIA device node")
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _read(driver: Any, index: int, function: str) -> int:
    try:
        return int(getattr(driver, function)(driver.nvmlDeviceGetHandleByIndex(index)))
    except Exception as error:  # as above
        raise MeterError(f"gpu{index}: {function} failed: {error}") from error


def _available(look: Callable[[], object], what: str) -> Availability:
    try:
        look()
    except MeterError as error:
        return Availability(False, str(error), "the board or its driver has no such counter")
    return Availability(True, f"{what} answers")
