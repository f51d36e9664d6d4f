"""The float64 answer of a decoder-only model: written in numpy, apart from every arm.

All answers of a run come from one pass over the layers: the text, the tokens that are decoded behind it, and the ends
of the prompts are rows of one stream, and a mask says which row sees which. Shape suffixes: T rows, D model width,
N outputs, K inputs, H heads, C values of a head, R wanted rows, V vocabulary.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from frugalbench.specs.decoder_shape import MATRICES, DecoderShape
from frugalbench.workloads.base import Arrays
from frugalbench.workloads.layers import kept
from frugalbench.workloads.layers.decode_weights import Tokens, Weights, tail, tokens_of
from frugalbench.workloads.layers.quant_stored import Stored, multiply

_ROWS = 4096
"""Of the output head, taken at a time."""


class Held(Protocol):
    """The weights of an arm as float64 numbers: what its answer is defined by."""

    def fingerprint(self) -> str: ...
    def gain(self, layer: int, name: str) -> np.ndarray: ...
    def last_gain(self) -> np.ndarray: ...
    def product(self, layer: int, name: str, x_TK: np.ndarray) -> np.ndarray: ...
    def embedding(self, tokens_T: np.ndarray) -> np.ndarray: ...
    def logits(self, x_RD: np.ndarray) -> np.ndarray: ...


class Unquantised:
    """The model as it was drawn."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def fingerprint(self) -> str:
        """Changes whenever a weight does."""
        return self._weights.key

    def gain(self, layer: int, name: str) -> np.ndarray:
        """Gain of a layer, float64 (D)."""
        return self._weights.gain(layer, name).astype(np.float64)

    def last_gain(self) -> np.ndarray:
        """Gain in front of the head, float64 (D)."""
        return self._weights.last_gain().astype(np.float64)

    def product(self, layer: int, name: str, x_TK: np.ndarray) -> np.ndarray:
        """x W^T, float64 (T, N)."""
        return np.asarray(x_TK @ self._weights.matrix(layer, name).astype(np.float64).T)

    def embedding(self, tokens_T: np.ndarray) -> np.ndarray:
        """Rows of the table, float64 (T, D)."""
        return np.asarray(self._weights.table()[tokens_T], np.float64)

    def logits(self, x_RD: np.ndarray) -> np.ndarray:
        """x E^T, float64 (R, V), some rows of the table at a time."""
        table_VD = self._weights.table()
        starts = range(0, len(table_VD), _ROWS)
        return np.hstack([x_RD @ table_VD[start : start + _ROWS].astype(np.float64).T for start in starts])


class Quantised(Unquantised):
    """What an arm stores in place of the matrices that were drawn.

    Subclasses say it, matrix by matrix. A stored weight that lies farther from the drawn one than its format allows is
    a ``RuntimeError``: the store is then corrupt, or was quantised wrongly.
    """

    def fingerprint(self) -> str:
        """Hash of every stored byte, and of what was drawn."""
        layers, names = range(self._weights.shape.layers), MATRICES
        parts = [self.stored(layer, name).fingerprint() for layer in layers for name in names]
        text = " ".join((self._weights.key, *parts, self.stored_table().fingerprint()))
        return hashlib.sha256(text.encode()).hexdigest()

    def stored(self, layer: int, name: str) -> Stored:
        """Matrix ``name`` of a layer as stored."""
        raise NotImplementedError

    def stored_table(self) -> Stored:
        """The output head as stored."""
        raise NotImplementedError

    def product(self, layer: int, name: str, x_TK: np.ndarray) -> np.ndarray:
        """x W^T, W being what is stored, float64 (T, N)."""
        return multiply(self.stored(layer, name), self._weights.matrix(layer, name), x_TK)

    def embedding(self, tokens_T: np.ndarray) -> np.ndarray:
        """Rows of the stored table, float64 (T, D)."""
        stored, width = self.stored_table(), self._weights.shape.d_model
        return np.vstack([stored.rows(token, token + 1)[0].reshape(1, -1)[:, :width] for token in tokens_T])

    def logits(self, x_RD: np.ndarray) -> np.ndarray:
        """x E^T, E being what is stored, float64 (R, V)."""
        return multiply(self.stored_table(), self._weights.table(), x_RD)


@dataclass(frozen=True)
class Rows:
    """The stream of one pass."""

    token: np.ndarray
    """(T)."""
    position: np.ndarray
    """(T)."""
    sees: np.ndarray
    """(T, T): whether a row (first axis) sees another."""
    decoded: np.ndarray
    """Rows of the decoded tokens."""
    prompted: np.ndarray
    """Rows of the prompts' last tokens."""


