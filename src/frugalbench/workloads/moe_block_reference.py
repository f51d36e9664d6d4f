"""Float64 attention of the block view: in numpy for answers, in torch for gradients, neither as the arms compute it.

Shape suffixes: T tokens, D model width, H query heads, G key and value heads, C head width, P cached tokens.
"""

from typing import Any

import numpy as np
import torch

from frugalbench.specs import moe_block as spec
from frugalbench.workloads.base import Arrays


def normalised(x_TD: Any, gain_D: Any) -> Any:
    """RMSNorm of an array or a tensor."""
    return x_TD * ((x_TD * x_TD).mean(-1) + spec.NORM_EPSILON)[:, None] ** -0.5 * gain_D


def attended(x_TD: np.ndarray, weights: Arrays, params: dict[str, Any], past: list[np.ndarray] | None) -> np.ndarray:
    """Attention of normalised tokens: of one sequence, or behind ``past``, one token's cache (2 x G x P x C) each."""
    H, G, T = params["heads"], params["kv_heads"], len(x_TD)
    heads = (x_TD @ weights["qkv"].T).reshape(T, H + 2 * G, -1).transpose(1, 0, 2)
    positions = np.arange(T) if past is None else np.full(T, params["context"])
    queries, keys = _turned(heads[:H], positions), _turned(heads[H : H + G], positions)
    values, shared = heads[H + G :], H // G
    mixed = np.empty_like(queries)
    for head in range(H):
        own = queries[head], keys[head // shared], values[head // shared]
        mixed[head] = _causal(*own) if past is None else _behind(*own, [cache[:, head // shared] for cache in past])
    return np.asarray(mixed.transpose(1, 0, 2).reshape(T, -1) @ weights["merge"].T)


def _turned(x_NTC: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Halves of a head as real and imaginary parts, turned by position · frequency."""
    half = x_NTC.shape[-1] // 2
    angle = positions[:, None] * spec.ROTARY_BASE ** (-np.arange(half) / half)
    turned = (x_NTC[..., :half] + 1j * x_NTC[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _causal(q_TC: np.ndarray, k_TC: np.ndarray, v_TC: np.ndarray) -> np.ndarray:
    scores_TT = q_TC @ k_TC.T / np.sqrt(q_TC.shape[1])
    odds_TT = np.tril(np.exp(scores_TT - scores_TT.max(axis=1, keepdims=True)))
    return np.asarray(odds_TT @ v_TC / odds_TT.sum(axis=1, keepdims=True))


def _behind(q_TC: np.ndarray, k_TC: np.ndarray, v_TC: np.ndarray, caches: list[np.ndarray]) -> np.ndarray:
    """Each token alone, over its cache (2 x P x C) and itself."""
    rows = []
    for q, k, v, cache in zip(q_TC, k_TC, v_TC, caches, strict=True):
        scores = np.vstack([cache[0], k]) @ q / np.sqrt(len(q))
        odds = np.exp(scores - scores.max())
        rows.append(odds @ np.vstack([cache[1], v]) / odds.sum())
    return np.stack(rows)


def attended_double(x_TD: torch.Tensor, weights: dict[str, torch.Tensor], params: dict[str, Any]) -> torch.Tensor:
    """Attention of one sequence that autograd can follow."""
    H, G, C, T = params["heads"], params["kv_heads"], params["head_dim"], len(x_TD)
    heads_NTC = (x_TD @ weights["qkv"].T).view(T, H + 2 * G, C).transpose(0, 1)
    turned_NTC = _turned_double(heads_NTC[: H + G])
    group = torch.arange(H) // (H // G)
    keys_HTC, values_HTC = turned_NTC[H:][group], heads_NTC[H + G :][group]
    scores_HTT = torch.einsum("htc,hsc->hts", turned_NTC[:H], keys_HTC) / C**0.5
    hidden = torch.ones(T, T, dtype=torch.bool, device=x_TD.device).triu(1)
    shares_HTT = scores_HTT.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return torch.einsum("hts,hsc->thc", shares_HTT, values_HTC).reshape(T, -1) @ weights["merge"].T


def _turned_double(x_NTC: torch.Tensor) -> torch.Tensor:
    half = x_NTC.shape[-1] // 2
    position = torch.arange(x_NTC.shape[1], dtype=torch.float64, device=x_NTC.device)
    frequency = spec.ROTARY_BASE ** (-torch.arange(half, dtype=torch.float64, device=x_NTC.device) / half)
    angle_TC = position[:, None] * frequency
    first, second = x_NTC[..., :half], x_NTC[..., half:]
    turned = first * angle_TC.cos() - second * angle_TC.sin(), second * angle_TC.cos() + first * angle_TC.sin()
    return torch.cat(turned, dim=-1)
