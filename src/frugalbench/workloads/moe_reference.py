"""Float64 answers of the expert layer, its dense twins and the blocks around them, written apart from the arms."""

import functools
import json
from typing import Any

import numpy as np
import torch

from frugalbench.schema import Case
from frugalbench.specs import moe_block
from frugalbench.specs import moe_ffn as spec
from frugalbench.specs import moe_inputs as inputs
from frugalbench.workloads.base import Arrays, Context
from frugalbench.workloads.moe_block_reference import attended, attended_double, normalised

_TOGETHER = 512
"""Tokens whose answers are computed side by side; bounds the float64 values in between."""


def gradient_probes(gradients: dict[str, torch.Tensor], seed: int) -> Arrays:
    """Each weight gradient times a fixed random vector along its last axis; a vector's gradient as it is."""
    products = {}
    for name, gradient in gradients.items():
        if gradient.ndim > 1:
            gradient = gradient @ torch.from_numpy(spec.probe(seed, gradient.shape[-1])).to(gradient)
        products[f"{name}_grad"] = gradient.cpu().numpy()
    return products


def reference_key(case: Case) -> str:
    """Both MoE arms compute the same function; each dense twin its own."""
    return json.dumps([spec.WORKLOAD, case.regime, case.params], sort_keys=True)


