"""Feed-forward layers under test: dense SwiGLU, a mixture as transformers computes it, a mixture by sorted segments.

Shape suffixes: T tokens, D model width, F hidden width, E experts, K experts per token, S = T·K token copies
sorted by expert. Gate and up are fused into one product in all of them, so that no arm pays for two.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional


class _Layer:
    """Weights as leaf tensors that can take gradients."""

    implementation = ""
    last: Any = None
    """Input and output of the latest training step."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        self.weights = {name: tensor.requires_grad_() for name, tensor in weights.items()}

    def parameters(self) -> Iterable[torch.Tensor]:
        """The weights that a training step differentiates."""
        return self.weights.values()

    def gradients(self) -> dict[str, torch.Tensor]:
        """Gradients of the latest training step, by weight name."""
        return {name: _present(tensor.grad) for name, tensor in self.weights.items()}


def _present(gradient: torch.Tensor | None) -> torch.Tensor:
    if gradient is None:
        raise RuntimeError("the backward pass left a weight without gradient")
    return gradient


class Dense(_Layer):
    """down(silu(gate(x)) · up(x))."""

    implementation = "torch: two fused-width linear products"

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        gate_TF, up_TF = functional.linear(x_TD, self.weights["gate_up"]).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate_TF) * up_TF, self.weights["down"])


class SortedMoe(_Layer):
    """Token copies sorted by expert; one product per contiguous segment."""

    implementation = "torch: sorted contiguous segments, one product per expert hit"

    def __init__(self, weights: dict[str, torch.Tensor], top_k: int):
        super().__init__(weights)
        self.top_k = top_k

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        probability_TE = functional.linear(x_TD, self.weights["router"]).softmax(dim=-1)
        weight_TK, expert_TK = probability_TE.topk(self.top_k, dim=-1)
        weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
        expert_S, order_S = expert_TK.flatten().sort()
        token_S = order_S // self.top_k
        counts = torch.bincount(expert_S, minlength=len(self.weights["router"])).tolist()
        segments = self._segments(x_TD[token_S].split(counts), counts)
        y_SD = torch.cat(segments) * weight_TK.flatten()[order_S, None]
        return torch.zeros_like(x_TD).index_add_(0, token_S, y_SD)

    def _segments(self, inputs: Any, counts: list[int]) -> list[torch.Tensor]:
        # unbind, not indexing: its backward stacks the expert gradients once instead of adding E full tensors
        gate_up, down = self.weights["gate_up"].unbind(), self.weights["down"].unbind()
        outputs = []
        for expert, count in enumerate(counts):
            if count:
                gate, up = functional.linear(inputs[expert], gate_up[expert]).chunk(2, dim=-1)
                outputs.append(functional.linear(functional.silu(gate) * up, down[expert]))
        return outputs


class TransformersMoe(_Layer):
    """transformers' Qwen3 MoE block with the experts implementation that transformers chooses by default."""

    def __init__(self, weights: dict[str, torch.Tensor], top_k: int):
        from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeModel

        E, two_F, D = weights["gate_up"].shape
        config = Qwen3MoeConfig(
            hidden_size=D,
            moe_intermediate_size=two_F // 2,
            num_experts=E,
            num_experts_per_tok=top_k,
            norm_topk_prob=True,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
            vocab_size=8,
        )
        with torch.device("meta"):
            model = Qwen3MoeModel(config)
        self.block = model.layers[0].mlp
        self.block.experts.gate_up_proj = torch.nn.Parameter(weights["gate_up"])
        self.block.experts.down_proj = torch.nn.Parameter(weights["down"])
        self.block.gate.weight = torch.nn.Parameter(weights["router"])
        self.top_k = top_k
        chosen = getattr(model.config, "_experts_implementation", "default")
        self.implementation = f"transformers: Qwen3MoeSparseMoeBlock, experts implementation {chosen!r}"
        self.weights = {
            "gate_up": self.block.experts.gate_up_proj,
            "down": self.block.experts.down_proj,
            "router": self.block.gate.weight,
        }

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        y_TD: torch.Tensor = self.block(x_TD.unsqueeze(0)).squeeze(0)
        return y_TD
