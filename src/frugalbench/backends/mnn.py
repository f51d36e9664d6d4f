"""MNN: Alibaba's mobile runtime, in fp32 ("high" precision) on the CPU, from its own format.

Its converter returns 0 when it fails, ends the process on some models, and its command line installs packages; so only
its function is called, in a process of its own, and believed when it says so and the file is there. Wrong answers
have been seen on other exporters' files (docs/backends.md): like every backend it is verified before it is timed.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.backends.base import (
    Arrays,
    Options,
    Placement,
    Steps,
    check_device,
    file_key,
    installed,
    locked,
    recall,
    remember,
)
from frugalbench.schema import Artefact, FirstStart

NAME = "mnn"
DISTRIBUTION = "MNN"
FAMILY = "mnn"
TAKES = "onnx"
DEVICES = ("cpu",)
MOST_THREADS = None

_CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv)"
_CONVERTED = "Converted Success"
_PLACE = "CPU"


def available() -> tuple[str | None, str]:
    """Version, or how to get it."""
    return installed(DISTRIBUTION)


def load(model: Path, options: Options, examples: Sequence[Arrays]) -> "MnnRunnable":
    """Convert, or take from the cache, and call once."""
    check_device("MNN", options.device, DEVICES)
    converted, artefact = _converted(model, options)
    from MNN import nn

    steps = Steps()
    with steps.step("load"):
        runnable = MnnRunnable(converted, options, nn)
    runnable.artefacts = (artefact,)
    prepared = runnable.prepare(examples[0])
    with steps.step("first_inference"):
        runnable.fetch(runnable.run(prepared))
    runnable.first_start = steps.told(
        "converting in a process of its own; opening what it made", artefact.build_s, artefact.cached
    )
    return runnable


def _converted(model: Path, options: Options) -> tuple[Path, Artefact]:
    key = file_key(model, {"model": options.key, "mnn": installed(DISTRIBUTION)[0]})
    path = options.cache_dir / "mnn" / f"{key}.mnn"
    with locked(path.with_suffix(".lock")):
        facts = recall(path.with_suffix(".json"))
        cached = facts is not None and path.exists()
        if facts is None or not cached:
            facts = _convert_apart(model, path)
    return path, Artefact(name="mnn", build_s=facts["build_s"], cached=cached, size_bytes=float(path.stat().st_size))


def _convert_apart(model: Path, path: Path) -> dict[str, Any]:
    """Raises ``RuntimeError`` with the converter's own complaint when it did not say that it succeeded."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        asked = ["-f", "ONNX", "--modelFile", str(model), "--MNNModel", str(made), "--bizCode", "frugalbench"]
        program = [sys.executable, "-P", "-c", _CONVERT, *asked]
        done = subprocess.run(program, capture_output=True, text=True, check=False, errors="replace")
        if done.returncode or _CONVERTED not in done.stdout or not made.exists():
            raise RuntimeError(f"MNN cannot convert the model: {_complaint(done.stdout, done.returncode)}")
        made.replace(path)
    facts = {"build_s": time.perf_counter() - started}
    remember(path.with_suffix(".json"), facts)
    return facts


def _complaint(said: str, code: int) -> str:
    if code < 0:
        return f"its converter was killed by signal {-code}"
    lines = [line.strip() for line in said.splitlines()]
    return next((line for line in lines if "rror" in line or "not support" in line.lower()), f"exit code {code}")[:300]


class MnnRunnable:
    """A converted module. MNN has no 64-bit integers: such inputs go in as 32-bit ones."""

    def __init__(self, converted: Path, options: Options, nn: Any) -> None:
        settings = {"backend": _PLACE, "numThread": options.threads, "precision": "high", "memory": "high"}
        self._manager = nn.create_runtime_manager((settings,))
        names = (list(options.inputs), list(options.outputs))
        self._module = nn.load_module_from_file(str(converted), *names, runtime_manager=self._manager)
        self._options = options
        self.artefacts: tuple[Artefact, ...] = ()
        self.first_start: FirstStart | None = None
        self.details: dict[str, Any] = {"threads": options.threads, **settings}

    def prepare(self, inputs: Arrays) -> list[Any]:
        """MNN's own constants, in the order of the model's inputs."""
        return [_constant(inputs[name]) for name in self._options.inputs]

    def run(self, prepared: list[Any]) -> Any:
        """One forward pass."""
        return self._module.forward(prepared)

    def fetch(self, outputs: Any) -> Arrays:
        """Results by name."""
        return {name: np.array(value.read()) for name, value in zip(self._options.outputs, outputs, strict=True)}

    def placement(self) -> Placement:
        """The whole graph on the only backend that was opened; MNN's Python interface tells of no nodes."""
        return Placement(_PLACE, {"graph": _PLACE}, grain="graph", copied_bytes=0)

    def synchronize(self) -> None:
        """Nothing to wait for: a forward pass is synchronous."""


def _constant(value: np.ndarray) -> Any:
    from MNN import expr

    whole = not np.issubdtype(value.dtype, np.floating)
    held = np.ascontiguousarray(value, dtype=np.int32 if whole else np.float32)
    kind = expr.dtype.int if whole else expr.dtype.float
    return expr.const(held, list(held.shape), expr.data_format.NCHW, kind)
