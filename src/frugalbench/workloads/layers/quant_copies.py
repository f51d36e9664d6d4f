"""The copies of a quantised matrix: drawn ones are quantised once and kept on disk, the others are their rows moved."""

import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.schema import Artefact
from frugalbench.workloads.layers.quant_values import moved, place, unmoved

Parts = tuple[np.ndarray, ...]
"""Codes, scales and whatever else a format stores of one matrix. Each part has the outputs, or blocks of them, on its
first axis; one that holds for the whole matrix has a single value."""


class Copies:
    """Parts of any copy of a format.

    ``quantise(weights_NK)`` gives the parts of a matrix, ``source(copy)`` its float32 weights (n, k). Parts of drawn
    matrices are kept in ``folder``; a damaged file is made again.
    """

    def __init__(
        self,
        source: Callable[[int], np.ndarray],
        n: int,
        quantise: Callable[[np.ndarray], Parts],
        folder: Path | None = None,
    ) -> None:
        self._source, self._n, self._quantise, self._folder = source, n, quantise, folder
        self._held: dict[int, Parts] = {}
        self.build_s = 0.0
        self.cached = folder is not None

    def parts(self, copy: int) -> Parts:
        """The parts of ``copy``."""
        number, shift = place(copy, self._n)
        if number not in self._held:
            self._held[number] = self._drawn(number)
        return tuple(
            moved(part, shift * len(part) // self._n) if part.size > 1 else part for part in self._held[number]
        )

    def release(self) -> None:
        """Let go what is held in memory; it is read or made again when it is asked for."""
        self._held.clear()

    def artefacts(self, name: str) -> tuple[Artefact, ...]:
        """What quantising took, also when it was found on disk."""
        return (Artefact(name=name, build_s=self.build_s, cached=self.cached),)

    def _drawn(self, number: int) -> Parts:
        if self._folder is None:
            return self._made(number)[0]
        file = self._folder / f"drawn{number}.npz"
        if (kept := read_parts(file)) is None:
            self.cached = False
            kept = self._made(number)
            write_parts(file, *kept)
        self.build_s += kept[1]
        return kept[0]

    def _made(self, number: int) -> tuple[Parts, float]:
        weights_NK = self._source(unmoved(number, self._n))
        start = time.perf_counter()
        parts = self._quantise(weights_NK)
        return parts, time.perf_counter() - start


def read_parts(file: Path) -> tuple[Parts, float] | None:
    """What :func:`write_parts` wrote and how long it took to make; ``None`` when it is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            parts = tuple(arrays[f"part{number}"] for number in range(len(arrays.files) - 1))
            return parts, float(arrays["build_s"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write_parts(file: Path, parts: Parts, build_s: float) -> None:
    """Keep ``parts`` in a file that appears at once and whole; its format notices damage."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.npz")
    arrays: dict[str, Any] = {f"part{number}": part for number, part in enumerate(parts)}
    np.savez(partial, build_s=np.array(build_s), **arrays)
    partial.replace(file)
