"""What all commands share: JSON on stdout, tables, progress on stderr."""

import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def progress() -> Callable[[str], None]:
    """Progress lines with the elapsed time, on standard error; one that rewrites itself on a terminal."""
    start_s = time.monotonic()
    tty = sys.stderr.isatty()

    def show(text: str) -> None:
        line = f"[{time.monotonic() - start_s:5.0f} s] {text}"
        if tty:
            sys.stderr.write(f"\r\x1b[2K{line[:110]}")
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    return show


def end_progress() -> None:
    """Leave the progress line behind."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()
