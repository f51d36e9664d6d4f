"""Feed-forward layers under test: dense SwiGLU, and mixtures of experts as they are commonly computed.

Shape suffixes: T tokens, D model width, F hidden width, E experts, K experts per token, S = T·K token copies
sorted by expert. Gate and up are fused into one product in all of them, so that no arm pays for two. A mixture holds
its shared experts behind the routed ones; every token takes them with weight 1, as copies like any other.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional


class Layer:
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

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        return self.mix(x_TD, *self.route(x_TD))

    def mix(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """Sum over the chosen experts of weight · expert(x), T x D."""
        raise NotImplementedError

    def route(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers and mixing weights of each token's experts, shared ones last."""
        logits_TE = functional.linear(x_TD, self.weights["router"])
        scores_TE = logits_TE.softmax(dim=-1) if self.gate == "softmax" else logits_TE.sigmoid()
        weight_TK, expert_TK = scores_TE.topk(self.top_k, dim=-1)
        if self.normalise:
            weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
        if self.routed_scale != 1.0:
            weight_TK = weight_TK * self.routed_scale
        return self.with_shared(expert_TK, weight_TK)

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


class LoopMoe(Mixture):
    """One expert after the other, each on the tokens that chose it."""

    implementation = "torch: a loop over all experts, tokens found and added back one expert at a time"

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


class _Sorted(Mixture):
    """Token copies sorted by expert, multiplied by :meth:`multiply`, added back."""

    def mix(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        expert_S, order_S = expert_TK.flatten().sort()
        token_S = order_S // expert_TK.shape[1]
        y_SD = self.multiply(x_TD[token_S], expert_S) * weight_TK.flatten()[order_S, None]
        return torch.zeros_like(x_TD).index_add_(0, token_S, y_SD)

    def multiply(self, x_SD: torch.Tensor, expert_S: torch.Tensor) -> torch.Tensor:
        """Each copy through its expert."""
        raise NotImplementedError


class SortedMoe(_Sorted):
    """One product per contiguous segment."""

    implementation = "torch: sorted contiguous segments, one product per expert hit"

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
        counts = torch.bincount(expert_S, minlength=len(self.weights["gate_up"]))
        ends = counts.cumsum(0).to(torch.int32)
        both_SF = functional.grouped_mm(x_SD, self.weights["gate_up"].transpose(1, 2), offs=ends)
        gate_SF, up_SF = both_SF.chunk(2, dim=-1)
        hidden_SF = functional.silu(gate_SF) * up_SF
        return functional.grouped_mm(hidden_SF, self.weights["down"].transpose(1, 2), offs=ends)


class CompiledMoe(GroupedMoe):
    """torch.compile of :class:`GroupedMoe`, routing included."""

    implementation = "torch.compile of sorted copies with torch.nn.functional.grouped_mm"

    def __init__(self, weights: dict[str, torch.Tensor], params: dict[str, Any]):
        super().__init__(weights, params)
        self._compiled = torch.compile(super().__call__, dynamic=False)

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        y_TD: torch.Tensor = self._compiled(x_TD)
        return y_TD


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
