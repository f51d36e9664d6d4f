"""Where a graph begins to go wrong in a backend: halving over its nodes, each try in a process of its own.

A node is on trial with all that it depends on, so the runtime may fuse as it does in the whole graph, and only its own
outputs are looked at. Halving alone finds a step from right to wrong; then the search climbs from there to inputs that
are wrong too, so the node that is named has right inputs and a wrong output.
"""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from frugalbench import apart
from frugalbench.backends import backend
from frugalbench.specs.graph_inputs import bind, describe_inputs, make_feed
from frugalbench.specs.graph_tolerance import stored_format, tolerance
from frugalbench.untrusted import shown
from frugalbench.workloads.layers.onnx_cut import as_declared, makers, needed, part, types_of, used_by
from frugalbench.workloads.layers.onnx_exact import ExactGraph, graph_inputs
from frugalbench.workloads.layers.onnx_inspect import describe, file_hash, load_feed, read, too_large
from frugalbench.workloads.layers.onnx_sound import require_fitting

Arrays = dict[str, np.ndarray]
PROBE = "frugalbench.workloads.layers.onnx_probe"
LIMIT_S = 120.0
_MOST_MESSAGE_BYTES = 2**30


class Unusable(RuntimeError):
    """The request cannot be carried out; the text says why."""


@dataclass
class Trials:
    """Runs parts of the model in the backend and holds them against the exact values."""

    model: Any
    exact: Arrays
    feed: Arrays
    request: Mapping[str, Any]
    folder: Path
    types: dict[str, int] = field(default_factory=dict)
    count: int = 0

    def run(
        self, nodes: Sequence[int], outputs: Sequence[str], inputs: Mapping[str, np.ndarray], placed: bool = False
    ) -> dict[str, Any]:
        """What became of these nodes: ``outcome``, ``reason`` and, when done, ``values`` by name."""
        self.count += 1
        place = self.folder / f"part{self.count}.onnx"
        made = part(self.model, nodes, outputs, {**self.exact, **inputs}, self.types)
        files = _saved(made, place)
        wanted = graph_inputs(made.graph)
        given: dict[str, Any] = {name: inputs[name] for name in wanted}
        np.savez(self.folder / "feed.npz", **given)
        answers = self.folder / "answers.npz"
        answer = apart.ask(PROBE, {
            "path": str(place), "feed": str(self.folder / "feed.npz"), "answers": str(answers),
            "outputs": list(outputs), "backend": self.request["backend"], "threads": self.request["threads"],
            "device": self.request["device"], "cache": self.request["cache"], "key": file_hash(*files),
            "placed": placed,
        }, LIMIT_S)  # fmt: skip
        for file in files:
            file.unlink()
        if answer.outcome != "done":
            return {"outcome": answer.outcome, "reason": answer.reason, "values": {}}
        values = _answers(answers, outputs) if answer.value["outcome"] == "done" else {}
        return {**answer.value, "values": values}

    def error_of(self, index: int) -> float | None:
        """Largest error of a node's float outputs with all it depends on; ``None`` where the backend gives none."""
        outputs = [name for name in self.model.graph.node[index].output if self.is_float(name)]
        done = self.run(needed(self.model.graph, outputs), outputs, self.feed)
        error = worst(done["values"], self.exact) if done["values"] else None
        said = done["reason"] if error is None else f"{error:.1e}"
        _say(f"node {index + 1} of {len(self.model.graph.node)}, {_title(self.model.graph.node[index])}: {said}")
        return error

    def is_float(self, name: str) -> bool:
        """Whether a value is known and holds floats."""
        return name in self.exact and self.exact[name].dtype.kind == "f"


def _saved(model: Any, place: Path) -> tuple[Path, ...]:
    """The files of a part; a large one keeps its values apart, since protobuf takes no message beyond 2 GiB."""
    if model.ByteSize() < _MOST_MESSAGE_BYTES:
        onnx.save(model, str(place))
        return (place,)
    onnx.save(model, str(place), save_as_external_data=True, location=f"{place.name}.data")
    return place, place.with_name(f"{place.name}.data")


