"""Float64 answers of the expert layer, its dense twins and the blocks around them, computed on a device.

Written apart from the arms: expert by expert over the tokens that each serves, a dense layer by strips of its width.
Weights stay in their own format, one expert or strip at a time is float64; of weight gradients only the products with
the probe are kept. So the layer fits beside what is measured. Attention is the one of ``moe_block_reference.py``.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from frugalbench.schema import Case
from frugalbench.specs import moe_block
from frugalbench.specs import moe_ffn as spec
from frugalbench.workloads.base import Arrays, Context
from frugalbench.workloads.layers import drawn
from frugalbench.workloads.moe_block_reference import attended, attended_double, normalised
from frugalbench.workloads.moe_reference import gradient_probes, mixing_double, past

_STRIP = 4096
"""Columns of a dense layer's width that are float64 at a time: 600 MB at a model width of 6144."""

Expert = tuple[torch.Tensor, torch.Tensor]
"""Float64 ``gate_up`` (2f x D) and ``down`` (D x f)."""


def reference(case: Case, context: Context) -> Arrays:
    """Float64 answers, leading axis = rotation."""
    params, rotation = case.params, spec.rotation(case.params, case.regime)
    batches = spec.token_batches(context.seed, params, case.regime)
    rows: dict[int, Arrays] = {}
    for copy in range(min(params["copies"], rotation)):
        layer = _Layer(params, context, copy)
        for index in range(copy, rotation, params["copies"]):
            x_TD = torch.from_numpy(batches[index % len(batches)]).to(context.device, torch.float64)
            rows[index] = layer.gradients(x_TD) if case.regime == "training" else layer.answer(x_TD, case.regime, index)
    return {name: np.stack([rows[index][name] for index in range(rotation)]) for name in rows[0]}


