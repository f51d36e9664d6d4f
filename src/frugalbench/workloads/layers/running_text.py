"""Running text through language models, window by window: the next token's answers, and how far a model is off.

Shape suffixes: W windows, S sequence, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from frugalbench.specs.tasks import Split
from frugalbench.workloads.layers.answers import Allowance, Answers
from frugalbench.workloads.layers.whole_model import Network

MOST_LOGITS = 2**24
"""Values of one batch of logits: 128 MiB each time they are held in float64."""


def windows(network: Network, split: Split, seq: int, most_tokens: int, most_windows: int) -> np.ndarray:
    """(W, S + 1) token ids: successive windows, each beginning with the last token of the one before.

    Raises ``RuntimeError`` where the text is too short for two.
    """
    ids = np.array(network.encode(["\n\n".join(item.text for item in split.test)])[0], dtype=np.int64)
    count = (len(ids) - 1) // seq
    count = min(filter(None, (count, max(2, most_tokens // seq) if most_tokens else 0, most_windows)), default=0)
    if count < 2:
        raise RuntimeError(f"the task's text has {len(ids)} tokens, fewer than two windows of {seq} need")
    return np.stack([ids[number * seq : number * seq + seq + 1] for number in range(count)])


def batches(network: Network, tokens: np.ndarray, size: int) -> list[np.ndarray]:
    """Windows in batches of ``size``, or of fewer where the logits would take too much memory."""
    size = max(1, min(size, MOST_LOGITS // (tokens.shape[1] * network.vocabulary)))
    return [tokens[start : start + size] for start in range(0, len(tokens), size)]


def continued(network: Network, peer: Network | None, parts: Sequence[np.ndarray], allowance: Allowance) -> Answers:
    """Next-token answers on batches of windows; ``peer`` is the unquantised model, where ``network`` is not."""
    found: list[tuple[np.ndarray, np.ndarray, float, float]] = []
    for tokens in parts:
        found.append(_continued(network, peer, tokens))
        allowance.check(len(found), len(parts))
    correct = np.concatenate([item[0] for item in found])
    loss = np.concatenate([item[1] for item in found])
    starts = np.arange(len(correct)) % (parts[0].shape[1] - 1) == 0
    if peer is None:
        return Answers(correct, starts, loss)
    divergence, agreement = (
        sum(sums) / len(correct) for sums in ([item[2] for item in found], [item[3] for item in found])
    )
    return Answers(correct, starts, loss, divergence, agreement)


def _continued(
    network: Network, peer: Network | None, tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Of one batch: whether right and loss per token; sums of divergence and agreement."""
    ids, wanted = tokens[:, :-1], torch.from_numpy(tokens[:, 1:].copy()).to(network.device)
    with torch.inference_mode():
        ours = network.logits(ids).double().log_softmax(dim=-1)
        if not torch.isfinite(ours).all():
            raise RuntimeError("the model's answers are not finite numbers")
        choice = ours.argmax(dim=-1)
        loss = -ours.gather(-1, wanted[..., None])
        divergence, agreement = (0.0, 0.0) if peer is None else _beside(ours, choice, peer.logits(ids))
    return (choice == wanted).cpu().numpy().ravel(), loss.cpu().numpy().ravel(), divergence, agreement


def _beside(ours: Any, choice: Any, peer_logits: Any) -> tuple[float, float]:
    """Sums over tokens: divergence of ``ours`` from the peer's distribution in nats, and equal first choices."""
    theirs = peer_logits.double().log_softmax(dim=-1)
    divergence = (theirs.exp() * (theirs - ours)).sum()
    return float(divergence), float((theirs.argmax(dim=-1) == choice).sum())
