"""What strangers may have written: bounded in size, depth and number; printable before a person sees it."""

import os
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench import untrusted
from frugalbench.schema import FrugalbenchError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=5), inner, max_size=4),
    max_leaves=20,
)


TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def nested(depth: int, wrap):
    value = 1
    for _ in range(depth):
        value = wrap(value)
    return value


@given(VALUES)
def test_a_plain_document_has_no_fault(document) -> None:
    assert untrusted.fault(document) is None


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (nested(100_000, lambda v: [v]), "deeper"),
        (nested(100, lambda v: {"a": v}), "deeper"),
        ([0] * (untrusted.MOST_ITEMS + 1), "more than"),
        ({"a": float("nan")}, "nan"),
        ({"a": [float("-inf")]}, "-inf"),
        ({"a": 2**63}, "64 bits"),
        ({"a": -(10**5000)}, "64 bits"),
        ("x" * (untrusted.MOST_TEXT + 1), "characters"),
        ({"a": "\x1b[31m"}, "control character"),
        ({"a": "\x00"}, "control character"),
        ({"\x9b": 1}, "key"),
        ({"a\nb": 1}, "key"),
        ({"k" * 300: 1}, "key"),
    ],
)
def test_what_is_wrong_with_a_document_is_said_in_a_line(document, says) -> None:
    reason = untrusted.fault(document)
    assert reason is not None and says in reason
    assert len(reason) < 300 and "\n" not in reason and untrusted.shown(reason) == reason


@given(st.text())
def test_shown_text_has_nothing_that_a_terminal_obeys(text) -> None:
    shown = untrusted.shown(text)
    for character in shown:
        assert character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs"), repr(character)
        assert unicodedata.bidirectional(character) not in TURNS
    shown.encode()


@given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Cf", "Zl", "Zp"))))
def test_plain_text_is_shown_as_it_is(text) -> None:
    assert untrusted.shown(text) == text


def test_long_text_is_cut() -> None:
    assert untrusted.shown("x" * 10_000) == "x" * 2000 + "…"
    assert len(untrusted.brief(["x" * 10_000] * 10)) < 200
    assert len(untrusted.brief(10**6000)) < 200


def test_what_is_not_a_file_is_not_waited_for(tmp_path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    begin_s = time.monotonic()
    for path in (fifo, "/dev/zero", "/dev/null"):
        with pytest.raises(FrugalbenchError, match="not a regular file"):
            untrusted.read_bounded(path, 100)
    for path in (tmp_path, tmp_path / "none", "nul\0byte", tmp_path / ("x" * 5000)):
        with pytest.raises(OSError):
            untrusted.read_bounded(path, 100)
    assert time.monotonic() - begin_s < 1


def test_a_file_is_read_up_to_its_bound(tmp_path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)
    assert untrusted.read_bounded(file, 100) == b"x" * 100
    with pytest.raises(FrugalbenchError, match="100 bytes"):
        untrusted.read_bounded(file, 99)
    with file.open("r+b") as stream:
        stream.truncate(2**40)
    with pytest.raises(FrugalbenchError, match=str(2**40)):
        untrusted.read_bounded(file, 2**31)


BOMBS = {
    "lists": "a = " + "[" * 100_000,
    "tables": "a = " + "{a=" * 100_000,
    "digits": "a = " + "9" * 100_000,
    "keys": ".".join("a" * 100_000) + " = 1",
    "quoted keys": " . ".join(['"a"'] * 100_000) + " = 1",
    "headers": "[" + ".".join("a" * 100_000) + "]",
    "inline keys": "a = {" + ".".join("a" * 100_000) + " = 1}",
    "text": 'a = "' + "\\n" * 400_000,
    "size": "#" * (2**20 + 1),
    "escape": 'a = "\\ud800"',
}


@pytest.mark.parametrize("name", BOMBS)
def test_toml_bombs_are_refused_at_once(tmp_path, name) -> None:
    file = tmp_path / "bomb.toml"
    file.write_text(BOMBS[name])
    begin_s = time.process_time()
    with pytest.raises(FrugalbenchError) as problem:
        untrusted.read_toml(file)
    assert time.process_time() - begin_s < 5
    assert str(file) in str(problem.value) and len(str(problem.value)) < 600


def test_long_keys_in_a_text_are_no_keys(tmp_path) -> None:
    file = tmp_path / "fine.toml"
    file.write_text('a = "' + "b." * 1000 + '"\n[c.d]\ne.f = [1.5, 2.5]\n')
    assert untrusted.read_toml(file)["c"] == {"d": {"e": {"f": [1.5, 2.5]}}}
