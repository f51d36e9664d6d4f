"""Builder of ``quantized_model``: quantises a whole network while it loads, then lets it answer the items of its tasks.

The first replicate answers everything and keeps it in the run's scratch folder; later ones answer an eighth again and
say how much of it came out the same. One call, which is checked against float64 and timed, is a small batch of the
task.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frugalbench.schema import Arm, Artefact, Case, Quantity, Tier
from frugalbench.specs import lm_eval_tasks
from frugalbench.specs import tasks as task_files
from frugalbench.specs.model_schemes import SCHEMES
from frugalbench.specs.quantized_model import WORKLOAD
from frugalbench.specs.tasks import Split, Task
from frugalbench.specs.whole_models import ENCODER, TINY
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.layers import answers, kept, lm_eval_requests, running_text, tiny_lm, whole_model
from frugalbench.workloads.layers.answer_record import answer_facts, described, measured, packed
from frugalbench.workloads.layers.answers import Allowance, Answers, Probe, TooSlow
from frugalbench.workloads.layers.calibration import Calibration, calibrated
from frugalbench.workloads.layers.lm_eval_requests import Asked
from frugalbench.workloads.layers.model_schemes import Applied, apply, linears
from frugalbench.workloads.layers.whole_model import Network, open_network

POSITIONS = 2
"""Small batches of each case that are checked against float64."""
REPEATED = 8
"""Of so many batches one is answered again in later replicates."""
_OWN_THREADS = ("onnxruntime", "openvino", "llama.cpp")
"""Backends whose layers have threads of their own. torch, which computes what lies between the layers, then gets by
with one: two pools that spin for each other's cores take several times as long."""
_SAME = 1e-6
"""Embeddings have length 1; what differs by less is the same."""


def prepare(arm: Arm, context: Context) -> None:
    """Fetch, train and fit what is not cached yet: the model, the texts of its tasks, the probes on its embeddings."""
    digest = whole_model.made_ready(arm.cases[0], context)
    for case in arm.cases:
        task, split = _task(case, context)
        if task.kind == "classify":
            _probe(case, task, split, digest, partial(open_network, case, context), context)
    if SCHEMES[arm.cases[0].variant].calibrated:
        _calibrated(arm, open_network(arm.cases[0], context), context)


def load(arm: Arm, context: Context) -> "LoadedModel":
    """Open the model and hold it as the arm's scheme says. Raises ``RuntimeError`` where that cannot be."""
    case = arm.cases[0]
    for name in filter(lm_eval_tasks.is_one, (other.params["task"] for other in arm.cases)):
        lm_eval_requests.require(name, case.params["items"], context.scratch_dir)
    network = open_network(case, context)
    parameters = sum(weight.numel() for weight in network.module.parameters())
    found = _calibrated(arm, network, context)
    applied = apply(network, case, context, found.layers if found else None)
    if case.backend in _OWN_THREADS:
        torch.set_num_threads(1)
    artefacts = (*network.artefacts, *applied.artefacts, *((found.artefact,) if found else ()))
    return LoadedModel(arm, context, applied, artefacts, parameters, found)


def _calibrated(arm: Arm, network: Network, context: Context) -> Calibration | None:
    """Codes of a calibrated scheme, which saw nothing that the arm's tasks ask; ``None`` of any other."""
    case = arm.cases[0]
    if not SCHEMES[case.variant].calibrated:
        return None
    tests = answers.texts_of([_task(other, context)[1] for other in arm.cases])
    tests += [text for other in arm.cases if (asked := _requests(other)) for text in asked.texts]
    return calibrated(network, linears(network), case, tests, context)


def reference_key(case: Case) -> str:
    """Model and task; every scheme shares the reference."""
    own = ("variant", "bits", "kv_bits", "format_tolerance", "group_size", "cap_s")
    params = {key: value for key, value in case.params.items() if key not in own}
    return json.dumps([WORKLOAD, case.device, params], sort_keys=True)


def reference(case: Case, context: Context) -> Arrays:
    """The unquantised model's answer in float64: embeddings (r, B, D) or logits (r, S, V)."""
    on_cpu = Context(context.seed, context.threads, "cpu", context.cache_dir, context.scratch_dir)
    network = open_network(case, on_cpu, exact=case.params["model"] != TINY)
    task, split = _task(case, context)
    if network.kind == ENCODER:
        batches = answers.check_batches(network, split, POSITIONS)
        return {"embedding": np.stack([network.embed(ids, mask) for ids, mask in batches])}
    found = _windows(case, network, task, split)[:POSITIONS, :-1]
    if network.arrays is not None:
        return {"logits": np.stack([tiny_lm.answer(network.arrays, case.params, ids) for ids in found])}
    return {"logits": np.stack([network.logits(ids[None])[0].double().numpy() for ids in found])}


def _task(case: Case, context: Context) -> tuple[Task, Split]:
    """The task of a case and its items; each worker reads them anew, from the cache where that takes long."""
    name, p = case.params["task"], case.params
    return task_files.load(name), task_files.split_of(name, p["items"], context.cache_dir)


