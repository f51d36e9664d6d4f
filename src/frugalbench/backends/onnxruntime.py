"""ONNX Runtime, one execution provider at a time, never with a silent way back to the CPU.

The list of providers of a session says what may run, not what ran: the profile of one real call names the
provider of each node, and that is what :func:`load` believes.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frugalbench.backends.base import Arrays, Options, Placement, check_device, installed
from frugalbench.schema import Artefact
from frugalbench.workloads.base import SilentFallback

NAME = "onnxruntime"
DISTRIBUTION = "onnxruntime"
FLAVOURS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-cann")
TAKES = "onnx"
PROVIDERS: dict[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DEVICES = tuple(PROVIDERS)

# Read when onnxruntime is first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

_PROVIDER_OPTIONS: dict[str, dict[str, str]] = {"CUDAExecutionProvider": {"use_tf32": "0"}}
"""fp32 is asked for, so 19-bit products are switched off where they are the default."""


def available() -> tuple[str | None, str]:
    """Version of whichever flavour is installed, or how to get one."""
    return installed(*FLAVOURS)


def load(model: Path, options: Options, examples: Sequence[Arrays]) -> "OnnxRuntimeRunnable":
    """Open a session, and prove in a second, profiled one where the nodes run."""
    import onnxruntime

    check_device("ONNX Runtime", options.device, DEVICES)
    asked = PROVIDERS[options.device]
    if asked not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this onnxruntime has no {asked}: pip install onnxruntime-gpu in place of onnxruntime")
    strict = _strict(onnxruntime, model, options, asked)
    found = profile(onnxruntime, model, options, asked, strict, examples[0])
    found.require("ONNX Runtime")
    return OnnxRuntimeRunnable(_session(onnxruntime, model, options, asked, strict), options, found, strict)


def _strict(runtime: Any, model: Path, options: Options, asked: str) -> bool:
    """Whether a session without any fallback opens. A refusal is no verdict yet: it may be shape arithmetic only."""
    if asked == PROVIDERS["cpu"]:
        return True
    try:
        _session(runtime, model, options, asked, strict=True)
    except RuntimeError as problem:
        if isinstance(problem, SilentFallback) or "fallback" not in str(problem).lower():
            raise
        return False
    return True


def _session(runtime: Any, model: Path, options: Options, asked: str, strict: bool, profile_to: str = "") -> Any:
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    if profile_to:
        settings.enable_profiling, settings.profile_file_prefix = True, profile_to
    providers: list[Any] = [(asked, _PROVIDER_OPTIONS.get(asked, {}))]
    if asked != PROVIDERS["cpu"]:
        if strict:
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        else:
            providers.append(PROVIDERS["cpu"])
    try:
        session = runtime.InferenceSession(str(model), settings, providers=providers)
    except Exception as problem:
        raise RuntimeError(f"ONNX Runtime cannot load the model: {_first_line(problem)}") from problem
    if asked not in session.get_providers():
        raise SilentFallback(f"ONNX Runtime was asked for {asked} and opened {', '.join(session.get_providers())}")
    return session


def profile(runtime: Any, model: Path, options: Options, asked: str, strict: bool, example: Arrays) -> Placement:
    """Run once under the profiler and read each node's provider from what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        session = _session(runtime, model, options, asked, strict, str(Path(folder) / "profile"))
        session.run(None, {name: example[name] for name in options.inputs})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return placement_of(events, asked)


def placement_of(events: Sequence[Mapping[str, Any]], asked: str) -> Placement:
    """Placement from the events of a profile; nodes that touch no floating-point tensor are not compute."""
    compute: dict[str, str] = {}
    other: dict[str, str] = {}
    operators: dict[str, str] = {}
    for event in events:
        facts = event.get("args", {})
        if event.get("cat") != "Node" or "provider" not in facts:
            continue
        node = str(event["name"]).removesuffix("_kernel_time")
        (compute if _touches_float(facts) else other)[node] = facts["provider"]
        operators[node] = facts.get("op_name", "node")
    return Placement(asked, compute, other, operators)


def _touches_float(facts: Mapping[str, Any]) -> bool:
    tensors = [*facts.get("input_type_shape", []), *facts.get("output_type_shape", [])]
    kinds = {kind for tensor in tensors for kind in tensor}
    return not kinds or any("float" in kind or "double" in kind for kind in kinds)


def _first_line(problem: Exception) -> str:
    return str(problem).strip().split("\n")[0]


class OnnxRuntimeRunnable:
    """A session. On a CPU it takes and returns numpy arrays; elsewhere inputs and outputs stay on the device."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, session: Any, options: Options, found: Placement, strict: bool) -> None:
        self._session, self._options, self._found = session, options, found
        settings = session.get_session_options()
        self.details: dict[str, Any] = {
            "threads": settings.intra_op_num_threads,
            "providers": session.get_providers(),
            "fallback_disabled": strict,
        }

    def prepare(self, inputs: Arrays) -> Any:
        """A feed of numpy arrays, or a binding whose inputs already lie on the device."""
        feed = {name: inputs[name] for name in self._options.inputs}
        return feed if self._options.device == "cpu" else self._bind(feed)

    def run(self, prepared: Any) -> Any:
        """One call of the session."""
        if self._options.device == "cpu":
            return self._session.run(list(self._options.outputs), prepared)
        self._session.run_with_iobinding(prepared)
        return prepared

    def fetch(self, outputs: Any) -> Arrays:
        """Results by name."""
        values = outputs if self._options.device == "cpu" else outputs.copy_outputs_to_cpu()
        return dict(zip(self._options.outputs, values, strict=True))

    def placement(self) -> Placement:
        """What the profile of one call said."""
        return self._found

    def synchronize(self) -> None:
        """Nothing to wait for: a call returns when its provider is done."""

    def _bind(self, feed: Arrays) -> Any:
        import onnxruntime

        binding = self._session.io_binding()
        for name, value in feed.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, self._options.device, 0))
        for name in self._options.outputs:
            binding.bind_output(name, self._options.device)
        return binding
