"""Builder of ``onnx_graphs``: one graph, exported or found in a file, in one backend.

What goes wrong carries the stage in its type: :class:`ExportError`, :class:`LoadError`, :class:`SilentFallback`,
:class:`RunError`; a worker that dies or hangs is told by the engine, a wrong answer by its check.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.backends import backend
from frugalbench.backends.base import Options, Runnable, content_key
from frugalbench.schema import Arm, Artefact, Case, Quantity, Tier
from frugalbench.specs.graph_inputs import make_feed
from frugalbench.specs.graph_tolerance import SOURCE
from frugalbench.specs.onnx_model import BY_PROVIDER
from frugalbench.workloads.base import Arrays, Bound, Context, SilentFallback
from frugalbench.workloads.layers.graph_export import made_file
from frugalbench.workloads.layers.launching import device_of, launched, wanted
from frugalbench.workloads.onnx_safety import check_model

_CANNOT_LOAD = re.compile(r"cannot (load|read|import|parse|compile|convert)|failed to (load|compile|import)", re.I)


class LoadError(RuntimeError):
    """The backend does not take the graph."""


class RunError(RuntimeError):
    """The backend took the graph and cannot execute it."""


def load(arm: Arm, context: Context) -> "LoadedGraph":
    """Make the inputs, get the module or the file, and hand it to the arm's backend."""
    params = arm.cases[0].params
    runtime = backend(arm.cases[0].backend)
    version, reason = runtime.available()
    if version is None:
        raise LoadError(reason)
    feeds = {case.id: inputs(case.params, context) for case in arm.cases}
    first = feeds[arm.cases[0].id][0]
    device = BY_PROVIDER.get(arm.cases[0].variant, context.device)
    options = Options(
        threads=context.threads, device=device, cache_dir=context.cache_dir, key=content_key(_content(params)),
        inputs=tuple(first), outputs=tuple(params["outputs"]), launch=wanted(params),
        listed=params.get("nodes", False),
    )  # fmt: skip
    model, made, facts = _model(params, runtime.TAKES, context)
    try:
        runnable = runtime.load(model, options, [feed[0] for feed in feeds.values()])
    except SilentFallback:
        raise
    except Exception as problem:
        text = " ".join(str(problem).split()) or type(problem).__name__
        raise (LoadError if _CANNOT_LOAD.search(text) else RunError)(text) from problem
    details = {"export": facts} if facts else {}
    listed = options.listed and context.replicate <= 1
    return LoadedGraph(runnable, feeds, (*made, *runnable.artefacts), details, model, listed)


def _content(params: Mapping[str, Any]) -> dict[str, Any]:
    return {"export": params.get("export"), "sha256": params.get("file", {}).get("sha256")}


def _model(params: Mapping[str, Any], takes: str, context: Context) -> tuple[Any, tuple[Artefact, ...], dict[str, Any]]:
    """What the backend takes (a module, or the path of a checked file), what was built for it, and its facts."""
    if takes == "module":
        from frugalbench.workloads.layers.graph_models import module

        return module(params["export"]["model"]), (), {}
    if "file" in params:
        return _same_file(params), (), {}
    path, facts = made_file(params, context.cache_dir)
    check_model(path)
    build_s = facts["export_s"] + facts["quantise_s"]
    made = Artefact(name="onnx", build_s=build_s, cached=facts["cached"], size_bytes=float(facts["file_bytes"]))
    return path, (made,), facts


def _same_file(params: Mapping[str, Any]) -> Path:
    """The file that was planned for, if it still is the same."""
    found, path = params["file"], Path(params["file"]["path"])
    data = check_model(path)
    sizes = path.stat().st_size, sum(file.stat().st_size for file in data)
    if sizes != (found["file_bytes"], found["external_bytes"]):
        raise LoadError(f"{path} has changed since this run was planned")
    return path


