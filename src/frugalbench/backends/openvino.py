"""OpenVINO's CPU plugin, reading the ONNX file as it is, in fp32."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frugalbench.backends.base import Arrays, Options, Placement, Steps, check_device, installed
from frugalbench.schema import Artefact, FirstStart

NAME = "openvino"
DISTRIBUTION = "openvino"
FAMILY = "openvino"
TAKES = "onnx"
DEVICES = ("cpu",)
MOST_THREADS = None

# Read when openvino is first imported: it sends no usage data from a CI machine.
os.environ["CI"] = "true"

_FLOATS = ("f64", "f32", "f16", "bf16")
NOT_RUN = ("Input", "Output", "Const", "Parameter", "Result")
"""Layer types that take no time."""


def available() -> tuple[str | None, str]:
    """Version, or how to get it."""
    return installed(DISTRIBUTION)


def load(model: Path, options: Options, examples: Sequence[Arrays]) -> "OpenVinoRunnable":
    """Compile the file for the CPU (well under a second; not cached) and run it once."""
    import openvino

    check_device("OpenVINO", options.device, DEVICES)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": options.threads}
    steps = Steps()
    try:
        with steps.step("load"):
            core = openvino.Core()
            parsed = core.read_model(str(model))
        with steps.step("compile"):
            compiled = core.compile_model(parsed, "CPU", settings)
            request = compiled.create_infer_request()
    except RuntimeError as problem:
        last_line = str(problem).strip().split("\n")[-1]
        raise RuntimeError(f"OpenVINO cannot load the model: {last_line}") from problem
    runnable = OpenVinoRunnable(compiled, request, options)
    if options.listed:
        runnable.time_s = _profiled(core, parsed, settings, runnable.prepare(examples[0]))
    prepared = runnable.prepare(examples[0])
    with steps.step("first_inference"):
        runnable.run(prepared)
    runnable.first_start = steps.told("reading the file; compiling it for the processor")
    runnable.placement().require("OpenVINO")
    return runnable


class OpenVinoRunnable:
    """A compiled model with one inference request."""

    artefacts: tuple[Artefact, ...] = ()
    first_start: FirstStart | None = None
    time_s: Mapping[str, float] = {}

    def __init__(self, compiled: Any, request: Any, options: Options) -> None:
        self._compiled, self._request, self._options = compiled, request, options
        nodes = [facts for _, facts in runtime_nodes(compiled) if facts["layerType"] not in NOT_RUN]
        self.details: dict[str, Any] = {
            "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
            "precisions": dict(Counter(facts["runtimePrecision"] for facts in nodes).most_common()),
            "kernels": dict(Counter(facts["primitiveType"] for facts in nodes).most_common()),
        }

    def prepare(self, inputs: Arrays) -> Arrays:
        """The arrays themselves; they are shared, not copied."""
        return {name: inputs[name] for name in self._options.inputs}

    def run(self, prepared: Arrays) -> Any:
        """One synchronous inference."""
        return self._request.infer(prepared, share_inputs=True)

    def fetch(self, outputs: Any) -> Arrays:
        """Results by name."""
        return {name: outputs[name].copy() for name in self._options.outputs}

    def placement(self) -> Placement:
        """Devices that executed, for each node of the graph that really runs (after fusion)."""
        place = ",".join(self._compiled.get_property("EXECUTION_DEVICES"))
        found = runtime_nodes(self._compiled)
        nodes = {node.get_friendly_name(): facts for node, facts in found if facts["layerType"] not in NOT_RUN}
        floats = [name for name, facts in nodes.items() if facts["runtimePrecision"] in _FLOATS]
        compute = dict.fromkeys(floats or nodes, place)
        other = {name: place for name in nodes if name not in compute}
        return Placement(
            "CPU",
            compute,
            other,
            {name: facts["layerType"] for name, facts in nodes.items()},
            inserted=frozenset(name for name, facts in nodes.items() if not facts["originalLayersNames"]),
            copied_bytes=0,
            time_s={name: time_s for name, time_s in self.time_s.items() if name in nodes},
            kernels={name: facts["primitiveType"] for name, facts in nodes.items()},
            dtypes={name: facts["runtimePrecision"] for name, facts in nodes.items()},
            origins={
                name: tuple(filter(None, facts["originalLayersNames"].split(","))) for name, facts in nodes.items()
            },
        )

    def synchronize(self) -> None:
        """Nothing to wait for: inference is synchronous."""


def _names(listed: str) -> tuple[str, ...]:
    return tuple(filter(None, listed.split(",")))


def _profiled(core: Any, parsed: Any, settings: dict[str, Any], prepared: Arrays) -> dict[str, float]:
    """Seconds of each node in the second call of a copy that keeps counters."""
    request = core.compile_model(parsed, "CPU", {**settings, "PERF_COUNT": True}).create_infer_request()
    for _ in range(2):
        request.infer(prepared, share_inputs=True)
    return {found.node_name: found.real_time.total_seconds() for found in request.profiling_info}


def runtime_nodes(compiled: Any) -> list[tuple[Any, dict[str, str]]]:
    """Each node of the executed graph, with layer type, precision, kernel and the file's nodes in it."""
    wanted = ("layerType", "runtimePrecision", "primitiveType", "originalLayersNames")
    return [
        (node, {key: str(node.get_rt_info()[key].value) for key in wanted})
        for node in compiled.get_runtime_model().get_ordered_ops()
    ]
