"""Tiny language models trained on the spot: what quality a mixture of experts buys for the same compute per token.

A byte-level causal transformer, dense and with experts of equal active parameters, trained on the same batches in the
same order; the seed of weights and batches is that of the replicate, so replicates are independent pairs. The loss on
held-out text is recorded along the way together with the FLOP spent. What is timed is one training step at the end.

The text is the language reference that every Python installation carries (``pydoc_data.topics``, PSF licence): about
460 kB of English prose and code. Shape suffixes: B batch, S sequence, D model width, V vocabulary (256 bytes).
"""

import hashlib
from functools import cache
from typing import Any

import numpy as np

from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError
from frugalbench.specs import accounting
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take

WORKLOAD = "lm_quality"
VARIANTS = ("dense", "moe")
REGIME = "training"
VOCABULARY = 256
EVALUATIONS = 40
"""Points of the loss curve."""
HELD_OUT = 10
"""Every so-manieth topic is held out."""
EVALUATION_SEQUENCES = 48
_BYTES = 4
_TOLERANCE = 1e-3
"""Float32 logits of four blocks against float64, over the logits' root mean square."""

DEFAULTS: dict[str, Any] = {
    "variants": list(VARIANTS),
    "d_model": 128,
    "layers": 4,
    "heads": 4,
    "seq": 128,
    "batch": 16,
    "steps": 240,
    "d_ff": 512,
    "experts": 8,
    "top_k": 2,
    "learning_rate": 2e-3,
    "balance": 0.01,
}
"""``d_ff`` is the active width of both: an expert is ``d_ff / top_k`` wide. ``balance`` weighs the auxiliary loss that
spreads tokens over experts (Switch Transformer, arXiv 2101.03961, equation 4)."""


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison of ``variants``. Raises :class:`FrugalbenchError` for sizes that do not divide."""
    del machine
    options = take(settings, DEFAULTS)
    for variant in options["variants"]:
        choose(settings, "variant", variant, VARIANTS)
    _check(settings, options)
    label = f"d{options['d_model']}x{options['layers']}-e{options['experts']}k{options['top_k']}"
    arms = tuple(_arm(settings, variant, label, options) for variant in options["variants"])
    return Expansion(
        comparisons=(
            Comparison(id=f"{WORKLOAD}/{label}", workload=WORKLOAD, arms=arms, estimate_s=60.0, competes=False),
        )
    )


def _check(settings: Settings, options: dict[str, Any]) -> None:
    for key in ("d_model", "layers", "heads", "seq", "batch", "steps", "d_ff", "experts", "top_k"):
        if options[key] < 1:
            raise FrugalbenchError(f"{settings.where}: '{key}' must be at least 1, not {options[key]}")
    if options["top_k"] > options["experts"]:
        raise FrugalbenchError(
            f"{settings.where}: 'top_k' {options['top_k']} is more than the {options['experts']} experts"
        )
    for whole, part in (("d_model", "heads"), ("d_ff", "top_k")):
        if options[whole] % options[part]:
            raise FrugalbenchError(f"{settings.where}: '{part}' {options[part]} must divide '{whole}' {options[whole]}")
    if not 0 < options["learning_rate"] < 1 or not 0 <= options["balance"] <= 1:
        raise FrugalbenchError(f"{settings.where}: 'learning_rate' lies between 0 and 1, 'balance' from 0 to 1")
    if options["seq"] + 1 > min(len(part) for part in text()):
        raise FrugalbenchError(f"{settings.where}: 'seq' {options['seq']} is longer than the text")


def _arm(settings: Settings, variant: str, label: str, options: dict[str, Any]) -> Arm:
    shape = {key: options[key] for key in DEFAULTS if key != "variants"}
    params = {**shape, "d_expert": options["d_ff"] // options["top_k"], "threads": settings.threads, "text": digest()}
    case = Case(
        id=f"{WORKLOAD}/{variant}/{label}/{REGIME}/torch/{settings.device}",
        workload=WORKLOAD,
        variant=variant,
        shape=label,
        regime=REGIME,
        backend="torch",
        device=settings.device,
        dtype="float32",
        params=params,
        cost=cost(params, variant),
        tolerance=_TOLERANCE,
        peaks=("fp32_flop_per_s", "read_bytes_per_s"),
    )
    held = (
        16.0 * _parameters(params, variant) + 64 * params["batch"] * params["seq"] * params["d_ff"] * params["layers"]
    )
    return Arm(id=f"{WORKLOAD}/{label}/{variant}", cases=(case,), imports=("torch",), memory_bytes=held)


def cost(params: dict[str, Any], variant: str) -> Cost:
    """Of one training step: forward, and gradients of inputs and weights. The optimizer's work is left out."""
    tokens, D = params["batch"] * params["seq"], params["d_model"]
    flop = accounting.linear_flop(tokens, VOCABULARY, D)
    flop += params["layers"] * accounting.attention_flop(params["batch"], params["seq"], D, params["heads"])
    if variant == "dense":
        flop += params["layers"] * accounting.swiglu_ffn_flop(tokens, D, params["d_ff"])
    else:
        experts = params["d_expert"], params["experts"], params["top_k"]
        flop += params["layers"] * accounting.moe_ffn_flop(tokens, D, *experts)
    parameters = _parameters(params, variant)
    return Cost(
        token=tokens,
        flop=accounting.training_flop(flop),
        weight_bytes=_BYTES * parameters,
        traffic_bytes=3 * _BYTES * parameters,
        parameters=parameters,
        active_parameters=_parameters(params, variant, active=True),
    )


