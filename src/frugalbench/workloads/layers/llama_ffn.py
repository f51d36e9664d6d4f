"""The mixture and its dense twins as llama.cpp computes them: routing and experts in one GGML graph on its CPU backend.

Tokens and sums are float32, as in llama.cpp; float weights keep their format, 8 and 4 bits are Q8_0 and Q4_0.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from frugalbench.specs import moe_packed, moe_sixteen
from frugalbench.workloads.base import Arrays
from frugalbench.workloads.layers.ffn import Layer, Mixture
from frugalbench.workloads.layers.ggml_experts import GgmlExperts, library
from frugalbench.workloads.layers.quant_ggml_blocks import ggml_stored, q8_0_activations

_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "q8_0", "int4": "q4_0"}

Source = Callable[[], Arrays]
"""Draws the float32 weights; quantised ones are drawn again where their meaning is asked for, not kept."""


class _Llama(Layer):
    """One graph for each number of tokens."""

    def set_up(self, source: Source, params: dict[str, Any], threads: int) -> Arrays:
        """Keep what every graph needs; gives the weights."""
        self.ggml: GgmlExperts = library(threads)
        self.type = _TYPES[params["weights"] if moe_packed.is_packed(params) else moe_sixteen.held(params)]
        self.d_model, self.source = params["d_model"], source
        self.tensors: dict[str, Any] = {}
        self.places: set[str] = set()
        self._graphs: dict[int, tuple[np.ndarray, Any, np.ndarray]] = {}
        return source()

    def hold(self, name: str, kind: str, values: np.ndarray) -> None:
        """Store a matrix, or one per expert."""
        self.tensors[name], place = self.ggml.held(kind, np.ascontiguousarray(values))
        if kind == self.type:
            self.places.add(place)

    def name(self) -> None:
        """Say what runs; once all is held."""
        places = " and ".join(sorted(self.places))
        self.implementation = f"llama.cpp: GGML {self.ggml.version} graph, {self.type} in {places} buffers"

    def stored_bytes(self) -> int:
        """Bytes of all tensors, as the library counts them."""
        return sum(int(self.ggml("ggml_nbytes", tensor)) for tensor in self.tensors.values())

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        if len(x_TD) not in self._graphs:
            self._graphs[len(x_TD)] = self._graph(len(x_TD))
        into, graph, y_TD = self._graphs[len(x_TD)]
        np.copyto(into, x_TD.numpy())
        self.ggml.compute(graph)
        return torch.from_numpy(y_TD.copy())

    def _graph(self, tokens: int) -> tuple[np.ndarray, Any, np.ndarray]:
        room = self.ggml.room()
        x, into = self.ggml.tokens(tokens, self.d_model)
        y = self.answer(room, x, tokens)
        graph = self.ggml.graph(room, y, (tokens, self.stored_bytes()))
        return into, graph, self.ggml.seen(y, (tokens, self.d_model))

    def answer(self, room: Any, x: Any, tokens: int) -> Any:
        """The layer's last operation."""
        raise NotImplementedError

    def meaning(self, values: np.ndarray) -> np.ndarray:
        """Float64 values that a quantised matrix (n, k) stands for."""
        rows = self.ggml.quantise(self.ggml.type(self.type), values)
        return ggml_stored(self.type, rows).rows(0, len(rows))[0].reshape(values.shape)

    def expert(self, x_SD: np.ndarray, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
        """Float64 answer of one quantised expert, with activations rounded where the library rounds them."""
        gate_SF, up_SF = np.split(q8_0_activations(x_SD) @ self.meaning(gate_up).T, 2, axis=1)
        hidden_SF = gate_SF / (1 + np.exp(-gate_SF)) * up_SF
        return np.asarray(q8_0_activations(hidden_SF.astype(np.float32)) @ self.meaning(down).T)


class LlamaMoe(_Llama, Mixture):
    """Routed experts by ``mul_mat_id``, shared ones side by side as one dense layer."""

    def __init__(self, source: Source, params: dict[str, Any], threads: int):
        weights = self.set_up(source, params, threads)
        Mixture.__init__(self, {"router": torch.from_numpy(weights["router"])}, params)
        self.hold("router", "f32", weights["router"])
        self.hold("gate_up", self.type, weights["gate_up"][: self.experts])
        self.hold("down", self.type, weights["down"][: self.experts])
        if self.n_shared:
            gate, up = np.split(weights["gate_up"][self.experts :], 2, axis=1)
            both = np.concatenate([part.reshape(-1, self.d_model) for part in (gate, up)])
            self.hold("shared_gate_up", self.type, both)
            self.hold("shared_down", self.type, np.concatenate([*weights["down"][self.experts :]], axis=1))
        self.name()

    def answer(self, room: Any, x: Any, tokens: int) -> Any:
        held, gate = self.tensors, (self.gate, self.normalise, self.routed_scale)
        routed = self.ggml.route(room, x, held["router"], (tokens, self.experts, self.top_k), gate)
        sizes = (tokens, self.d_model, self.top_k)
        y = self.ggml.mixed(room, x, routed, (held["gate_up"], held["down"]), sizes)
        if not self.n_shared:
            return y
        shared = self.ggml.swiglu(room, x, held["shared_gate_up"], held["shared_down"])
        return self.ggml("ggml_add", room, shared, y)

    def definition(self, x_TD: np.ndarray, mixing_TE: np.ndarray) -> np.ndarray:
        """Float64 answer of what is stored."""
        weights, y_TD = self.source(), np.zeros(x_TD.shape)
        for expert in np.flatnonzero(mixing_TE.any(axis=0)):
            served = mixing_TE[:, expert] > 0
            answer_SD = self.expert(x_TD[served], weights["gate_up"][expert], weights["down"][expert])
            y_TD[served] += mixing_TE[served, expert, None] * answer_SD
        return y_TD


class LlamaDense(_Llama):
    """Two products around the gate."""

    def __init__(self, source: Source, params: dict[str, Any], threads: int):
        super().__init__({})
        weights = self.set_up(source, params, threads)
        self.hold("gate_up", self.type, weights["gate_up"])
        self.hold("down", self.type, weights["down"])
        self.name()

    def answer(self, room: Any, x: Any, tokens: int) -> Any:
        del tokens
        return self.ggml.swiglu(room, x, self.tensors["gate_up"], self.tensors["down"])

    def definition(self, x_TD: np.ndarray, mixing_TE: np.ndarray) -> np.ndarray:
        """Float64 answer of what is stored."""
        del mixing_TE
        weights = self.source()
        return self.expert(x_TD, weights["gate_up"], weights["down"])
