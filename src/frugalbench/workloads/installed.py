"""Imports from an environment that the user named, before anything else, with proof that it happened."""

import site
import sys
from collections.abc import Callable
from pathlib import Path


def enter(folder: str, beside: str) -> tuple[str, ...]:
    """Put ``folder`` and what its ``.pth`` files add first on the module path, ``beside`` behind; returns those."""
    sys.path[:0] = [] if beside in sys.path else [beside]
    before = list(sys.path)
    sys.path[:] = [path for path in sys.path if path != folder]
    site.addsitedir(folder)
    added = [path for path in sys.path if path == folder or path not in before]
    sys.path[:] = [*added, *(path for path in sys.path if path not in added)]
    return tuple(added)


def require_used(added: tuple[str, ...], folder: str, call: Callable[[], object]) -> None:
    """Raises ``RuntimeError`` where neither importing the arm nor one ``call`` of it imports anything from there."""
    if not _used(added):
        call()
    if not _used(added):
        raise RuntimeError(
            f"nothing was imported from {folder}: this arm would time what is installed beside; "
            "name a function that uses the package under test"
        )


def _used(added: tuple[str, ...]) -> bool:
    roots = [Path(path).resolve() for path in added]
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return any(Path(file).resolve().is_relative_to(root) for file in files if file for root in roots)
