"""tinygrad: compiles a graph into C kernels of its own with clang, for fixed dimensions, and replays them.

The first two calls at a shape trace and capture; the kernels' binaries come from tinygrad's cache under
``cache_dir/tinygrad`` in a later process.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from frugalbench.backends.base import (
    Arrays,
    Options,
    Placement,
    Steps,
    check_device,
    content_key,
    installed,
    recall,
    remember,
)
from frugalbench.schema import Artefact, FirstStart
from frugalbench.workloads.base import SilentFallback

NAME = "tinygrad"
DISTRIBUTION = "tinygrad"
FAMILY = "tinygrad"
TAKES = "onnx"
DEVICES = ("cpu",)
MOST_THREADS = None

_PLACE = "CPU"
_CAPTURES = 2


def available() -> tuple[str | None, str]:
    """Version, or what is missing: tinygrad, or the clang that it calls."""
    version, reason = installed(DISTRIBUTION)
    if version and not shutil.which(os.environ.get("CC", "clang")):
        return None, "tinygrad compiles with clang: apt-get install clang"
    return version, reason


def load(model: Path, options: Options, examples: Sequence[Arrays]) -> "TinygradRunnable":
    """Capture the kernels for the shape of every example."""
    check_device("tinygrad", options.device, DEVICES)
    # Read when tinygrad is first imported.
    os.environ |= {"DEV": _PLACE, "CACHEDB": str(_cache(options))}
    import tinygrad.nn.onnx  # noqa: F401  importing it is no part of the first start
    from tinygrad.helpers import NUM_CPU_THREADS

    NUM_CPU_THREADS.value = options.threads
    runnable, steps = TinygradRunnable(model, options), Steps()
    try:
        first = runnable.capture(examples[0], steps)
        runnable.artefacts = (first, *(runnable.capture(example, Steps()) for example in examples[1:]))
    except Exception as problem:
        reason = (str(problem).strip() or type(problem).__name__).split("\n")[0]
        raise RuntimeError(f"tinygrad cannot run the model: {reason}") from problem
    said = "reading the file; tracing, compiling and capturing are its first two calls"
    runnable.first_start = steps.told(said, (recall(runnable.built(examples[0])) or {}).get("build_s"), first.cached)
    runnable.details["kernels"] = [len(kernels) for kernels in runnable.kernels()]
    runnable.placement().require("tinygrad")
    return runnable


def _cache(options: Options) -> Path:
    return options.cache_dir / "tinygrad" / "cache.db"


def _held(options: Options) -> int:
    """Entries of tinygrad's cache, compiled kernels among them; 0 where there is none that can be read."""
    try:
        with closing(sqlite3.connect(f"{_cache(options).resolve().as_uri()}?mode=ro", uri=True)) as cache:
            tables = [name for (name,) in cache.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return sum(cache.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables)
    except sqlite3.Error:
        return 0


class TinygradRunnable:
    """One captured sequence of kernels per set of input shapes."""

    def __init__(self, model: Path, options: Options) -> None:
        self._model, self._options = model, options
        self._captured: dict[tuple[Any, ...], Any] = {}
        self.artefacts: tuple[Artefact, ...] = ()
        self.first_start: FirstStart | None = None
        self.details: dict[str, Any] = {"threads": options.threads}

    def prepare(self, inputs: Arrays) -> dict[str, Any]:
        """Tensors in buffers of their own."""
        from tinygrad import Tensor

        return {name: Tensor(inputs[name]).realize() for name in self._options.inputs}

    def run(self, prepared: dict[str, Any]) -> Any:
        """Replay the kernels; a shape that was in no example is captured first."""
        return self._call(prepared)(**prepared)

    def fetch(self, outputs: Any) -> Arrays:
        """Copies: the next call writes into the same buffers."""
        return {name: outputs[name].numpy().copy() for name in self._options.outputs}

    def placement(self) -> Placement:
        """Kernels captured for the first example, all compiled by tinygrad for its one device."""
        first: list[str] = next(self.kernels(), [])
        return Placement(_PLACE, dict.fromkeys(first, _PLACE), grain="kernel", copied_bytes=0)

    def synchronize(self) -> None:
        """Wait for the queue of kernels."""
        from tinygrad import Device

        Device[_PLACE].synchronize()

    def kernels(self) -> Iterator[list[str]]:
        """Numbered kernels of each captured sequence; raises :class:`SilentFallback` when none was captured."""
        for jit in self._captured.values():
            if jit.captured is None:
                raise SilentFallback("tinygrad captured no kernels and would interpret the graph at each call")
            yield [f"kernel {number}" for number in range(len(jit.captured.linear.src))]

    def capture(self, example: Arrays, steps: Steps) -> Artefact:
        """Trace, compile and capture at the example's shapes, then replay once."""
        held = _held(self._options)
        prepared = self.prepare(example)
        with steps.step("load"):
            self._call(prepared)
        with steps.step("compile"):
            self._calls(prepared, _CAPTURES)
        with steps.step("first_inference"):
            self._calls(prepared, 1)
        build_s, cached = steps.took_s("compile"), held > 0 and _held(self._options) == held
        if not cached:
            remember(self.built(example), {"build_s": build_s})
        build_s = (recall(self.built(example)) or {}).get("build_s", build_s)
        batch = next(iter(example.values())).shape[0]
        return Artefact(name=f"tinygrad/batch-{batch}", build_s=build_s, cached=cached)

    def built(self, example: Arrays) -> Path:
        """Where is noted how long the build at this shape took that filled the cache."""
        shapes = {name: [str(value.dtype), *value.shape] for name, value in example.items()}
        key = content_key({"model": self._options.key, "shapes": shapes, "tinygrad": available()[0]})
        return _cache(self._options).with_name(f"built-{key}.json")

    def _calls(self, prepared: dict[str, Any], count: int) -> None:
        for _ in range(count):
            self.run(prepared)
        self.synchronize()

    def _call(self, prepared: dict[str, Any]) -> Any:
        key = tuple((tuple(value.shape), str(value.dtype)) for value in prepared.values())
        if key not in self._captured:
            self._captured[key] = self._fresh()
        return self._captured[key]

    def _fresh(self) -> Any:
        from tinygrad import TinyJit
        from tinygrad.nn.onnx import OnnxRunner

        evaluate = OnnxRunner(self._model)

        def call(**given: Any) -> dict[str, Any]:
            return {name: value.realize() for name, value in evaluate(given).items()}

        return TinyJit(call, prune=True)
