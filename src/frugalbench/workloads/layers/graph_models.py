"""The torch modules of the graph set, small and seeded: feed-forward layers, attention with its cache, whole models.

Shape suffixes: B batch, S new tokens, P past tokens, D model width, H heads, K head dimension. Every module takes and
gives plain tensors, so that its exported graph has one input per argument and one output per result.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

WIDTH, HIDDEN, HEADS, LAYERS, VOCABULARY = 256, 688, 4, 2, 1000
EXPERTS, TOP_K, EXPERT_HIDDEN = 8, 2, 172
POSITIONS = 512


class DenseFfn(torch.nn.Module):  # type: ignore[misc]
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (torch.nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = torch.nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        y_BSD: torch.Tensor = self.down(functional.silu(self.gate(x_BSD)) * self.up(x_BSD))
        return y_BSD


class Attention(torch.nn.Module):  # type: ignore[misc]
    """Causal attention of S new tokens over P past ones; gives the longer cache back."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.merge = (torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(
        self, x_BSD: torch.Tensor, past_key: torch.Tensor, past_value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = (self.split(layer(x_BSD)) for layer in (self.query, self.key, self.value))
        key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
        new, past = x_BSD.shape[1], past_key.shape[2]
        seen = torch.arange(past + new)[None, :] <= (torch.arange(new) + past)[:, None]
        mixed_BHSK = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.merge(mixed_BHSK.transpose(1, 2).flatten(2)), key, value

    def split(self, x_BSD: torch.Tensor) -> torch.Tensor:
        return x_BSD.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Wrapped(torch.nn.Module):  # type: ignore[misc]
    """A module of transformers behind a function that takes and gives plain tensors."""

    def __init__(self, inner: torch.nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.inner, self._call = inner, call

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self._call(self.inner, *inputs)


def _moe(implementation: str) -> torch.nn.Module:
    """transformers' Qwen3 MoE block with one of its experts implementations."""
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeModel

    config = Qwen3MoeConfig(
        hidden_size=WIDTH, moe_intermediate_size=EXPERT_HIDDEN, num_experts=EXPERTS, num_experts_per_tok=TOP_K,
        norm_topk_prob=True, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=8,
        vocab_size=8, experts_implementation=implementation,
    )  # fmt: skip
    return Wrapped(Qwen3MoeModel(config).layers[0].mlp, lambda inner, x_BSD: inner(x_BSD))


def _decoder() -> torch.nn.Module:
    """Qwen3 with its language-model head, no cache: logits of every position."""
    from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS // 2, head_dim=WIDTH // HEADS,
        max_position_embeddings=POSITIONS, use_cache=False,
    )  # fmt: skip
    return Wrapped(Qwen3ForCausalLM(config), lambda inner, ids, mask: inner(ids, attention_mask=mask).logits)


def _encoder() -> torch.nn.Module:
    """BERT: the last hidden states."""
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertModel

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=POSITIONS,
    )  # fmt: skip
    inner = BertModel(config, add_pooling_layer=False)
    return Wrapped(inner, lambda model, ids, mask: model(ids, attention_mask=mask).last_hidden_state)


MODULES: dict[str, Callable[[], torch.nn.Module]] = {
    "dense-ffn": DenseFfn,
    "moe-ffn-batched": lambda: _moe("batched_mm"),
    "moe-ffn-eager": lambda: _moe("eager"),
    "moe-ffn-grouped": lambda: _moe("grouped_mm"),
    "attention-kv": Attention,
    "decoder": _decoder,
    "encoder": _encoder,
}


def module(name: str, seed: int = 0) -> torch.nn.Module:
    """The module called ``name`` in eval mode, fp32; matrices from N(0, 1/in), so that values stay near 1."""
    made = MODULES[name]()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
    return made.eval()