@dataclass(frozen=True)
class LoadedGraph:
    """A graph in a backend, with every case's inputs."""

    runnable: Runnable
    feeds: dict[str, list[Arrays]]
    artefacts: tuple[Artefact, ...]
    details: dict[str, Any]
    model: Any
    listed: bool = False
    """Whether the record of the first case lists every node."""

    def bind(self, case: Case) -> Bound:
        """Inputs in the runtime's form; one call is one run of the graph."""
        runnable, rotation = self.runnable, len(self.feeds[case.id])
        prepared = [runnable.prepare(feed) for feed in self.feeds[case.id]]
        call, how = launched(runnable, prepared, case)

        def output(index: int) -> Arrays:
            try:
                outputs = call(index)
                runnable.synchronize()
                return runnable.fetch(outputs)
            except Exception as problem:
                raise RunError(" ".join(str(problem).split()) or type(problem).__name__) from problem

        quantised = case.params.get("export", {}).get("precision", "fp32") != "fp32" and isinstance(self.model, Path)
        return Bound(
            call=call,
            output=output,
            rotation=rotation,
            synchronize=runnable.synchronize,
            device=device_of(case),
            first_start=runnable.first_start if case.id == next(iter(self.feeds)) else None,
            against=case.params.get("reference", "the float64 answer of the torch module"),
            own_definition=(lambda index: self.exact.run(self.feeds[case.id][index])) if quantised else None,
            agreement=True,
            facts=self._facts(case),
            details={**self._details(case), **how},
        )

    @cached_property
    def exact(self) -> Any:
        """The stored graph in float64: what a quantised file means, rounding and all."""
        from frugalbench.workloads.layers.onnx_exact import ExactGraph

        return ExactGraph(self.model)

    def _facts(self, case: Case) -> dict[str, Quantity]:
        placement = self.runnable.placement()
        seen = f"{len(placement.nodes)} nodes, asked for {placement.asked}, seen in a run before timing"

        def fact(value: float, source: str, unit: str = "1") -> Quantity:
            return Quantity(value=value, unit=unit, tier=Tier.MEASURED, source=source)

        facts = {
            "ran_as_asked": fact(float(placement.ran_as_asked), seen),
            "share_nodes_asked": fact(placement.share_asked, seen),
        }
        export = self.details.get("export")
        if export:
            facts["export_s"] = fact(export["export_s"], export["exporter"], "s")
            facts["file_bytes"] = fact(export["file_bytes"], "size of the ONNX file", "bytes")
        if "file" in case.params:
            size = case.params["file"]["file_bytes"] + case.params["file"]["external_bytes"]
            facts["file_bytes"] = fact(size, "size of the ONNX file and its external data", "bytes")
        return facts

    def _details(self, case: Case) -> dict[str, Any]:
        placement, of_file = self.runnable.placement(), case.params.get("file") or self.details.get("export", {})
        nodes = sum(of_file.get("operators", {}).values())
        every = {"node_list": placement.listing()} if self.listed and case.id == next(iter(self.feeds)) else {}
        return {
            **self.details,
            **every,
            "placement": placement.histogram(),
            "nodes": placement.summary(nodes or None),
            "runtime": self.runnable.details,
            "tolerance": SOURCE,
        }

    def close(self) -> None:
        """Nothing outlives the process."""


def inputs(params: Mapping[str, Any], context: Context) -> list[Arrays]:
    """The rotation's inputs, the same for every arm and process; a user's own file gives just one."""
    if "feed" in params:
        from frugalbench.workloads.layers.onnx_inspect import load_feed

        return [load_feed(params["feed"])]
    return [make_feed(params["inputs"], context.seed, index) for index in range(params["rotation"])]


def reference(case: Case, context: Context) -> Arrays:
    """Float64 outputs for each position of the rotation: of the torch module where there is one, else of the file."""
    feeds = inputs(case.params, context)
    answers = _module_answers(case.params, feeds) if "export" in case.params else _file_answers(case.params, feeds)
    return {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}


def reference_key(case: Case) -> str:
    """Graph, file and inputs: the arms of a comparison share their references."""
    return content_key({"params": case.params, "device": "any"})


_EXACT_TWIN = {"moe-ffn-grouped": "moe-ffn-eager"}
"""Modules that cannot compute in float64, and those of equal weights that can."""


def _module_answers(params: Mapping[str, Any], feeds: list[Arrays]) -> list[Arrays]:
    """In double precision; the norms of transformers round to float32 inside, far below any tolerance here."""
    import torch

    from frugalbench.workloads.layers.graph_models import module

    name = params["export"]["model"]
    exact = module(_EXACT_TWIN.get(name, name)).double()
    answers = []
    with torch.inference_mode():
        for feed in feeds:
            tensors = [torch.from_numpy(value) for value in feed.values()]
            found = exact(*(value.double() if value.is_floating_point() else value for value in tensors))
            values = found if isinstance(found, tuple) else (found,)
            answers.append({name: value.numpy() for name, value in zip(params["outputs"], values, strict=True)})
    return answers


def _file_answers(params: Mapping[str, Any], feeds: list[Arrays]) -> list[Arrays]:
    path = _same_file(params)
    if params["file"]["no_exact"]:
        return _other_answers(path, params["outputs"], feeds)
    from frugalbench.workloads.layers.onnx_exact import ExactGraph

    exact = ExactGraph(path)
    return [exact.run(feed) for feed in feeds]


def _other_answers(path: Path, outputs: list[str], feeds: list[Arrays]) -> list[Arrays]:
    """ONNX Runtime without any optimisation: not exact and not independent, but all there is for such a graph."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return [dict(zip(outputs, session.run(outputs, feed), strict=True)) for feed in feeds]


def prepare(arm: Arm, context: Context) -> None:
    """Export what is not cached yet."""
    if "export" in arm.cases[0].params and backend(arm.cases[0].backend).TAKES == "onnx":
        made_file(arm.cases[0].params, context.cache_dir)
