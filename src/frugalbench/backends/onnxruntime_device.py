"""ONNX Runtime's sessions whose inputs and outputs stay on a device: libraries, queue, bindings, recorded calls.

On CUDA everything goes through one stream that torch knows too (``user_compute_stream``), so that its events measure
the provider's work. A call does not wait for the device (``disable_synchronize_execution_providers``): like torch's, it
is waited for at the ends of a window. Where it is asked for, the provider records each prepared input's call as a CUDA
graph of its own (``enable_cuda_graph``, ``gpu_graph_id``) and replays that.
"""

import contextlib
import ctypes
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from frugalbench.backends.base import Arrays, Options, Placement
from frugalbench.providers import PROVIDERS
from frugalbench.schema import Artefact, FirstStart

_LIBRARIES = ("cudart", "cublasLt", "cublas", "nvrtc", "curand", "cufft", "cudnn")
"""What the provider is linked with or opens; a library comes after those that it needs."""
_NOT_RECORDED = "-1"
_RECORDING_CALLS = 2
"""The provider runs once in the plain way, records in the next call, and replays from then on; it does both in one."""
_streams: list[Any] = []


def preload() -> None:
    """Open CUDA's libraries before ONNX Runtime looks for them: torch brings its own, the rest lies beside them.

    ``onnxruntime.preload_dlls`` looks only beside its own package, and prints.
    """
    import torch  # noqa: F401  its import opens the libraries that it is linked with

    spec = importlib.util.find_spec("nvidia")
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    for name in _LIBRARIES:
        for file in (found for folder in folders for found in sorted(folder.glob(f"*/lib/lib{name}.so.[0-9]*"))):
            with contextlib.suppress(OSError):  # a library that is missing after all is named when a session opens
                ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)


def stream_address() -> str:
    """Address of the stream that torch and ONNX Runtime share; it is torch's current one from now on.

    A stream of its own, since ONNX Runtime takes the address 0 of the default stream for none.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no CUDA device, and its events time ONNX Runtime: install a CUDA build of it")
    if not _streams:
        _streams.append(torch.cuda.Stream())
    torch.cuda.set_stream(_streams[0])
    return str(_streams[0].cuda_stream)


def provider_options(options: Options, graph: bool) -> dict[str, str]:
    """What a session on the shared stream is opened with; empty for providers that take none."""
    provider = PROVIDERS[options.device]
    if not provider.stream:
        return {}
    return {provider.stream: stream_address(), **({provider.graph: "1"} if graph else {})}


def load(
    opened: Callable[[Mapping[str, str]], Any], options: Options, found: Placement, strict: bool,
    examples: Sequence[Arrays],
) -> "DeviceRunnable":  # fmt: skip
    """The session that is timed, its calls recorded where that is asked for and the provider can; else it says why.

    ``opened`` gives a session with further provider options.
    """

    def runnable(graph: bool, launch: str) -> DeviceRunnable:
        return DeviceRunnable(opened(provider_options(options, graph)), options, found, strict, launch)

    if options.launch != "graph":
        return runnable(False, options.launch)
    if not PROVIDERS[options.device].graph:
        return runnable(False, "eager: calls of this provider are not recorded")
    try:
        recorded = runnable(True, "graph")
        for example in examples:
            recorded.prepare(example)
    except Exception as problem:
        return runnable(False, f"eager: cannot be recorded: {str(problem).strip().splitlines()[0]}")
    return recorded


class DeviceRunnable:
    """A session that takes and returns values on its device."""

    artefacts: tuple[Artefact, ...] = ()
    first_start: FirstStart | None = None

    def __init__(self, session: Any, options: Options, found: Placement, strict: bool, launch: str) -> None:
        self._session, self._options, self._found = session, options, found
        self._provider = PROVIDERS[options.device]
        self._graph, self._recorded = launch == "graph", 0
        self.details: dict[str, Any] = {
            "threads": session.get_session_options().intra_op_num_threads,
            "providers": session.get_providers(),
            "fallback_disabled": strict,
            "inputs_on": self._provider.memory,
            "launch": "CUDA graph of the provider, one for each input" if self._graph else launch,
        }
        if self._provider.stream:
            self.details["waits"] = "asked not to wait at the end of a call; replaying a graph may wait all the same"

    def prepare(self, inputs: Arrays) -> Any:
        """A binding of values that already lie on the device, and the settings of a run."""
        import onnxruntime

        memory, binding = self._provider.memory, self._session.io_binding()
        for name in self._options.inputs:
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(inputs[name], memory, 0))
        for name in self._options.outputs:
            binding.bind_output(name, memory)
        if not self._graph:
            return binding, self._settings(_NOT_RECORDED)
        return binding, self._record(binding)

    def _record(self, binding: Any) -> Any:
        """Have the provider record the call; a graph writes where it wrote when it was recorded."""
        self._session.run_with_iobinding(binding, self._settings(_NOT_RECORDED))
        values = binding.get_outputs()
        binding.clear_binding_outputs()
        for name, value in zip(self._options.outputs, values, strict=True):
            binding.bind_ortvalue_output(name, value)
        self._recorded += 1
        settings = self._settings(str(self._recorded))
        for _ in range(_RECORDING_CALLS):
            self._session.run_with_iobinding(binding, settings)
        self.synchronize()
        return settings

    def _settings(self, graph: str) -> Any:
        """Of one run; ``None`` where the provider takes none."""
        if not self._provider.stream:
            return None
        import onnxruntime

        settings = onnxruntime.RunOptions()
        settings.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._graph:
            settings.add_run_config_entry("gpu_graph_id", graph)
        return settings

    def run(self, prepared: Any) -> Any:
        """One call of the session; nothing is copied to or from the host."""
        binding, settings = prepared
        self._session.run_with_iobinding(binding, settings)
        return binding

    def fetch(self, outputs: Any) -> Arrays:
        """Results by name, copied to the host."""
        return dict(zip(self._options.outputs, outputs.copy_outputs_to_cpu(), strict=True))

    def placement(self) -> Placement:
        """What the profile of one call said."""
        return self._found

    def synchronize(self) -> None:
        """Wait for the device; a provider without a stream of ours waits in each call."""
        if self._provider.stream:
            import torch

            torch.cuda.synchronize()
