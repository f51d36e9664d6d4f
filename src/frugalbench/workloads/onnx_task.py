"""Builder of ``onnx_task``: lets a runtime embed every text of the tasks, and holds what follows against the items.

Models that are a file alone are ``packaged_task``'s.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.backends import backend
from frugalbench.backends.base import Options, Runnable
from frugalbench.schema import Arm, Artefact, Case, Quantity
from frugalbench.specs import tasks as task_files
from frugalbench.specs.onnx_model import BY_PROVIDER
from frugalbench.specs.onnx_task import BASELINE, ENCODER
from frugalbench.specs.tasks import Split, Task
from frugalbench.workloads import packaged_task
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.layers import answers, kept, whole_model
from frugalbench.workloads.layers.answer_record import answer_facts, described, packed
from frugalbench.workloads.layers.answers import Allowance, Answers, Probe
from frugalbench.workloads.layers.onnx_export import INPUTS, MINILM, OUTPUTS, exported, model_key, module
from frugalbench.workloads.layers.whole_model import Network, open_network
from frugalbench.workloads.onnx_safety import check_model

REPEATED = 8
"""Of so many batches one is answered again in later replicates."""
_SAME = 1e-6
"""Embeddings have length 1; what differs by less is the same."""
Embed = Callable[[np.ndarray, np.ndarray], np.ndarray]


def prepare(arm: Arm, context: Context) -> None:
    """Export the model and fit the probes, where that has not been done."""
    if arm.cases[0].params["model"] != ENCODER:
        return
    if backend(arm.cases[0].backend).TAKES == "onnx":
        _file(arm, context)
    for case in arm.cases:
        task, split = _task(case, context)
        if task.kind == "classify":
            _probe(case, task, split, context)


def load(arm: Arm, context: Context) -> "LoadedTask | packaged_task.LoadedFile":
    """Hand the model to the arm's runtime, or keep it in torch and float64."""
    case = arm.cases[0]
    if case.params["model"] != ENCODER:
        return packaged_task.load(arm, context)
    network = open_network(case, context, exact=case.variant == BASELINE)
    if case.variant == BASELINE:
        return LoadedTask(arm, context, network, network.embed, (), {})
    runtime = backend(case.backend)
    model, made = (module(case.params["graph"]), ()) if runtime.TAKES == "module" else _file(arm, context)
    options = Options(
        threads=context.threads, device=BY_PROVIDER.get(case.variant, context.device), cache_dir=context.cache_dir,
        key=model_key(case.params["graph"]), inputs=INPUTS[MINILM], outputs=OUTPUTS[MINILM],
    )  # fmt: skip
    shape = (case.params["batch"], case.params["seq"])
    runnable = runtime.load(model, options, [_feed(np.ones(shape, np.int64), np.ones(shape, np.int64))])
    runtime_facts = {"placement": runnable.placement().histogram(), "runtime": runnable.details}
    return LoadedTask(arm, context, network, _embedder(runnable, shape), (*made, *runnable.artefacts), runtime_facts)


def _file(arm: Arm, context: Context) -> tuple[Path, tuple[Artefact, ...]]:
    params = arm.cases[0].params["graph"]
    path, artefact, _ = exported(params, context.cache_dir, model_key(params))
    check_model(path)
    return path, (artefact,)


def _feed(ids_BS: np.ndarray, mask_BS: np.ndarray) -> Arrays:
    return dict(zip(INPUTS[MINILM], (ids_BS, mask_BS), strict=True))


