"""What every workload builder provides. Builders run inside a worker, one arm each.

A builder module is listed in :data:`frugalbench.workloads.BUILDERS` under its workload's name and has

``load(arm, context) -> Loaded``
    allocates and fills the arm's object (weights, graph, ranks). Runs once, with the baton.
``prepare(arm, context)`` (optional)
    builds artefacts that are cached on disk; runs before measuring, once per cache, and is accounted apart.
``nothing_to_prepare(arm, context) -> bool`` (optional)
    whether ``prepare`` would do nothing: an arm that shares its reference then needs no worker before measuring.
``reference(case, context) -> dict[str, numpy.ndarray]``
    the float64 answer, written independently of the arms; leading axis = position in the rotation.
``reference_key(case) -> str``
    cases with equal keys share one reference.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from frugalbench.schema import Artefact, Case, FirstStart, Quantity
from frugalbench.workloads.device import Device

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Context:
    """What a builder needs to know beside its arm."""

    seed: int
    threads: int
    device: str
    cache_dir: Path
    """Outlives the run: exported and compiled artefacts, keyed by the content that made them."""
    scratch_dir: Path
    """This run's own: references and temporary files."""
    replicate: int = 0
    """Number of the fresh start; for workloads that draw anew each time, such as a training."""


@dataclass(frozen=True)
class Bound:
    """One case, ready to be called."""

    call: Callable[[int], object]
    """Computes position ``index % rotation``. Timed. Does all the work that a user would wait for."""
    output: Callable[[int], Arrays]
    """Runs the very same computation at ``index`` and returns its results as numpy arrays. Not timed."""
    rotation: int = 1
    """How many distinct inputs (and weights) are cycled through."""
    synchronize: Callable[[], None] = lambda: None
    device: Device | None = None
    """What the calls run on, where its own clock can be asked; its time must lie within the host's."""
    distinct_bytes: float | None = None
    """What one whole rotation reads of weights and caches that are meant to stream from the device's memory; ``None``
    where that is not said."""
    batch: Callable[[int, int], object] | None = None
    """Computes ``(first, calls)`` positions in a loop of its own, where even a Python call per position is too dear."""
    against: str = "the float64 reference"
    """What the reference is, where it is no independent answer."""
    own_definition: Callable[[int], Arrays] | None = None
    """For lossy formats: the float64 answer of what is *stored* (dequantised weights), computed apart.
    The arm is then checked against it with the case's tolerance, and its distance to the unquantised
    reference is the fact ``output_error``, which must stay below ``params['format_tolerance']``."""
    agreement: bool = False
    """Whether the check also tells how errors are distributed and how often the largest output is the same one."""
    facts: dict[str, Quantity] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    most_cpu_share: float | None = None
    """With more of the machine's cores busy, by anyone, a window is void: for what should wait and not compute."""
    capped: str = ""
    """Why the case proved hopelessly slow while it was loaded; it is then recorded as capped and takes no turn."""
    settled: bool = False
    """Loading found out all there is to know: facts and details are the record, and nothing is verified or timed."""
    first_start: FirstStart | None = None
    """What came before the first answer, step by step, of the case that met the fresh process."""


class Loaded(Protocol):
    """An arm's object in memory."""

    artefacts: tuple[Artefact, ...]

    def bind(self, case: Case) -> Bound:
        """Make ``case`` callable. Raises ``RuntimeError`` with one plain sentence when it cannot run."""
        ...

    def close(self) -> None:
        """Release what the operating system would not (child processes, temporary files)."""
        ...


class SilentFallback(RuntimeError):
    """Something else than what was asked for did the work."""


class NoPath(RuntimeError):
    """What was asked for has no way to run here: the build or the processor lacks a kernel. Skipped, not failed."""