def _answers(path: Path, outputs: Sequence[str]) -> Arrays:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[f"value{number}"] for number, name in enumerate(outputs)}


def worst(values: Arrays, exact: Arrays) -> float:
    """Largest absolute error over the exact values' rms; infinite for another shape and for what is not finite."""
    return max((_error(value, exact[name]) for name, value in values.items() if name in exact), default=0.0)


def _error(value: np.ndarray, exact: np.ndarray) -> float:
    if value.shape != exact.shape:
        return float("inf")
    if not value.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.abs(value.astype(np.float64) - exact)
    difference[value == exact] = 0.0
    finite = exact[np.isfinite(exact)]
    scale = float(np.sqrt(np.mean(np.square(finite, dtype=np.float64)))) if finite.size else 0.0
    found = float(difference.max()) / (scale or 1.0)
    return found if np.isfinite(found) else float("inf")


def bisect(request: Mapping[str, Any]) -> dict[str, Any]:
    """The first node of ``request['path']`` that ``request['backend']`` computes wrongly, or cannot take."""
    started = time.monotonic()
    backend(request["backend"])
    model, found = _read(request["path"])
    feed = _feed(request, found)
    require_fitting(feed, request.get("feed") or request["path"], model.graph)
    limit = request["tolerance"] or tolerance(
        stored_format(found["initialisers"], found["rounds_activations"]), found["reduction"], found["depth"]
    )
    exact = _exact(request, feed)
    with tempfile.TemporaryDirectory(prefix="frugalbench-bisect-") as folder:
        trials = Trials(model, exact, feed, request, Path(folder), types_of(model))
        answer = _search(trials, limit)
        return answer | {
            "model": request["path"], "backend": request["backend"], "tolerance": limit, "runs": trials.count,
            "nodes": len(model.graph.node), "wall_s": time.monotonic() - started,
            "against": request.get("against") or "onnx.reference in float64",
        }  # fmt: skip


def _read(path: str) -> tuple[Any, dict[str, Any]]:
    """The model and what it says of itself; refused before its values fill the memory."""
    model, files = read(Path(path), values=False)
    found = describe(model)
    if reason := too_large(found):
        raise Unusable(f"{shown(path)}: {reason}, more than half of this machine's memory")
    return (read(Path(path))[0] if files else model), found


def _feed(request: Mapping[str, Any], found: Mapping[str, Any]) -> Arrays:
    names = [item["name"] for item in found["inputs"]]
    if not request.get("feed"):
        points = bind(found["inputs"], request["dims"], request["path"])
        return make_feed(describe_inputs(found["inputs"], points[0].sizes), request["seed"])
    return load_feed(request["feed"], names)


def _exact(request: Mapping[str, Any], feed: Arrays) -> Arrays:
    """Every value of the model, or of the one that it is held against, in float64."""
    path = Path(request.get("against") or request["path"])
    _say("computing every value in float64")
    try:
        return ExactGraph(read(path)[0]).everything(feed)
    except Exception as problem:
        text = " ".join(str(problem).split())[:300]
        raise Unusable(f"{shown(path)}: no float64 reference: {type(problem).__name__}: {text}") from None


def _search(trials: Trials, limit: float) -> dict[str, Any]:
    graph = trials.model.graph
    outputs = [item.name for item in graph.output if item.name in trials.exact]
    whole = trials.run(needed(graph, outputs), outputs, trials.feed, placed=True)
    if whole["outcome"] == "not here":
        return {"verdict": "not here", "reason": whole["reason"]}
    if whole["outcome"] == "fallback":
        return {"verdict": "falls back", "reason": whole["reason"]}
    if not whole["values"]:
        return _first_refused(trials, whole)
    errors = {name: worst({name: value}, trials.exact) for name, value in whole["values"].items()}
    error = max(errors.values())
    if error <= limit:
        return {"verdict": "agrees", "error": error}
    bad = max(errors, key=lambda name: errors[name])
    return {"verdict": "diverges", "output": bad, "error": error, **_first_wrong(trials, bad, limit)}


