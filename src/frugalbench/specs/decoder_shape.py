"""Sizes of a dense decoder-only language model, and what follows from them: weights, FLOPs, cache bytes. No torch.

The model is that of Llama and Qwen: RMS norm, grouped-query attention with rotary positions, SwiGLU, and an output head
that is the input embedding. Of a published model the sizes are taken, not its biases, query and key norms or an
embedding of its own (a look-up, which no step multiplies).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from frugalbench.specs.accounting import attended_pairs, kv_bytes, linear_flop
from frugalbench.specs.shapes import ModelShape

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
"""Of a layer: projections of attention (query, key, value, output), then those of the feed-forward network."""
GAINS = ("norm", "ffn_norm")
"""Of a layer: in front of attention and of the feed-forward network."""
EPSILON = 1e-6
ROTARY_BASE = 1e6
"""Position p turns pair i of a head of c values by p · base^(-2 i / c), as in Qwen3 (its published config)."""


@dataclass(frozen=True)
class DecoderShape:
    """All sizes are counts."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    vocabulary: int

    @classmethod
    def of_model(cls, shape: ModelShape, layers: int, vocabulary: int) -> "DecoderShape":
        """The published shape; ``layers`` and ``vocabulary`` of 0 mean its own."""
        return cls(
            layers=layers or shape.n_layers,
            d_model=shape.d_model,
            heads=shape.n_heads,
            kv_heads=shape.n_kv_heads,
            head_dim=shape.head_dim,
            d_ff=shape.d_ff_dense,
            vocabulary=vocabulary or shape.vocab_size,
        )

    @classmethod
    def of_params(cls, params: Mapping[str, Any]) -> "DecoderShape":
        """The shape that a case's parameters spell out."""
        return cls(**{name: params[name] for name in cls.__dataclass_fields__})

    def params(self) -> dict[str, int]:
        """The sizes by name."""
        return asdict(self)

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of each matrix of a layer."""
        d, f = self.d_model, self.d_ff
        attention = {"q": (self.queries, d), "k": (self.keys, d), "v": (self.keys, d), "o": (d, self.queries)}
        return {**attention, "gate": (f, d), "up": (f, d), "down": (d, f)}

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of a layer."""
        return sum(n * k for n, k in self.matrices().values())

    @property
    def table_weights(self) -> int:
        """Weights of the output head, which is the input embedding too."""
        return self.vocabulary * self.d_model

    @property
    def gains(self) -> int:
        """Values of all norms."""
        return (len(GAINS) * self.layers + 1) * self.d_model

    @property
    def parameters(self) -> int:
        """All weights; each is multiplied once per token, and the head's once per call."""
        return self.layers * self.layer_weights + self.table_weights + self.gains

    def matrix_flop(self, tokens: int) -> int:
        """FLOP (or integer operations) of a call's products with weights: layers for all tokens, head for the last."""
        return linear_flop(tokens, 1, self.layers * self.layer_weights) + linear_flop(1, 1, self.table_weights)

    def attention_flop(self, tokens: int, position: int) -> int:
        """FLOP of scores and weighted values of ``tokens`` new tokens behind ``position`` cached ones."""
        pairs = attended_pairs(tokens, position, causal=True)
        return 2 * self.layers * linear_flop(pairs, self.heads, self.head_dim)

    def cache_bytes(self, tokens: int, value_bytes: int) -> int:
        """Keys and values of ``tokens`` tokens in all layers."""
        return self.layers * kv_bytes(tokens, self.kv_heads, self.head_dim, value_bytes)
