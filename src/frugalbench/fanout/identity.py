"""Which frugalbench this is: its version, and a hash of its code, data, configs and kernels.

Ratios of two machines stand beside each other only when the same program measured both, and a version number says
little of a source checkout. ``python -m frugalbench.fanout.identity`` prints it as one line of JSON.
"""

import hashlib
import json
import platform
from collections.abc import Iterator
from pathlib import Path

from frugalbench import __version__
from frugalbench.paths import data, shipped

_SUFFIXES = frozenset(
    {".py", ".toml", ".csv", ".json", ".css", ".js", ".txt", ".c", ".cpp", ".h", ".hpp", ".inc", ".cu", ".cuh"}
)
_CODE_DIGITS = 12


def identity() -> dict[str, str]:
    """``version``, ``code`` (twelve hex digits) and ``python`` of the interpreter that asks."""
    return {"version": __version__, "code": code(), "python": platform.python_version()}


def code() -> str:
    """A hash over everything that decides what is measured and how; the same for a checkout and for its wheel."""
    found = hashlib.sha256()
    for name, path in sorted(_files()):
        found.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:_CODE_DIGITS]


def _files() -> Iterator[tuple[str, Path]]:
    """Files with names that do not depend on where the package lies."""
    package = data().parent
    inside = [(f"package/{path}", package / path) for path in _below(package)]
    yield from (item for item in inside if not item[0].startswith(("package/_configs/", "package/_kernels/")))
    for folder in ("configs", "kernels"):
        yield from ((f"{folder}/{path}", shipped(folder) / path) for path in _below(shipped(folder)))


def _below(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.suffix in _SUFFIXES and "__pycache__" not in path.parts and path.is_file():
            yield path.relative_to(folder).as_posix()


if __name__ == "__main__":
    print(json.dumps(identity()))
