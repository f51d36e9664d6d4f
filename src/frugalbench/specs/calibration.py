"""The text that calibrated schemes look at: fixed, hashed, and apart from what is asked afterwards. No torch.

Paragraphs of those topics of Python's language reference on which ``tiny-lm`` is trained; ``python-reference`` asks for
the others. A paragraph that shares a sentence with a test item of the arm's tasks is left out: what has been seen
cannot be asked.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from frugalbench.specs import lm_quality

TOKENS = 16384
"""Of a language model's windows, spread evenly over the text. GPTQ's authors took 128 sequences of 2048."""
TEXTS = 256
"""Paragraphs of an encoder, likewise spread."""
SOURCE = "pydoc_data.topics of the Python that runs this, without the topics and sentences of the tasks"
T = TypeVar("T")
LEAST_WORDS = 5
"""A shorter sentence is nobody's own."""
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n\s*\n")


@dataclass(frozen=True)
class CalibrationText:
    """Paragraphs, in the order of the text."""

    paragraphs: tuple[str, ...]
    left_out: int
    """Paragraphs that share a sentence with a test item."""

    @property
    def digest(self) -> str:
        """Hash of every word of it."""
        return hashlib.sha256("\n\n".join(self.paragraphs).encode()).hexdigest()[:16]


def chosen(tests: Iterable[str]) -> CalibrationText:
    """All of the text that shares no sentence with ``tests``."""
    asked = {sentence for text in tests for sentence in sentences(text)}
    found = [part for part in re.split(r"\n\s*\n", lm_quality.text()[0].decode()) if part.strip()]
    kept = tuple(part for part in found if asked.isdisjoint(sentences(part)))
    return CalibrationText(kept, len(found) - len(kept))


def sentences(text: str) -> Iterator[str]:
    """Of five words or more, without regard to case and line breaks."""
    for part in _SENTENCES.split(text):
        words = part.split()
        if len(words) >= LEAST_WORDS:
            yield " ".join(words).casefold()


def spread(items: Sequence[T], count: int) -> list[T]:
    """``count`` of them at even distances, or all."""
    return [items[number * len(items) // count] for number in range(count)] if count < len(items) else list(items)
