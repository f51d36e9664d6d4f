"""Builder of the expert feed-forward layer and its dense twins. Shapes and inputs: ``specs/moe_ffn.py``."""

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from frugalbench.schema import Arm, Artefact, Case, Quantity, Tier
from frugalbench.specs import moe_ffn as spec
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.layers import ffn

_MIXTURES = {
    "moe-loop": ffn.LoopMoe,
    "moe-sorted": ffn.SortedMoe,
    "moe-grouped": ffn.GroupedMoe,
    "moe-compiled": ffn.CompiledMoe,
}


class LoadedFfn:
    """``copies`` layers of one variant."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, arm: Arm, context: Context):
        params = arm.cases[0].params
        self.context = context
        self.layers = [_layer(arm.cases[0].variant, params, context, copy) for copy in range(params["copies"])]

    def bind(self, case: Case) -> Bound:
        """Make a regime callable."""
        device, seed = self.context.device, self.context.seed
        tokens = torch.from_numpy(spec.token_batches(seed, case.params, case.regime)).to(device)
        step = self._training(case) if case.regime == "training" else _forward
        rotation = spec.rotation(case.params, case.regime)
        layers, batches = self.layers, len(tokens)

        def call(index: int) -> object:
            index %= rotation
            return step(layers[index % len(layers)], tokens[index % batches])

        return Bound(
            call=call,
            output=lambda index: self._output(case, call, index % rotation),
            rotation=rotation,
            synchronize=torch.cuda.synchronize if device == "cuda" else _nothing,
            facts={"weight_bytes": self._weight_bytes()} | self._padding(case, tokens),
            details=self._details(case, tokens),
        )

    def _training(self, case: Case) -> Callable[[Any, torch.Tensor], torch.Tensor]:
        upstream_TD = torch.from_numpy(spec.upstream(self.context.seed, case.params)).to(self.context.device)

        def step(layer: Any, x_TD: torch.Tensor) -> torch.Tensor:
            for parameter in layer.parameters():
                parameter.grad = None
            x_TD = x_TD.detach().requires_grad_()
            y_TD: torch.Tensor = layer(x_TD)
            y_TD.backward(upstream_TD)
            layer.last = (x_TD, y_TD)
            return y_TD

        return step

    def _output(self, case: Case, call: Callable[[int], Any], index: int) -> Arrays:
        y_TD = call(index)
        outputs = {"y": y_TD.detach().cpu().numpy()}
        if case.regime != "training":
            return outputs
        layer = self.layers[index % len(self.layers)]
        outputs["x_grad"] = layer.last[0].grad.cpu().numpy()
        return outputs | gradient_probes(layer.gradients(), self.context.seed)

    def _weight_bytes(self) -> Quantity:
        stored = sum(p.numel() * p.element_size() for p in self.layers[0].parameters())
        return Quantity(value=float(stored), unit="byte", tier=Tier.MEASURED, source="stored tensors of one layer")

    def _details(self, case: Case, tokens: torch.Tensor) -> dict[str, Any]:
        details: dict[str, Any] = {"implementation": self.layers[0].implementation}
        if not case.params["d_ff"]:
            counts = [_histogram(self.layers[0], x_TD) for x_TD in tokens]
            details["router_histogram"] = [sum(column) for column in zip(*counts, strict=True)]
            details["experts_hit"] = [sum(count > 0 for count in row) for row in counts]
            details["busiest_expert_tokens"] = [max(row) for row in counts]
        return details

    def _padding(self, case: Case, tokens: torch.Tensor) -> dict[str, Quantity]:
        if case.params["d_ff"] or case.variant not in spec.NATIVE:
            return {}
        with torch.inference_mode():
            found = self.layers[0].details(self.layers[0].route(tokens[0])[0])
        share = Quantity(
            value=found["padding_share"], unit="1", tier=Tier.MEASURED, source="lanes computed for no token"
        )
        return {"padding_share": share}

    def close(self) -> None:
        """Nothing outlives the process."""


def prepare(arm: Arm, _context: Context) -> None:
    """Compile the own kernel, where the arm needs it and the cache lacks it."""
    if arm.cases[0].variant in spec.NATIVE:
        from frugalbench.backends import native_moe

        native_moe.built()


def load(arm: Arm, context: Context) -> LoadedFfn:
    """Allocate and fill the arm's layers."""
    return LoadedFfn(arm, context)


def _layer(variant: str, params: dict[str, Any], context: Context, copy: int) -> Any:
    if params["d_ff"]:
        weights = _tensors(spec.dense_weights(context.seed, params, copy), context)
        return _native().NativeDense(weights) if variant in spec.NATIVE else ffn.Dense(weights)
    weights = _tensors(spec.expert_weights(context.seed, params, copy), context)
    weights |= _tensors({"router": spec.router_weights(context.seed, params)}, context)
    if variant in spec.TRANSFORMERS:
        return ffn.TransformersMoe(weights, params, spec.TRANSFORMERS[variant])
    if variant == "moe-triton":
        return _triton().TritonMoe(weights, params)
    return (_native().NativeMoe if variant in spec.NATIVE else _MIXTURES[variant])(weights, params)


def _native() -> Any:
    """The own kernel's layers; a compiler is needed only where they run."""
    from frugalbench.workloads.layers import native_ffn

    return native_ffn


def _triton() -> Any:
    """The Triton kernel's layer; Triton is needed only where it runs."""
    from frugalbench.workloads.layers import triton_ffn

    return triton_ffn


def _tensors(arrays: Arrays, context: Context) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).to(context.device) for name, array in arrays.items()}


