"""Feed-forward layers under test: dense SwiGLU, and mixtures of experts as they are commonly computed.

Shape suffixes: T tokens, D model width, F hidden width, E experts, K experts per token, S = T·K token copies
sorted by expert. Gate and up are fused into one product in all of them, so that no arm pays for two. A mixture holds
its shared experts behind the routed ones; every token takes them with weight 1, as copies like any other.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional

from frugalbench.specs import routing


class Layer:
    """Weights as leaf tensors that can take gradients."""

    implementation = ""
    host_waits = ""
    """Why the processor waits for a GPU inside a call, which then cannot be recorded; empty where it does not."""
    last: Any = None
    """Input and output of the latest training step."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        self.weights = {name: tensor.requires_grad_() for name, tensor in weights.items()}

    def parameters(self) -> Iterable[torch.Tensor]:
        """The weights that a training step differentiates."""
        return self.weights.values()

    def stored_bytes(self) -> int:
        """Bytes of the weights as they are held."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.parameters())

    def gradients(self) -> dict[str, torch.Tensor]:
        """Gradients of the latest training step, by weight name."""
        return {name: _present(tensor.grad) for name, tensor in self.weights.items()}


def _present(gradient: torch.Tensor | None) -> torch.Tensor:
    if gradient is None:
        raise RuntimeError("the backward pass left a weight without gradient")
    return gradient


class Dense(Layer):
    """down(silu(gate(x)) · up(x))."""

    implementation = "torch: two fused-width linear products"

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        return _swiglu(x_TD, self.weights["gate_up"], self.weights["down"])


def _swiglu(x_TD: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    gate_TF, up_TF = functional.linear(x_TD, gate_up).chunk(2, dim=-1)
    return functional.linear(functional.silu(gate_TF) * up_TF, down)


class Mixture(Layer):
    """Routing, which all mixtures share; :meth:`mix` is what they differ in."""

    def __init__(self, weights: dict[str, torch.Tensor], params: dict[str, Any]):
        super().__init__(weights)
        self.top_k, self.gate = params["top_k"], params["gate"]
        self.normalise, self.routed_scale = params["normalise"], params["routed_scale"]
        self.experts, self.n_shared = params["experts"], params["n_shared"]
        self.capacity_factor = float(params.get("capacity_factor", 0.0))
        if self.capacity_factor:
            self.host_waits = "the host waits for the number of copies that an expert has room for"

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        if self.capacity_factor:
            return self.mix_copies(x_TD, *self.copies(x_TD))
        return self.mix(x_TD, *self.route(x_TD))

    def mix(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """Sum over the chosen experts of weight · expert(x), T x D."""
        raise NotImplementedError

    def mix_copies(
        self, x_TD: torch.Tensor, token_S: torch.Tensor, expert_S: torch.Tensor, weight_S: torch.Tensor
    ) -> torch.Tensor:
        """The same sum over S copies sorted by expert: here each is a token with one expert, added back outside."""
        y_SD = self.mix(x_TD[token_S], expert_S[:, None], weight_S[:, None])
        return torch.zeros_like(x_TD).index_add_(0, token_S, y_SD)

    def choose(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers and mixing weights of each token's routed experts, the first choice first."""
        gate = self.top_k, self.gate, self.normalise, self.routed_scale
        return chosen(x_TD, self.weights["router"], *gate)

    def route(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers and mixing weights of each token's experts, shared ones last; nothing is dropped."""
        return self.with_shared(*self.choose(x_TD))

    def copies(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token, expert and mixing weight of each copy that is computed, sorted by expert, shared ones last.

        An expert's places go to first choices in the order of the tokens, then to second ones, and so on; a token that
        finds one full keeps its other experts, with their weights as they were (GShard, arXiv 2006.16668).
        """
        expert_TK, weight_TK = self.choose(x_TD)
        tokens = len(x_TD)
        expert_S, order_S = expert_TK.t().flatten().sort(stable=True)
        place_S = torch.arange(len(expert_S), device=x_TD.device) - torch.searchsorted(expert_S, expert_S)
        kept = place_S < routing.capacity(self.capacity_factor, tokens, self.experts, self.top_k)
        order_S = order_S[kept]
        copies = order_S % tokens, expert_S[kept], weight_TK.t().flatten()[order_S]
        return self._copies_with_shared(tokens, *copies) if self.n_shared else copies

    def _copies_with_shared(
        self, tokens: int, token_S: torch.Tensor, expert_S: torch.Tensor, weight_S: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        token = torch.arange(tokens, device=token_S.device).repeat(self.n_shared)
        expert = torch.arange(self.experts, self.experts + self.n_shared, device=token_S.device)
        expert = expert.to(expert_S.dtype).repeat_interleave(tokens)
        weight = weight_S.new_ones(len(token))
        return torch.cat([token_S, token]), torch.cat([expert_S, expert]), torch.cat([weight_S, weight])

    def with_shared(self, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The choices with the shared experts added."""
        if not self.n_shared:
            return expert_TK, weight_TK
        shared = torch.arange(
            self.experts, self.experts + self.n_shared, dtype=expert_TK.dtype, device=expert_TK.device
        )
        expert_TK = torch.cat([expert_TK, shared.expand(len(expert_TK), -1)], dim=1)
        return expert_TK, torch.cat([weight_TK, weight_TK.new_ones(len(weight_TK), self.n_shared)], dim=1)

    def details(self, expert_TK: torch.Tensor) -> dict[str, Any]:
        """What the arm alone can say about a batch that is routed so."""
        del expert_TK
        return {}


def chosen(
    x_TD: torch.Tensor, router_ED: torch.Tensor, top_k: int, gate: str, normalise: bool, routed_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers and mixing weights of the ``top_k`` experts of each token, T x K, the largest score first.

    Scores of 16-bit logits are computed in float32 and mixing weights rounded to the tokens' format, as transformers
    does.
    """
    logits_TE = functional.linear(x_TD, router_ED).float()
    scores_TE = logits_TE.softmax(dim=-1) if gate == "softmax" else logits_TE.sigmoid()
    weight_TK, expert_TK = scores_TE.topk(top_k, dim=-1)
    if normalise:
        weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
    if routed_scale != 1.0:
        weight_TK = weight_TK * routed_scale
    return expert_TK, weight_TK.to(x_TD.dtype)


class LoopMoe(Mixture):
    """One expert after the other, each on the tokens that chose it."""

    implementation = "torch: a loop over all experts, tokens found and added back one expert at a time"
    host_waits = "the host waits for each expert's tokens"

    def mix(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        # unbind, not indexing: its backward stacks the expert gradients once instead of adding E full tensors
        gate_up, down = self.weights["gate_up"].unbind(), self.weights["down"].unbind()
        y_TD = torch.zeros_like(x_TD)
        for expert in range(len(gate_up)):
            token, rank = torch.where(expert_TK == expert)
            if len(token):
                answer = _swiglu(x_TD[token], gate_up[expert], down[expert])
                y_TD = y_TD.index_add(0, token, answer * weight_TK[token, rank, None])
        return y_TD

    def mix_copies(
        self, x_TD: torch.Tensor, token_S: torch.Tensor, expert_S: torch.Tensor, weight_S: torch.Tensor
    ) -> torch.Tensor:
        gate_up, down = self.weights["gate_up"].unbind(), self.weights["down"].unbind()
        y_TD = torch.zeros_like(x_TD)
        for expert in range(len(gate_up)):
            copy = torch.where(expert_S == expert)[0]
            if len(copy):
                token = token_S[copy]
                answer = _swiglu(x_TD[token], gate_up[expert], down[expert])
                y_TD = y_TD.index_add(0, token, answer * weight_S[copy, None])
        return y_TD


class _Sorted(Mixture):
    """Token copies sorted by expert, multiplied by :meth:`multiply`, added back."""

    def mix(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        expert_S, order_S = expert_TK.flatten().sort()
        token_S = order_S // expert_TK.shape[1]
        return self.mix_copies(x_TD, token_S, expert_S, weight_TK.flatten()[order_S])

    def mix_copies(
        self, x_TD: torch.Tensor, token_S: torch.Tensor, expert_S: torch.Tensor, weight_S: torch.Tensor
    ) -> torch.Tensor:
        y_SD = self.multiply(x_TD[token_S], expert_S) * weight_S[:, None]
        return torch.zeros_like(x_TD).index_add_(0, token_S, y_SD)

    def multiply(self, x_SD: torch.Tensor, expert_S: torch.Tensor) -> torch.Tensor:
        """Each copy through its expert."""
        raise NotImplementedError


class SortedMoe(_Sorted):
    """One product per contiguous segment."""

    implementation = "torch: sorted contiguous segments, one product per expert hit"
    host_waits = "the host waits for the lengths of the segments"

    def multiply(self, x_SD: torch.Tensor, expert_S: torch.Tensor) -> torch.Tensor:
        gate_up, down = self.weights["gate_up"].unbind(), self.weights["down"].unbind()
        counts = torch.bincount(expert_S, minlength=len(gate_up)).tolist()
        inputs = x_SD.split(counts)
        return torch.cat(
            [_swiglu(inputs[e], gate_up[e], down[e]) for e, count in enumerate(counts) if count]
        )  # fmt: skip


class GroupedMoe(_Sorted):
    """torch's own grouped product."""

    implementation = "torch: sorted copies, torch.nn.functional.grouped_mm"

    def multiply(self, x_SD: torch.Tensor, expert_S: torch.Tensor) -> torch.Tensor:
        every = torch.arange(len(self.weights["gate_up"]), dtype=expert_S.dtype, device=expert_S.device)
        ends = torch.searchsorted(expert_S, every, right=True).to(torch.int32)  # bincount would wait for a GPU
        both_SF = functional.grouped_mm(x_SD, self.weights["gate_up"].transpose(1, 2), offs=ends)
        gate_SF, up_SF = both_SF.chunk(2, dim=-1)
        hidden_SF = functional.silu(gate_SF) * up_SF
        return functional.grouped_mm(hidden_SF, self.weights["down"].transpose(1, 2), offs=ends)
