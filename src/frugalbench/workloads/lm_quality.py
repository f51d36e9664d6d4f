"""Builder of the tiny language models: trains when it loads, then times one more step. See ``specs/lm_quality.py``.

Shape suffixes: B batch, S sequence, D model width, H heads, V vocabulary, T = B·S tokens, E experts.
"""

import json
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from frugalbench.backends.base import locked
from frugalbench.schema import Arm, Artefact, Case, FrugalbenchError, Quantity, Tier
from frugalbench.specs import lm_quality as spec
from frugalbench.workloads import device
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.layers import ffn

_WARMUP_STEPS = 20
_PILOT_STEPS = 2
_NORM_EPSILON = 1e-6
_REFERENCE_SEQUENCES = 2
_CLIP = 1.0


class Model:
    """Weights of one variant, and its forward pass."""

    def __init__(self, arrays: Arrays, params: dict[str, Any], variant: str, device: str):
        self.params, self.variant = params, variant
        self.weights = {name: torch.from_numpy(value).to(device) for name, value in arrays.items()}
        self.blocks = [self._ffn(layer) for layer in range(params["layers"])]
        self.implementation = self.blocks[0].implementation
        for tensor in self.weights.values():
            tensor.requires_grad_()

    def _ffn(self, layer: int) -> Any:
        names = ("gate_up", "down") if self.variant == "dense" else ("gate_up", "down", "router")
        mine = {name: self.weights[f"{layer}.{name}"] for name in names}
        if self.variant == "dense":
            return ffn.Dense(mine)
        gate = {"gate": "softmax", "normalise": True, "routed_scale": 1.0, "n_shared": 0}
        return _mixture(mine, {**self.params, **gate})

    def logits(self, tokens_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """B x S x V, and the auxiliary loss that balances experts (0 when dense)."""
        w, balance = self.weights, torch.zeros((), device=tokens_BS.device)
        x_BSD = w["embedding"][tokens_BS] + w["position"]
        for layer, block in enumerate(self.blocks):
            x_BSD = x_BSD + self._attend(_norm(x_BSD), layer)
            y_TD = _norm(x_BSD).flatten(0, 1)
            if self.variant != "dense":
                balance = balance + _balance(y_TD, w[f"{layer}.router"], self.params["top_k"])
            x_BSD = x_BSD + block(y_TD).view_as(x_BSD)
        return functional.linear(_norm(x_BSD), w["head"]), balance / len(self.blocks)

    def _attend(self, x_BSD: torch.Tensor, layer: int) -> torch.Tensor:
        heads = self.params["heads"]
        parts = functional.linear(x_BSD, self.weights[f"{layer}.qkv"]).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return functional.linear(mixed.transpose(1, 2).flatten(2), self.weights[f"{layer}.merge"])

    def loss(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross-entropy in nats per byte, and the auxiliary loss."""
        logits_BSV, balance = self.logits(windows[:, :-1])
        return functional.cross_entropy(logits_BSV.flatten(0, 1), windows[:, 1:].flatten()), balance


def _mixture(weights: dict[str, torch.Tensor], params: dict[str, Any]) -> ffn.Mixture:
    """On the own kernel where there is a compiler; sorted segments elsewhere. The record says which."""
    if weights["down"].device.type == "cpu":
        try:
            from frugalbench.workloads.layers.native_ffn import NativeMoe

            return NativeMoe(weights, params)
        except FrugalbenchError:
            pass
    return ffn.SortedMoe(weights, params)


def _norm(x_BSD: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x_BSD, x_BSD.shape[-1:], eps=_NORM_EPSILON)


def _balance(x_TD: torch.Tensor, router_ED: torch.Tensor, top_k: int) -> torch.Tensor:
    """E · sum over experts of (share of copies) · (mean probability); 1 when even (arXiv 2101.03961, equation 4)."""
    probability_TE = functional.linear(x_TD, router_ED).softmax(dim=-1)
    chosen = probability_TE.topk(top_k, dim=-1).indices.flatten()
    every_E = torch.arange(len(router_ED), device=chosen.device)
    share_E = (chosen[:, None] == every_E).float().mean(0)  # bincount would wait for a GPU
    return len(router_ED) * (share_E * probability_TE.mean(0)).sum()


class LoadedModel:
    """A trained model with its curve of losses."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, arm: Arm, context: Context):
        case = arm.cases[0]
        self.case, self.context, self.device = case, context, device.of(context.device)
        arrays = spec.weights(context.seed, context.replicate, case.params, case.variant)
        self.model = Model(arrays, case.params, case.variant, context.device)
        self.optimizer = torch.optim.AdamW(
            self.model.weights.values(), lr=case.params["learning_rate"], betas=(0.9, 0.95), weight_decay=0.1
        )
        with self._alone():
            self.curve = self._train()

    def _alone(self) -> AbstractContextManager[None]:
        """While no other arm of this run trains: those of a device load side by side, and training is timed."""
        return nullcontext() if self.device is None else locked(self.context.scratch_dir / "lm_quality.lock")

    def _finish(self) -> None:
        if self.device is not None:
            self.device.synchronize()

    def _train(self) -> list[dict[str, float]]:
        """Loss on held-out text against FLOP and seconds of training; the pilot, which decides nothing, is short."""
        params, cost = self.case.params, self.case.cost
        assert cost is not None
        steps = params["steps"] if self.context.replicate else _PILOT_STEPS
        every = max(1, steps // spec.EVALUATIONS)
        held_out = torch.from_numpy(spec.held_out(params)).to(self.context.device)
        curve, spent_s = [], 0.0
        self._warm_up()
        for step in range(1, steps + 1):
            windows = self._batch(step)
            self._finish()
            begin = time.perf_counter()
            self._step(windows, min(1.0, step / _WARMUP_STEPS))
            self._finish()
            spent_s += time.perf_counter() - begin
            if step % every == 0 or step == steps:
                with torch.no_grad():
                    loss = float(self.model.loss(held_out)[0])
                curve.append({"step": step, "flop": step * cost.flop, "time_s": spent_s, "loss": loss})
        return curve

    def _warm_up(self) -> None:
        """A device's libraries start up in the first step, a second that would count as training."""
        if self.device is not None:
            self._gradients(self._batch(1))

    def _batch(self, step: int) -> torch.Tensor:
        windows = spec.batch(self.context.seed, self.context.replicate, step, self.case.params)
        return torch.from_numpy(windows).to(self.context.device)

    def _step(self, windows: torch.Tensor, warm: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = warm * self.case.params["learning_rate"]
        self._gradients(windows)
        torch.nn.utils.clip_grad_norm_(self.model.weights.values(), _CLIP)
        self.optimizer.step()

    def _gradients(self, windows: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss, balance = self.model.loss(windows)
        (loss + self.case.params["balance"] * balance).backward()

    def bind(self, case: Case) -> Bound:
        """One training step without the update, on fresh batches; checked by the logits of untrained weights."""
        batches = [self._batch(case.params["steps"] + 1 + number) for number in range(4)]
        untrained = Model(_reference_weights(case, self.context.seed), case.params, case.variant, self.context.device)
        windows = spec.held_out(case.params)[:_REFERENCE_SEQUENCES, :-1]

        def output(index: int) -> Arrays:
            with torch.no_grad():
                tokens = torch.from_numpy(windows[index % _REFERENCE_SEQUENCES][None]).to(self.context.device)
                return {"logits": untrained.logits(tokens)[0][0].cpu().numpy()}

        return Bound(
            call=lambda index: self._gradients(batches[index % len(batches)]),
            output=output,
            rotation=len(batches),
            synchronize=self._finish,
            device=self.device,
            facts={"final_loss": self._final_loss()},
            details={
                "implementation": self.model.implementation,
                "text": "pydoc_data.topics of this Python installation (PSF licence)",
                "curve": self.curve,
            },
        )

    def _final_loss(self) -> Quantity:
        loss = self.curve[-1]["loss"] if self.context.replicate else None
        source = "mean cross-entropy on held-out text at the end of training"
        return Quantity(value=loss, unit="nat/byte", tier=Tier.MEASURED, source=source)

    def close(self) -> None:
        """Nothing outlives the process."""


def load(arm: Arm, context: Context) -> LoadedModel:
    """Train the arm's model."""
    return LoadedModel(arm, context)


def _reference_weights(case: Case, seed: int) -> Arrays:
    return spec.weights(seed, 0, case.params, case.variant)


def reference_key(case: Case) -> str:
    """Each variant its own."""
    return json.dumps([spec.WORKLOAD, case.variant, case.params], sort_keys=True)


def reference(case: Case, context: Context) -> Arrays:
    """Logits of untrained weights in float64, in numpy, attention and mixture written out."""
    w = {name: value.astype(np.float64) for name, value in _reference_weights(case, context.seed).items()}
    windows = spec.held_out(case.params)[:_REFERENCE_SEQUENCES, :-1]
    return {"logits": np.stack([_logits64(tokens_S, w, case.params, case.variant) for tokens_S in windows])}


def _logits64(tokens_S: np.ndarray, w: Arrays, params: dict[str, Any], variant: str) -> np.ndarray:
    x_SD = w["embedding"][tokens_S] + w["position"]
    for layer in range(params["layers"]):
        x_SD = x_SD + _attend64(_norm64(x_SD), w[f"{layer}.qkv"], w[f"{layer}.merge"], params["heads"])
        gate_up, down = w[f"{layer}.gate_up"], w[f"{layer}.down"]
        y_SD = _norm64(x_SD)
        if variant == "dense":
            x_SD = x_SD + _swiglu64(y_SD, gate_up, down)
        else:
            x_SD = x_SD + _mixture64(y_SD, gate_up, down, w[f"{layer}.router"], params["top_k"])
    return _norm64(x_SD) @ w["head"].T


def _norm64(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + _NORM_EPSILON))


def _swiglu64(x: np.ndarray, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
    gate, up = np.split(x @ gate_up.T, 2, axis=-1)
    return np.asarray((gate / (1 + np.exp(-gate)) * up) @ down.T)


def _mixture64(x: np.ndarray, gate_up: np.ndarray, down: np.ndarray, router: np.ndarray, top_k: int) -> np.ndarray:
    odds = np.exp(x @ router.T)
    kept = odds >= np.sort(odds, axis=1)[:, -top_k, None]
    mixing = np.where(kept, odds, 0.0)
    mixing /= mixing.sum(axis=1, keepdims=True)
    answers = np.stack([_swiglu64(x, gate_up[e], down[e]) for e in range(len(gate_up))], axis=1)
    return np.asarray((mixing[..., None] * answers).sum(axis=1))


def _attend64(x_SD: np.ndarray, qkv: np.ndarray, merge: np.ndarray, heads: int) -> np.ndarray:
    seq, width = x_SD.shape
    query, key, value = ((x_SD @ part.T).reshape(seq, heads, -1).swapaxes(0, 1) for part in np.split(qkv, 3))
    scores = query @ key.swapaxes(1, 2) / np.sqrt(width / heads)
    scores = np.where(np.tri(seq, dtype=bool), scores, -np.inf)
    odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (odds / odds.sum(axis=-1, keepdims=True)) @ value
    return np.asarray(mixed.swapaxes(0, 1).reshape(seq, width) @ merge.T)
