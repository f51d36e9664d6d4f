"""Seeded weights and tokens of ``model_decode``: the same numbers for every arm, drawn matrix by matrix.

A run draws each matrix once, in the first worker that asks, and keeps it in its scratch folder, where later workers map
it: a whole model in float32 is never held beside the arm that is made of it. Shape suffixes: N outputs, K inputs,
D model width, V vocabulary.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.specs.decoder_shape import GAINS, MATRICES, DecoderShape
from frugalbench.workloads.layers.quant_values import drawn

NEXT_TOKENS = 8
"""Different tokens that ``decode`` goes through, all at the same position."""
PROMPTS, TAIL = 2, 16
"""Different prompts of ``prefill``; they begin alike, so that their answers share most of the float64 arithmetic, and
differ in so many tokens at their end."""


class Weights:
    """Float32 matrices with standard deviation 1/sqrt(K), an embedding with 1, gains between 0.5 and 1.5."""

    def __init__(self, shape: DecoderShape, seed: int, scratch: Path) -> None:
        self.shape, self.seed = shape, seed
        self._folder = scratch / "model_decode" / self.key

    @cached_property
    def key(self) -> str:
        """Changes whenever a weight does."""
        text = repr((sorted(self.shape.params().items()), self.seed, drawn(self.seed, 0, 1, 64).tobytes()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def matrix(self, layer: int, name: str) -> np.ndarray:
        """Matrix ``name`` (one of ``MATRICES``) of a layer, (N, K), read-only."""
        n, k = self.shape.matrices()[name]
        return self._kept(f"{layer}-{name}", layer * len(MATRICES) + MATRICES.index(name), n, k, 1.0)

    def table(self) -> np.ndarray:
        """Output head and input embedding, (V, D), read-only."""
        d = self.shape.d_model
        return self._kept("table", self.shape.layers * len(MATRICES), self.shape.vocabulary, d, float(np.sqrt(d)))

    def gain(self, layer: int, name: str) -> np.ndarray:
        """Gain ``name`` (one of ``GAINS``) of a layer, (D)."""
        return self._gain(layer * len(GAINS) + GAINS.index(name))

    def last_gain(self) -> np.ndarray:
        """The gain in front of the output head, (D)."""
        return self._gain(self.shape.layers * len(GAINS))

    def _gain(self, number: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, number, self.shape.d_model])
        return random.uniform(0.5, 1.5, self.shape.d_model).astype(np.float32)

    def _kept(self, name: str, number: int, n: int, k: int, spread: float) -> np.ndarray:
        file = self._folder / f"{name}.npy"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}.npy")
            np.save(partial, drawn(self.seed, number, n, k) * np.float32(spread))
            partial.replace(file)
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


@dataclass(frozen=True)
class Tokens:
    """What is read and decoded, int32."""

    context: np.ndarray
    """(C): what the cache holds when a token is decoded."""
    following: np.ndarray
    """(NEXT_TOKENS): those that are decoded behind it, each in its turn."""
    prompts: np.ndarray
    """(PROMPTS, prompt tokens). The first begins like the context."""


def tokens_of(params: dict[str, Any]) -> Tokens:
    """The tokens of a case, drawn from its seed. Following ones differ from each other, prompts in all of their end."""
    count, context, vocabulary = params["prompt_tokens"], params["context"], params["vocabulary"]
    random = np.random.default_rng([params["seed"], vocabulary])
    text = random.integers(0, vocabulary, max(count, context), dtype=np.int32)
    following = random.choice(vocabulary, NEXT_TOKENS, replace=False).astype(np.int32)
    prompts = np.tile(text[:count], (PROMPTS, 1))
    shift = random.integers(1, vocabulary, (PROMPTS - 1, tail(count)), dtype=np.int32)
    prompts[1:, count - tail(count) :] = (prompts[1:, count - tail(count) :] + shift) % vocabulary
    return Tokens(text[:context], following, prompts)


def tail(count: int) -> int:
    """How many tokens at the end of prompts of ``count`` differ."""
    return min(TAIL, count)
