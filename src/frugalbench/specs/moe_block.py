"""The whole-block view of the expert layer: its attention, scaled with it, and the caches that decoding reads.

A block is x + attention(norm(x)), then + FFN(norm(x)), with RMSNorm (arXiv 1910.07467), rotary positions on both halves
of a head (arXiv 2104.09864) and key heads shared by groups of query heads (arXiv 2305.13245). Biases, and norms of
queries and keys, which some of the models have, are left out. Only the FFN differs between arms.

Shape suffixes: T tokens, D model width, H query heads, G key and value heads, C head width, P cached tokens, E experts.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import accounting
from frugalbench.specs.base import Settings
from frugalbench.specs.moe_inputs import router_weights, uniform
from frugalbench.specs.shapes import ModelShape

VIEWS = ("layer", "block")
BUILT = ("mha", "gqa")
"""Kinds of attention that a block is built with."""
CACHED = ("decode", "batch")
"""Regimes of one new token for each of T sequences; the others take one sequence of T tokens, causally."""
NORM_EPSILON = 1e-6
ROTARY_BASE = 10_000.0
DEFAULT_CONTEXT = 512
_BYTES = 4


def is_block(params: dict[str, Any]) -> bool:
    """Whether the case computes attention too."""
    return params.get("view") == "block"


def model_attention(settings: Settings, shape: ModelShape, scale: float) -> dict[str, int]:
    """Heads of the scaled model. Raises :class:`FrugalbenchError` for attention that is not built.

    The width of a head stays; key heads are multiplied by ``scale`` and rounded, and as many query heads belong to each
    as in the model. Where less than one key head would be left, one stays and the query heads are scaled themselves,
    so that attention keeps about its share of the block's work.
    """
    if shape.attn not in BUILT:
        raise FrugalbenchError(
            f"{settings.where}: view = 'block' builds {' and '.join(BUILT)} attention, and {shape.model} has "
            f"{shape.attn}; take view = 'layer', or a shape such as 'qwen3-30b-a3b'"
        )
    kv_heads = round(shape.n_kv_heads * scale)
    heads = kv_heads * (shape.n_heads // shape.n_kv_heads) or max(1, round(shape.n_heads * scale))
    return {"heads": heads, "kv_heads": max(1, kv_heads), "head_dim": shape.head_dim}


def check(settings: Settings, layer: dict[str, Any]) -> None:
    """Raise :class:`FrugalbenchError` for a block that cannot be."""
    heads, kv_heads, head_dim = layer["heads"], layer["kv_heads"], layer["head_dim"]
    if min(heads, kv_heads, head_dim, layer["context"]) < 1:
        raise FrugalbenchError(f"{settings.where}: 'heads', 'kv_heads', 'head_dim' and 'context' must be at least 1")
    if heads % kv_heads:
        raise FrugalbenchError(f"{settings.where}: {heads} 'heads' do not share {kv_heads} 'kv_heads' evenly")
    if head_dim % 2:
        raise FrugalbenchError(f"{settings.where}: 'head_dim' {head_dim} must be even: rotary positions pair halves")
    if layer["experts"] >= layer["d_model"]:
        raise FrugalbenchError(
            f"{settings.where}: view = 'block' needs more widths ({layer['d_model']}) than experts "
            f"({layer['experts']}); raise 'scale'"
        )


def suffix(layer: dict[str, Any], own: bool) -> str:
    """What a block adds to its shape's name."""
    heads = f"-h{layer['heads']}-{layer['kv_heads']}x{layer['head_dim']}" if own else ""
    context = "" if layer["context"] == DEFAULT_CONTEXT else f"-ctx{layer['context']}"
    return f"-block{heads}{context}"


def parameters(params: dict[str, Any]) -> int:
    """Weights of attention and of both norms."""
    return accounting.attention_parameters(*_sizes(params)) + 2 * int(params["d_model"])


