"""Sentences of documentation strings: what counts as one, each once, from sources that are never run."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench.specs import docstrings

MODULE = '''
"""Reads and writes the files of a format that nobody uses.

    indented_code(is, left, out)

It says more here in a second paragraph. And it goes on with another sentence.
"""
import this_module_does_not_exist

class Reader:
    """Too short."""

    def read(self):
        """Reads and writes the files of a FORMAT that nobody uses.  Returns everything that
        was found in the file."""
'''


def library(root: Path, text: str = MODULE) -> tuple[Path, tuple[Path, ...]]:
    (root / "package").mkdir()
    (root / "package" / "reader.py").write_text(text)
    (root / "broken.py").write_text("def f(:")
    (root / "test").mkdir()
    (root / "test" / "test_reader.py").write_text('"""A test says what it tests in some words."""')
    return root, docstrings.sources(root)


def test_sentences_are_found_without_running_anything(tmp_path):
    root, files = library(tmp_path)
    found = list(docstrings.found_in(root, files))
    assert [item.text for item in found] == [
        "Reads and writes the files of a format that nobody uses.",
        "It says more here in a second paragraph.",
        "And it goes on with another sentence.",
        "Returns everything that was found in the file.",
    ]
    assert {item.module for item in found} == {"package"}
    assert found[0].group == found[2].group != found[3].group


def test_tests_and_installers_are_left_out(tmp_path):
    _, files = library(tmp_path)
    assert [path.name for path in files] == ["broken.py", "reader.py"]


def test_what_was_parsed_is_kept_and_a_damaged_file_is_made_again(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    root, _ = library(tmp_path / "lib")
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda _: str(root))
    first = docstrings.sentences(tmp_path / "cache")
    monkeypatch.setattr(docstrings, "found_in", lambda *_: [])
    assert docstrings.sentences(tmp_path / "cache") == first
    (kept,) = (tmp_path / "cache" / "tasks").iterdir()
    kept.write_bytes(kept.read_bytes()[:20])
    assert docstrings.sentences(tmp_path / "cache") == []


@settings(deadline=None)
@given(st.text(alphabet="aB .!?\n1", max_size=200))
def test_every_sentence_is_a_piece_of_its_document_of_allowed_length(document):
    flat = " ".join(document.split())
    for text in docstrings.split(document):
        assert text in flat
        assert docstrings.LEAST_WORDS <= len(text.split()) <= docstrings.MOST_WORDS
