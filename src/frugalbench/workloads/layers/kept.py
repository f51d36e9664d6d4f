"""Arrays in a cache: a file that is whole or not there."""

import os
import zipfile
from pathlib import Path

import numpy as np

from frugalbench.workloads.base import Arrays


def read(file: Path) -> Arrays | None:
    """What :func:`write` wrote; ``None`` when it is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return None


def write(file: Path, arrays: Arrays) -> None:
    """Keep arrays in a file that appears at once and whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.stem}.{os.getpid()}.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(file)
