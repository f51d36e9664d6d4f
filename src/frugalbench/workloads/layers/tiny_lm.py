"""A small causal language model over bytes, trained here on the text that every Python carries.

It exists so that perplexity and next-token answers can be had where no network is. It is the dense model of
``workloads/lm_quality.py``, trained once per cache with a cosine schedule, then held in ``torch.nn.Linear`` layers,
which quantising schemes can replace. Shape suffixes: B batch, S sequence, D model width, H heads, K head dimension.
"""

import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from frugalbench.schema import Artefact
from frugalbench.specs import lm_quality as text
from frugalbench.workloads import lm_quality
from frugalbench.workloads.base import Arrays
from frugalbench.workloads.layers import kept

NORM_EPSILON = 1e-6
_VERSION = 1
"""Changes whenever the same settings would give other weights."""
_BATCH, _LEARNING_RATE, _WARMUP_STEPS, _LAST_SHARE, _CLIP = 16, 3e-3, 50, 0.05, 1.0


class Block(torch.nn.Module):  # type: ignore[misc]
    """x + attention(norm(x)), then + SwiGLU(norm(x)); norms without gain."""

    def __init__(self, arrays: Arrays, layer: int, heads: int) -> None:
        super().__init__()
        self.heads, self.kv_bits = heads, 0
        for name in ("qkv", "merge", "gate_up", "down"):
            self.add_module(name, _linear(arrays[f"{layer}.{name}"]))

    def forward(self, x_BSD: Any) -> Any:
        """(B, S, D) to (B, S, D)."""
        x_BSD = x_BSD + self.attend(_norm(x_BSD))
        gate, up = self.gate_up(_norm(x_BSD)).chunk(2, dim=-1)
        return x_BSD + self.down(functional.silu(gate) * up)

    def attend(self, x_BSD: Any) -> Any:
        """Causal attention; keys and values are rounded first where ``kv_bits`` says so."""
        parts = self.qkv(x_BSD).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if self.kv_bits:
            key, value = rounded(key, self.kv_bits), rounded(value, self.kv_bits)
        mixed_BHSK = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.merge(mixed_BHSK.transpose(1, 2).flatten(2))


class TinyLm(torch.nn.Module):  # type: ignore[misc]
    """Token ids (B, S) to logits (B, S, 256)."""

    def __init__(self, arrays: Arrays, params: dict[str, Any]) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding.from_pretrained(torch.from_numpy(arrays["embedding"]))
        self.position = torch.nn.Embedding.from_pretrained(torch.from_numpy(arrays["position"]))
        self.blocks = torch.nn.ModuleList(Block(arrays, i, params["heads"]) for i in range(params["layers"]))
        self.head = _linear(arrays["head"])

    def forward(self, tokens_BS: Any) -> Any:
        """Logits; at most as many tokens as there are positions."""
        places_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        x_BSD = self.embedding(tokens_BS) + self.position(places_S)
        for block in self.blocks:
            x_BSD = block(x_BSD)
        return self.head(_norm(x_BSD))

    def round_cache(self, bits: int) -> None:
        """Round keys and values to ``bits`` from now on; 0: not at all."""
        for block in self.blocks:
            block.kv_bits = bits


def rounded(x_BHSK: Any, bits: int) -> Any:
    """To nearest with one scale per token and head, absmax / (2^(bits − 1) − 1), as a cache of keys would hold it."""
    levels = 2 ** (bits - 1) - 1
    scale = x_BHSK.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30) / levels
    return (x_BHSK / scale).round() * scale


def kv_bytes_per_token(params: dict[str, Any], bits: int) -> float:
    """Keys and values of one token in all layers: codes, and a float32 scale per head where they are rounded."""
    values = float(2 * params["layers"] * params["d_model"])
    return values * 4 if not bits else values * bits / 8 + 2 * params["layers"] * params["heads"] * 4


def _linear(weight: np.ndarray) -> Any:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = torch.nn.Parameter(torch.from_numpy(weight), requires_grad=False)
    return layer


