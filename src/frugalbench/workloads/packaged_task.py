"""The part of ``onnx_task`` for models that are a file alone: lets a runtime answer every item of their tasks."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.backends import backend
from frugalbench.backends.base import Options, Runnable
from frugalbench.schema import Arm, Artefact, Case
from frugalbench.specs import tasks as task_files
from frugalbench.specs.graph_set import PACKAGED
from frugalbench.specs.onnx_model import BY_PROVIDER
from frugalbench.specs.onnx_task import FILE_BASELINE
from frugalbench.specs.tasks import Example, Split
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.layers import kept
from frugalbench.workloads.layers.answer_record import answer_facts, described, packed
from frugalbench.workloads.layers.onnx_inspect import file_hash
from frugalbench.workloads.layers.packaged_models import Answerer, Run, answerer, batches, judged
from frugalbench.workloads.onnx_safety import check_model

REPEATED = 8
"""Of so many batches one is answered again in later replicates."""
EXACT_BATCH = 4
"""onnx.reference keeps every value of a call: a line of writing takes some 300 MiB."""


def load(arm: Arm, context: Context) -> "LoadedFile":
    """Hand the model to the arm's runtime, or to ``onnx.reference`` in float64."""
    case = arm.cases[0]
    path = PACKAGED[case.params["model"]].path()
    if path is None:
        raise RuntimeError(f"the package of {case.params['model']} lacks its model")
    check_model(path)
    exact, batch = case.variant == FILE_BASELINE, case.params["batch"]
    model = answerer(case.params["kind"], path, min(EXACT_BATCH, batch) if exact else batch)
    digest = file_hash(path)
    if exact:
        from frugalbench.workloads.layers.onnx_exact import ExactGraph

        return LoadedFile(arm, context, model, digest, ExactGraph(path).run, (), {})
    runnable = _loaded(case, path, model.example(), digest, context)
    facts = {"placement": runnable.placement().histogram(), "runtime": runnable.details}
    return LoadedFile(arm, context, model, digest, _runner(runnable), runnable.artefacts, facts)


def _loaded(case: Case, path: Path, example: Arrays, digest: str, context: Context) -> Runnable:
    import onnx

    outputs = tuple(item.name for item in onnx.load(str(path)).graph.output)
    options = Options(
        threads=context.threads, device=BY_PROVIDER.get(case.variant, context.device), cache_dir=context.cache_dir,
        key=digest[:16], inputs=tuple(example), outputs=outputs,
    )  # fmt: skip
    return backend(case.backend).load(path, options, [example])


def _runner(runnable: Runnable) -> Run:
    def run(feed: Arrays) -> Arrays:
        outputs = runnable.run(runnable.prepare(feed))
        runnable.synchronize()
        found = runnable.fetch(outputs)
        if not all(np.isfinite(value).all() for value in found.values()):
            raise RuntimeError("the model's answers are not finite numbers")
        return found

    return run


@dataclass
class LoadedFile:
    """A model in a runtime, and what it answered."""

    arm: Arm
    context: Context
    model: Answerer
    digest: str
    run: Run
    artefacts: tuple[Artefact, ...]
    runtime: dict[str, Any]

    def bind(self, case: Case) -> Bound:
        """All there is to know: what was answered right, one bit an item."""
        task, split = task_files.load(case.params["task"]), self._split(case)
        said, again = self._said(case, split)
        found = judged(case.params["kind"], split.test, said)
        details = {**described(case, task, split), **self.runtime, "model_digest": self.digest, **again}
        if not again:
            bits = {"correct": packed(found.correct), "starts": packed(found.starts)}
            details |= {"items": len(found.correct), **bits}
        facts = answer_facts(found)
        return Bound(call=lambda _: None, output=lambda _: {}, facts=facts, details=details, settled=True)

    def close(self) -> None:
        """Nothing outlives the process."""

    def _split(self, case: Case) -> Split:
        return task_files.split_of(case.params["task"], case.params["items"], self.context.cache_dir)

    def _said(self, case: Case, split: Split) -> tuple[list[str], dict[str, int]]:
        """Every answer; those of an earlier replicate, with how many of an eighth came again, where there was one."""
        file = self._kept(case)
        earlier = kept.read(file) if self.context.replicate > 1 else None
        if earlier is None or len(earlier["said"]) != len(split.test):
            said = self._answers(split.test)
            kept.write(file, {"said": np.array(said)})
            return said, {}
        old = [str(text) for text in earlier["said"]]
        chosen = [number for number in range(len(old)) if number // self.model.batch % REPEATED == 0]
        new = self._answers([split.test[number] for number in chosen])
        same = sum(old[number] == text for number, text in zip(chosen, new, strict=True))
        return old, {"repeated": len(chosen), "same": same}

    def _answers(self, items: Sequence[Example]) -> list[str]:
        return [text for part in batches(items, self.model.batch) for text in self.model.answer(self.run, part)]

    def _kept(self, case: Case) -> Path:
        return self.context.scratch_dir / "answers" / f"{hashlib.sha256(case.id.encode()).hexdigest()[:16]}.npz"
