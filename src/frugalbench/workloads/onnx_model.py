"""Builder of ``onnx_model``: loads one model into one backend, from a module or from a shared ONNX file.

Inputs are made without the framework, so that a portable runtime's worker holds only what a user would deploy.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from frugalbench.backends import backend
from frugalbench.backends.base import Options, Runnable, content_key
from frugalbench.schema import Arm, Artefact, Case, Quantity, Tier
from frugalbench.specs.onnx_model import BY_PROVIDER
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.layers import attention, text
from frugalbench.workloads.layers.launching import device_of, launched, wanted
from frugalbench.workloads.layers.onnx_export import (
    BLOCK,
    INPUTS,
    MINILM,
    OUTPUTS,
    exported,
    model_key,
    module,
    weights,
)
from frugalbench.workloads.onnx_safety import check_model


def load(arm: Arm, context: Context) -> "LoadedModel":
    """Make the inputs, get the model (module or exported file) and hand it to the arm's backend."""
    params, variant = arm.cases[0].params, arm.cases[0].variant
    runtime = backend(arm.cases[0].backend)
    version, reason = runtime.available()
    if version is None:
        raise RuntimeError(reason)
    feeds = {case.id: inputs(case.params, context) for case in arm.cases}
    key = model_key(params)
    options = Options(
        threads=context.threads,
        device=BY_PROVIDER.get(variant, context.device),
        cache_dir=context.cache_dir,
        key=key,
        inputs=INPUTS[params["model"]],
        outputs=OUTPUTS[params["model"]],
        launch=wanted(params),
    )
    made: tuple[Artefact, ...] = ()
    facts: dict[str, Any] = {}
    if runtime.TAKES == "onnx":
        model, artefact, facts = exported(params, context.cache_dir, key)
        check_model(model)
        made = (artefact,)
    else:
        model = module(params)
    runnable = runtime.load(model, options, [feed[0] for feed in feeds.values()])
    return LoadedModel(
        runnable,
        feeds,
        (*made, *runnable.artefacts),
        {"runtime_version": version, **({"export": facts} if facts else {})},
    )


@dataclass(frozen=True)
class LoadedModel:
    """A model in a backend, with every case's inputs."""

    runnable: Runnable
    feeds: dict[str, list[Arrays]]
    artefacts: tuple[Artefact, ...]
    details: dict[str, Any]

    def bind(self, case: Case) -> Bound:
        """Inputs in the runtime's form; one call is one forward pass of the whole batch."""
        runnable, rotation = self.runnable, len(self.feeds[case.id])
        prepared = [runnable.prepare(feed) for feed in self.feeds[case.id]]
        call, how = launched(runnable, prepared, case)

        def output(index: int) -> Arrays:
            outputs = call(index)
            runnable.synchronize()
            return with_nearest(runnable.fetch(outputs))

        return Bound(
            call=call,
            output=output,
            rotation=rotation,
            synchronize=runnable.synchronize,
            device=device_of(case),
            first_start=runnable.first_start if case.id == next(iter(self.feeds)) else None,
            facts=_facts(runnable, self.artefacts),
            details={
                **self.details,
                **_details(runnable, self.details),
                **how,
                "input": _describe(case.params, self.feeds[case.id]),
            },
        )

    def close(self) -> None:
        """Nothing outlives the process."""


def _facts(runnable: Runnable, artefacts: tuple[Artefact, ...]) -> dict[str, Quantity]:
    placement = runnable.placement()
    source = f"{len(placement.nodes)} nodes, asked for {placement.asked}, seen in a run before timing"
    facts = {
        "ran_as_asked": Quantity(value=float(placement.ran_as_asked), unit="1", tier=Tier.MEASURED, source=source),
        "share_nodes_asked": Quantity(value=placement.share_asked, unit="1", tier=Tier.MEASURED, source=source),
    }
    if (share := placement.share_time_asked) is not None:
        facts["share_time_asked"] = Quantity(
            value=share, unit="1", tier=Tier.MEASURED, source="times of the nodes in a profiled call before timing"
        )
    sizes = [artefact.size_bytes for artefact in artefacts if artefact.name == "onnx" and artefact.size_bytes]
    if sizes:
        facts["file_bytes"] = Quantity(
            value=sum(sizes), unit="bytes", tier=Tier.MEASURED, source="size of the ONNX file"
        )
    return facts


def _details(runnable: Runnable, known: dict[str, Any]) -> dict[str, Any]:
    placement, operators = runnable.placement(), known.get("export", {}).get("operators")
    nodes = placement.summary(sum(operators.values()) if operators else None)
    return {"placement": placement.histogram(), "nodes": nodes, "runtime": runnable.details}


def _describe(params: dict[str, Any], feeds: list[Arrays]) -> dict[str, Any]:
    """What went in: distinct inputs, and for text how much of it is padding and which text it is."""
    if params["model"] == BLOCK:
        return {"what": "seeded normal values", "distinct": len(feeds)}
    real = float(np.mean([feed["attention_mask"].mean() for feed in feeds]))
    return {
        "what": "prose of Python's language reference (pydoc_data.topics)",
        "text_sha256": text.text_hash(),
        "distinct": len(feeds),
        "share_real_tokens": real,
    }


def with_nearest(outputs: Arrays) -> Arrays:
    """Outputs, and with two or more sentences the most similar other one of each: the answer a user acts on."""
    embedding = outputs.get("sentence_embedding")
    if embedding is None or len(embedding) < 2:
        return outputs
    return {**outputs, "nearest": attention.nearest(embedding)}


def inputs(params: dict[str, Any], context: Context) -> list[Arrays]:
    """The rotation's inputs, the same for every arm and process: ``x`` (B, S, D), or ids and mask int64 (B, S)."""
    sizes = (params["rotation"], params["batch"], params["seq"])
    if params["model"] != BLOCK:
        return text.token_batches(attention.minilm_folder(), *sizes, context.seed, context.cache_dir / "onnx_model")
    random = np.random.default_rng([context.seed, *sizes])
    shape = (params["batch"], params["seq"], params["d_model"])
    drawn = (random.standard_normal(shape, dtype=np.float32) for _ in range(params["rotation"]))
    return [{"x": x.astype(params.get("dtype", "float32"))} for x in drawn]


def reference(case: Case, context: Context) -> Arrays:
    """Float64 outputs for each position of the rotation."""
    feeds = inputs(case.params, context)
    answers = _block_answers(case, feeds) if case.params["model"] == BLOCK else _minilm_answers(feeds)
    return {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}


def reference_key(case: Case) -> str:
    """Model, shape and batch: the arms of a comparison share their references."""
    return content_key({"params": case.params, "device": "any"})


def _block_answers(case: Case, feeds: list[Arrays]) -> list[Arrays]:
    values, heads = weights(case.params), case.params["heads"]
    return [{"hidden": attention.block_answer(values, heads, feed["x"])} for feed in feeds]


def _minilm_answers(feeds: list[Arrays]) -> list[Arrays]:
    import torch

    exact = attention.minilm(attention.minilm_folder(), exact=True)
    with torch.inference_mode():
        pairs = [exact(*(torch.from_numpy(feed[name]) for name in INPUTS[MINILM])) for feed in feeds]
    names = OUTPUTS[MINILM]
    return [with_nearest({name: value.numpy() for name, value in zip(names, pair, strict=True)}) for pair in pairs]


def prepare(arm: Arm, context: Context) -> None:
    """Export and compile what is not cached yet."""
    loaded = load(arm, context)
    for case in arm.cases:
        loaded.bind(case)
    loaded.close()
