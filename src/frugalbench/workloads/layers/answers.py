"""What a network answers to the items of a task: one bit per item, and for language models how far off it is.

Shape suffixes: B batch, S sequence, D model width, C classes, I items.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from frugalbench.specs.tasks import Example, Split, Task
from frugalbench.specs.whole_models import CHECK_TEXTS, CHECK_TOKENS
from frugalbench.workloads.base import Arrays
from frugalbench.workloads.layers import kept
from frugalbench.workloads.layers.whole_model import Network

_PROBE_PENALTY = 0.05
"""Weight of the squared coefficients, per item: embeddings have length 1."""
_PROBE_STEPS = 300
_LEAST_SHARE = 1 / 8
"""Of the limit: before it is spent, a projection would rest on start-up costs and the machine's mood."""


class Encoder(Protocol):
    """As much of a network as embedding texts takes."""

    @property
    def encode(self) -> Callable[[Sequence[str]], list[list[int]]]:
        """Token ids of each text."""
        ...

    def embed(self, ids_BS: np.ndarray, mask_BS: np.ndarray, /) -> np.ndarray:
        """Sentence embeddings (B, D)."""
        ...


class TooSlow(Exception):
    """Answering everything would take longer than the cap; says how long."""


@dataclass
class Allowance:
    """Time for answering. Asked after each batch, so a hopeless scheme costs an eighth of it and a batch."""

    limit_s: float
    begin_s: float = field(default_factory=time.monotonic)

    def check(self, done: float, total: float) -> None:
        """Raise :class:`TooSlow` where the time so far, or what ``done`` of ``total`` leads to expect, is too much."""
        spent_s = time.monotonic() - self.begin_s
        expected_s = spent_s * total / done if spent_s > _LEAST_SHARE * self.limit_s else spent_s
        if expected_s > self.limit_s:
            raise TooSlow(f"answering would take about {expected_s:.0f} s, more than the cap of {self.limit_s:g} s")


@dataclass(frozen=True)
class Answers:
    """Of one network to one task; items in the order of the task, those of a cluster together."""

    correct: np.ndarray
    """Bool (I)."""
    starts: np.ndarray
    """Bool (I): whether an item begins a new cluster."""
    loss: np.ndarray | None = None
    """Cross-entropy in nats (I), language models only."""
    divergence: float | None = None
    """Mean Kullback-Leibler divergence from the unquantised model's distribution, nats per token."""
    agreement: float | None = None
    """Share of tokens for which both models have the same first choice."""

    def arrays(self) -> Arrays:
        """As they are kept on disk."""
        found = {"correct": self.correct, "starts": self.starts}
        found |= {} if self.loss is None else {"loss": self.loss}
        single = {"divergence": self.divergence, "agreement": self.agreement}
        return found | {name: np.array(value) for name, value in single.items() if value is not None}

    @classmethod
    def of(cls, arrays: Arrays) -> "Answers":
        """The inverse of :meth:`arrays`."""
        single = {name: float(arrays[name]) for name in ("divergence", "agreement") if name in arrays}
        return cls(arrays["correct"], arrays["starts"], arrays.get("loss"), **single)


