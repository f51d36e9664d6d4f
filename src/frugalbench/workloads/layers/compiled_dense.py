"""The dense layer through torch.compile: one graph for each number of tokens, which all copies share."""

import torch

from frugalbench.workloads.layers import ffn
from frugalbench.workloads.layers.compiled_ffn import set_up

__all__ = ["CompiledDense", "set_up"]

_compiled = torch.compile(ffn._swiglu, fullgraph=True, dynamic=False)
"""A whole graph or an error: what inductor cannot take never runs eagerly instead."""


class CompiledDense(ffn.Dense):
    """torch.compile of :class:`~frugalbench.workloads.layers.ffn.Dense`."""

    implementation = "torch.compile of two fused-width linear products"

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        y_TD: torch.Tensor = _compiled(x_TD, self.weights["gate_up"], self.weights["down"])
        return y_TD
