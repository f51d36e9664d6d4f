"""What strangers may have written: files of bounded size, documents of bounded depth, text without control characters.

Run directories, configs and cluster files are read through here. Nothing in them is executed; what cannot be a sane
document is refused with a reason, and what is shown to a person is made printable first.
"""

import errno
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from frugalbench.schema import FrugalbenchError

MOST_TOML_BYTES = 2**20
_DOTTED = re.compile(r"""(?m)(?:^|[\[{,])[ \t]*(?:(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){16}""")
"""A key of more than 16 parts: the time to read such keys grows with the square of their length."""
MOST_DEPTH = 32
"""Nested tables and lists. What this project writes stays below 8."""
MOST_ITEMS = 200_000
MOST_KEY = 200
MOST_TEXT = 65_536
_BUFFER_BYTES = 2**18
"""Lines of a record take some kilobytes, more than what is read ahead by default."""
MOST_INT = 2**63 - 1
"""What the project's other formats can hold."""

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""C0 and C1 controls but tab and newline, marks that turn the direction of text around, invisible tags, surrogates."""


def read_bounded(path: Path | str, most_bytes: int) -> bytes:
    """The content of a regular file; raises as :func:`open_bounded` does."""
    with open_bounded(path, most_bytes) as stream:
        return stream.read(os.fstat(stream.fileno()).st_size + 1)


@contextmanager
def open_bounded(path: Path | str, most_bytes: int) -> Iterator[BinaryIO]:
    """A regular file, open for reading.

    Raises ``OSError`` where it cannot be opened, and :class:`FrugalbenchError` for a pipe, a device, a socket, and for
    a file larger than ``most_bytes``; never waits for a writer.
    """
    try:
        _must_be_regular(Path(path).stat(), path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path)) from None
    with os.fdopen(descriptor, "rb", buffering=_BUFFER_BYTES) as stream:
        status = os.fstat(descriptor)
        _must_be_regular(status, path)
        if status.st_size > most_bytes:
            raise FrugalbenchError(
                f"{shown(path)}: {status.st_size} bytes are more than the {most_bytes} that are read of such a file."
            )
        yield stream


def read_toml(path: Path) -> dict[str, Any]:
    """A parsed TOML file of bounded size; raises :class:`FrugalbenchError` naming file and fault."""
    try:
        text = read_bounded(path, MOST_TOML_BYTES).decode("utf-8")
        if _DOTTED.search(text):
            raise FrugalbenchError(f"{path}: not valid TOML: a key of more than 16 parts")
        return tomllib.loads(text)
    except RecursionError:
        raise FrugalbenchError(f"{path}: not valid TOML: brackets nested too deeply") from None
    except ValueError as problem:
        raise FrugalbenchError(f"{path}: not valid TOML: {shown(problem, 300)}") from None
    except OSError as problem:
        raise FrugalbenchError(f"{path}: cannot be read: {problem.strerror}") from None


def _must_be_regular(status: os.stat_result, path: Path | str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise FrugalbenchError(f"{shown(path)}: not a regular file; pipes, sockets and devices are not read.")


def fault(document: Any) -> str | None:
    """Why a decoded document is not taken as it is, or ``None``: depth, size, numbers, characters of its text."""
    waiting: list[tuple[Any, int]] = [(document, 0)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MOST_DEPTH:
            return f"nested deeper than {MOST_DEPTH} levels"
        if count > MOST_ITEMS:
            return f"more than {MOST_ITEMS} values"
        if reason := _scalar_fault(value):
            return reason
        if isinstance(value, dict):
            if reason := next(filter(None, map(_key_fault, value)), None):
                return reason
            waiting += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list | tuple):
            waiting += [(item, depth + 1) for item in value]
    return None


def _scalar_fault(value: Any) -> str | None:
    if isinstance(value, str):
        if len(value) > MOST_TEXT:
            return f"a text of {len(value)} characters, more than {MOST_TEXT}"
        return f"a control character in {brief(value)}" if _CONTROL.search(value) else None
    if isinstance(value, float) and not math.isfinite(value):
        return f"the number {value}"
    if isinstance(value, int) and not -MOST_INT <= value <= MOST_INT:
        return "an integer beyond 64 bits"
    return None


def _key_fault(key: Any) -> str | None:
    if isinstance(key, str) and (len(key) > MOST_KEY or "\n" in key or "\t" in key or _CONTROL.search(key)):
        return f"the key {brief(key)}"
    return None


def shown(text: object, most: int = 2000) -> str:
    """``text`` as a terminal may print it: control characters spelled out, cut after ``most`` characters."""
    plain = str(text)
    cut = plain if len(plain) <= most else f"{plain[:most]}…"
    return cut if cut.isprintable() or not _CONTROL.search(cut) else _CONTROL.sub(_spelled, cut)


def _spelled(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def brief(value: object, most: int = 60) -> str:
    """``repr`` of a value that stands in a message, cut and in ASCII-safe text."""
    if isinstance(value, str):
        value = value if len(value) <= most else value[:most] + "…"
    elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return "an integer of more than 60 digits"
    text = shown(repr(value))
    return text if len(text) <= 2 * most else f"{text[: 2 * most]}…"
