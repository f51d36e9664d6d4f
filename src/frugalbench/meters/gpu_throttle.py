"""What a worker asks about the NVIDIA board that it computes on, just outside the timed window."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from frugalbench.meters import nvml

T = TypeVar("T")
Reasons = Callable[[], tuple[str, ...] | None]
"""Reasons just now; ``None`` when they cannot be read."""
Read = Callable[[Any, int], T]
"""``read(driver, board)``."""


def gpu_throttle_reasons(device: str) -> Reasons | None:
    """What an environment probe asks for a CUDA device; ``None`` for any other, and where NVML does not answer."""
    return bound_to_board(device, nvml.throttle_reasons)


def bound_to_board(device: str, read: Read[T]) -> Callable[[], T | None] | None:
    """``read`` bound to the board behind ``cuda`` or ``cuda:N``; ``None`` for other devices and without an answer."""
    if not device.startswith("cuda"):
        return None
    try:
        driver = nvml._load()
        return watch(device, read, driver, nvml.visible_boards(driver))
    except Exception:  # the driver's binding raises its own classes; noise is watched where it can be
        return None


def watch(device: str, read: Read[T], driver: Any, boards: Sequence[int]) -> Callable[[], T | None] | None:
    """``read`` bound to a board; ``None`` when it is not known or does not answer.

    ``boards`` are NVML's numbers of the boards that CUDA may use, in CUDA's order.
    """
    number = device.partition(":")[2] or "0"
    if not number.isdigit() or int(number) >= len(boards):
        return None
    look = partial(_asked, read, driver, boards[int(number)])
    return None if look() is None else look


def _asked(read: Read[T], driver: Any, board: int) -> T | None:
    try:
        return read(driver, board)
    except Exception:  # as above
        return None
