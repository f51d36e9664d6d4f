"""Where shipped files lie, and where the user's cache and state go (XDG base directories)."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(folder: str) -> Path:
    """``kernels`` or ``configs``: inside the installed package, or at the top of a source checkout."""
    inside = _PACKAGE / f"_{folder}"
    return inside if inside.is_dir() else _PACKAGE.parents[1] / folder


def data(*parts: str) -> Path:
    """A file or folder of facts under ``frugalbench/data``."""
    return _PACKAGE.joinpath("data", *parts)


def cache_dir() -> Path:
    """Built kernels, exported and compiled artefacts. Safe to delete."""
    return _user_dir("FRUGALBENCH_CACHE_DIR", "XDG_CACHE_HOME", ".cache")


def state_dir() -> Path:
    """What this machine has learned about itself (self-test results)."""
    return _user_dir("FRUGALBENCH_STATE_DIR", "XDG_STATE_HOME", ".local/state")


def _user_dir(own: str, xdg: str, fallback: str) -> Path:
    if path := os.environ.get(own):
        return Path(path)
    base = os.environ.get(xdg)
    return (Path(base) if base else Path.home() / fallback) / "frugalbench"