def _requests(case: Case) -> Asked | None:
    """What a task of lm-evaluation-harness asks; ``None`` of any other. Raises ``NoPath`` where it is not here."""
    name = case.params["task"]
    return lm_eval_requests.asked(name, case.params["items"]) if lm_eval_tasks.is_one(name) else None


def _windows(case: Case, network: Network, task: Task, split: Split) -> np.ndarray:
    return running_text.windows(network, split, case.params["seq"], task.test, case.params["items"])


def _probe(
    case: Case, task: Task, split: Split, digest: str, network: Callable[[], Network], context: Context
) -> Probe:
    """Fitted on the unquantised model's embeddings; ``network`` opens it, when that has not been done before."""
    key = (digest, case.params["seq"], context.device)
    return answers.probe_of(network, key, task, split, case.params["batch"], context.cache_dir)


@dataclass
class LoadedModel:
    """A network under a scheme, and what it answered."""

    arm: Arm
    context: Context
    applied: Applied
    artefacts: tuple[Artefact, ...]
    parameters: int
    calibration: Calibration | None = None
    _too_slow: str = ""

    def bind(self, case: Case) -> Bound:
        """Answer the task of ``case``, or read what an earlier worker of this run answered; make a batch callable."""
        task, split = self._tasks[case.id]
        outcome, again = self._answered(case, task, split)
        call = self._call(case, task, split)
        return Bound(
            call=call,
            output=lambda index: self._output(case, call, index % POSITIONS),
            rotation=POSITIONS,
            synchronize=self._synchronize,
            own_definition=(lambda index: self._definition(case, index)) if self.applied.lossy else None,
            facts=self._facts(case, outcome),
            details={**self._described(case, task, split), **self._details(outcome, again)},
            capped=self._too_slow,
        )

    def close(self) -> None:
        """Release what the layers' libraries hold."""
        self.applied.close()

    @cached_property
    def original(self) -> Network:
        """The unquantised model: what weights were made of, and a language model's peer."""
        return open_network(self.arm.cases[0], self.context)

    @cached_property
    def _tasks(self) -> dict[str, tuple[Task, Split]]:
        return {case.id: _task(case, self.context) for case in self.arm.cases}

    # --- answering ----------------------------------------------------------------------------------------------

    def _answered(self, case: Case, task: Task, split: Split) -> tuple[Answers | None, dict[str, int]]:
        """Answers, and how many of those that were given again came out the same."""
        file = self._file(case.id)
        earlier = kept.read(file) if self.context.replicate > 1 else None
        try:
            if self._too_slow:
                return None, {}
            if earlier is not None:
                return Answers.of(earlier), self._again(case, task, split, Answers.of(earlier))
            found = self._answer(case, task, split)
        except TooSlow as slow:
            self._too_slow = str(slow)
            return None, {}
        kept.write(file, found.arrays())
        return found, {}

    def _file(self, what: str) -> Path:
        return self.context.scratch_dir / "answers" / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.npz"

    def _answer(self, case: Case, task: Task, split: Split) -> Answers:
        network = self.applied.network
        if asked := _requests(case):
            return asked.answered(network, case.params["batch"], case.params["seq"], self._allowance)
        if task.kind == "lm":
            parts = running_text.batches(network, _windows(case, network, task, split), case.params["batch"])
            return running_text.continued(network, self._peer, parts, self._allowance)
        if task.kind == "similarity":
            return answers.ranked(task, split, self._embeddings)
        digest = self.applied.network.digest
        probe = _probe(case, task, split, digest, lambda: self.original, self.context)
        return answers.classified(task, split, probe, self._embeddings)

    @property
    def _peer(self) -> Network | None:
        return self.original if self.applied.lossy else None

    @cached_property
    def _allowance(self) -> Allowance:
        return Allowance(self.arm.cases[0].params["cap_s"])

    @property
    def _texts(self) -> list[str]:
        return answers.texts_of([split for _, split in self._tasks.values()])

    @cached_property
    def _embeddings(self) -> dict[str, np.ndarray]:
        """Of every text of the arm's tasks; texts that several tasks share are embedded once."""
        texts, size = self._texts, self.arm.cases[0].params["batch"]
        rows = answers.embeddings(self.applied.network, texts, size, self._allowance)
        kept.write(self._file(self.arm.id), {"embedding": rows.astype(np.float32)})
        return dict(zip(texts, rows, strict=True))

    def _again(self, case: Case, task: Task, split: Split, earlier: Answers) -> dict[str, int]:
        """Answer one batch in eight once more, in batches made of the same items."""
        network = self.applied.network
        if asked := _requests(case):
            size, longest = case.params["batch"], case.params["seq"]
            again = asked.answered(network, size, longest, self._allowance, REPEATED).correct
            return {"repeated": len(again), "same": int((again == earlier.correct[::REPEATED]).sum())}
        if task.kind != "lm":
            return self._embedded_again
        parts = running_text.batches(network, _windows(case, network, task, split), case.params["batch"])
        chosen = range(0, len(parts), REPEATED)
        found = running_text.continued(network, None, [parts[number] for number in chosen], self._allowance)
        size = parts[0].shape[0] * (parts[0].shape[1] - 1)
        places = np.concatenate(
            [np.arange(number * size, number * size + parts[number][:, 1:].size) for number in chosen]
        )
        assert earlier.loss is not None and found.loss is not None
        same = (found.correct == earlier.correct[places]) & (np.abs(found.loss - earlier.loss[places]) < _SAME)
        return {"repeated": len(places), "same": int(same.sum())}

    @cached_property
    def _embedded_again(self) -> dict[str, int]:
        texts, size = self._texts, self.arm.cases[0].params["batch"]
        earlier = kept.read(self._file(self.arm.id))
        if earlier is None or len(earlier["embedding"]) != len(texts):
            return {}
        rows = answers.embeddings(self.applied.network, texts, size, self._allowance, every=REPEATED)
        told = ~np.isnan(rows).any(axis=1)
        same = np.abs(rows[told] - earlier["embedding"][told]).max(axis=1) < _SAME
        return {"repeated": int(told.sum()), "same": int(same.sum())}

    # --- one small batch ----------------------------------------------------------------------------------------

    def _call(self, case: Case, task: Task, split: Split) -> Callable[[int], Any]:
        network = self.applied.network
        if network.kind == ENCODER:
            batches = answers.check_batches(network, split, POSITIONS)
            return lambda index: network.embed(*batches[index % POSITIONS])
        ids = _windows(case, network, task, split)[:POSITIONS, :-1]
        return lambda index: network.logits(ids[index % POSITIONS][None])

    def _output(self, case: Case, call: Callable[[int], Any], index: int) -> Arrays:
        answered: list[Any] = []
        sums = self.applied.watched(lambda: answered.append(call(index)))
        if self.applied.network.kind == ENCODER:
            return {"embedding": answered[0], **self._divided(case, index, sums)}
        return {"logits": answered[0][0].double().cpu().numpy(), **self._divided(case, index, sums)}

    def _divided(self, case: Case, index: int, sums: Arrays) -> Arrays:
        """Signed sums over their sizes, which the first worker of the run finds; they depend on the inputs alone."""
        if not sums:
            return {}
        file = self._file(f"{case.id} sizes {index}")
        if (sizes := kept.read(file)) is None:
            sizes = self.applied.sizes(self.original)
            kept.write(file, sizes)
        return {name: value / sizes[name] for name, value in sums.items()}

    def _definition(self, case: Case, index: int) -> Arrays:
        """The layers' answers by what they store, or all of the model's where keys and values are rounded."""
        bits = SCHEMES[case.variant].kv_bits
        if not bits:
            return self._divided(case, index % POSITIONS, self.applied.defined(self.original))
        network = self.applied.network
        assert network.arrays is not None
        ids = _windows(case, network, *self._tasks[case.id])[index % POSITIONS, :-1]
        return {"logits": tiny_lm.answer(network.arrays, case.params, ids, bits)}

    def _synchronize(self) -> None:
        if self.context.device == "cuda":
            torch.cuda.synchronize()

    # --- what is recorded ---------------------------------------------------------------------------------------

    def _facts(self, case: Case, outcome: Answers | None) -> dict[str, Quantity]:
        held = sum(layer.in_features * layer.out_features for layer in self.applied.layers.values())
        found = {
            "weight_bytes": measured(self.applied.stored_bytes(), "byte", "every weight and table as held"),
            "bf16_bytes": measured(2 * self.parameters, "byte", "2 bytes per parameter of the whole model"),
            "quantised_share": measured(held / self.parameters, "1", "parameters in layers of this format"),
            "unquantised_bytes": measured(
                self.applied.other_bytes(), "byte", "look-up tables, norms and biases as held"
            ),
        }
        if case.params["model"] == TINY:
            size = tiny_lm.kv_bytes_per_token(case.params, case.params["kv_bits"])
            source = "keys and values of all layers as a cache would hold them, by formula"
            found["kv_bytes"] = Quantity(value=size, unit="byte/token", tier=Tier.MODELLED, source=source)
        found |= self.calibration.facts() if self.calibration else {}
        return found if outcome is None else found | answer_facts(outcome)

    def _described(self, case: Case, task: Task, split: Split) -> dict[str, Any]:
        found = described(case, task, split)
        asked = _requests(case)
        return found | {"task": found["task"] | {"digest": asked.digest}} if asked else found

    def _details(self, outcome: Answers | None, again: dict[str, int]) -> dict[str, Any]:
        found: dict[str, Any] = {
            "model_digest": self.applied.network.digest,
            "kernels": self.applied.kernels(),
            "layer_threads": self.applied.threads(),
            **(self.calibration.details if self.calibration else {}),
            **again,
        }
        if outcome is None or again:
            return found
        return found | {
            "items": len(outcome.correct), "correct": packed(outcome.correct), "starts": packed(outcome.starts),
        }  # fmt: skip
