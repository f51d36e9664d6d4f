"""Real English text that every Python carries, as token batches for the sentence encoder."""

import hashlib
import os
import re
from functools import cache
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]

LEAST_WORDS = 80
"""A passage grows paragraph by paragraph until it has this many words: about a hundred tokens."""


@cache
def passages() -> tuple[tuple[str, ...], ...]:
    """Passages of prose from Python's language reference, grouped by topic; topics with fewer than two are left out."""
    from pydoc_data.topics import topics

    grouped = (tuple(_passages(topics[name])) for name in sorted(topics))
    return tuple(group for group in grouped if len(group) >= 2)


def _passages(document: str) -> list[str]:
    found, current = [], ""
    for paragraph in filter(_is_prose, re.split(r"\n\s*\n", document)):
        current = f"{current} {' '.join(paragraph.split())}".strip()
        if len(current.split()) >= LEAST_WORDS:
            found.append(current)
            current = ""
    return found


def _is_prose(paragraph: str) -> bool:
    """Sentences, not grammar, tables or code: unindented, at least twelve words, nearly all letters and spaces."""
    letters = sum(character.isalpha() or character.isspace() for character in paragraph)
    return paragraph[:1].isalpha() and len(paragraph.split()) >= 12 and letters > 0.85 * len(paragraph)


def text_hash() -> str:
    """SHA-256 over all passages: the text differs a little between Python versions."""
    return hashlib.sha256("\n".join(passage for group in passages() for passage in group).encode()).hexdigest()


def token_batches(folder: Path, rotation: int, batch: int, seq: int, seed: int, cache_dir: Path) -> list[Arrays]:
    """``rotation`` different batches of ``input_ids`` and ``attention_mask``, int64 (batch, seq), cut or padded.

    Passages come in pairs of one topic, so "most similar other sentence" is a question with an answer. Tokens are
    made with the model's own ``tokenizer.json`` and kept in ``cache_dir``.
    """
    tokenizer = folder / "tokenizer.json"
    parts = [hashlib.sha256(tokenizer.read_bytes()).hexdigest(), text_hash(), rotation, batch, seq, seed]
    path = cache_dir / f"tokens-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.npz"
    if not path.exists():
        _write(path, _tokenise(tokenizer, _pick(rotation * batch, batch, seed), seq))
    with np.load(path, allow_pickle=False) as kept:
        stacked = {name: kept[name].reshape(rotation, batch, seq) for name in ("input_ids", "attention_mask")}
    return [{name: values[index] for name, values in stacked.items()} for index in range(rotation)]


def _pick(count: int, batch: int, seed: int) -> list[str]:
    """``count`` passages: two per topic within a batch (one for single sentences), topics in seeded order."""
    groups, each = passages(), min(batch, 2)
    order = np.random.default_rng([seed, batch]).permutation(len(groups))
    topics = [groups[order[index % len(groups)]] for index in range(-(-count // each))]
    laps = [index // len(groups) for index in range(len(topics))]
    picked = [
        topic[(lap * each + i) % len(topic)] for topic, lap in zip(topics, laps, strict=True) for i in range(each)
    ]
    return picked[:count]


def _tokenise(tokenizer: Path, sentences: list[str], seq: int) -> Arrays:
    from tokenizers import Tokenizer

    tool = Tokenizer.from_file(str(tokenizer))
    tool.enable_truncation(seq)
    tool.enable_padding(length=seq)
    encoded = tool.encode_batch(sentences)
    return {
        "input_ids": np.array([item.ids for item in encoded], dtype=np.int64),
        "attention_mask": np.array([item.attention_mask for item in encoded], dtype=np.int64),
    }


def _write(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.npz")
    np.savez(temporary, input_ids=arrays["input_ids"], attention_mask=arrays["attention_mask"])
    temporary.replace(path)
