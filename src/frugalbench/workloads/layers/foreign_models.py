"""The models whose operators are counted: what the other workloads run, small, with seeded or real weights.

A subject is built for any device and precision, so that the same model in float64 on the processor is its reference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from frugalbench.specs import lm_quality as text
from frugalbench.specs import moe_inputs
from frugalbench.workloads import lm_quality
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers import attention, ffn
from frugalbench.workloads.layers.text import token_batches
from frugalbench.workloads.layers.transformers_ffn import TransformersMoe

Tensors = dict[str, torch.Tensor]
_ONE_STEP = {"lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}


@dataclass(frozen=True)
class Subject:
    """``step(setup())`` is what is counted and timed; setting up is neither."""

    setup: Callable[[], Any]
    step: Callable[[Any], Tensors]


@dataclass(frozen=True)
class Place:
    """Where a model is built, and in which precision."""

    device: str
    dtype: torch.dtype

    def put(self, values: np.ndarray) -> torch.Tensor:
        """An array there; integers keep their type."""
        tensor = torch.from_numpy(values)
        return (tensor.to(self.dtype) if tensor.is_floating_point() else tensor).to(self.device)

    @property
    def is_exact(self) -> bool:
        """Whether this is the reference."""
        return self.dtype is torch.float64


def subject(model: str, params: dict[str, Any], context: Context, place: Place) -> Subject:
    """The model called ``model`` (a name of ``specs.foreign_device.MODELS``)."""
    return _SUBJECTS[model](params, context, place)


def _inference(module: Callable[..., Any], *inputs: torch.Tensor) -> Subject:
    def step(_: Any) -> Tensors:
        with torch.no_grad():
            found = module(*inputs)
        return {str(place): value for place, value in enumerate(found if isinstance(found, tuple) else (found,))}

    return Subject(lambda: None, step)


def _minilm(params: dict[str, Any], context: Context, place: Place) -> Subject:
    folder = attention.minilm_folder()
    size = (1, params["batch"], params["seq"])
    feed = token_batches(folder, *size, context.seed, context.cache_dir / "onnx_model")[0]
    module = attention.minilm(folder, exact=place.is_exact).to(place.device)
    return _inference(module, place.put(feed["input_ids"]), place.put(feed["attention_mask"]))


def _block(params: dict[str, Any], context: Context, place: Place) -> Subject:
    weights = attention.block_weights(params["d_model"], params["d_ff"], context.seed)
    x_BSD = _normal(context.seed, params["batch"], params["seq"], params["d_model"])
    if place.is_exact:
        return Subject(
            lambda: None, lambda _: {"0": torch.from_numpy(attention.block_answer(weights, params["heads"], x_BSD))}
        )
    return _inference(attention.block(weights, params["heads"]).to(place.device), place.put(x_BSD))


def _moe(params: dict[str, Any], context: Context, place: Place) -> Subject:
    """transformers' Qwen3 block; its reference is a loop over experts."""
    layer = {**params, "gate": "softmax", "normalise": True, "routed_scale": 1.0, "n_shared": 0, "routing": "router"}
    arrays = moe_inputs.expert_weights(context.seed, layer, 0) | {
        "router": moe_inputs.router_weights(context.seed, layer)
    }
    weights = {name: place.put(value) for name, value in arrays.items()}
    x_TD = place.put(moe_inputs.token_batches(context.seed, layer, "decode")[0])
    mixture = ffn.LoopMoe(weights, layer) if place.is_exact else TransformersMoe(weights, layer, None)
    return _inference(mixture, x_TD)


def _decoder(params: dict[str, Any], context: Context, place: Place) -> Subject:
    """transformers' Llama: a prompt is read, then two tokens are decoded behind its cache."""
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=params["vocabulary"], hidden_size=params["d_model"], intermediate_size=params["d_ff"],
        num_hidden_layers=params["layers"], num_attention_heads=params["heads"], bos_token_id=None, eos_token_id=None,
        num_key_value_heads=params["kv_heads"], attn_implementation="eager" if place.is_exact else "sdpa",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        module = LlamaForCausalLM(config).to(place.dtype).eval().to(place.device)
    random = np.random.default_rng([context.seed, params["seq"]])
    ids_BS = place.put(random.integers(0, params["vocabulary"], (params["batch"], params["seq"] + 2)))

    def step(_: Any) -> Tensors:
        cache, seq = DynamicCache(config=config), params["seq"]
        with torch.no_grad():
            parts = (ids_BS[:, :seq], ids_BS[:, seq : seq + 1], ids_BS[:, seq + 1 :])
            found = [module(input_ids=part, past_key_values=cache, use_cache=True).logits[:, -1] for part in parts]
        return {str(number): logits for number, logits in enumerate(found)}

    return Subject(lambda: None, step)


def _tiny_lm(params: dict[str, Any], context: Context, place: Place) -> tuple[lm_quality.Model, torch.Tensor]:
    arrays = text.weights(context.seed, 0, params, "dense")
    arrays = {name: value.astype(np.float64) if place.is_exact else value for name, value in arrays.items()}
    model = lm_quality.Model(arrays, params, "dense", place.device)
    return model, place.put(text.batch(context.seed, 0, 1, params))


def _forward(params: dict[str, Any], context: Context, place: Place) -> Subject:
    model, windows = _tiny_lm(params, context, place)
    return Subject(lambda: None, lambda _: {"loss": model.loss(windows)[0].detach()})


def _backward(params: dict[str, Any], context: Context, place: Place) -> Subject:
    """Gradients of every weight, from a graph that is kept."""
    model, windows = _tiny_lm(params, context, place)
    leaves = list(model.weights.values())

    def step(loss: torch.Tensor) -> Tensors:
        return dict(zip(model.weights, torch.autograd.grad(loss, leaves, retain_graph=True), strict=True))

    return Subject(lambda: model.loss(windows)[0], step)


def _optimizer(params: dict[str, Any], context: Context, place: Place) -> Subject:
    """One step of AdamW on drawn gradients, none so small that rounding decides its sign."""

    def setup() -> tuple[Tensors, torch.optim.Optimizer]:
        weights = _tiny_lm(params, context, place)[0].weights
        for number, weight in enumerate(weights.values()):
            weight.grad = place.put(_normal(context.seed + number, *weight.shape))
        return weights, torch.optim.AdamW(weights.values(), **_ONE_STEP)

    def step(state: tuple[Tensors, torch.optim.Optimizer]) -> Tensors:
        weights, optimizer = state
        optimizer.step()
        return {name: weight.detach() for name, weight in weights.items()}

    return Subject(setup, step)


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


_SUBJECTS: dict[str, Callable[[dict[str, Any], Context, Place], Subject]] = {
    "all-minilm-l6-v2": _minilm,
    "transformer-block": _block,
    "moe-ffn": _moe,
    "decoder": _decoder,
    "tiny-lm-forward": _forward,
    "tiny-lm-backward": _backward,
    "tiny-lm-optimizer": _optimizer,
}