def reference(case: Case, context: Context) -> Arrays:
    """Float64 answers, leading axis = rotation. Those of one copy are computed together: its weights are drawn once.

    Beside the processor they are computed where the weights are (:mod:`~frugalbench.workloads.moe_device_reference`).
    """
    if context.device != "cpu":
        from frugalbench.workloads import moe_device_reference

        return moe_device_reference.reference(case, context)
    params, rotation = case.params, spec.rotation(case.params, case.regime)
    batches = spec.token_batches(context.seed, params, case.regime).astype(np.float64)
    rows: dict[int, Arrays] = {}
    together = max(1, _TOGETHER // params["tokens"])
    for copy in range(min(params["copies"], rotation)):
        positions = range(copy, rotation, params["copies"])
        for first in range(0, len(positions), together):
            some = positions[first : first + together]
            rows |= zip(some, _answers(case, context.seed, copy, some, batches), strict=True)
    return {name: np.stack([rows[index][name] for index in range(rotation)]) for name in rows[0]}


def _answers(case: Case, seed: int, copy: int, positions: range, batches: np.ndarray) -> list[Arrays]:
    """What each of the positions, which share a copy's weights, should give."""
    params = case.params
    inputs_TD = [batches[position % len(batches)] for position in positions]
    if case.regime == "training":
        return [_gradients(params, seed, x_TD, copy) for x_TD in inputs_TD]
    if not moe_block.is_block(params):
        return [{"y": y_TD} for y_TD in _ffn(params, seed, inputs_TD, copy)]
    weights, cached = _double_weights(params, seed, copy), case.regime in moe_block.CACHED
    attended_TD = []
    for position, x_TD in zip(positions, inputs_TD, strict=True):
        behind = past(params, seed, position) if cached else None
        attended_TD.append(attended(normalised(x_TD, weights["attention_norm"]), weights, params, behind))
    middle_TD = [x_TD + a_TD for x_TD, a_TD in zip(inputs_TD, attended_TD, strict=True)]
    ffn_TD = _ffn(params, seed, [normalised(x_TD, weights["ffn_norm"]) for x_TD in middle_TD], copy)
    added_TD = [a_TD + y_TD for a_TD, y_TD in zip(attended_TD, ffn_TD, strict=True)]
    return [{"y": x_TD + y_TD, "added": y_TD} for x_TD, y_TD in zip(inputs_TD, added_TD, strict=True)]


def _ffn(params: dict[str, Any], seed: int, batches_TD: list[np.ndarray], copy: int) -> list[np.ndarray]:
    """Batches are routed one by one, as a capacity asks, and computed side by side."""
    weights, x_SD = _double_weights(params, seed, copy), np.concatenate(batches_TD)
    if params["d_ff"]:
        y_SD = _swiglu(x_SD, weights["gate_up"], weights["down"])
    else:
        mixing_SE = np.concatenate([route(params, seed, x_TD, copy) for x_TD in batches_TD])
        y_SD = _mixed(weights, mixing_SE, x_SD)
    return np.split(y_SD, len(batches_TD))


def past(params: dict[str, Any], seed: int, index: int) -> list[np.ndarray]:
    """Float64 caches of the sequences at one position of the rotation, 2 x G x P x C each."""
    tokens = params["tokens"]
    first = index % (params["sequences"] // tokens) * tokens
    return [moe_block.cached(seed, params, first + row).astype(np.float64) for row in range(tokens)]


def _double_weights(params: dict[str, Any], seed: int, copy: int) -> Arrays:
    """Float64 weights of one copy. The latest are kept, because successive positions often share them."""
    of_the_batch = ("tokens", "experts_hit", "kept_choices")
    layer = {name: value for name, value in params.items() if name not in of_the_batch}
    return _drawn(json.dumps(layer, sort_keys=True), seed, copy)


@functools.lru_cache(maxsize=1)
def _drawn(layer: str, seed: int, copy: int) -> Arrays:
    params = json.loads(layer)
    arrays = spec.dense_weights(seed, params, copy) if params["d_ff"] else spec.expert_weights(seed, params, copy)
    if not params["d_ff"]:
        arrays["router"] = moe_block.router(seed, params, copy)
    if moe_block.is_block(params):
        arrays |= moe_block.weights(seed, params, copy)
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def _swiglu(x_TD: np.ndarray, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
    gate_TF, up_TF = np.split(x_TD @ gate_up.T, 2, axis=1)
    hidden_TF = gate_TF / (1 + np.exp(-gate_TF)) * up_TF
    y_TD: np.ndarray = hidden_TF @ down.T
    return y_TD


def route(params: dict[str, Any], seed: int, x_TD: np.ndarray, copy: int = 0) -> np.ndarray:
    """T x E mixing weights in float64, shared experts last: the gate's scores, the top k, less what is dropped."""
    logits_TE = x_TD @ moe_block.router(seed, params, copy).astype(np.float64).T
    kept_TK = np.argsort(-logits_TE, axis=1)[:, : params["top_k"]]
    if params["gate"] == "sigmoid":
        scores_TE = 1 / (1 + np.exp(-logits_TE))
    else:
        odds_TE = np.exp(logits_TE - logits_TE.max(axis=1, keepdims=True))
        scores_TE = odds_TE / odds_TE.sum(axis=1, keepdims=True)
    mixing_TE = np.zeros_like(scores_TE)
    np.put_along_axis(mixing_TE, kept_TK, np.take_along_axis(scores_TE, kept_TK, axis=1), axis=1)
    if params["normalise"]:
        mixing_TE /= mixing_TE.sum(axis=1, keepdims=True)
    if inputs.has_capacity(params):
        mixing_TE *= _served(kept_TK, params)
    return np.hstack([mixing_TE * params["routed_scale"], np.ones((len(x_TD), params["n_shared"]))])


def _served(chosen_TK: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """T x E, 1 where an expert serves a token: one choice after the other, as long as the expert has room."""
    most = inputs.capacity({**params, "tokens": len(chosen_TK)})
    served_TE, load_E = np.zeros((len(chosen_TK), params["experts"])), [0] * params["experts"]
    for choice_T in chosen_TK.T:
        for token, expert in enumerate(choice_T):
            served_TE[token, expert] = load_E[expert] < most
            load_E[expert] += 1
    return served_TE


def sum_experts(params: dict[str, Any], seed: int, x_TD: np.ndarray, copy: int) -> np.ndarray:
    """T x D: the definition of a mixture, of one batch."""
    return _mixed(_double_weights(params, seed, copy), route(params, seed, x_TD, copy), x_TD)


def _mixed(weights: Arrays, mixing_TE: np.ndarray, x_TD: np.ndarray) -> np.ndarray:
    """Expert by expert over the tokens that it serves."""
    y_TD = np.zeros_like(x_TD)
    for expert in np.flatnonzero(mixing_TE.any(axis=0)):
        served = mixing_TE[:, expert] > 0
        answer = _swiglu(x_TD[served], weights["gate_up"][expert], weights["down"][expert])
        y_TD[served] += mixing_TE[served, expert, None] * answer
    return y_TD


def _gradients(params: dict[str, Any], seed: int, x_TD: np.ndarray, copy: int) -> Arrays:
    """Forward and backward by float64 autograd of a formulation that none of the arms uses."""
    x = torch.from_numpy(x_TD).requires_grad_()
    arrays = _double_weights(params, seed, copy)
    weights = {name: torch.from_numpy(array).requires_grad_() for name, array in arrays.items()}
    y = _block_double(x, weights, params) if moe_block.is_block(params) else _ffn_double(x, weights, params)
    y.backward(torch.from_numpy(spec.upstream(seed, params)).double())
    gradients = {name: tensor.grad for name, tensor in weights.items() if tensor.grad is not None}
    assert x.grad is not None
    found = {"y": y.detach().numpy(), "x_grad": x.grad.numpy()} | gradient_probes(gradients, seed)
    return found | ({"added": found["y"] - x_TD} if moe_block.is_block(params) else {})


def _block_double(x_TD: torch.Tensor, weights: dict[str, torch.Tensor], params: dict[str, Any]) -> torch.Tensor:
    x_TD = x_TD + attended_double(normalised(x_TD, weights["attention_norm"]), weights, params)
    return x_TD + _ffn_double(normalised(x_TD, weights["ffn_norm"]), weights, params)


def _ffn_double(x_TD: torch.Tensor, weights: dict[str, torch.Tensor], params: dict[str, Any]) -> torch.Tensor:
    return _dense_double(x_TD, weights) if params["d_ff"] else _mixture_double(x_TD, weights, params)


def _dense_double(x_TD: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    gate_up, down = weights["gate_up"], weights["down"]
    width = down.shape[1]
    gate_TF, up_TF = x_TD @ gate_up[:width].T, x_TD @ gate_up[width:].T
    y_TD: torch.Tensor = (gate_TF * torch.sigmoid(gate_TF) * up_TF) @ down.T
    return y_TD


def mixing_double(x_TD: torch.Tensor, router_ED: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
    """:func:`route` in torch, on any device, as autograd can follow it."""
    logits_TE = x_TD @ router_ED.T
    kept = torch.zeros_like(logits_TE).scatter(1, logits_TE.topk(params["top_k"]).indices, 1.0)
    scores_TE = torch.sigmoid(logits_TE) if params["gate"] == "sigmoid" else torch.softmax(logits_TE, dim=1)
    mixing_TE = scores_TE * kept
    if params["normalise"]:
        mixing_TE = mixing_TE / mixing_TE.sum(dim=1, keepdim=True)
    if inputs.has_capacity(params):
        ranked_TK = logits_TE.detach().topk(params["top_k"]).indices.cpu().numpy()
        mixing_TE = mixing_TE * torch.from_numpy(_served(ranked_TK, params)).to(x_TD.device)
    return torch.cat([mixing_TE * params["routed_scale"], mixing_TE.new_ones(len(x_TD), params["n_shared"])], 1)


def _mixture_double(x_TD: torch.Tensor, weights: dict[str, torch.Tensor], params: dict[str, Any]) -> torch.Tensor:
    """Every expert on every token, mixed by a T x E matrix that is zero where a token does not go."""
    mixing_TE = mixing_double(x_TD, weights["router"], params)
    width = weights["down"].shape[2]
    both_TEF = torch.einsum("td,efd->tef", x_TD, weights["gate_up"])
    gate_TEF, up_TEF = both_TEF[..., :width], both_TEF[..., width:]
    hidden_TEF = gate_TEF * torch.sigmoid(gate_TEF) * up_TEF * mixing_TE[..., None]
    y_TD: torch.Tensor = torch.einsum("tef,edf->td", hidden_TEF, weights["down"])
    return y_TD