def rows_of(tokens: Tokens) -> Rows:
    """One text, of the context and the prompts' common beginning; then the decoded tokens; then the prompts' ends."""
    context, count = len(tokens.context), tokens.prompts.shape[1]
    end = tail(count)
    common = count - end
    text = tokens.context if context >= common else tokens.prompts[0, :common]
    parts = [np.arange(len(text)), np.full(len(tokens.following), context)]
    parts += [np.arange(common, count)] * len(tokens.prompts)
    position_T = np.concatenate(parts)
    token_T = np.concatenate([text, tokens.following, tokens.prompts[:, common:].reshape(-1)])
    sees_TT = np.zeros((len(token_T), len(token_T)), bool)
    sees_TT[: len(text), : len(text)] = np.tri(len(text), dtype=bool)
    first = len(text) + len(tokens.following)
    sees_TT[len(text) : first, :context] = True
    sees_TT[first:, :common] = True
    for start in range(first, len(token_T), end):
        sees_TT[start : start + end, start : start + end] = np.tri(end, dtype=bool)
    np.fill_diagonal(sees_TT, True)
    decoded_R = np.arange(len(text), first)
    return Rows(token_T, position_T, sees_TT, decoded_R, np.arange(first + end - 1, len(token_T), end))


def known_answers(params: dict[str, Any], held: Held, folder: Path) -> Arrays:
    """As :func:`answers`, which take a minute of a model of a billion weights: kept in ``folder`` under a hash of every
    stored byte, of the tokens, and of the text of this file."""
    asked = {key: params[key] for key in ("seed", "context", "prompt_tokens", "epsilon", "rotary_base")}
    text = json.dumps([held.fingerprint(), asked, Path(__file__).read_text(encoding="utf-8")], sort_keys=True)
    file = folder / f"answers-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    if (found := kept.read(file)) is None:
        found = answers(params, held)
        kept.write(file, found)
    return found


def answers(params: dict[str, Any], held: Held) -> Arrays:
    """Logits by regime: ``decode`` (NEXT_TOKENS, V) and ``prefill`` (PROMPTS, V), float64, one row per position."""
    rows = rows_of(tokens_of(params))
    wanted_R = np.concatenate([rows.decoded, rows.prompted])
    logits_RV = forward(DecoderShape.of_params(params), held, rows, wanted_R, params["epsilon"], params["rotary_base"])
    decoded, prompted = np.split(logits_RV, [len(rows.decoded)])
    return {"decode": decoded, "prefill": prompted}


def forward(
    shape: DecoderShape, held: Held, rows: Rows, wanted_R: np.ndarray, epsilon: float, base: float
) -> np.ndarray:
    """Logits (R, V) of the wanted rows."""
    x_TD = held.embedding(rows.token)
    turn_TC = _turns(rows.position, shape.head_dim, base)
    for layer in range(shape.layers):
        seen_TK = _attention(shape, held, layer, _normed(x_TD, held.gain(layer, "norm"), epsilon), turn_TC, rows.sees)
        x_TD = x_TD + held.product(layer, "o", seen_TK)
        y_TD = _normed(x_TD, held.gain(layer, "ffn_norm"), epsilon)
        gate_TF, up_TF = held.product(layer, "gate", y_TD), held.product(layer, "up", y_TD)
        x_TD = x_TD + held.product(layer, "down", gate_TF / (1 + np.exp(-gate_TF)) * up_TF)
    return held.logits(_normed(x_TD[wanted_R], held.last_gain(), epsilon))


def _normed(x_TD: np.ndarray, gain_D: np.ndarray, epsilon: float) -> np.ndarray:
    """RMS norm."""
    return np.asarray(x_TD / np.sqrt((x_TD**2).mean(axis=-1, keepdims=True) + epsilon) * gain_D)


def _turns(position_T: np.ndarray, head_dim: int, base: float) -> np.ndarray:
    """Complex numbers of length 1 (T, C/2) that turn the pairs of a head."""
    speed = base ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    return np.asarray(np.exp(1j * position_T[:, None] * speed))


def _turned(x_HTC: np.ndarray, turn_TC: np.ndarray) -> np.ndarray:
    """Value i of a head is paired with value i + C/2."""
    first, second = np.split(x_HTC, 2, axis=-1)
    turned = (first + 1j * second) * turn_TC
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _attention(
    shape: DecoderShape, held: Held, layer: int, x_TD: np.ndarray, turn_TC: np.ndarray, sees_TT: np.ndarray
) -> np.ndarray:
    """Softmax attention, (T, heads · C): query head h uses key head h · kv_heads / heads."""
    count = len(x_TD)
    q_HTC, k_HTC, v_HTC = (
        held.product(layer, name, x_TD).reshape(count, -1, shape.head_dim).swapaxes(0, 1) for name in ("q", "k", "v")
    )
    q_HTC, k_HTC = _turned(q_HTC, turn_TC), _turned(k_HTC, turn_TC)
    shared = np.arange(shape.heads) * shape.kv_heads // shape.heads
    scores_HTT = q_HTC @ k_HTC[shared].swapaxes(1, 2) / np.sqrt(shape.head_dim)
    scores_HTT += np.where(sees_TT, 0.0, -np.inf)
    weight_HTT = np.exp(scores_HTT - scores_HTT.max(axis=-1, keepdims=True))
    seen_HTC = weight_HTT / weight_HTT.sum(axis=-1, keepdims=True) @ v_HTC[shared]
    return np.asarray(seen_HTC.swapaxes(0, 1).reshape(count, -1))