def _forward(layer: Any, x_TD: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        y_TD: torch.Tensor = layer(x_TD)
    return y_TD


def _nothing() -> None:
    return None


def _histogram(layer: ffn.Mixture, x_TD: torch.Tensor) -> list[int]:
    """Tokens per routed expert."""
    with torch.inference_mode():
        chosen = layer.route(x_TD)[0][:, : layer.top_k].flatten()
        counts: list[int] = torch.bincount(chosen, minlength=layer.experts).tolist()
    return counts


def gradient_probes(gradients: dict[str, torch.Tensor], seed: int) -> Arrays:
    """Each weight gradient times a fixed random vector along its last axis."""
    products = {}
    for name, gradient in gradients.items():
        probe = torch.from_numpy(spec.probe(seed, gradient.shape[-1])).to(gradient)
        products[f"{name}_grad"] = (gradient @ probe).cpu().numpy()
    return products


def reference_key(case: Case) -> str:
    """Both MoE arms compute the same function; each dense twin its own."""
    return json.dumps([spec.WORKLOAD, case.regime, case.params], sort_keys=True)


def reference(case: Case, context: Context) -> Arrays:
    """Float64 answers, leading axis = rotation."""
    rows = [_answer(case, context.seed, index) for index in range(spec.rotation(case.params, case.regime))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _answer(case: Case, seed: int, index: int) -> Arrays:
    params = case.params
    batches = spec.token_batches(seed, params, case.regime)
    x_TD = batches[index % len(batches)].astype(np.float64)
    copy = index % params["copies"]
    if case.regime == "training":
        return _gradients(params, seed, x_TD, copy)
    if params["d_ff"]:
        weights = _double_weights(params, seed, copy)
        return {"y": _swiglu(x_TD, weights["gate_up"], weights["down"])}
    return {"y": sum_experts(params, seed, x_TD, copy)}


def _double_weights(params: dict[str, Any], seed: int, copy: int) -> Arrays:
    """Float64 weights of one copy. The latest are kept, because successive positions often share them."""
    layer = {name: value for name, value in params.items() if name != "tokens"}
    return _drawn(json.dumps(layer, sort_keys=True), seed, copy)


@functools.lru_cache(maxsize=1)
def _drawn(layer: str, seed: int, copy: int) -> Arrays:
    params = json.loads(layer)
    arrays = spec.dense_weights(seed, params, copy) if params["d_ff"] else spec.expert_weights(seed, params, copy)
    if not params["d_ff"]:
        arrays["router"] = spec.router_weights(seed, params)
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def _swiglu(x_TD: np.ndarray, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
    gate_TF, up_TF = np.split(x_TD @ gate_up.T, 2, axis=1)
    hidden_TF = gate_TF / (1 + np.exp(-gate_TF)) * up_TF
    y_TD: np.ndarray = hidden_TF @ down.T
    return y_TD


def route(params: dict[str, Any], seed: int, x_TD: np.ndarray) -> np.ndarray:
    """T x E mixing weights in float64, shared experts last: the gate's scores, the top k kept."""
    logits_TE = x_TD @ spec.router_weights(seed, params).astype(np.float64).T
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
    return np.hstack([mixing_TE * params["routed_scale"], np.ones((len(x_TD), params["n_shared"]))])


def sum_experts(params: dict[str, Any], seed: int, x_TD: np.ndarray, copy: int) -> np.ndarray:
    """T x D: the definition of a mixture, expert by expert over the tokens that it serves."""
    weights = _double_weights(params, seed, copy)
    mixing_TE = route(params, seed, x_TD)
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
    y = _dense_double(x, weights) if params["d_ff"] else _mixture_double(x, weights, params)
    y.backward(torch.from_numpy(spec.upstream(seed, params)).double())
    gradients = {name: tensor.grad for name, tensor in weights.items() if tensor.grad is not None}
    assert x.grad is not None
    return {"y": y.detach().numpy(), "x_grad": x.grad.numpy()} | gradient_probes(gradients, seed)


def _dense_double(x_TD: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    gate_up, down = weights["gate_up"], weights["down"]
    width = down.shape[1]
    gate_TF, up_TF = x_TD @ gate_up[:width].T, x_TD @ gate_up[width:].T
    y_TD: torch.Tensor = (gate_TF * torch.sigmoid(gate_TF) * up_TF) @ down.T
    return y_TD


def _mixture_double(x_TD: torch.Tensor, weights: dict[str, torch.Tensor], params: dict[str, Any]) -> torch.Tensor:
    """Every expert on every token, mixed by a T x E matrix that is zero where a token does not go."""
    logits_TE = x_TD @ weights["router"].T
    kept = torch.zeros_like(logits_TE).scatter(1, logits_TE.topk(params["top_k"]).indices, 1.0)
    scores_TE = torch.sigmoid(logits_TE) if params["gate"] == "sigmoid" else torch.softmax(logits_TE, dim=1)
    mixing_TE = scores_TE * kept
    if params["normalise"]:
        mixing_TE = mixing_TE / mixing_TE.sum(dim=1, keepdim=True)
    mixing_TE = torch.cat([mixing_TE * params["routed_scale"], mixing_TE.new_ones(len(x_TD), params["n_shared"])], 1)
    width = weights["down"].shape[2]
    both_TEF = torch.einsum("td,efd->tef", x_TD, weights["gate_up"])
    gate_TEF, up_TEF = both_TEF[..., :width], both_TEF[..., width:]
    hidden_TEF = gate_TEF * torch.sigmoid(gate_TEF) * up_TEF * mixing_TE[..., None]
    y_TD: torch.Tensor = torch.einsum("tef,edf->td", hidden_TEF, weights["down"])
    return y_TD
