"""Numbers in the kernel's files, and what to do about those that may not be read."""

from collections.abc import Sequence
from pathlib import Path

from frugalbench.meters.base import MeterError


def read_int(path: Path) -> int:
    """The whole number in ``path``. Raises :class:`MeterError` that names the file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MeterError(f"cannot read {path}: {reason}") from error


def read_text(path: Path) -> str | None:
    """The text in ``path``, stripped; ``None`` when it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def readable_remedy(paths: Sequence[Path]) -> str:
    """The command that makes ``paths`` readable for all."""
    return "sudo chmod a+r " + " ".join(map(str, paths)) + "  (until the next start; a udev rule keeps it)"
