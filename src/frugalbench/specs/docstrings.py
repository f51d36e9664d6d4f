"""Sentences from the documentation strings of Python's standard library, as labelled text that every machine has.

Nothing is imported: sources are parsed. The text is that of the Python that runs this (licence PSF-2.0), so versions of
Python differ in it, and whoever uses it records a hash. Tests, IDLE, bundled installers and what is about to leave the
library are left out.
"""

import ast
import hashlib
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec

LEAST_WORDS, MOST_WORDS = 5, 40
LEAST_LETTERS = 0.8
"""Share of letters and blanks; below it is code, a table or a signature."""
_LEFT_OUT = frozenset(
    ("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "ensurepip", "distutils")
)
_VERSION = 1
"""Changes whenever other sentences would be found in the same sources."""
_PARAGRAPHS = re.compile(r"\n\s*\n")
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Sentence(msgspec.Struct, frozen=True):
    """One sentence."""

    module: str
    """Top-level module or package."""
    text: str
    group: str
    """Hash of the documentation string that it stands in."""


def sentences(cache_dir: Path | None = None) -> list[Sentence]:
    """All of them, each once, in the order of files and lines; kept in ``cache_dir``, since parsing takes seconds."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sources(root)
    if cache_dir is None:
        return list(found_in(root, files))
    kept = cache_dir / "tasks" / f"docstrings-{_key(root, files)}.json"
    try:
        return msgspec.json.decode(kept.read_bytes(), type=list[Sentence])
    except (OSError, msgspec.DecodeError):
        found = list(found_in(root, files))
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_bytes(msgspec.json.encode(found))
    partial.replace(kept)
    return found


@cache
def sources(root: Path) -> tuple[Path, ...]:
    """Python files of a standard library, sorted."""
    return tuple(
        path for path in sorted(root.rglob("*.py")) if not _LEFT_OUT.intersection(path.relative_to(root).parts)
    )


def _key(root: Path, files: tuple[Path, ...]) -> str:
    sizes = [(str(path.relative_to(root)), path.stat().st_size) for path in files]
    return hashlib.sha256(json.dumps([_VERSION, sys.version, sizes]).encode()).hexdigest()[:16]


def found_in(root: Path, files: tuple[Path, ...]) -> Iterator[Sentence]:
    """Sentences of ``files`` below ``root``; the same words count once, whatever their case."""
    seen: set[str] = set()
    for path in files:
        module = path.relative_to(root).parts[0].removesuffix(".py")
        for document in _documents(path):
            group = hashlib.sha256(document.encode()).hexdigest()[:16]
            for text in split(document):
                if text.lower() not in seen:
                    seen.add(text.lower())
                    yield Sentence(module, text, group)


def _documents(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (document := ast.get_docstring(node)):
            yield document


def split(document: str) -> Iterator[str]:
    """Sentences of one documentation string: of unindented paragraphs, in words, neither short nor endless."""
    for paragraph in _PARAGRAPHS.split(document):
        if paragraph[:1].isalpha():
            yield from filter(_is_prose, _SENTENCES.split(" ".join(paragraph.split())))


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character.isspace() for character in text)
    return LEAST_WORDS <= len(text.split()) <= MOST_WORDS and letters >= LEAST_LETTERS * len(text)