def _parameters(params: dict[str, Any], variant: str, active: bool = False) -> int:
    """Weights of embedding, positions, blocks and head; norms are left out. Active: without the two look-ups."""
    D = params["d_model"]
    ffn = accounting.swiglu_ffn_parameters(D, params["d_ff"])
    if variant != "dense":
        sizes = (D, params["d_expert"], params["experts"])
        ffn = (
            accounting.moe_ffn_active_parameters(*sizes, params["top_k"])
            if active
            else accounting.moe_ffn_parameters(*sizes)
        )
    looked_up = 0 if active else (VOCABULARY + params["seq"]) * D
    return int(looked_up + VOCABULARY * D + params["layers"] * (4 * D * D + ffn))


@cache
def text() -> tuple[bytes, bytes]:
    """Training and held-out text: whole topics, in alphabetical order."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    parts = [
        [topics[name] for number, name in enumerate(names) if (number % HELD_OUT == 0) is held]
        for held in (False, True)
    ]
    training, held_out = ("\n\n".join(part).encode() for part in parts)
    return training, held_out


def digest() -> str:
    """Of the text; Python versions differ in it."""
    return hashlib.sha256(b"\0".join(text())).hexdigest()[:12]


def batch(seed: int, replicate: int, step: int, params: dict[str, Any]) -> np.ndarray:
    """B x (S + 1) bytes as int64: inputs and, shifted by one, targets. The same for every variant."""
    source = np.frombuffer(text()[0], dtype=np.uint8)
    return _windows(source, np.random.default_rng([seed, replicate, step]), params["batch"], params["seq"])


def held_out(params: dict[str, Any]) -> np.ndarray:
    """Sequences on which the loss is taken; the same in every run."""
    source = np.frombuffer(text()[1], dtype=np.uint8)
    return _windows(source, np.random.default_rng(0), EVALUATION_SEQUENCES, params["seq"])


def _windows(source: np.ndarray, random: np.random.Generator, count: int, seq: int) -> np.ndarray:
    starts = random.integers(0, len(source) - seq, size=count)
    return np.asarray(source[starts[:, None] + np.arange(seq + 1)], dtype=np.int64)


def weights(seed: int, replicate: int, params: dict[str, Any], variant: str) -> dict[str, np.ndarray]:
    """Initial float32 weights: normal with standard deviation 0.02 for look-ups, 1/√fan-in for products.

    What both variants have (embeddings, attention, head) is drawn alike; products that end a residual branch are
    smaller by √(2 · layers), as in GPT-2.
    """
    D, layers = params["d_model"], params["layers"]
    depth = (2 * layers) ** -0.5
    shapes: dict[str, tuple[tuple[int, ...], float]] = {
        "embedding": ((VOCABULARY, D), 0.02),
        "position": ((params["seq"], D), 0.02),
        "head": ((VOCABULARY, D), D**-0.5),
    }
    for layer in range(layers):
        shapes[f"{layer}.qkv"] = ((3 * D, D), D**-0.5)
        shapes[f"{layer}.merge"] = ((D, D), D**-0.5 * depth)
        if variant == "dense":
            shapes[f"{layer}.gate_up"] = ((2 * params["d_ff"], D), D**-0.5)
            shapes[f"{layer}.down"] = ((D, params["d_ff"]), params["d_ff"] ** -0.5 * depth)
        else:
            E, F = params["experts"], params["d_expert"]
            shapes[f"{layer}.router"] = ((E, D), D**-0.5)
            shapes[f"{layer}.gate_up"] = ((E, 2 * F, D), D**-0.5)
            shapes[f"{layer}.down"] = ((E, D, F), F**-0.5 * depth)
    return {name: _normal(seed, replicate, name, shape, deviation) for name, (shape, deviation) in shapes.items()}


def _normal(seed: int, replicate: int, name: str, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    random = np.random.default_rng([seed, replicate, *name.encode()])
    return random.standard_normal(shape, dtype=np.float32) * np.float32(deviation)
