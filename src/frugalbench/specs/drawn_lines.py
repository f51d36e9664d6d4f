"""Lines of writing for a recogniser to read: seeded, of words of Python's language reference and numbers. No torch.

They are drawn where they are read (``workloads.layers.line_images``): small, soft, grey and grainy, since on clean
lines a recogniser errs too rarely for any loss to show.
"""

import re
from collections.abc import Iterator

import numpy as np

from frugalbench.specs import lm_quality

LINES = 80
MOST_CHARACTERS = 14
"""So many fit the image that the recogniser takes."""
_WORDS = re.compile(rb"\b[A-Za-z]{3,7}\b")
_JOINTS = ("-", ":", "/", ".", "+", "=")


def lines(seed: int) -> Iterator[str]:
    """Each once: a word, a sign, a number or a second word; no blanks, which recognisers of Chinese drop."""
    words = sorted({word.decode() for word in _WORDS.findall(lm_quality.text()[1])})
    random = np.random.default_rng([seed, LINES])
    seen: set[str] = set()
    while len(seen) < LINES:
        found = _line(words, random)
        if len(found) <= MOST_CHARACTERS and found not in seen:
            seen.add(found)
            yield found


def _line(words: list[str], random: np.random.Generator) -> str:
    first, second = (words[number] for number in random.integers(len(words), size=2))
    number = str(random.integers(10, 100_000))
    sign = _JOINTS[random.integers(len(_JOINTS))]
    written = first.upper() if random.random() < 0.25 else first
    return f"{written}{sign}{number if random.random() < 0.6 else second}"
