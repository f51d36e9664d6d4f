"""ONNX Runtime, one execution provider at a time, never with a silent way back to the CPU.

The device is a provider's short name (``frugalbench.providers``). The list of providers of a session says what may
run, not what ran: the profile of one real call names the provider of each node, and that is what :func:`load`
believes. ONNX Runtime's Python layer goes back to the CPU in two more places, when a session opens and when a call
fails; ``enable_fallback=0`` closes both (``disable_fallback()`` on an open session comes too late for the first).
"""

import ctypes
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.backends import onnxruntime_device
from frugalbench.backends.base import Arrays, Options, Placement, Runnable, Steps, check_device, installed
from frugalbench.providers import BUILDS, PROVIDERS, Provider
from frugalbench.schema import Artefact, FirstStart
from frugalbench.workloads.base import SilentFallback

NAME = "onnxruntime"
DISTRIBUTION = "onnxruntime"
FAMILY = "onnxruntime"
TAKES = "onnx"
DEVICES = tuple(PROVIDERS)
MOST_THREADS = None

# Read when onnxruntime is first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

_NONE: Mapping[str, str] = {}
_COPIES = ("MemcpyFromHost", "MemcpyToHost")
_LAYOUTS = ("ReorderInput", "ReorderOutput")
_CASTS = "InsertedPrecisionFreeCast_"
"""How the names of casts begin that ONNX Runtime puts in."""


def available() -> tuple[str | None, str]:
    """Version of whichever build is installed, or how to get one."""
    return installed(*BUILDS)


def load(model: Path, options: Options, examples: Sequence[Arrays]) -> Runnable:
    """Open a session, and prove in a second, profiled one where the nodes run."""
    check_device("ONNX Runtime", options.device, DEVICES)
    provider = PROVIDERS[options.device]
    os.environ.update(provider.environment)
    if provider.device == "cuda":
        onnxruntime_device.preload()
    import onnxruntime

    if provider.provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this onnxruntime has no {provider.provider}: {_remedy(provider)}")
    session, strict, start = _started(onnxruntime, model, options, examples[0])
    found = profile(onnxruntime, model, options, strict, examples[0])
    found.require("ONNX Runtime")
    if provider.memory == "cpu":
        return OnnxRuntimeRunnable(session, options, found, strict, start)
    del session  # fed from the host; those that are timed are not
    opened = partial(_session, onnxruntime, model, options, strict, "")
    runnable = onnxruntime_device.load(opened, options, found, strict, examples)
    runnable.first_start = start
    return runnable


def survey() -> dict[str, str]:
    """Each provider that the installed build lists, by short name, with what became of a small graph on it."""
    import onnxruntime

    listed = onnxruntime.get_available_providers()
    with tempfile.TemporaryDirectory() as folder:
        model = _small_graph(Path(folder) / "small.onnx")
        return {name: _tried(model, name) for name, item in PROVIDERS.items() if item.provider in listed}


def _small_graph(path: Path) -> Path:
    from onnx import TensorProto, helper, save

    shape = [4, 4]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "small", inputs, outputs)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def _tried(model: Path, device: str) -> str:
    options = Options(1, device, model.parent, "survey", ("x",), ("y",))
    try:
        load(model, options, [{"x": np.eye(4, dtype=np.float32)}])
    except RuntimeError as problem:
        return str(problem)
    return "runs"


def _remedy(provider: Provider) -> str:
    if provider.system not in ("", platform.system()):
        return f"its build exists for {provider.system} only"
    return f"pip install {provider.distributions[0]} in place of the installed build, or in another environment"


def _started(runtime: Any, model: Path, options: Options, example: Arrays) -> tuple[Any, bool, FirstStart]:
    """This process's first session, whether it forbids any fallback, and how it started."""
    steps = Steps()
    session, strict = _opened(runtime, model, options, steps)
    feed = {name: example[name] for name in options.inputs}
    with steps.step("first_inference"):
        session.run(list(options.outputs), feed)
    again = "" if strict else "; a session without any fallback was tried before, and refused"
    crossing = "" if PROVIDERS[options.device].device == "cpu" else "; the first call copies from and to the host"
    return session, strict, steps.told(f"opening a session reads, optimises and prepares the graph{crossing}{again}")


def _opened(runtime: Any, model: Path, options: Options, steps: Steps) -> tuple[Any, bool]:
    """A session, without any fallback if possible. A refusal is no verdict yet: it may be shape arithmetic only."""
    try:
        with steps.step("load"):
            return _session(runtime, model, options, strict=True), True
    except RuntimeError as problem:
        refused = not isinstance(problem, SilentFallback) and "fallback" in str(problem).lower()
        if options.device == "cpu" or not refused:
            raise
    with steps.step("load"):
        return _session(runtime, model, options, strict=False), False


def _session(
    runtime: Any, model: Path, options: Options, strict: bool, profile_to: str = "", more: Mapping[str, str] = _NONE
) -> Any:
    provider = PROVIDERS[options.device]
    settings = _settings(runtime, options, profile_to)
    given = {key: value.format(threads=options.threads) for key, value in provider.options.items()} | dict(more)
    providers: list[Any] = [(provider.provider, given)]
    if options.device != "cpu":
        if strict:
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        else:
            providers.append(PROVIDERS["cpu"].provider)
    try:
        session = runtime.InferenceSession(str(model), settings, providers=providers, enable_fallback=0)
    except Exception as problem:
        _check_opens(runtime, provider)
        raise RuntimeError(f"ONNX Runtime cannot load the model: {_first_line(problem)}") from problem
    if provider.provider not in session.get_providers():
        _check_opens(runtime, provider)
        opened = ", ".join(session.get_providers())
        raise SilentFallback(f"ONNX Runtime was asked for {provider.provider} and opened {opened}")
    return session


