"""The same layers on the own kernel: routing and experts in two C calls; in training the differentiable operator."""

from typing import Any

import torch

from frugalbench.backends import native_moe
from frugalbench.workloads.layers.ffn import Layer, Mixture


def _named(kernel: native_moe.Kernel, kind: torch.dtype) -> str:
    threads = "" if kernel.parallel else ", built without OpenMP: one thread"
    stored = f", weights of {str(kind).removeprefix('torch.')}" if kind in native_moe.SIXTEEN else ""
    return f"native: own {kernel.path_of(kind)} kernel{stored}{threads}"


class NativeMoe(Mixture):
    """Gate, up and activation fused; tokens gathered and scattered inside; weights read once."""

    def __init__(self, weights: dict[str, torch.Tensor], params: dict[str, Any]):
        super().__init__(weights, params)
        self.kernel = native_moe.kernel()
        self.implementation = _named(self.kernel, weights["down"].dtype)
        if self.capacity_factor:
            self.implementation += "; torch routes and drops, each kept copy is a token with one expert"
        gate = self.top_k, self.gate, self.normalise, self.routed_scale
        self._forward = self.kernel.layer(weights["router"], weights["gate_up"], weights["down"], *gate)

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or self.capacity_factor:
            return super().__call__(x_TD)
        return self._forward(x_TD)

    def mix(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        chosen = expert_TK.to(torch.int32).contiguous()
        inputs = x_TD, chosen, weight_TK.float().contiguous(), self.weights["gate_up"], self.weights["down"]
        return native_moe.experts(*inputs) if torch.is_grad_enabled() else self.kernel.forward(*inputs)[0]

    def details(self, expert_TK: torch.Tensor) -> dict[str, Any]:
        """Lanes that are computed for nothing, as a share of the copies."""
        chosen = expert_TK.to(torch.int32).contiguous()
        lanes = self.kernel.lanes(chosen, len(self.weights["gate_up"]))
        return {"padding_share": lanes / chosen.numel() - 1}


class NativeDense(Layer):
    """The dense twin as a mixture of one expert that every token takes: the same fusion."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__(weights)
        self.kernel = native_moe.kernel()
        self.implementation = _named(self.kernel, weights["down"].dtype)

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        expert_T1 = torch.zeros((len(x_TD), 1), dtype=torch.int32)
        weight_T1 = torch.ones((len(x_TD), 1))
        stacked = self.weights["gate_up"].unsqueeze(0), self.weights["down"].unsqueeze(0)
        if torch.is_grad_enabled():
            return native_moe.experts(x_TD, expert_T1, weight_T1, *stacked)
        return self.kernel.forward(x_TD, expert_T1, weight_T1, *stacked)[0]
