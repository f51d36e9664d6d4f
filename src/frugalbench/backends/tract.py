"""tract: a runtime in Rust, sharing no code with the others. fp32, one thread, reading the ONNX file as it is."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frugalbench.backends.base import Arrays, Options, Placement, Steps, check_device, installed
from frugalbench.schema import Artefact, FirstStart

NAME = "tract"
DISTRIBUTION = "tract"
FAMILY = "tract"
TAKES = "onnx"
DEVICES = ("cpu",)
MOST_THREADS = 1

_IDLE = ("Const", "Source")
_PACKING = "Pack"
"""Operators that tract puts before its matrix products end so: they change the layout."""


def available() -> tuple[str | None, str]:
    """Version, or how to get it."""
    return installed(DISTRIBUTION)


def load(model: Path, options: Options, examples: Sequence[Arrays]) -> "TractRunnable":
    """Read, optimise (milliseconds; not cached) and run once."""
    import tract

    check_device("tract", options.device, DEVICES)
    steps = Steps()
    try:
        with steps.step("load"):
            parsed = tract.onnx().load(str(model))
        names = tuple(parsed.input_name(index) for index in range(parsed.input_count()))
        with steps.step("compile"):
            optimised = parsed.into_model().into_runnable()
        runnable = TractRunnable(optimised, names, options)
        prepared = runnable.prepare(examples[0])
        with steps.step("first_inference"):
            runnable.run(prepared)
    except tract.TractError as problem:
        raise RuntimeError(f"tract cannot load the model: {_reason(problem)}") from problem
    runnable.first_start = steps.told("reading the file; optimising the graph")
    runnable.placement().require("tract")
    return runnable


def _reason(problem: Exception) -> str:
    """What failed and its innermost cause, without the stack that tract adds."""
    lines = [line.strip() for line in str(problem).split("Stack backtrace")[0].splitlines()]
    lines = [line for line in lines if line and line != "Caused by:"]
    return (
        ": ".join(dict.fromkeys((lines[0], lines[-1].partition(": ")[2] or lines[-1]))) if lines else "no reason given"
    )


class TractRunnable:
    """An optimised model. Outputs come in the order of the file's graph."""

    artefacts: tuple[Artefact, ...] = ()
    first_start: FirstStart | None = None

    def __init__(self, runnable: Any, inputs: tuple[str, ...], options: Options) -> None:
        if runnable.output_count() != len(options.outputs):
            raise RuntimeError(f"tract gives {runnable.output_count()} outputs; all of the graph's must be asked for")
        self._runnable, self._inputs, self._options = runnable, inputs, options
        self.details: dict[str, Any] = {"threads": MOST_THREADS}

    def prepare(self, inputs: Arrays) -> list[Any]:
        """Copies in tract's own tensors, in the model's order."""
        import tract

        return [tract.Tensor.from_numpy(inputs[name]) for name in self._inputs]

    def run(self, prepared: list[Any]) -> list[Any]:
        """One inference."""
        outputs: list[Any] = self._runnable.run(prepared)
        return outputs

    def fetch(self, outputs: list[Any]) -> Arrays:
        """Results by name."""
        values = [value.to_numpy().copy() for value in outputs]
        return dict(zip(self._options.outputs, values, strict=True))

    def placement(self) -> Placement:
        """Nodes of the optimised graph; tract's default runtime has one place. A profile with times would take 5 s."""
        return placement_of(json.loads(self._runnable.profile_json(None))["nodes"])

    def synchronize(self) -> None:
        """Nothing to wait for: inference is synchronous."""


def placement_of(nodes: Sequence[Mapping[str, Any]]) -> Placement:
    """Placement from tract's list of nodes; constants and inputs do not run."""
    ran = {f"{node['node_name']} #{node['qualified_id'][1]}": node for node in nodes if node["op_name"] not in _IDLE}
    operators = {name: str(node["op_name"]) for name, node in ran.items()}
    return Placement(
        "cpu",
        dict.fromkeys(ran, "cpu"),
        operators=operators,
        inserted=frozenset(name for name, kind in operators.items() if kind.endswith(_PACKING)),
        copied_bytes=0,
    )