class _Layer:
    """One copy."""

    def __init__(self, params: dict[str, Any], context: Context, copy: int):
        self.params, self.seed = params, context.seed
        self.weights = drawn.weights(context.seed, params, copy, context.device)
        small = {} if params["d_ff"] else {"router": moe_block.router(context.seed, params, copy)}
        small |= moe_block.weights(context.seed, params, copy) if moe_block.is_block(params) else {}
        self.small = {name: torch.from_numpy(value).to(context.device, torch.float64) for name, value in small.items()}

    def experts(self) -> Iterator[Expert]:
        """Of a dense layer its strips, which every token takes."""
        gate_up, down = self.weights["gate_up"], self.weights["down"]
        if not self.params["d_ff"]:
            yield from ((one.double(), other.double()) for one, other in zip(gate_up, down, strict=True))
            return
        gate, up = gate_up.chunk(2)
        for parts in zip(gate.split(_STRIP), up.split(_STRIP), down.split(_STRIP, dim=1), strict=True):
            yield torch.cat(parts[:2]).double(), parts[2].double()

    def mixing(self, x_TD: torch.Tensor) -> torch.Tensor:
        """T x experts, or strips."""
        if not self.params["d_ff"]:
            return mixing_double(x_TD, self.small["router"], self.params)
        return x_TD.new_ones(len(x_TD), -(-self.params["d_ff"] // _STRIP))

    def ffn(self, x_TD: torch.Tensor) -> torch.Tensor:
        """T x D."""
        mixing_TE, y_TD = self.mixing(x_TD), torch.zeros_like(x_TD)
        for number, expert in enumerate(self.experts()):
            served = mixing_TE[:, number].nonzero()[:, 0]
            y_TD[served] += mixing_TE[served, number, None] * _swiglu(x_TD[served], *expert)
        return y_TD

    def answer(self, x_TD: torch.Tensor, regime: str, index: int) -> Arrays:
        """Of one position, forward."""
        if not moe_block.is_block(self.params):
            return {"y": self.ffn(x_TD).cpu().numpy()}
        behind = past(self.params, self.seed, index) if regime in moe_block.CACHED else None
        plain = {name: value.cpu().numpy() for name, value in self.small.items()}
        seen_TD = normalised(x_TD.cpu().numpy(), plain["attention_norm"])
        attended_TD = torch.from_numpy(attended(seen_TD, plain, self.params, behind)).to(x_TD)
        added_TD = attended_TD + self.ffn(normalised(x_TD + attended_TD, self.small["ffn_norm"]))
        return {"y": (x_TD + added_TD).cpu().numpy(), "added": added_TD.cpu().numpy()}

    def gradients(self, x_TD: torch.Tensor) -> Arrays:
        """Of one position: answers, and gradients by autograd from expert to expert."""
        block = moe_block.is_block(self.params)
        upstream_TD = torch.from_numpy(spec.upstream(self.seed, self.params)).to(x_TD)
        leaves = {name: value.clone().requires_grad_() for name, value in self.small.items()}
        x_TD = x_TD.clone().requires_grad_()
        middle_TD = x_TD
        if block:
            seen_TD = normalised(x_TD, leaves["attention_norm"])
            middle_TD = x_TD + attended_double(seen_TD, leaves, self.params)
        into_TD = normalised(middle_TD, leaves["ffn_norm"]) if block else x_TD
        y_TD, into_grad, found = self._step(into_TD.detach(), upstream_TD, leaves)
        torch.autograd.backward([into_TD, middle_TD] if block else [into_TD], [into_grad, upstream_TD][: 1 + block])
        small = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        assert x_TD.grad is not None
        found |= {"x_grad": x_TD.grad.cpu().numpy()} | gradient_probes(small, self.seed)
        if not block:
            return found | {"y": y_TD.cpu().numpy()}
        whole_TD = (middle_TD + y_TD).detach()
        return found | {"y": whole_TD.cpu().numpy(), "added": (whole_TD - x_TD.detach()).cpu().numpy()}

    def _step(
        self, x_TD: torch.Tensor, upstream_TD: torch.Tensor, leaves: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, Arrays]:
        """y, gradient of x, and probed weight gradients of the feed-forward layer; the router's is left in its leaf."""
        x_TD = x_TD.requires_grad_()
        dense = bool(self.params["d_ff"])
        mixing_TE = self.mixing(x_TD) if dense else mixing_double(x_TD, leaves["router"], self.params)
        y_TD, x_grad, mixing_grad = torch.zeros_like(x_TD), torch.zeros_like(x_TD), torch.zeros_like(mixing_TE)
        probed: list[tuple[torch.Tensor, torch.Tensor]] = []
        along, across = self._probe(self.params["d_model"]), self._probe(self.params["d_ff"] or self.params["d_expert"])
        for number, (gate_up, down) in enumerate(self.experts()):
            share = mixing_TE[:, number].detach()
            served = share.nonzero()[:, 0]
            leaf_TD = x_TD.detach()[served].requires_grad_()
            answer = _swiglu(leaf_TD, gate_up.requires_grad_(), down.requires_grad_())
            reaches = upstream_TD[served]
            answer.backward(share[served, None] * reaches)
            y_TD[served] += share[served, None] * answer.detach()
            x_grad[served] += leaf_TD.grad
            mixing_grad[served, number] = (answer.detach() * reaches).sum(1)
            begin = number * _STRIP if dense else 0
            probed.append((gate_up.grad @ along, down.grad @ across[begin : begin + down.shape[1]]))
        if not dense:
            mixing_TE.backward(mixing_grad)
            assert x_TD.grad is not None
            x_grad += x_TD.grad
        return y_TD, x_grad, _assembled(probed, dense)

    def _probe(self, width: int) -> torch.Tensor:
        return torch.from_numpy(spec.probe(self.seed, width)).to(self.weights["down"].device)


def _assembled(probed: list[tuple[torch.Tensor, torch.Tensor]], dense: bool) -> Arrays:
    """As the layer holds its weights: experts above each other; of strips, gates before ups, and sums of down."""
    gate_up, down = zip(*probed, strict=True)
    if dense:
        halves = [one.chunk(2) for one in gate_up]
        both = torch.cat([gate for gate, _ in halves] + [up for _, up in halves]), torch.stack(down).sum(0)
    else:
        both = torch.stack(gate_up), torch.stack(down)
    return {"gate_up_grad": both[0].cpu().numpy(), "down_grad": both[1].cpu().numpy()}


def _swiglu(x_TD: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    gate_TF, up_TF = (x_TD @ gate_up.T).chunk(2, dim=1)
    return (gate_TF * torch.sigmoid(gate_TF) * up_TF) @ down.T