def _norm(x_BSD: Any) -> Any:
    return functional.rms_norm(x_BSD, x_BSD.shape[-1:], eps=NORM_EPSILON)


def trained(params: dict[str, Any], threads: int, cache_dir: Path) -> tuple[Arrays, Artefact]:
    """Weights, from ``cache_dir`` where the same training has been done, and how long that took.

    The key is everything that determines them: sizes, steps, seed, text, and torch's version and threads, whose
    rounding a training repeats in every step.
    """
    sizes = {key: params[key] for key in ("d_model", "layers", "heads", "d_ff", "seq", "steps", "seed")}
    parts = [_VERSION, sizes, text.digest(), torch.__version__, threads]
    name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    file = cache_dir / "tiny_lm" / f"{name}.npz"
    arrays, cached = kept.read(file), True
    if arrays is None:
        torch.set_num_threads(threads)
        begin = time.perf_counter()
        arrays, cached = _train(params), False
        arrays["build_s"] = np.array(time.perf_counter() - begin)
        kept.write(file, arrays)
    build_s = float(arrays.pop("build_s"))
    return arrays, Artefact(name="training of tiny-lm", build_s=build_s, cached=cached, size_bytes=file.stat().st_size)


def _train(params: dict[str, Any]) -> Arrays:
    settings = {**params, "batch": _BATCH}
    model = lm_quality.Model(text.weights(params["seed"], 0, settings, "dense"), settings, "dense", "cpu")
    optimizer = torch.optim.AdamW(model.weights.values(), lr=_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(1, params["steps"] + 1):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * schedule(step, params["steps"])
        optimizer.zero_grad(set_to_none=True)
        model.loss(torch.from_numpy(text.batch(params["seed"], 0, step, settings)))[0].backward()
        torch.nn.utils.clip_grad_norm_(model.weights.values(), _CLIP)
        optimizer.step()
    return {name: weight.detach().numpy().copy() for name, weight in model.weights.items()}


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    cosine = _LAST_SHARE + (1 - _LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, step / _WARMUP_STEPS) * cosine


def answer(arrays: Arrays, params: dict[str, Any], tokens_S: np.ndarray, kv_bits: int = 0) -> np.ndarray:
    """Logits (S, 256) in float64 and numpy only, written apart from :class:`TinyLm`."""
    w = {name: value.astype(np.float64) for name, value in arrays.items()}
    x = w["embedding"][tokens_S] + w["position"][: len(tokens_S)]
    for layer in range(params["layers"]):
        x = x + _attend64(_norm64(x) @ w[f"{layer}.qkv"].T, params["heads"], kv_bits) @ w[f"{layer}.merge"].T
        gate, up = np.split(_norm64(x) @ w[f"{layer}.gate_up"].T, 2, axis=-1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{layer}.down"].T
    return np.asarray(_norm64(x) @ w["head"].T)


def _norm64(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + NORM_EPSILON))


def _attend64(qkv: np.ndarray, heads: int, kv_bits: int) -> np.ndarray:
    seq, width = len(qkv), qkv.shape[1] // 3
    query, key, value = (part.reshape(seq, heads, -1).swapaxes(0, 1) for part in np.split(qkv, 3, axis=1))
    if kv_bits:
        key, value = _rounded64(key, kv_bits), _rounded64(value, kv_bits)
    scores = query @ key.swapaxes(1, 2) / np.sqrt(width / heads)
    odds = np.where(np.tri(seq, dtype=bool), np.exp(scores - scores.max(axis=-1, keepdims=True)), 0.0)
    mixed = odds / odds.sum(axis=-1, keepdims=True) @ value
    return np.asarray(mixed.swapaxes(0, 1).reshape(seq, width))


def _rounded64(x: np.ndarray, bits: int) -> np.ndarray:
    scale = np.abs(x).max(axis=-1, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.asarray(np.rint(x / np.where(scale > 0, scale, 1.0)) * scale)
