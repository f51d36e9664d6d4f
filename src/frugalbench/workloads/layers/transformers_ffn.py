"""The mixture as transformers computes it."""

from typing import Any

import torch

from frugalbench.workloads.layers.ffn import Mixture


class TransformersMoe(Mixture):
    """transformers' Qwen3 MoE block, with the experts implementation that is asked for or that it chooses itself.

    For gates and shared experts that this block lacks, its experts alone run behind the common routing.
    """

    def __init__(self, weights: dict[str, torch.Tensor], params: dict[str, Any], wanted: str | None):
        super().__init__(weights, params)
        block, chosen = _qwen3_block(weights, self.top_k, wanted)
        block.experts.gate_up_proj = torch.nn.Parameter(weights["gate_up"])
        block.experts.down_proj = torch.nn.Parameter(weights["down"])
        block.gate.weight = torch.nn.Parameter(weights["router"])
        self.block = block
        self.whole = self.gate == "softmax" and self.normalise and self.routed_scale == 1.0 and not self.n_shared
        what = "Qwen3MoeSparseMoeBlock" if self.whole else "Qwen3MoeExperts behind torch routing"
        self.implementation = f"transformers: {what}, experts implementation {chosen!r}"
        if chosen == "eager":
            self.host_waits = "the host waits for each expert's tokens"
        self.weights = {
            "gate_up": block.experts.gate_up_proj,
            "down": block.experts.down_proj,
            "router": block.gate.weight,
        }

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        if not self.whole:
            return super().__call__(x_TD)
        y_TD: torch.Tensor = self.block(x_TD.unsqueeze(0)).squeeze(0)
        return y_TD

    def mix(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        y_TD: torch.Tensor = self.block.experts(x_TD, expert_TK, weight_TK)
        return y_TD


def _qwen3_block(weights: dict[str, torch.Tensor], top_k: int, wanted: str | None) -> tuple[Any, str]:
    """An empty block of the weights' sizes, and the name of its experts implementation."""
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
        **({"experts_implementation": wanted} if wanted else {}),
    )
    with torch.device("meta"):
        model = Qwen3MoeModel(config)
    chosen = str(getattr(model.config, "_experts_implementation", "default"))
    if wanted and chosen != wanted:
        raise RuntimeError(f"transformers runs its experts as {chosen!r}, not as {wanted!r}")
    return model.layers[0].mlp, chosen
