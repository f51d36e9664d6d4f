"""PyTorch compiled by inductor with its defaults, one specialised graph per input shape.

Compiled code is cached by inductor itself under ``cache_dir/inductor``, so a later process traces and looks up
instead of compiling; how long the first build took is remembered beside it.
"""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frugalbench.backends.base import (
    Arrays,
    Options,
    Placement,
    Steps,
    content_key,
    installed,
    recall,
    remember,
)
from frugalbench.backends.torch_eager import MADE, TorchRunnable, placed
from frugalbench.schema import Artefact
from frugalbench.workloads.base import SilentFallback

NAME = "torch-compile"
DISTRIBUTION = "torch"
FAMILY = "torch"
TAKES = "module"
DEVICES = ("cpu", "cuda")
MOST_THREADS = None

# Read when inductor is first imported: no pool of compiling processes beside a measurement.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"


def available() -> tuple[str | None, str]:
    """Version of torch, or what is missing: torch, or the C++ compiler that inductor calls."""
    version, reason = installed(DISTRIBUTION)
    if version and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        return None, "torch.compile needs a C++ compiler: apt-get install g++"
    return version, reason


def load(model: Any, options: Options, examples: Sequence[Arrays]) -> TorchRunnable:
    """Compile for the shape of every example (or take it from the cache)."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(options.cache_dir / "inductor")
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    module = placed(model, options)
    runnable = TorchRunnable(module, torch.compile(module, dynamic=False), options)
    steps = Steps()
    with steps.step("compile"):
        first = _build(runnable, options, examples[0])
    runnable.first_call(examples[0], steps)
    built = recall(_built(options, examples[0])) or {}
    said = f"{MADE}; tracing and compiling are its first call"
    runnable.first_start = steps.told(said, built.get("build_s"), first.cached)
    runnable.artefacts = (first, *(_build(runnable, options, example) for example in examples[1:]))
    runnable.details |= _graphs()
    places = {name: value.device.type for name, value in module.named_parameters()}
    runnable.found = Placement(options.device, places, operators=dict.fromkeys(places, "parameter"), grain="parameter")
    return runnable


def _build(runnable: TorchRunnable, options: Options, example: Arrays) -> Artefact:
    """The first call at a shape, which compiles. Raises ``RuntimeError`` in one sentence when inductor fails."""
    before, started = _lookups(), time.perf_counter()
    try:
        runnable.run(runnable.prepare(example))
    except Exception as problem:
        first_line = str(problem).strip().split("\n")[0]
        raise RuntimeError(f"torch.compile failed: {type(problem).__name__}: {first_line}") from problem
    build_s = time.perf_counter() - started
    hits, misses = (after - earlier for after, earlier in zip(_lookups(), before, strict=True))
    return _artefact(options, example, build_s, cached=hits > 0 and misses == 0)


def _built(options: Options, example: Arrays) -> Path:
    """Where is noted how long the first build at this shape took."""
    import torch

    shapes = {name: [str(value.dtype), *value.shape] for name, value in example.items()}
    parts = {"model": options.key, "shapes": shapes, "torch": torch.__version__, "device": options.device}
    return options.cache_dir / "inductor" / f"built-{content_key(parts)}.json"


def _artefact(options: Options, example: Arrays, build_s: float, cached: bool) -> Artefact:
    path = _built(options, example)
    remembered = recall(path) if cached else None
    if not cached:
        remember(path, {"build_s": build_s})
    batch = next(iter(example.values())).shape[0]
    return Artefact(name=f"inductor/batch-{batch}", build_s=(remembered or {}).get("build_s", build_s), cached=cached)


def _lookups() -> tuple[int, int]:
    """Hits and misses of inductor's graph cache so far, as it counts them itself."""
    from torch._dynamo.utils import counters

    found = counters["inductor"]
    return int(found["fxgraph_cache_hit"]), int(found["fxgraph_cache_miss"] + found["fxgraph_cache_bypass"])


def _graphs() -> dict[str, Any]:
    """How much was compiled. Raises :class:`SilentFallback` when nothing was."""
    from torch._dynamo.utils import counters

    graphs = int(counters["stats"]["unique_graphs"])
    if not graphs:
        raise SilentFallback("torch.compile compiled nothing and would run eagerly")
    return {"compiled_graphs": graphs, "graph_breaks": int(sum(counters["graph_break"].values()))}
