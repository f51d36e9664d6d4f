"""RMS norm through torch.compile: one graph for each number of tokens, which all copies share."""

import torch

from frugalbench.workloads.layers import rms_norm

_compiled = torch.compile(rms_norm._norm, fullgraph=True, dynamic=False)
"""A whole graph or an error: what inductor cannot take never runs eagerly instead."""


class CompiledNorm(rms_norm.TorchNorm):
    """torch.compile of :class:`~frugalbench.workloads.layers.rms_norm.TorchNorm`."""

    implementation = "torch.compile of rms_norm"

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        y_TD: torch.Tensor = _compiled(x_TD, self.weights["gain"])
        return y_TD