def _first_wrong(trials: Trials, bad: str, limit: float) -> dict[str, Any]:
    """Halve over what ``bad`` depends on, then climb to inputs that are wrong themselves.

    A part that the backend does not run by itself counts as right, and is told.
    """
    graph, maker = trials.model.graph, makers(trials.model.graph)
    order = [index for index in needed(graph, [bad]) if _depends_on_input(trials, index)]
    order = [index for index in order if any(trials.is_float(name) for name in graph.node[index].output)]
    known: dict[int, float | None] = {}

    def error_of(index: int) -> float:
        if index not in known:
            known[index] = trials.error_of(index)
        return known[index] or 0.0

    low, high = -1, len(order) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if error_of(order[middle]) > limit else (middle, high)
    at = order[high]
    while earlier := [i for i in _inputs_from(graph, maker, at) if i in order and error_of(i) > limit]:
        at = earlier[0]
    before = max((error_of(index) for index in _inputs_from(graph, maker, at) if index in order), default=0.0)
    unknown = [_describe(trials, index) for index, error in known.items() if error is None]
    return {
        "node": _describe(trials, at), "before": before, "after": error_of(at), "alone": _alone(trials, at),
        "unknown": unknown,
    }  # fmt: skip


def _depends_on_input(trials: Trials, index: int) -> bool:
    """What depends on no input is folded away by every runtime."""
    graph = trials.model.graph
    given = set(graph_inputs(graph))
    return any(set(used_by(graph.node[at])) & given for at in needed(graph, graph.node[index].output))


def _inputs_from(graph: Any, maker: Mapping[str, int], index: int) -> list[int]:
    return [maker[name] for name in used_by(graph.node[index]) if name in maker]


def _alone(trials: Trials, index: int) -> float | None:
    """Error of the node by itself on exact inputs, rounded to their own types; ``None`` where that cannot be had."""
    node = trials.model.graph.node[index]
    stored = {tensor.name for tensor in trials.model.graph.initializer}
    names = [name for name in used_by(node) if name not in stored]
    if any(name not in trials.exact for name in names):
        return None
    inputs = {name: as_declared(name, trials.exact[name], trials.types) for name in names}
    outputs = [name for name in node.output if trials.is_float(name)]
    done = trials.run([index], outputs, inputs)
    return worst(done["values"], trials.exact) if done["values"] else None


def _first_refused(trials: Trials, whole: Mapping[str, Any]) -> dict[str, Any]:
    """The shortest beginning of the graph that the backend cannot take or survive."""
    low, high, reason = 0, len(trials.model.graph.node), whole["reason"]
    while high - low > 1:
        middle = (low + high) // 2
        done = trials.run(list(range(middle)), _ends(trials, middle), trials.feed)
        fails = done["outcome"] != "done"
        _say(f"the first {middle} of {len(trials.model.graph.node)} nodes: {done['outcome']}")
        low, high = (low, middle) if fails else (middle, high)
        reason = done["reason"] if fails else reason
    return {"verdict": "refuses", "reason": reason, "whole": whole["reason"], "node": _describe(trials, high - 1)}


def _ends(trials: Trials, count: int) -> list[str]:
    """Values that the first ``count`` nodes make and none of them takes."""
    nodes = trials.model.graph.node[:count]
    taken = {name for node in nodes for name in used_by(node)}
    return [name for node in nodes for name in node.output if name and name not in taken and name in trials.exact]


def _describe(trials: Trials, index: int) -> dict[str, Any]:
    node = trials.model.graph.node[index]
    domain = f"{node.domain}." if node.domain else ""
    return {
        "index": index, "name": shown(node.name, 200), "operator": shown(f"{domain}{node.op_type}", 100),
        "inputs": [shown(name, 100) for name in node.input], "outputs": [shown(name, 100) for name in node.output],
    }  # fmt: skip


def _title(node: Any) -> str:
    return f"{shown(node.op_type, 60)} {shown(node.name, 80)}".strip()


def _say(text: str) -> None:
    print(f"frugalbench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    apart.serve(bisect)
