"""Tasks of lm-evaluation-harness on a network: the library makes the requests and judges, the network answers.

An item is one document with its answers; a request is a context and one continuation, whose log-likelihood is summed.
Tokens are split as that library does: the context alone, and what the whole has beyond it. Shape suffixes: B batch, S
sequence, V vocabulary.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frugalbench.specs.lm_eval_tasks import PREFIX, is_file
from frugalbench.workloads.base import NoPath
from frugalbench.workloads.layers.answers import Allowance, Answers, padded
from frugalbench.workloads.layers.running_text import MOST_LOGITS
from frugalbench.workloads.layers.whole_model import Network

_METRIC = "acc"


@dataclass(frozen=True)
class Asked:
    """The items of one task."""

    task: Any
    documents: tuple[Any, ...]
    pairs: tuple[tuple[tuple[str, str], ...], ...]
    """Context and continuation of each answer of each document."""

    @property
    def digest(self) -> str:
        """Hash of every word that is asked."""
        return hashlib.sha256(json.dumps(self.pairs).encode()).hexdigest()[:16]

    @property
    def texts(self) -> list[str]:
        """Every request."""
        return [context + continuation for answers in self.pairs for context, continuation in answers]

    def answered(self, network: Network, size: int, longest: int, allowance: Allowance, every: int = 1) -> Answers:
        """Whether each document, or every ``every``-th, is answered rightly.

        Raises ``RuntimeError`` for a request of more than ``longest`` tokens: one that is cut is another question.
        """
        numbers = range(0, len(self.documents), every)
        flat = [pair for number in numbers for pair in self.pairs[number]]
        told = iter(_likelihoods(network, [_tokens(network, *pair, longest) for pair in flat], size, allowance))
        correct = [self._right(number, [next(told) for _ in self.pairs[number]]) for number in numbers]
        return Answers(np.array(correct), np.ones(len(correct), bool))

    def _right(self, number: int, results: list[tuple[float, bool]]) -> bool:
        judged = self.task.process_results(self.documents[number], results)
        if judged.get(_METRIC) not in (0, 1):
            raise RuntimeError(f"{self.task.task_name}: has no metric '{_METRIC}' that is right or wrong for each item")
        return bool(judged[_METRIC])


@cache
def asked(name: str, items: int) -> Asked:
    """Fetch a task and its data; at most ``items`` documents (0: all).

    Raises ``NoPath`` where the library has no such task or its data cannot be had here, ``RuntimeError`` for a task of
    another kind.
    """
    try:
        task = _task(name.removeprefix(PREFIX), is_file(name))
        task.build_all_requests(limit=items or None, rank=0, world_size=1)
    except Exception as problem:
        told = " ".join(f"{type(problem).__name__}: {problem}".split())[:200]
        raise NoPath(
            f"{name}: the task or its data cannot be loaded here ({told}); its data come from the hub"
        ) from None
    if not task.instances or any(item.request_type != "loglikelihood" for item in task.instances):
        raise RuntimeError(f"{name}: only tasks of multiple choice can be paired, not {task.OUTPUT_TYPE}")
    found: dict[int, list[Any]] = {}
    for item in task.instances:
        found.setdefault(item.doc_id, []).append(item)
    ordered = [sorted(found[number], key=lambda item: item.idx) for number in sorted(found)]
    if any(not item.args[0] for answers in ordered for item in answers):
        raise RuntimeError(f"{name}: asks without a context")
    pairs = tuple(tuple((item.args[0], item.args[1]) for item in answers) for answers in ordered)
    return Asked(task, tuple(answers[0].doc for answers in ordered), pairs)


def require(name: str, items: int, scratch_dir: Path) -> None:
    """Raise ``NoPath`` where a task cannot be had here. The library takes half a minute to find that out, so what one
    worker of a run learns is kept for the others in ``scratch_dir``."""
    note = scratch_dir / "lm_eval" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.txt"
    if note.is_file():
        raise NoPath(note.read_text())
    try:
        asked(name, items)
    except NoPath as missing:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(str(missing))
        raise


def _task(own: str, from_file: bool) -> Any:
    from lm_eval.tasks import TaskManager

    folder = str(Path(own).parent) if from_file else None
    manager = TaskManager(include_path=folder, include_defaults=not from_file)
    wanted = Path(own).stem if from_file else own
    return manager.load([wanted])["tasks"][wanted]


def _tokens(network: Network, context: str, continuation: str, longest: int) -> tuple[list[int], int]:
    """Ids of the whole, and how many of them belong to the context."""
    bare = context.rstrip()
    whole, first = network.encode([context + continuation, bare])
    if len(whole) > longest + 1:
        raise RuntimeError(f"a request has {len(whole)} tokens, more than 'seq' = {longest} allows; raise it")
    if not 0 < len(first) < len(whole):
        raise RuntimeError("the tokenizer makes nothing of the context or the answer of a request")
    return whole, len(first)


def _likelihoods(
    network: Network, encoded: Sequence[tuple[list[int], int]], size: int, allowance: Allowance
) -> list[tuple[float, bool]]:
    """Log-likelihood of each continuation in nats, and whether it is the model's first choice throughout."""
    order = sorted(range(len(encoded)), key=lambda number: (len(encoded[number][0]), number))
    longest = max(len(ids) for ids, _ in encoded)
    size = max(1, min(size, MOST_LOGITS // (longest * network.vocabulary)))
    found: dict[int, tuple[float, bool]] = {}
    for start in range(0, len(order), size):
        numbers, ids_BS, _ = padded([ids for ids, _ in encoded], order[start : start + size])
        with torch.inference_mode():
            log_BSV = network.logits(ids_BS[:, :-1]).double().log_softmax(dim=-1).cpu()
        for row, number in enumerate(numbers):
            found[number] = _continued(log_BSV[row], *encoded[number])
        allowance.check(len(found), len(order))
    return [found[number] for number in range(len(encoded))]


def _continued(log_SV: Any, ids: list[int], first: int) -> tuple[float, bool]:
    wanted = torch.tensor(ids[first:])
    rows = log_SV[first - 1 : len(ids) - 1]
    total = float(rows.gather(-1, wanted[:, None]).sum())
    if not np.isfinite(total):
        raise RuntimeError("the model's answers are not finite numbers")
    return total, bool((rows.argmax(dim=-1) == wanted).all())
