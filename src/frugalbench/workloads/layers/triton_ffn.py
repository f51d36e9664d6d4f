"""The mixture on the own Triton kernel (``kernels/triton/moe.py``), for NVIDIA GPUs; forward only."""

import importlib.util
import sys
from functools import cache
from typing import Any

import torch

from frugalbench.paths import shipped
from frugalbench.schema import FrugalbenchError
from frugalbench.workloads.layers.ffn import Mixture

MODULE = "frugalbench_triton_moe"


@cache
def kernel() -> Any:
    """The kernel's module. It lies outside the package's folder of Python code, as all kernels do."""
    path = shipped("kernels") / "triton" / "moe.py"
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FrugalbenchError(f"Triton kernel {path} is missing; install frugalbench again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    return module


class TritonMoe(Mixture):
    """Gate, up and activation fused; tokens gathered inside; each copy's answer stored, then added up."""

    implementation = "Triton: own grouped kernel, blocks of 16 copies"

    def mix(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        weights = self.weights["gate_up"], self.weights["down"]
        y_TD: torch.Tensor = kernel().mixture(x_TD, expert_TK, weight_TK, *weights)
        return y_TD