def _embedder(runnable: Runnable, shape: tuple[int, int]) -> Embed:
    """Embeddings of at most ``shape`` (B, S) tokens, which are padded to just that."""

    def embed(ids_BS: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
        rows, width = ids_BS.shape
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        mask[:, 0] = 1  # an empty row has no mean
        ids[:rows, :width], mask[:rows, :width] = ids_BS, mask_BS
        outputs = runnable.run(runnable.prepare(_feed(ids, mask)))
        runnable.synchronize()
        found = runnable.fetch(outputs)["sentence_embedding"][:rows].astype(np.float64)
        if not np.isfinite(found).all():
            raise RuntimeError("the model's answers are not finite numbers")
        return found

    return embed


def _task(case: Case, context: Context) -> tuple[Task, Split]:
    name = case.params["task"]
    return task_files.load(name), task_files.split_of(name, case.params["items"], context.cache_dir)


def _probe(case: Case, task: Task, split: Split, context: Context) -> Probe:
    """Fitted on torch's embeddings in float32; the same one judges every runtime."""
    key = (whole_model.made_ready(case, context), case.params["seq"], "cpu")
    return answers.probe_of(
        lambda: open_network(case, context), key, task, split, case.params["batch"], context.cache_dir
    )


@dataclass
class LoadedTask:
    """A model in a runtime, and what it answered."""

    arm: Arm
    context: Context
    network: Network
    """The tokenizer, and the hash of the weights."""
    embed: Embed
    artefacts: tuple[Artefact, ...]
    runtime: dict[str, Any]

    def bind(self, case: Case) -> Bound:
        """All there is to know: what was answered right, one bit an item."""
        task, split = self._tasks[case.id]
        found, again = self._answers(case, task, split), self._again
        facts: dict[str, Quantity] = answer_facts(found)
        details = {**described(case, task, split), **self.runtime, "model_digest": self.network.digest, **again}
        if not again:
            bits = {"correct": packed(found.correct), "starts": packed(found.starts)}
            details |= {"items": len(found.correct), **bits}
        return Bound(call=lambda _: None, output=lambda _: {}, facts=facts, details=details, settled=True)

    def close(self) -> None:
        """Nothing outlives the process."""

    @cached_property
    def _tasks(self) -> dict[str, tuple[Task, Split]]:
        return {case.id: _task(case, self.context) for case in self.arm.cases}

    def _answers(self, case: Case, task: Task, split: Split) -> Answers:
        if task.kind == "similarity":
            return answers.ranked(task, split, self._embedded)
        return answers.classified(task, split, _probe(case, task, split, self.context), self._embedded)

    @property
    def _texts(self) -> list[str]:
        return answers.texts_of([split for _, split in self._tasks.values()])

    @cached_property
    def _earlier(self) -> np.ndarray | None:
        """What an earlier replicate of this run embedded."""
        found = kept.read(self._kept) if self.context.replicate > 1 else None
        return found["embedding"] if found and len(found["embedding"]) == len(self._texts) else None

    @property
    def _kept(self) -> Path:
        return self.context.scratch_dir / "answers" / f"{hashlib.sha256(self.arm.id.encode()).hexdigest()[:16]}.npz"

    def _rows(self, every: int = 1) -> np.ndarray:
        encoder = _Encoder(self.network.encode, self.embed)
        size = self.arm.cases[0].params["batch"]
        return answers.embeddings(encoder, self._texts, size, Allowance(float("inf")), every)

    @cached_property
    def _embedded(self) -> dict[str, np.ndarray]:
        """Of every text of the arm's tasks; those that several tasks share are embedded once."""
        rows = self._earlier
        if rows is None:
            rows = self._rows()
            kept.write(self._kept, {"embedding": rows})
        return dict(zip(self._texts, rows, strict=True))

    @cached_property
    def _again(self) -> dict[str, int]:
        """One batch in eight once more, where an earlier replicate answered everything."""
        if self._earlier is None:
            return {}
        rows = self._rows(REPEATED)
        told = ~np.isnan(rows).any(axis=1)
        same = np.abs(rows[told] - self._earlier[told]).max(axis=1) < _SAME
        return {"repeated": int(told.sum()), "same": int(same.sum())}


@dataclass(frozen=True)
class _Encoder:
    """A tokenizer and a runtime."""

    encode: Callable[[Sequence[str]], list[list[int]]]
    embed: Embed
