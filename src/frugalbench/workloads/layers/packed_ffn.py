"""Expert layers and dense twins with weights of 8 or 4 bits, on the own kernels. Forward only."""

from typing import Any

import numpy as np
import torch

from frugalbench.backends import native_moe, native_quant
from frugalbench.specs import moe_packed
from frugalbench.workloads.layers.ffn import Layer, Mixture
from frugalbench.workloads.layers.quant_native import BLOCK, decode
from frugalbench.workloads.layers.quant_stored import grouped_int8


class Packed(Layer):
    """What a mixture and a dense layer share: experts in the kernel's layout."""

    experts_held: native_quant.PackedExperts

    def hold(self, gate_up: torch.Tensor, down: torch.Tensor, bits: int) -> None:
        """Pack ``gate_up`` (E x 2F x D) and ``down`` (E x D x F); the float weights are let go."""
        self.kernel = native_quant.kernel()
        self.experts_held = self.kernel.pack_experts(gate_up, down, bits)
        threads = "" if self.kernel.parallel else ", built without OpenMP: one thread"
        self.implementation = f"native: own {self.kernel.path} kernel, W{bits}A8{threads}"

    def stored_bytes(self) -> int:
        """Packed experts, and the router where there is one."""
        held = self.experts_held
        return int(super().stored_bytes() + held.gate_up.numel() + held.down.numel())

    def definition(self, x_TD: np.ndarray, mixing_TE: np.ndarray) -> np.ndarray:
        """Float64 answer of what is stored, with activations rounded where the kernel rounds them."""
        y_TD = np.zeros(x_TD.shape)
        for expert in np.flatnonzero(mixing_TE.any(axis=0)):
            served = mixing_TE[:, expert] > 0
            gate, up, down = (_matrix(self.experts_held.matrix(int(expert), name)) for name in ("gate", "up", "down"))
            x_SD = grouped_int8(x_TD[served], BLOCK)
            gate_SF = x_SD @ gate.T
            hidden_SF = gate_SF / (1 + np.exp(-gate_SF)) * (x_SD @ up.T)
            answer_SD = grouped_int8(hidden_SF.astype(np.float32), BLOCK) @ down.T
            y_TD[served] += mixing_TE[served, expert, None] * answer_SD
        return y_TD


def _matrix(packed: native_quant.Packed) -> np.ndarray:
    values = decode(packed).rows(0, packed.outputs)[0]
    return np.asarray(values.reshape(packed.outputs, -1)[:, : packed.inputs])


class PackedMoe(Packed, Mixture):
    """Routing and experts in one C call each."""

    def __init__(self, weights: dict[str, torch.Tensor], params: dict[str, Any]):
        Mixture.__init__(self, {"router": weights["router"]}, params)
        self.hold(weights["gate_up"], weights["down"], moe_packed.bits(params))
        self._router = native_moe.kernel()

    def route(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As in every mixture, by the own kernel."""
        gate = self.top_k, self.gate, self.normalise, self.routed_scale
        return self.with_shared(*self._router.route(x_TD, self.weights["router"], *gate))

    def mix(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        return self.kernel.experts(x_TD, expert_TK.to(torch.int32), weight_TK.contiguous(), self.experts_held)


class PackedDense(Packed):
    """The dense twin as a mixture of one expert that every token takes: the same fusion."""

    def __init__(self, weights: dict[str, torch.Tensor], params: dict[str, Any]):
        super().__init__({})
        self.hold(weights["gate_up"][None], weights["down"][None], moe_packed.bits(params))

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        expert_T1 = torch.zeros((len(x_TD), 1), dtype=torch.int32)
        return self.kernel.experts(x_TD, expert_T1, torch.ones((len(x_TD), 1)), self.experts_held)
