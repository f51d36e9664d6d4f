"""Shapes of published models, and what follows from them: parameters, active parameters, KV bytes per token.

The facts are in ``data/model_shapes.csv``, one row per model with its source. Its ``computed_*`` columns are an
earlier, independent calculation; they are not read here, only compared with these formulas in the tests.

Not in the CSV, so not counted: biases, query/key norms, router biases, attention sinks, the short convolutions of
linear-attention layers, sparse-attention indexers, multi-token-prediction heads. Together they stay within the
3% that the tests allow on published totals.
"""

import csv
from functools import cache

import msgspec

from frugalbench import paths
from frugalbench.specs.accounting import (
    moe_ffn_active_parameters,
    moe_ffn_parameters,
    swiglu_ffn_parameters,
)

_LINEAR_MATRICES = {"gdn": 4, "kda": 4, "lightning": 5}
"""Size of a linear-attention layer in units of d_model x (heads x head_dim of the CSV's row).

Gated DeltaNet (Qwen3-Next): q and k at half the value width, v, output gate z, output: ½ + ½ + 1 + 1 + 1.
Kimi Delta Attention: q, k, v, output; its gates are low-rank and small (left out).
Lightning attention (MiniMax-01): q, k, v, output gate, output.
Source: the projections of these layers in transformers 5 (models qwen3_next, kimi_linear, minimax).
"""


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """One published model. Dimensions are counts; 0 where a kind of layer does not occur."""

    model: str
    attn: str
    """``mha``, ``gqa`` or ``mla``; ``+swa`` / ``+dsa`` windows or selects; ``gdn+``, ``kda+``, ``lightning+``
    put linear attention into every layer that is not one of ``n_full_attn_layers``."""
    n_layers: int
    n_dense_layers: int
    """Layers with a dense FFN; the others hold experts."""
    d_model: int
    d_ff_dense: int
    d_ff_expert: int
    n_experts: int
    top_k: int
    n_shared: int
    """Shared experts, of the width of a routed one, used by every token."""
    n_heads: int
    n_kv_heads: int
    head_dim: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_dim: int
    qk_rope_dim: int
    v_head_dim: int
    n_full_attn_layers: int
    """Layers whose cache grows with every token."""
    sliding_window: int
    vocab_size: int
    tied: bool
    published_total_b: float
    """Billions, as the source rounds them."""
    published_active_b: float
    source: str
    read_or_recalled: str
    """``read`` in the source named, or ``recalled`` (then it decides no verdict)."""

    @property
    def parameters(self) -> int:
        """All weights held, embeddings and norms included."""
        return self._embeddings + self._attention + self._norms + self._ffn(active=False)

    @property
    def active_parameters(self) -> int:
        """Weights multiplied per token: the chosen and shared experts, everything else once, but not the
        input embedding, which is a look-up (a tied one stays: it is the output head)."""
        return self.active_parameters_with_embedding - (0 if self.tied else self._embedding)

    @property
    def active_parameters_with_embedding(self) -> int:
        """The same with the input embedding, as several model cards count."""
        return self._embeddings + self._attention + self._norms + self._ffn(active=True)

    def kv_bytes_per_token(self, value_bytes: int = 2) -> int:
        """Bytes by which the cache grows per token (bf16 by default); windows and linear states do not grow."""
        latent = self.kv_lora_rank + self.qk_rope_dim
        values = latent if self._mla else 2 * self.n_kv_heads * self.head_dim
        return self.n_full_attn_layers * values * value_bytes

    @property
    def _mla(self) -> bool:
        return "mla" in self.attn.split("+")

    @property
    def _linear_kind(self) -> str | None:
        head = self.attn.split("+")[0]
        return head if head in _LINEAR_MATRICES else None

    @property
    def _embedding(self) -> int:
        return self.vocab_size * self.d_model

    @property
    def _embeddings(self) -> int:
        return self._embedding * (1 if self.tied else 2)

    @property
    def _norms(self) -> int:
        return (2 * self.n_layers + 1) * self.d_model

    @property
    def _attention(self) -> int:
        softmax = self._mla_layer if self._mla else self._gqa_layer
        if self._linear_kind is None:
            return self.n_layers * softmax
        linear_layers = self.n_layers - self.n_full_attn_layers
        return self.n_full_attn_layers * softmax + linear_layers * self._linear_layer

    @property
    def _gqa_layer(self) -> int:
        q_dim, kv_dim = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        gate = q_dim if self._linear_kind == "gdn" else 0  # Qwen3-Next's full layers gate their output
        return self.d_model * (2 * q_dim + 2 * kv_dim + gate)

    @property
    def _mla_layer(self) -> int:
        qk_dim = self.n_heads * (self.qk_nope_dim + self.qk_rope_dim)
        rank = self.q_lora_rank
        query = self.d_model * rank + rank + rank * qk_dim if rank else self.d_model * qk_dim
        down = self.d_model * (self.kv_lora_rank + self.qk_rope_dim) + self.kv_lora_rank
        up = self.kv_lora_rank * self.n_heads * (self.qk_nope_dim + self.v_head_dim)
        return query + down + up + self.n_heads * self.v_head_dim * self.d_model

    @property
    def _linear_layer(self) -> int:
        matrices = _LINEAR_MATRICES[self._linear_kind or ""]
        return matrices * self.d_model * self.n_heads * (self.v_head_dim or self.head_dim)

    def _ffn(self, active: bool) -> int:
        dense = self.n_dense_layers * swiglu_ffn_parameters(self.d_model, self.d_ff_dense)
        sparse_layers = self.n_layers - self.n_dense_layers
        return dense + (sparse_layers * self._moe_layer(active) if sparse_layers else 0)

    def _moe_layer(self, active: bool) -> int:
        shape = (self.d_model, self.d_ff_expert, self.n_experts)
        routed = moe_ffn_active_parameters(*shape, self.top_k) if active else moe_ffn_parameters(*shape)
        return routed + self.n_shared * swiglu_ffn_parameters(self.d_model, self.d_ff_expert)


@cache
def load_shapes() -> dict[str, ModelShape]:
    """Every model of ``data/model_shapes.csv`` by name, in the file's order. Do not change the dict: it is cached."""
    with paths.data("model_shapes.csv").open(newline="", encoding="utf-8") as file:
        shapes = [msgspec.convert(row, ModelShape, strict=False) for row in csv.DictReader(file)]
    return {shape.model: shape for shape in shapes}
