"""Seeded weights and tokens of the expert layer and its dense twins: the same bytes on every machine.

Shape suffixes: T tokens, D model width, F expert width, E experts, K experts per token.
"""

import json
import math
from functools import lru_cache
from typing import Any

import numpy as np

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import accounting, routing
from frugalbench.specs.moe_sixteen import rounded, tie_margin

BATCHES = {"decode": 8, "batch": 4, "prefill": 2, "training": 2}
"""Distinct token batches that a regime cycles through."""
_MOST_DRAWN = 2**23
"""Values of a batch of tokens, of its logits or of a router that planning draws to count the experts hit; enough for
4096 tokens of width 2048."""
_TIE_MARGIN = 1e-3
"""Tokens whose last chosen and first rejected expert lie closer than this (in logits) are drawn again: rounding
must not decide which expert computes. Under a capacity this holds between any two choices, whose order decides."""
_LEAST_CLEAR = 0.01
"""Share of tokens off a tie below which a trace is given up; usually nine in ten are."""
_ENOUGH_DRAWN = 2000
"""Tokens after which that share is known well enough."""


def generator(seed: int, *where: object) -> np.random.Generator:
    """A stream of its own for each place; the same on every machine."""
    text = "/".join(map(str, where)).encode()
    return np.random.Generator(np.random.SFC64([seed, *text]))


def uniform(seed: int, shape: tuple[int, ...], fan_in: int, *where: object) -> np.ndarray:
    """Float32 weights, uniform with variance 1 / ``fan_in``; never zero as a whole, cheap to draw."""
    values = generator(seed, *where).random(shape, dtype=np.float32)
    values -= 0.5
    values *= 2 * math.sqrt(3 / fan_in)
    return values


Place = tuple[tuple[int, ...], int, tuple[object, ...]]
"""Of a weight: its shape, its fan-in, and where its stream of random numbers is."""


def dense_places(params: dict[str, Any], copy: int) -> dict[str, Place]:
    """``gate_up`` (2F x D) and ``down`` (D x F) of a dense layer."""
    D, F = params["d_model"], params["d_ff"]
    return {
        "gate_up": ((2 * F, D), D, ("dense", F, copy, "gate_up")),
        "down": ((D, F), F, ("dense", F, copy, "down")),
    }


def expert_places(params: dict[str, Any], copy: int) -> dict[str, Place]:
    """``gate_up`` (E x 2F x D) and ``down`` (E x D x F) of the experts, shared ones last and counted in E."""
    D, F, E = params["d_model"], params["d_expert"], params["experts"] + params["n_shared"]
    return {
        "gate_up": ((E, 2 * F, D), D, ("moe", copy, "gate_up")),
        "down": ((E, D, F), F, ("moe", copy, "down")),
    }


def dense_weights(seed: int, params: dict[str, Any], copy: int) -> dict[str, np.ndarray]:
    """What :func:`dense_places` names, drawn on the processor."""
    return _weights(seed, params, dense_places(params, copy))


def expert_weights(seed: int, params: dict[str, Any], copy: int) -> dict[str, np.ndarray]:
    """What :func:`expert_places` names, drawn on the processor."""
    return _weights(seed, params, expert_places(params, copy))


def _weights(seed: int, params: dict[str, Any], places: dict[str, Place]) -> dict[str, np.ndarray]:
    return {
        name: rounded(uniform(seed, shape, fan_in, *where), params) for name, (shape, fan_in, where) in places.items()
    }


def router_weights(seed: int, params: dict[str, Any]) -> np.ndarray:
    """E x D; the same for every copy, so that the token trace is the same."""
    drawn = uniform(seed, (params["experts"], params["d_model"]), params["d_model"], "router")
    return rounded(drawn, params)


def token_batches(seed: int, params: dict[str, Any], regime: str) -> np.ndarray:
    """Batches x T x D float32 tokens, the trace that every arm sees; no token lies on a routing tie."""
    T, D = params["tokens"], params["d_model"]
    wanted = BATCHES[regime] * T
    source = generator(seed, "tokens", regime)
    if params["routing"] != routing.ROUTER:
        return _steered_batches(seed, params, regime)
    router_ED = router_weights(seed, params).astype(np.float64)
    kept = np.empty((0, D), dtype=np.float32)
    drawn = 0
    while len(kept) < wanted:
        if drawn >= _ENOUGH_DRAWN and len(kept) < _LEAST_CLEAR * drawn:
            raise FrugalbenchError(
                f"hardly a token that chooses {params['top_k']} of {params['experts']} experts lies off a routing tie; "
                "take fewer experts per token, fewer experts, or routing = 'uniform'"
            )
        x_TD = rounded(source.standard_normal((wanted, D), dtype=np.float32), params)
        kept = np.concatenate([kept, x_TD[_clear(x_TD.astype(np.float64) @ router_ED.T, params)]])
        drawn += wanted
    return kept[:wanted].reshape(BATCHES[regime], T, D)


