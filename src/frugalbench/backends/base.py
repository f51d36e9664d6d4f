"""What every backend provides. A backend is a module with the names of :class:`Backend`; it imports its runtime late.

Arrays go in and out by name. What a call costs is split three ways: ``prepare`` puts inputs where the runtime
wants them and ``fetch`` brings results back as numpy (neither is timed); ``run`` is what a user waits for.
"""

import hashlib
import importlib.metadata
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from frugalbench.schema import Artefact, FirstStart
from frugalbench.workloads.base import SilentFallback

Arrays = dict[str, np.ndarray]

MOST_LISTED = 4000
"""Nodes that a placement lists; each takes about 200 bytes of a record."""
_LONGEST_NAME, _MOST_ORIGINS = 200, 50


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
    launch: str = "eager"
    """``graph``: record calls on the device and replay them, by the runtime's own means where it has such."""
    listed: bool = False
    """Whether each node is asked for with its time, where that takes a second, profiled copy of the model."""


@dataclass(frozen=True)
class Placement:
    """Where each node ran. ``compute`` touches floating-point values; ``other`` is index and shape arithmetic, which is
    compute where a graph holds nothing else."""

    asked: str
    compute: Mapping[str, str]
    other: Mapping[str, str] = field(default_factory=dict)
    operators: Mapping[str, str] = field(default_factory=dict)
    """Node to operator type, where the runtime tells."""
    grain: str = "node"
    """What an entry is: an executed ``node``, a ``module``, ``parameter`` or ``kernel``, or the whole ``graph``."""
    time_s: Mapping[str, float] = field(default_factory=dict)
    """Node to seconds in the observed call, profiler included; empty where the runtime does not tell."""
    inserted: frozenset[str] = frozenset()
    """Nodes that the runtime put in: casts, copies between devices, changes of layout."""
    copied_bytes: int | None = None
    """What one call copies between host and device; ``None`` where the runtime does not tell."""
    kernels: Mapping[str, str] = field(default_factory=dict)
    """Node to the kernel that computed it, where the runtime tells."""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """Node to the type of its results or of its arithmetic, in the runtime's words, where it tells."""
    origins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Node to the nodes of the file that went into it, where the runtime tells."""

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

    @property
    def share_time_asked(self) -> float | None:
        """Share of the observed time that was spent where asked; ``None`` when no time is known."""
        total_s = sum(self.time_s.values())
        asked_s = sum(time_s for node, time_s in self.time_s.items() if self.nodes.get(node) == self.asked)
        return asked_s / total_s if total_s else None

    def summary(self, model_nodes: int | None = None) -> dict[str, Any]:
        """What became of the model's nodes, as plain data; ``model_nodes`` is their number in the file.

        ``absorbed`` nodes of the file were fused, folded or dropped; ``None`` where the runtime split nodes up, or
        tells of no nodes.
        """
        own = len(self.nodes) - len(self.inserted)
        absorbed = model_nodes - own if model_nodes is not None and self.grain == "node" else None
        return {
            "grain": self.grain,
            "model": model_nodes,
            "executed": len(self.nodes),
            "absorbed": None if absorbed is None or absorbed < 0 else absorbed,
            "inserted": dict(Counter(self.operators.get(node, "node") for node in sorted(self.inserted))),
            "copied_bytes": self.copied_bytes,
            "share_time_asked": self.share_time_asked,
        }

    def listing(self) -> list[dict[str, Any]]:
        """Every node as plain data, in the order in which it ran where that is known, :data:`MOST_LISTED` at most;
        ``None`` for what the runtime does not tell."""
        places = self.nodes
        order = [*filter(places.__contains__, self.operators), *(node for node in places if node not in self.operators)]
        return [self._listed(node, places[node]) for node in order[:MOST_LISTED]]

    def _listed(self, node: str, place: str) -> dict[str, Any]:
        origins = self.origins.get(node)
        return {
            "node": node[:_LONGEST_NAME], "operator": self.operators.get(node), "place": place,
            "kernel": self.kernels.get(node), "dtype": self.dtypes.get(node), "time_s": self.time_s.get(node),
            "inserted": node in self.inserted,
            "from": None if origins is None else [name[:_LONGEST_NAME] for name in origins[:_MOST_ORIGINS]],
        }  # fmt: skip

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


class Steps:
    """Times the steps of a first start, each once it is done."""

    def __init__(self) -> None:
        self._time_s: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """``load``, ``compile`` or ``first_inference``; a step that is taken again counts as it went last."""
        started = time.perf_counter()
        yield
        self._time_s[f"{name}_s"] = time.perf_counter() - started

    def took_s(self, name: str) -> float:
        """Seconds of a step that was taken."""
        return self._time_s[f"{name}_s"]

    def told(self, note: str, build_s: float | None = None, cached: bool = False) -> FirstStart:
        """What was timed. ``build_s`` is known of the build, in this start or in that which filled the cache; what was
        timed here as compiling is the way through the cache where that was used."""
        here_s = self._time_s.get("compile_s")
        compile_s = build_s if cached or here_s is None else here_s
        times_s = {**self._time_s, "compile_s": compile_s, "cached_compile_s": here_s if cached else None}
        return FirstStart(**times_s, cached=cached, note=note)


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

    @property
    def first_start(self) -> FirstStart | None:
        """Steps of the start, of the first example; the file was read before, so the file cache is warm."""
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
    FAMILY: str
    """The code base that computes: backends of one family are no independent witnesses of each other."""
    TAKES: str
    """``module`` (a ``torch.nn.Module`` in eval mode) or ``onnx`` (the path of a file)."""
    DEVICES: tuple[str, ...]
    MOST_THREADS: int | None
    """Threads that it can be made to use; ``None``: as many as asked for."""

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


def file_key(model: Path, parts: Mapping[str, Any]) -> str:
    """:func:`content_key` of a model file and of whatever else a build from it depends on."""
    with model.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return content_key({"file": digest, **parts})


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