def flop(params: dict[str, Any], regime: str) -> int:
    """Forward FLOP of attention in one call."""
    tokens, (D, H, G, C) = params["tokens"], _sizes(params)
    if regime in CACHED:
        return accounting.attention_flop(tokens, 1, D, H, G, C, cached=params["context"])
    return accounting.attention_flop(1, tokens, D, H, G, C, causal=True)


def traffic_bytes(params: dict[str, Any], regime: str) -> int:
    """Least bytes that attention adds to the FFN's: its weights, and caches read and added to. The block's input and
    output are those of the FFN alone."""
    cached = params["tokens"] * (params["context"] + 1) if regime in CACHED else 0
    return _BYTES * parameters(params) + accounting.kv_bytes(cached, params["kv_heads"], params["head_dim"], _BYTES)


def _sizes(params: dict[str, Any]) -> tuple[int, int, int, int]:
    return params["d_model"], params["heads"], params["kv_heads"], params["head_dim"]


def sequence_bytes(layer: dict[str, Any]) -> int:
    """Keys and values of one sequence, with room for its new token."""
    return accounting.kv_bytes(layer["context"] + 1, layer["kv_heads"], layer["head_dim"], _BYTES)


def cached_sequences(layer: dict[str, Any], stream_bytes: int, most_tokens: int) -> int:
    """Sequences that an arm keeps: their caches exceed ``stream_bytes`` together, as the weights do; the same in all
    arms, so that none of them finds its cache in the processor's."""
    return max(-(-stream_bytes // sequence_bytes(layer)), most_tokens)


def groups(params: dict[str, Any], regime: str) -> int:
    """Distinct groups of T cached sequences that a regime cycles through; 1 where nothing is cached."""
    return params["sequences"] // params["tokens"] if regime in CACHED and is_block(params) else 1


def cached(seed: int, params: dict[str, Any], sequence: int) -> np.ndarray:
    """2 x G x P x C float32: keys, which carry their positions already, and values of one sequence; variance 1."""
    shape = (2, params["kv_heads"], params["context"], params["head_dim"])
    return uniform(seed, shape, 1, "cache", sequence)


def weights(seed: int, params: dict[str, Any], copy: int) -> dict[str, np.ndarray]:
    """``qkv`` ((H + 2G)·C x D), ``merge`` (D x H·C) and the gains (D) of both norms.

    Attention adds nothing in the directions that the router reads: ``merge`` is projected beside them. A block
    therefore routes its tokens as the layer view does, in every copy, and no token comes to lie on a tie.
    """
    D, H, G, C = _sizes(params)
    merge = uniform(seed, (D, H * C), H * C, "block", copy, "merge")
    basis_DE = _read_directions(seed, params["experts"], D)
    return {
        "attention_norm": _gain(seed, D, copy, "attention_norm"),
        "qkv": uniform(seed, ((H + 2 * G) * C, D), D, "block", copy, "qkv"),
        "merge": (merge - basis_DE @ (basis_DE.T @ merge)).astype(np.float32),
        "ffn_norm": _gain(seed, D, copy, "ffn_norm"),
    }


@lru_cache(maxsize=2)
def _read_directions(seed: int, experts: int, width: int) -> np.ndarray:
    """D x E, orthonormal: what the router's rows span."""
    router_ED = router_weights(seed, {"experts": experts, "d_model": width})
    return np.asarray(np.linalg.qr(router_ED.T.astype(np.float64))[0])


def _gain(seed: int, width: int, copy: int, name: str) -> np.ndarray:
    """Near 1, and never the same in two places."""
    return np.asarray(1 + np.float32(0.1) * uniform(seed, (width,), 1, "block", copy, name), dtype=np.float32)


def router(seed: int, params: dict[str, Any], copy: int) -> np.ndarray:
    """E x D: the router as the layer holds it; in a block, behind a norm, it makes up for the norm's gains."""
    plain_ED = router_weights(seed, params)
    if not is_block(params):
        return plain_ED
    return np.asarray(plain_ED / _gain(seed, params["d_model"], copy, "ffn_norm"), dtype=np.float32)
