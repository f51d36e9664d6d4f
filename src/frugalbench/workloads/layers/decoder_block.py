"""A decoder block around any of the feed-forward layers: the same attention for all of them.

Shape suffixes: T tokens, D model width, H query heads, G key and value heads, C head width, P cached tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from frugalbench.specs import moe_block as spec
from frugalbench.workloads.layers.ffn import Layer


@dataclass(frozen=True)
class Place:
    """Where the tokens of a call stand: one sequence of T tokens, or one token each behind T cached sequences."""

    cos: torch.Tensor
    """T x 1 x C, or 1 x 1 x C where all tokens have the same position; likewise ``sin``."""
    sin: torch.Tensor
    keys: torch.Tensor | None = None
    """T x G x (P + 1) x C with a free last place, likewise ``values``; ``None`` for a sequence of its own."""
    values: torch.Tensor | None = None


class Caches:
    """Keys and values of all sequences that an arm keeps; every regime takes them T at a time."""

    def __init__(self, seed: int, params: dict[str, Any], device: str):
        shape = (params["sequences"], params["kv_heads"], params["context"] + 1, params["head_dim"])
        self.keys, self.values = torch.empty(shape, device=device), torch.empty(shape, device=device)
        for sequence in range(params["sequences"]):
            drawn = torch.from_numpy(spec.cached(seed, params, sequence))
            self.keys[sequence, :, :-1], self.values[sequence, :, :-1] = drawn[0], drawn[1]

    def group(self, number: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of ``tokens`` successive sequences."""
        rows = slice(number * tokens, (number + 1) * tokens)
        return self.keys[rows], self.values[rows]


def places(params: dict[str, Any], regime: str, caches: Caches | None, device: str) -> list[Place]:
    """The places that a regime cycles through."""
    if caches is None or regime not in spec.CACHED:
        return [Place(*_angles(range(params["tokens"]), params["head_dim"], device))]
    angles = _angles(range(params["context"], params["context"] + 1), params["head_dim"], device)
    return [Place(*angles, *caches.group(n, params["tokens"])) for n in range(spec.groups(params, regime))]


def _angles(positions: range, head_dim: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    frequency = spec.ROTARY_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.tensor(list(positions), dtype=torch.float64), frequency).repeat(1, 2)[:, None]
    return angle.cos().float().to(device), angle.sin().float().to(device)


class Block(Layer):
    """x + attention(norm(x)), then + FFN(norm(x))."""

    def __init__(self, ffn: Any, weights: dict[str, torch.Tensor], params: dict[str, Any]):
        super().__init__(weights)
        self.own, self.ffn = self.weights, ffn
        self.weights = {**self.own, **ffn.weights}
        self.heads, self.kv_heads, self.head_dim = params["heads"], params["kv_heads"], params["head_dim"]
        self.implementation = f"{ffn.implementation}; behind torch scaled_dot_product_attention"

    def __call__(self, x_TD: torch.Tensor, place: Place) -> torch.Tensor:
        x_TD = x_TD + self.attend(_norm(x_TD, self.own["attention_norm"]), place)
        return x_TD + self.ffn(_norm(x_TD, self.own["ffn_norm"]))

    def ffn_input(self, x_TD: torch.Tensor, place: Place) -> torch.Tensor:
        """What the FFN computes on."""
        return _norm(x_TD + self.attend(_norm(x_TD, self.own["attention_norm"]), place), self.own["ffn_norm"])

    def attend(self, x_TD: torch.Tensor, place: Place) -> torch.Tensor:
        """Attention of normalised tokens, merged to T x D."""
        qkv_THC = functional.linear(x_TD, self.own["qkv"]).unflatten(1, (-1, self.head_dim))
        qk_THC, v_TGC = qkv_THC.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        q_THC, k_TGC = _rotated(qk_THC, place).split([self.heads, self.kv_heads], dim=1)
        mix = _sequence if place.keys is None else _cached
        return functional.linear(mix(q_THC, k_TGC, v_TGC, place).flatten(1), self.own["merge"])


def _norm(x_TD: torch.Tensor, gain_D: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x_TD, gain_D.shape, gain_D, spec.NORM_EPSILON)


def _rotated(x_THC: torch.Tensor, place: Place) -> torch.Tensor:
    """Each value turned against the one half a head away."""
    first, second = x_THC.chunk(2, dim=-1)
    return x_THC * place.cos + torch.cat([-second, first], dim=-1) * place.sin


def _sequence(q_THC: torch.Tensor, k_TGC: torch.Tensor, v_TGC: torch.Tensor, place: Place) -> torch.Tensor:
    """T x H x C: every token over itself and those before it."""
    del place
    q, k, v = (item.transpose(0, 1)[None] for item in (q_THC, k_TGC, v_TGC))
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return mixed[0].transpose(0, 1)


def _cached(q_THC: torch.Tensor, k_TGC: torch.Tensor, v_TGC: torch.Tensor, place: Place) -> torch.Tensor:
    """T x G x (H/G · C): each token over its own cache and itself; the query heads of a key head are its queries."""
    assert place.keys is not None and place.values is not None
    place.keys[:, :, -1], place.values[:, :, -1] = k_TGC, v_TGC
    q_TGNC = q_THC.unflatten(1, (k_TGC.shape[1], -1))
    mixed: torch.Tensor = functional.scaled_dot_product_attention(q_TGNC, place.keys, place.values)
    return mixed.flatten(2)


def kernel(params: dict[str, Any], regime: str, device: str) -> str:
    """Which of its implementations torch takes for this attention (``FLASH_ATTENTION``, say)."""
    from torch.nn.attention import SDPBackend

    T, H, G, C = (params[key] for key in ("tokens", "heads", "kv_heads", "head_dim"))
    P = params["context"] + 1
    cached = regime in spec.CACHED
    sizes = [(T, G, H // G, C), (T, G, P, C), (T, G, P, C)] if cached else [(1, H, T, C), (1, G, T, C), (1, G, T, C)]
    q, k, v = (torch.empty(size, device=device, requires_grad=regime == "training") for size in sizes)
    options = {} if cached else {"is_causal": True, "enable_gqa": True}
    chosen = torch._fused_sdp_choice(q, k, v, **options)
    return str(SDPBackend(chosen).name)
