"""The mixture by vLLM's kernels, as its models call them: its routing, then its fused experts; forward only.

``vllm.model_executor.layers.fused_moe`` (``fused_topk``, ``fused_experts``; vllm-project/vllm, read 2026-11-22). Tiles
come from the tables that vLLM ships for a device and shape, or its defaults. It holds weights as all arms here do: gate
above up, (E, 2F, D), and (E, D, F).
"""

from importlib import import_module
from typing import Any

import torch
from torch.nn import functional

from frugalbench.workloads.layers.ffn import Mixture


class VllmMoe(Mixture):
    """Routing in one kernel behind the router's product where the gate is a softmax; other gates are torch's."""

    implementation = "vLLM: fused_topk, fused_experts"

    def __init__(self, weights: dict[str, torch.Tensor], params: dict[str, Any]):
        super().__init__(weights, params)
        self._library = import_module("vllm.model_executor.layers.fused_moe")

    def choose(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.gate != "softmax":
            return super().choose(x_TD)
        logits_TE = functional.linear(x_TD, self.weights["router"])
        weight_TK, expert_TK, *_ = self._library.fused_topk(
            hidden_states=x_TD, gating_output=logits_TE, topk=self.top_k, renormalize=self.normalise
        )
        return expert_TK, weight_TK if self.routed_scale == 1.0 else weight_TK * self.routed_scale

    def mix(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        y_TD: torch.Tensor = self._library.fused_experts(
            hidden_states=x_TD,
            w1=self.weights["gate_up"],
            w2=self.weights["down"],
            topk_weights=weight_TK.float(),
            topk_ids=expert_TK.int(),
        )
        return y_TD
