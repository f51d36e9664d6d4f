"""Seeded weights of ``model_decode`` on a device, and the float64 answer there: written apart from every arm.

A GPU multiplies float64 hundreds of times faster than a few cores do, and draws the weights of a whole model in a
second; the numbers differ from those that a CPU run draws. The stream of rows is that of
:mod:`~.decode_reference`, and so are the shape suffixes.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from frugalbench.specs.decoder_shape import DecoderShape
from frugalbench.workloads.base import Arrays
from frugalbench.workloads.layers.decode_reference import Rows, rows_of
from frugalbench.workloads.layers.decode_weights import tokens_of

_ROWS = 16384
"""Of the output head, taken at a time."""


class DeviceWeights:
    """Float32 matrices with standard deviation 1/sqrt(K), a table with 1, gains between 0.5 and 1.5; drawn when asked.

    The same seed gives the same numbers on the same kind of device and version of torch.
    """

    def __init__(self, shape: DecoderShape, seed: int, device: str) -> None:
        self.shape, self.seed, self.device = shape, seed, device

    def matrix(self, layer: int, name: str) -> Any:
        """Matrix ``name`` of a layer, (N, K)."""
        n, k = self.shape.matrices()[name]
        return torch.randn(n, k, generator=self._source(layer, name), device=self.device) / k**0.5

    def table(self) -> Any:
        """Output head and input embedding, (V, D)."""
        size = self.shape.vocabulary, self.shape.d_model
        return torch.randn(*size, generator=self._source(-1, "table"), device=self.device)

    def gain(self, layer: int, name: str) -> Any:
        """Gain ``name`` of a layer, (D)."""
        return 0.5 + torch.rand(self.shape.d_model, generator=self._source(layer, name), device=self.device)

    def last_gain(self) -> Any:
        """The gain in front of the output head, (D)."""
        return self.gain(-1, "last")

    def _source(self, layer: int, name: str) -> Any:
        digest = hashlib.sha256(f"{self.seed}/{layer}/{name}".encode()).digest()
        return torch.Generator(self.device).manual_seed(int.from_bytes(digest[:7], "little"))


class Drawn:
    """The model as it was drawn, as float64; subclasses say what an arm stores in its place."""

    def __init__(self, weights: DeviceWeights) -> None:
        self.weights = weights

    def gain(self, layer: int, name: str) -> Any:
        """(D)."""
        return self.weights.gain(layer, name).double()

    def last_gain(self) -> Any:
        """(D)."""
        return self.weights.last_gain().double()

    def matrix(self, layer: int, name: str) -> Any:
        """(N, K)."""
        return self.weights.matrix(layer, name).double()

    def table(self) -> Any:
        """(V, D), in the precision that it is held in."""
        return self.weights.table()


def answers(params: dict[str, Any], held: Drawn) -> Arrays:
    """Logits by regime: ``decode`` (NEXT_TOKENS, V) and ``prefill`` (PROMPTS, V), float64, one row per position."""
    rows = rows_of(tokens_of(params))
    wanted_R = np.concatenate([rows.decoded, rows.prompted])
    with torch.inference_mode():
        logits_RV = _forward(held, rows, wanted_R, params["epsilon"], params["rotary_base"]).cpu().numpy()
    decoded, prompted = np.split(logits_RV, [len(rows.decoded)])
    return {"decode": decoded, "prefill": prompted}


def _forward(held: Drawn, rows: Rows, wanted_R: np.ndarray, epsilon: float, base: float) -> Any:
    """Logits (R, V) of the wanted rows."""
    shape, device = held.weights.shape, held.weights.device
    table_VD = held.table()
    x_TD = table_VD[torch.from_numpy(rows.token.astype(np.int64)).to(device)].double()
    position_T = torch.from_numpy(rows.position.astype(np.float64)).to(device)
    speed = torch.arange(shape.head_dim // 2, device=device, dtype=torch.float64) * (-2.0 / shape.head_dim)
    angle_TC = position_T[:, None] * base**speed
    turn_TC = torch.polar(torch.ones_like(angle_TC), angle_TC)  # torch compiles exp of complex numbers when called
    hidden_TT = torch.from_numpy(~rows.sees).to(device)
    for layer in range(shape.layers):
        y_TD = _normed(x_TD, held.gain(layer, "norm"), epsilon)
        x_TD = x_TD + _attention(held, layer, y_TD, turn_TC, hidden_TT) @ held.matrix(layer, "o").T
        y_TD = _normed(x_TD, held.gain(layer, "ffn_norm"), epsilon)
        gate_TF, up_TF = (y_TD @ held.matrix(layer, name).T for name in ("gate", "up"))
        x_TD = x_TD + (gate_TF / (1 + torch.exp(-gate_TF)) * up_TF) @ held.matrix(layer, "down").T
    y_RD = _normed(x_TD[torch.from_numpy(wanted_R).to(device)], held.last_gain(), epsilon)
    return torch.cat([y_RD @ part.T for part in _parts(table_VD)], dim=1)


def _parts(table_VD: Any) -> Iterable[Any]:
    return (table_VD[start : start + _ROWS].double() for start in range(0, len(table_VD), _ROWS))


def _normed(x_TD: Any, gain_D: Any, epsilon: float) -> Any:
    return x_TD / torch.sqrt((x_TD * x_TD).mean(dim=-1, keepdim=True) + epsilon) * gain_D


def _turned(x_HTC: Any, turn_TC: Any) -> Any:
    """Value i of a head is paired with value i + C/2."""
    first, second = x_HTC.chunk(2, dim=-1)
    turned = torch.complex(first, second) * turn_TC
    return torch.cat([turned.real, turned.imag], dim=-1)


def _attention(held: Drawn, layer: int, x_TD: Any, turn_TC: Any, hidden_TT: Any) -> Any:
    """(T, heads · C): query head h uses key head h · kv_heads / heads."""
    shape, count = held.weights.shape, len(x_TD)
    q_HTC, k_HTC, v_HTC = (
        (x_TD @ held.matrix(layer, name).T).reshape(count, -1, shape.head_dim).transpose(0, 1)
        for name in ("q", "k", "v")
    )
    q_HTC, k_HTC = _turned(q_HTC, turn_TC), _turned(k_HTC, turn_TC)
    shared = torch.arange(shape.heads, device=x_TD.device) * shape.kv_heads // shape.heads
    scores_HTT = q_HTC @ k_HTC[shared].transpose(1, 2) / shape.head_dim**0.5
    scores_HTT = scores_HTT.masked_fill(hidden_TT, -torch.inf)
    odds_HTT = torch.exp(scores_HTT - scores_HTT.amax(dim=-1, keepdim=True))
    seen_HTC = odds_HTT / odds_HTT.sum(dim=-1, keepdim=True) @ v_HTC[shared]
    return seen_HTC.transpose(0, 1).reshape(count, -1)
