"""Items of the packaged models' tasks: made the same everywhere, what they say they are, a user's without code."""

import csv
import email
import io
import json
import os
import pickle
import plistlib
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
import zlib
from bz2 import decompress as unbzip
from gzip import decompress as ungzip
from lzma import decompress as unxz
from xml.etree import ElementTree

import numpy as np
import pytest

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import drawn_lines, made_files, packaged_tasks, spoken_words, tasks


def _table(delimiter):
    return lambda data: {len(row) for row in csv.reader(io.StringIO(data.decode()), delimiter=delimiter)} == {4}


def _image(data):
    width, height = (int.from_bytes(data[place : place + 4]) for place in (16, 20))
    size = int.from_bytes(data[33:37])
    return data[:4] == b"\x89PNG" and len(zlib.decompress(data[41 : 41 + size])) == height * (width + 1)


def _names(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getnames()


def _database(data):
    base = sqlite3.connect(":memory:")
    base.deserialize(data)
    return base.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)


def _statements(data):
    sqlite3.connect(":memory:").executescript(data.decode())
    return data.startswith(b"BEGIN TRANSACTION")


READ_BY = {
    "appleplist": plistlib.loads, "applebplist": lambda d: d.startswith(b"bplist00") and plistlib.loads(d),
    "bmp": lambda d: d[:2] == b"BM" and int.from_bytes(d[2:6], "little") == len(d), "bzip": unbzip, "gzip": ungzip,
    "xz": unxz, "zlibstream": zlib.decompress, "csv": _table(","), "tsv": _table("\t"),
    "eml": lambda d: email.message_from_bytes(d)["Subject"], "json": json.loads,
    "jsonl": lambda d: [json.loads(line) for line in d.splitlines()], "npy": lambda d: np.load(io.BytesIO(d)).size,
    "npz": lambda d: np.load(io.BytesIO(d)).files, "pickle": pickle.loads, "png": _image, "sqlite": _database,
    "python": lambda d: compile(d, "made", "exec", dont_inherit=True), "sql": _statements,
    "svg": lambda d: ElementTree.fromstring(d).tag.endswith("svg"), "xml": ElementTree.fromstring,
    "tar": _names, "wav": lambda d: d[:4] == b"RIFF" and d[8:12] == b"WAVE",
    "zip": lambda d: zipfile.ZipFile(io.BytesIO(d)).testzip() is None,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_a_made_file_is_what_its_label_says():
    found = list(made_files.files(1))
    assert len({data for _, _, data in found}) == len(found) == 30 * made_files.EACH
    for label, number, data in found:
        assert READ_BY.get(label, bytes.strip)(data), (label, number)


def test_items_do_not_depend_on_the_process_but_on_the_seed():
    program = (
        "from frugalbench.specs import tasks; print(*(tasks.split_of(n).digest for n in ('made-files', 'drawn-lines')))"
    )
    here = f"{tasks.split_of('made-files').digest} {tasks.split_of('drawn-lines').digest}"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == here
    assert list(drawn_lines.lines(1)) != list(drawn_lines.lines(2))
    assert all(len(text) <= drawn_lines.MOST_CHARACTERS and text.isascii() for text in drawn_lines.lines(1))


@pytest.fixture
def voices(tmp_path, monkeypatch):
    """A tone for each recording, where the package would put it."""
    folder = tmp_path / "sounds" / "alsa"
    folder.mkdir(parents=True)
    for number, word in enumerate(spoken_words.WORDS):
        tone = np.sin(np.arange(16_000) * (0.1 + 0.02 * number)) / 2
        (folder / f"{word}.wav").write_bytes(spoken_words.written(tone))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path))


@pytest.mark.usefixtures("voices")
def test_half_of_the_recordings_hold_a_voice_and_their_words_stand_together():
    split = tasks.split_of("spoken-words")
    labels = [item.label for item in split.test]
    assert labels.count("speech") == labels.count("silence") == 8 * spoken_words.EACH
    voiced = [item.group for item in split.test if item.label == "speech"]
    assert len(set(voiced)) == 8
    power = {label: [] for label in packaged_tasks.SPOKEN}
    for item in split.test:
        rate, sound = spoken_words.read(packaged_tasks.content(item.match))
        assert (rate, len(sound)) == (16_000, spoken_words.SAMPLES)
        power[item.label].append(np.sqrt(np.mean(sound**2)))
    assert max(power["silence"]) < 1.1 * min(power["silence"])
    assert np.median(power["speech"]) > 1.1 * np.median(power["silence"])


def test_without_the_recordings_the_task_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path))
    assert packaged_tasks.missing("spoken-words") == "alsa-utils is not installed: apt-get install alsa-utils"
    with pytest.raises(FrugalbenchError, match="apt-get install alsa-utils"):
        tasks.split_of("spoken-words")


def own(folder, kind, *lines):
    (folder / "items.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (folder / "own.toml").write_text(
        f'name = "own"\nkind = "{kind}"\nsays = "x"\nsource = "x"\nlicence = "x"\nitems = "items.jsonl"\n'
    )
    return str(folder / "own.toml")


def test_files_of_ones_own_need_no_code(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(range(256)))
    name = own(tmp_path, "file-type", {"path": "a.bin", "label": "zip"})
    (item,) = tasks.split_of(name).test
    assert packaged_tasks.content(item.match) == bytes(range(256)) and item.label == "zip"
    first = tasks.split_of(name).digest
    (tmp_path / "a.bin").write_bytes(b"other")
    assert tasks.split_of(name).digest != first


@pytest.mark.parametrize(
    ("kind", "line", "said"),
    [
        ("file-type", {"path": "none.bin", "label": "zip"}, "own.*:1: 'none.bin' cannot be read: No such file"),
        ("file-type", {"path": "../x", "label": "zip"}, "leads out of the folder"),
        ("file-type", {"path": "empty", "label": "zip"}, "'empty' is empty"),
        ("file-type", {"label": "zip"}, "'path' must name a file"),
        ("text-line", {"path": "a.png", "text": "  "}, "'text' must say what the line reads"),
        ("speech", {"path": "a.wav", "label": "speach"}, "did you mean 'speech'"),
        ("speech", {"path": "a.wav", "labels": "speech"}, "not an item of a speech task"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path, kind, line, said):
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(FrugalbenchError, match=said.replace("own.*", ".*")) as problem:
        tasks.load(own(tmp_path, kind, line))
    assert "\n" not in str(problem.value)
