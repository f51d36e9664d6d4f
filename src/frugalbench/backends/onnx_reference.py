"""The ONNX project's own evaluator: numpy, node by node, as the standard spells each operator out. Right, and slow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frugalbench.backends.base import Arrays, Options, Placement, Steps, check_device, installed
from frugalbench.schema import Artefact, FirstStart

NAME = "onnx-reference"
DISTRIBUTION = "onnx"
FAMILY = "onnx"
TAKES = "onnx"
DEVICES = ("cpu",)
MOST_THREADS = None


def available() -> tuple[str | None, str]:
    """Version of onnx, or how to get it."""
    return installed(DISTRIBUTION)


def load(model: Path, options: Options, examples: Sequence[Arrays]) -> "ReferenceRunnable":
    """Read the file and evaluate it once; nothing is built."""
    import onnx
    import threadpoolctl
    from onnx.reference import ReferenceEvaluator

    check_device("onnx.reference", options.device, DEVICES)
    threadpoolctl.threadpool_limits(limits=options.threads)  # numpy's matrix products
    steps = Steps()
    try:
        with steps.step("load"):
            graph = onnx.load(str(model))
            evaluator = ReferenceEvaluator(graph)
        runnable = ReferenceRunnable(evaluator, graph.graph.node, options)
        with steps.step("first_inference"):
            runnable.run(runnable.prepare(examples[0]))
    except Exception as problem:
        reason = (str(problem).strip() or type(problem).__name__).split("\n")[0]
        raise RuntimeError(f"onnx.reference cannot run the model: {reason}") from problem
    runnable.first_start = steps.told("reading the file; nothing is compiled")
    return runnable


class ReferenceRunnable:
    """An evaluator of one graph."""

    artefacts: tuple[Artefact, ...] = ()
    first_start: FirstStart | None = None

    def __init__(self, evaluator: Any, nodes: Sequence[Any], options: Options) -> None:
        self._evaluator, self._options = evaluator, options
        operators = {f"{node.name or node.op_type} #{index}": node.op_type for index, node in enumerate(nodes)}
        self._found = Placement("cpu", dict.fromkeys(operators, "cpu"), operators=operators, copied_bytes=0)
        self.details: dict[str, Any] = {"threads": options.threads}

    def prepare(self, inputs: Arrays) -> Arrays:
        """The arrays themselves."""
        return {name: inputs[name] for name in self._options.inputs}

    def run(self, prepared: Arrays) -> Any:
        """Evaluate every node in turn."""
        return self._evaluator.run(list(self._options.outputs), prepared)

    def fetch(self, outputs: Any) -> Arrays:
        """Results by name; copies, since an output may be a view of an input."""
        return {name: value.copy() for name, value in zip(self._options.outputs, outputs, strict=True)}

    def placement(self) -> Placement:
        """Every node of the file: the evaluator neither fuses nor leaves Python and numpy."""
        return self._found

    def synchronize(self) -> None:
        """Nothing to wait for."""