def text_batches(network: Encoder, texts: Sequence[str], size: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Numbers of the texts, ids and mask (B, S) of each batch: texts of like length together, padded to the longest."""
    encoded = network.encode(texts)
    if any(not ids for ids in encoded):
        raise RuntimeError("the tokenizer makes nothing of one of the task's texts")
    order = sorted(range(len(encoded)), key=lambda number: (len(encoded[number]), number))
    return [padded(encoded, order[start : start + size]) for start in range(0, len(order), size)]


def padded(encoded: Sequence[Sequence[int]], numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One batch of the ``encoded`` texts with these ``numbers``."""
    width = max(len(encoded[number]) for number in numbers)
    ids_BS = np.zeros((len(numbers), width), np.int64)
    mask_BS = np.zeros_like(ids_BS)
    for row, number in enumerate(numbers):
        ids_BS[row, : len(encoded[number])] = encoded[number]
        mask_BS[row, : len(encoded[number])] = 1
    return np.array(numbers), ids_BS, mask_BS


def check_batches(network: Network, split: Split, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """``count`` times ids and mask (B, S) of the first test texts, cut or padded to one length: all cost the same."""
    texts = [item.text for item in split.test]
    wanted = [texts[number % len(texts)] for number in range(count * CHECK_TEXTS)]
    encoded = network.encode(wanted)
    made = []
    for start in range(0, len(encoded), CHECK_TEXTS):
        ids_BS = np.zeros((CHECK_TEXTS, CHECK_TOKENS), np.int64)
        mask_BS = np.zeros_like(ids_BS)
        for row, ids in enumerate(encoded[start : start + CHECK_TEXTS]):
            ids_BS[row, : len(ids[:CHECK_TOKENS])] = ids[:CHECK_TOKENS]
            mask_BS[row, : len(ids)] = 1
        made.append((ids_BS, mask_BS))
    return made


def embeddings(network: Encoder, texts: Sequence[str], size: int, allowance: Allowance, every: int = 1) -> np.ndarray:
    """Float64 (I, D); of every ``every``-th batch only, where it is not 1, and NaN elsewhere."""
    batches = text_batches(network, texts, size)[::every]
    found: np.ndarray | None = None
    done, total = 0, sum(ids_BS.size for _, ids_BS, _ in batches)
    for numbers, ids_BS, mask_BS in batches:
        rows = network.embed(ids_BS, mask_BS)
        found = np.full((len(texts), rows.shape[1]), np.nan) if found is None else found
        found[numbers] = rows
        done += ids_BS.size
        allowance.check(done, total)
    assert found is not None
    return found


def texts_of(splits: Sequence[Split]) -> list[str]:
    """Every text that the test items of these tasks need, once, in order."""
    return list(
        dict.fromkeys(text for split in splits for item in split.test for text in (item.text, item.match) if text)
    )


@dataclass(frozen=True)
class Probe:
    """A multinomial logistic regression on embeddings; the same one judges every scheme."""

    weights: np.ndarray
    """(C, D)"""
    bias: np.ndarray
    """(C)"""

    def choose(self, embedding_ID: np.ndarray) -> np.ndarray:
        """Number of the class of each item."""
        return np.asarray((embedding_ID @ self.weights.T + self.bias).argmax(axis=1))


def fit_probe(embedding_ID: np.ndarray, classes_I: np.ndarray, count: int) -> Probe:
    """Least mean cross-entropy plus a small penalty, by L-BFGS from 0: convex, so the start does not matter."""
    from scipy.optimize import minimize

    items, width = embedding_ID.shape
    wanted_IC = np.eye(count)[classes_I]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w_CD, b_C = flat[: count * width].reshape(count, width), flat[count * width :]
        logits_IC = embedding_ID @ w_CD.T + b_C
        logits_IC -= logits_IC.max(axis=1, keepdims=True)
        total_I = np.log(np.exp(logits_IC).sum(axis=1))
        slope_IC = (np.exp(logits_IC - total_I[:, None]) - wanted_IC) / items
        penalty = _PROBE_PENALTY / items
        value = (total_I - (logits_IC * wanted_IC).sum(axis=1)).mean() + penalty / 2 * float((w_CD**2).sum())
        return value, np.concatenate([(slope_IC.T @ embedding_ID + penalty * w_CD).ravel(), slope_IC.sum(axis=0)])

    best = minimize(loss, np.zeros(count * (width + 1)), jac=True, method="L-BFGS-B", options={"maxiter": _PROBE_STEPS})
    return Probe(best.x[: count * width].reshape(count, width), best.x[count * width :])


def probe_of(
    network: Callable[[], Encoder], key: Sequence[object], task: Task, split: Split, size: int, cache_dir: Path
) -> Probe:
    """The probe of a task for an unquantised network, from ``cache_dir`` where it was fitted before."""
    name = hashlib.sha256(json.dumps([*map(str, key), split.digest, size, _PROBE_PENALTY]).encode()).hexdigest()[:16]
    file = cache_dir / "probes" / f"{name}.npz"
    if (found := kept.read(file)) is None:
        embedding_ID = embeddings(network(), [item.text for item in split.train], size, Allowance(float("inf")))
        classes_I = np.array([task.classes.index(item.label) for item in split.train])
        probe = fit_probe(embedding_ID, classes_I, len(task.classes))
        found = {"weights": probe.weights, "bias": probe.bias}
        kept.write(file, found)
    return Probe(found["weights"], found["bias"])


def classified(task: Task, split: Split, probe: Probe, embedding_of: dict[str, np.ndarray]) -> Answers:
    """Whether the probe names each item's label."""
    rows_ID = np.stack([embedding_of[item.text] for item in split.test])
    classes_I = np.array([task.classes.index(item.label) for item in split.test])
    return Answers(probe.choose(rows_ID) == classes_I, group_starts(split.test))


def ranked(task: Task, split: Split, embedding_of: dict[str, np.ndarray]) -> Answers:
    """Whether each item's match is nearer than those of the other items in its block of ``candidates``."""
    texts_ID, matches_ID = (
        np.stack([embedding_of[getattr(item, name)] for item in split.test]) for name in ("text", "match")
    )
    correct = np.zeros(len(split.test), bool)
    for block in blocks(len(split.test), task.candidates):
        similar = texts_ID[block] @ matches_ID[block].T
        own = np.diagonal(similar).copy()
        np.fill_diagonal(similar, -np.inf)
        correct[block] = own > similar.max(axis=1)
    return Answers(correct, group_starts(split.test))


def blocks(items: int, size: int) -> Iterator[slice]:
    """Neighbours of ``size`` items; the last block ends with the last item and reaches back, so that it is full."""
    for start in range(0, items, size):
        end = min(start + size, items)
        yield slice(max(0, end - size), end)


def group_starts(items: Sequence[Example]) -> np.ndarray:
    """Where the group of an item is not that of the item before."""
    return np.array([number == 0 or items[number - 1].group != item.group for number, item in enumerate(items)])
