"""What all commands share: JSON on stdout, tables, progress on stderr."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from frugalbench.untrusted import shown

MOST_LINE = 2000


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    from frugalbench.report import safe

    text = safe.json_text(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())
    sys.stdout.buffer.write(text.encode() + b"\n")


def say(text: object = "", end: str = "\n") -> None:
    """A line on standard output in which control characters are spelled out."""
    print(shown(text, MOST_LINE), end=end)


def warn(text: object) -> None:
    """The same on standard error."""
    print(f"frugalbench: {shown(text, MOST_LINE)}", file=sys.stderr)


def wrote(file: Path, quiet: bool) -> None:
    """Tell of a written file; on standard error where standard output is one JSON document."""
    print(f"wrote {shown(file)}", file=sys.stderr if quiet else sys.stdout)


def progress() -> Callable[[str], None]:
    """Progress lines with the elapsed time, on standard error; one that rewrites itself on a terminal."""
    start_s = time.monotonic()
    tty = sys.stderr.isatty()

    def show(text: str) -> None:
        line = f"[{time.monotonic() - start_s:5.0f} s] {shown(text, MOST_LINE)}"
        if tty:
            sys.stderr.write(f"\r\x1b[2K{line[:110]}")
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    return show


def late_progress(after_s: float = 2.0) -> Callable[[str], None]:
    """The same, silent for a while: what is over soon needs no word."""
    start_s, show = time.monotonic(), progress()

    def show_late(text: str) -> None:
        if time.monotonic() - start_s >= after_s:
            show(text)

    return show_late


def end_progress() -> None:
    """Leave the progress line behind."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()
