"""Tasks of real models inside packages that are no encoders: who answers a kind, and where its items come from.

``file-type``  the type of a file, in magika's words; its ``label`` must be the model's first choice
``text-line``  a line of writing, read by PP-OCRv4; each character of ``text`` is an item, blanks do not count
``speech``     whether anybody speaks in a recording (``label`` speech or silence), heard by silero-vad

Items of one's own are a JSON Lines file whose lines name files beside it: ``{"path": "a.bin", "label": "elf"}``,
``{"path": "line.png", "text": "Total 12.50"}``, ``{"path": "call.wav", "label": "speech"}`` (16 kHz, one channel, 16
bits), with ``group`` where some belong together. A line of ``text`` without ``path`` is drawn. No torch.
"""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import drawn_lines, spoken_words
from frugalbench.specs.graph_set import PACKAGED
from frugalbench.untrusted import brief, read_bounded, shown

FILE_TYPE, TEXT_LINE, SPEECH = KINDS = ("file-type", "text-line", "speech")
MODEL_OF = {FILE_TYPE: "magika", TEXT_LINE: "rapidocr-rec", SPEECH: "silero-vad-16k"}
"""The packaged model (``specs.graph_set``) that answers a kind."""
BUILT_IN = {"made-files": (FILE_TYPE,), "drawn-lines": (TEXT_LINE,), "spoken-words": (SPEECH,)}
SPOKEN = ("silence", "speech")
MOST_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Made:
    """One item. ``match`` is the content of its file, a character a byte; empty where nothing is stored."""

    text: str
    label: str = ""
    match: str = ""
    group: str = ""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str = ""
    text: str = ""
    label: str = ""
    group: str = ""


def content(match: str) -> bytes:
    """The bytes of an item's file."""
    return match.encode("latin-1")


def made(items: str, seed: int) -> Iterator[Made]:
    """The items of a built-in name. Raises :class:`FrugalbenchError` where what they come with is missing."""
    if items == "made-files":
        from frugalbench.specs import made_files

        for label, number, data in made_files.files(seed):
            yield Made(text=f"{label} {number}", label=label, match=data.decode("latin-1"))
    elif items == "drawn-lines":
        yield from (Made(text=text) for text in drawn_lines.lines(seed))
    else:
        for name, label, group, data in spoken_words.recordings(seed):
            yield Made(text=name, label=label, group=group, match=data.decode("latin-1"))


def missing(items: str) -> str:
    """What a built-in name needs and this machine lacks, with the command that gets it; empty when all is here."""
    return spoken_words.missing() if items == "spoken-words" else ""


def read_line(kind: str, line: str, folder: Path, where: str) -> Made:
    """One line of a user's items, with the file that it names. Raises :class:`FrugalbenchError` naming the line."""
    try:
        found = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, RecursionError) as problem:
        raise FrugalbenchError(f"{where}: not an item of a {kind} task: {shown(problem, 200)}") from None
    if kind == TEXT_LINE and not "".join(found.text.split()):
        raise FrugalbenchError(f"{where}: 'text' must say what the line reads")
    if kind != TEXT_LINE:
        _check_label(kind, found, where)
    data = _content(folder, found.path, where) if found.path else b""
    return Made(found.text or found.path, found.label, data.decode("latin-1"), found.group)


def _check_label(kind: str, found: _Line, where: str) -> None:
    if not found.path:
        raise FrugalbenchError(f"{where}: 'path' must name a file")
    known = SPOKEN if kind == SPEECH else labels()
    if known and found.label not in known:
        near = difflib.get_close_matches(found.label, known, n=1, cutoff=0)[0]
        raise FrugalbenchError(f"{where}: unknown label {brief(found.label)}; did you mean '{near}'?")


def _content(folder: Path, path: str, where: str) -> bytes:
    if not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise FrugalbenchError(f"{where}: {brief(path)} leads out of the folder of the task")
    try:
        found = read_bounded(folder / path, MOST_FILE_BYTES)
    except OSError as problem:
        raise FrugalbenchError(f"{where}: {brief(path)} cannot be read: {problem.strerror}") from None
    if not found:
        raise FrugalbenchError(f"{where}: {brief(path)} is empty")
    return found


@cache
def labels() -> tuple[str, ...]:
    """The types that magika knows, in the order of its outputs; empty where it is not installed."""
    path = settings_of(PACKAGED["magika"].path())
    return tuple(json.loads(path.read_text(encoding="utf-8"))["target_labels_space"]) if path else ()


def settings_of(model: Path | None) -> Path | None:
    """The settings that lie beside magika's model."""
    found = model.with_name("config.min.json") if model else None
    return found if found and found.is_file() else None