def _clear(logits_TE: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """Whether rounding cannot change who is chosen, nor, where experts can be full, in which order."""
    K = params["top_k"]
    gaps_TE = -np.diff(np.sort(logits_TE, axis=1)[:, ::-1], axis=1)
    decisive = gaps_TE[:, (0 if has_capacity(params) else K - 1) : K]
    return np.asarray((decisive > tie_margin(params, _TIE_MARGIN)).all(axis=1))


def _steered_batches(seed: int, params: dict[str, Any], regime: str) -> np.ndarray:
    """Tokens that take the routing which ``params`` asks for; every batch but a trace's is drawn anew."""
    router_ED, source = router_weights(seed, params), generator(seed, "tokens", regime)
    T, batches = params["tokens"], []
    for _ in range(BATCHES[regime]):
        chosen_TK = routing.drawn(params["routing"], T, params["experts"], params["top_k"], source)
        plain_TD = source.standard_normal((T, params["d_model"]), dtype=np.float32)
        steered_TD = routing.steered(plain_TD, router_ED, chosen_TK, ranked=has_capacity(params))
        batches.append(rounded(steered_TD, params))
    return np.stack(batches)


def has_capacity(params: dict[str, Any]) -> bool:
    """Whether experts take a limited number of token copies."""
    return bool(params.get("capacity_factor"))


def capacity(params: dict[str, Any]) -> int:
    """Most token copies that an expert takes of a batch; all tokens where there is no limit."""
    tokens = int(params["tokens"])
    if not has_capacity(params):
        return tokens
    return routing.capacity(params["capacity_factor"], tokens, params["experts"], params["top_k"])


def trace(seed: int, params: dict[str, Any], regime: str) -> dict[str, float]:
    """``experts_hit``: distinct routed experts that a batch hits, and under a capacity ``kept_choices``: how many of
    the T·K choices are computed; means over the batches.

    Of batches too large to draw while planning they are the expectations under uniform routing.
    """
    T, D, E = params["tokens"], params["d_model"], params["experts"]
    if max(T * D, T * E, E * D) > _MOST_DRAWN:
        found = expected_trace(params)
    else:
        keys = ("model", "d_model", "experts", "top_k", "routing", "tokens", "capacity_factor", "weights")
        found = _counted(seed, json.dumps({key: params[key] for key in keys if key in params}), regime)
    return dict(found) if has_capacity(params) else {"experts_hit": found["experts_hit"]}


def expected_trace(params: dict[str, Any]) -> dict[str, float]:
    """The same by formula, for tokens that choose uniformly."""
    sizes = params["tokens"], params["experts"], params["top_k"]
    return {
        "experts_hit": accounting.expected_distinct_experts(*sizes),
        "kept_choices": accounting.expected_kept_choices(*sizes, capacity(params)),
    }


@lru_cache(maxsize=256)
def _counted(seed: int, params: str, regime: str) -> dict[str, float]:
    wanted = json.loads(params)
    router_ED = router_weights(seed, wanted)
    chosen = [_ranked(x_TD, router_ED, wanted["top_k"]) for x_TD in token_batches(seed, wanted, regime)]
    return {
        "experts_hit": float(np.mean([len(np.unique(chosen_TK)) for chosen_TK in chosen])),
        "kept_choices": float(np.mean([routing.kept(chosen_TK, capacity(wanted)).sum() for chosen_TK in chosen])),
    }


def _ranked(x_TD: np.ndarray, router_ED: np.ndarray, chosen: int) -> np.ndarray:
    """T x K experts with the largest logits, the largest first."""
    logits_TE = x_TD.astype(np.float64) @ router_ED.astype(np.float64).T
    found_TK = np.argpartition(-logits_TE, chosen - 1, axis=1)[:, :chosen]
    order_TK = np.argsort(-np.take_along_axis(logits_TE, found_TK, axis=1), axis=1)
    return np.take_along_axis(found_TK, order_TK, axis=1)


def experts_hit(seed: int, params: dict[str, Any], regime: str) -> float:
    """Distinct routed experts that a batch of the trace hits, mean over its batches (see :func:`trace`)."""
    return trace(seed, params, regime)["experts_hit"]


def upstream(seed: int, params: dict[str, Any]) -> np.ndarray:
    """T x D gradient that reaches the layer's output in a training step."""
    return generator(seed, "upstream").standard_normal((params["tokens"], params["d_model"]), dtype=np.float32)


def probe(seed: int, width: int) -> np.ndarray:
    """A fixed random vector; weight gradients are compared through their products with it."""
    return generator(seed, "probe", width).standard_normal(width)