def _settings(runtime: Any, options: Options, profile_to: str) -> Any:
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    if options.device == "dml":
        settings.enable_mem_pattern = False  # DirectML refuses it
    if profile_to:
        settings.enable_profiling, settings.profile_file_prefix = True, profile_to
    return settings


def _check_opens(runtime: Any, provider: Provider) -> None:
    """Raise :class:`SilentFallback` when the build lists a provider whose own library does not load."""
    library = Path(runtime.__file__).parent / "capi" / provider.library
    if not provider.library or not library.exists():
        return
    try:
        ctypes.CDLL(str(library))
    except OSError as problem:
        if "cannot open shared object file" in str(problem):  # other complaints are about what only a session has
            lists = f"ONNX Runtime lists {provider.provider}, but cannot open it and would run on the CPU"
            raise SilentFallback(f"{lists}: {problem}{_needs(runtime, provider)}") from None


def _needs(runtime: Any, provider: Provider) -> str:
    """Which CUDA the build wants, where it wants one."""
    version = getattr(runtime, "cuda_version", "") if provider.device == "cuda" else ""
    return f"; this build is for CUDA {version}, which a torch for the same CUDA brings" if version else ""


def profile(runtime: Any, model: Path, options: Options, strict: bool, example: Arrays) -> Placement:
    """Run twice under the profiler and read each node's provider from what it wrote; times are the second call's."""
    feed = {name: example[name] for name in options.inputs}
    with tempfile.TemporaryDirectory() as folder:
        session = _session(runtime, model, options, strict, str(Path(folder) / "profile"))
        outputs = [session.run(None, feed) for _ in range(2)][-1]
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    provider = PROVIDERS[options.device]
    crossing = [*feed.values(), *(outputs or [])] if provider.memory == "cpu" and provider.device != "cpu" else []
    crossing_bytes = sum(int(getattr(value, "nbytes", 0)) for value in crossing)
    return placement_of(events, provider.provider, crossing_bytes, has_device=provider.device != "cpu")


def placement_of(
    events: Sequence[Mapping[str, Any]], asked: str, crossing_bytes: int = 0, has_device: bool = False
) -> Placement:
    """Placement from the events of a profile; nodes without floating-point tensors are compute only where none has any.

    ``crossing_bytes`` go over at the graph's edges; with a device of its own memory they and the bytes of copying
    nodes are ``copied_bytes``, without one nothing is copied.
    """
    facts = {_node(event): event for event in events if event.get("cat") == "Node" and "provider" in event["args"]}
    arguments = {node: event["args"] for node, event in facts.items()}
    operators = {node: str(found.get("op_name", "node")) for node, found in arguments.items()}
    places = {node: str(found["provider"]) for node, found in arguments.items()}
    compute = {node: place for node, place in places.items() if _touches_float(arguments[node])} or places
    copies = [int(arguments[node].get("output_size", 0)) for node, kind in operators.items() if kind in _COPIES]
    return Placement(
        asked,
        compute,
        {node: place for node, place in places.items() if node not in compute},
        operators,
        time_s={node: event.get("dur", 0) / 1e6 for node, event in facts.items()},
        inserted=frozenset(node for node, kind in operators.items() if _inserted(node, kind)),
        copied_bytes=crossing_bytes + sum(copies) if has_device else 0,
        dtypes={
            node: types for node, found in arguments.items() if (types := _types(found.get("output_type_shape", [])))
        },
    )


def _node(event: Mapping[str, Any]) -> str:
    """Name and number: names need not be unique in a file."""
    name, number = str(event["name"]).removesuffix("_kernel_time"), event["args"].get("node_index")
    return name if number is None else f"{name} #{number}"


def _inserted(node: str, kind: str) -> bool:
    return kind in _COPIES or kind in _LAYOUTS or (kind == "Cast" and node.startswith(_CASTS))


def _types(tensors: Sequence[Mapping[str, Any]]) -> str:
    """Element types of a node's results, each once."""
    return ", ".join(dict.fromkeys(str(kind) for tensor in tensors for kind in tensor))


def _touches_float(facts: Mapping[str, Any]) -> bool:
    tensors = [*facts.get("input_type_shape", []), *facts.get("output_type_shape", [])]
    kinds = {kind for tensor in tensors for kind in tensor}
    return not kinds or any("float" in kind or "double" in kind for kind in kinds)


def _first_line(problem: Exception) -> str:
    return str(problem).strip().split("\n")[0]


class OnnxRuntimeRunnable:
    """A session that takes and returns numpy arrays; for a device of its own it copies them within a call."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, session: Any, options: Options, found: Placement, strict: bool, start: FirstStart) -> None:
        self._session, self._options, self._found, self.first_start = session, options, found, start
        self.details: dict[str, Any] = {
            "threads": session.get_session_options().intra_op_num_threads,
            "providers": session.get_providers(),
            "fallback_disabled": strict,
            "inputs_on": "cpu",
        }

    def prepare(self, inputs: Arrays) -> Any:
        """A feed of numpy arrays."""
        return {name: inputs[name] for name in self._options.inputs}

    def run(self, prepared: Any) -> Any:
        """One call of the session."""
        return self._session.run(list(self._options.outputs), prepared)

    def fetch(self, outputs: Any) -> Arrays:
        """Results by name."""
        return dict(zip(self._options.outputs, outputs, strict=True))

    def placement(self) -> Placement:
        """What the profile of one call said."""
        return self._found

    def synchronize(self) -> None:
        """Nothing to wait for: a call returns when its provider is done."""
