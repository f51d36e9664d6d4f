"""Why an NVIDIA GPU holds its clocks back, asked just outside the timed window."""

from collections.abc import Callable, Sequence
from typing import Any

Reasons = Callable[[], tuple[str, ...] | None]
"""Reasons just now; ``None`` when they cannot be read."""
Read = Callable[[Any, int], tuple[str, ...]]
"""``read(driver, board)``."""


def gpu_throttle_reasons(device: str) -> Reasons | None:
    """What an environment probe asks for a CUDA device; ``None`` for any other, and where NVML does not answer."""
    if not device.startswith("cuda"):
        return None
    try:
        from frugalbench.meters import nvml

        driver = nvml._load()
        return watch(device, nvml.throttle_reasons, driver, nvml.visible_boards(driver))
    except Exception:  # the driver's binding raises its own classes; noise is watched where it can be
        return None


def watch(device: str, read: Read, driver: Any, boards: Sequence[int]) -> Reasons | None:
    """``read`` bound to the board behind ``cuda`` or ``cuda:N``; ``None`` when it is not known or does not answer.

    ``boards`` are NVML's numbers of the boards that CUDA may use, in CUDA's order.
    """
    number = device.partition(":")[2] or "0"
    if not number.isdigit() or int(number) >= len(boards):
        return None
    board = boards[int(number)]
    return None if _asked(read, driver, board) is None else lambda: _asked(read, driver, board)


def _asked(read: Read, driver: Any, board: int) -> tuple[str, ...] | None:
    try:
        return tuple(read(driver, board))
    except Exception:  # as above
        return None
