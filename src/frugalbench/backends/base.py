"""What every backend provides. A backend is a module with the names of :class:`Backend`; it imports its runtime late.

Arrays go in and out by name. What a call costs is split three ways: ``prepare`` puts inputs where the runtime
wants them and ``fetch`` brings results back as numpy (neither is timed); ``run`` is what a user waits for.
"""

import hashlib
import importlib.metadata
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from frugalbench.schema import Artefact
from frugalbench.workloads.base import SilentFallback

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Options:
    """How a model is to be loaded."""

    threads: int
    device: str
    cache_dir: Path
    key: str
    """Names the model's content, for what is cached about it."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """Where each node ran. ``compute`` touches floating-point values; ``other`` is index and shape arithmetic."""

    asked: str
    compute: Mapping[str, str]
    other: Mapping[str, str] = field(default_factory=dict)
    operators: Mapping[str, str] = field(default_factory=dict)
    """Node to operator type, where the runtime tells."""

    @property
    def nodes(self) -> dict[str, str]:
        """Every node with the place where it ran."""
        return {**self.compute, **self.other}

    @property
    def ran_as_asked(self) -> bool:
        """Whether there is compute and all of it ran where it was asked to."""
        return bool(self.compute) and set(self.compute.values()) == {self.asked}

    @property
    def share_asked(self) -> float:
        """Share of all nodes that ran where asked; 0.0 when no node is known to have run."""
        places = list(self.nodes.values())
        return places.count(self.asked) / len(places) if places else 0.0

    def histogram(self) -> dict[str, dict[str, int]]:
        """Place to operator type to number of nodes."""
        counts: dict[str, Counter[str]] = {}
        for node, place in self.nodes.items():
            counts.setdefault(place, Counter())[self.operators.get(node, "node")] += 1
        return {place: dict(counter.most_common()) for place, counter in counts.items()}

    def require(self, runtime: str) -> None:
        """Raise :class:`SilentFallback` unless all compute ran where asked."""
        if not self.ran_as_asked:
            astray = [node for node, place in self.compute.items() if place != self.asked]
            what = f"{len(astray)} of {len(self.compute)} compute nodes" if self.compute else "every node"
            example = f", for one {astray[0]} on {self.compute[astray[0]]}" if astray else ""
            raise SilentFallback(f"{runtime} was asked for {self.asked}, but {what} did not run there{example}")


class Runnable(Protocol):
    """A model that a backend has loaded."""

    @property
    def artefacts(self) -> tuple[Artefact, ...]:
        """What was compiled while loading, accounted apart."""
        ...

    @property
    def details(self) -> dict[str, Any]:
        """Plain facts for the record: effective settings, kernels, graph breaks."""
        ...

    def prepare(self, inputs: Arrays) -> Any:
        """Inputs in the runtime's own form, on its device."""
        ...

    def run(self, prepared: Any) -> Any:
        """Execute the model."""
        ...

    def fetch(self, outputs: Any) -> Arrays:
        """What ``run`` returned, by name, as numpy arrays that own their memory."""
        ...

    def placement(self) -> Placement:
        """Where each node really ran, found out by running."""
        ...

    def synchronize(self) -> None:
        """Wait until the device is done."""
        ...


class Backend(Protocol):
    """A module under ``frugalbench.backends``."""

    NAME: str
    DISTRIBUTION: str
    """Its name on the package index."""
    TAKES: str
    """``module`` (a ``torch.nn.Module`` in eval mode) or ``onnx`` (the path of a file)."""
    DEVICES: tuple[str, ...]

    def available(self) -> tuple[str | None, str]:
        """Version, and why it cannot be used (empty when it can). Imports nothing heavy."""
        ...

    def load(self, model: Any, options: Options, examples: Sequence[Arrays]) -> Runnable:
        """Make ``model`` runnable. ``examples`` holds one input per shape that will come.

        Raises ``RuntimeError`` with one plain sentence, :class:`SilentFallback` when something else would run it.
        """
        ...


def installed(*distributions: str) -> tuple[str | None, str]:
    """Version of the first installed distribution, or ``None`` and how to get the first one."""
    for name in distributions:
        try:
            return importlib.metadata.version(name), ""
        except importlib.metadata.PackageNotFoundError:
            continue
    return None, f"{distributions[0]} is not installed: pip install {distributions[0]}"


def check_device(backend: str, device: str, devices: Sequence[str]) -> None:
    """Raise ``RuntimeError`` when ``backend`` knows no such device."""
    if device not in devices:
        raise RuntimeError(f"{backend} runs on {' and '.join(devices)} here, not on {device}")


def content_key(parts: Mapping[str, Any]) -> str:
    """Short name of some content: equal parts give equal keys, in every process."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (made if missing) across processes; freed by the kernel if the holder dies."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def remember(path: Path, facts: Mapping[str, Any]) -> None:
    """Write ``facts`` as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(facts, sort_keys=True), encoding="utf-8")
    temporary.replace(path)


def recall(path: Path) -> dict[str, Any] | None:
    """What :func:`remember` wrote, or ``None`` when there is nothing readable."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None
