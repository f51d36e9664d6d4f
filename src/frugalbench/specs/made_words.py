"""What made files hold: words and paragraphs of Python's language reference, sources of its standard library."""

import sysconfig
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from frugalbench.specs import lm_quality
from frugalbench.specs.docstrings import sources

_LEAST_LETTERS = 80
_LEAST_SOURCE_BYTES, _MOST_SOURCE_BYTES = 2_000, 60_000


@cache
def paragraphs() -> tuple[str, ...]:
    """Of the language reference, each on one line."""
    found = lm_quality.text()[0].decode().split("\n\n")
    return tuple(" ".join(part.split()) for part in found if len(part) > _LEAST_LETTERS)


@cache
def words() -> tuple[str, ...]:
    """Its words in lower case, sorted."""
    every = (word for part in paragraphs() for word in part.lower().split())
    return tuple(sorted({word for word in every if word.isascii() and word.isalpha()}))


@cache
def modules() -> tuple[Path, ...]:
    """Sources of the standard library, neither tiny nor endless."""
    found = sources(Path(sysconfig.get_path("stdlib")))
    return tuple(path for path in found if _LEAST_SOURCE_BYTES < path.stat().st_size < _MOST_SOURCE_BYTES)


@dataclass(frozen=True)
class Maker:
    """Draws what a file is made of."""

    random: np.random.Generator

    def number(self, below: int = 10_000) -> int:
        """A whole number from 1."""
        return int(self.random.integers(1, below))

    def word(self) -> str:
        """One word."""
        return words()[self.random.integers(len(words()))]

    def name(self) -> str:
        """Two words that make a name."""
        return f"{self.word()}_{self.word()}"

    def prose(self, count: int = 6) -> str:
        """Paragraphs in lines of 80."""
        chosen = self.random.choice(len(paragraphs()), count, replace=False)
        return "\n\n".join(textwrap.fill(paragraphs()[number], 80) for number in chosen) + "\n"

    def rows(self, count: int = 30) -> list[list[object]]:
        """A table: a number, two words and a fraction each."""
        return [[self.number(), self.word(), self.word(), round(float(self.random.random()), 4)] for _ in range(count)]

    def tree(self) -> dict[str, object]:
        """Nested names, numbers, words and lists."""
        return {
            self.name(): {self.name(): self.number(), "title": self.word(), self.name(): [self.number(), self.number()]}
            for _ in range(self.number(8) + 4)
        }

    def module(self) -> Path:
        """A file of the standard library."""
        return modules()[self.random.integers(len(modules()))]
