"""What an ONNX file may refer to, looked at before any runtime opens it: a file of bounded size, data beside it only.

A tensor can keep its values in another file ("external data"), named by a path in the model. A stranger's model could
name any file that the user may read, so the path must stay inside the model's own folder: not absolute, no ``..``, no
link that leads out. The file is walked in its wire format (protobuf: field numbers from ``onnx.proto``), values are
skipped and not read, and no framework is imported.
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from frugalbench.untrusted import brief, shown

MOST_MODEL_BYTES = 2**31
"""Protobuf itself takes no larger message."""
MOST_DATA_BYTES = 2**37
MOST_FIELDS = 20_000_000
MOST_DEPTH = 100
"""Graphs within nodes within graphs; protobuf's own limit."""
_LONGEST_PATH = 1024
_ENTRY = 4096
"""What is read of a key or value of a reference."""

# Message -> field number -> message that the field holds; other fields are skipped.
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}
_FIXED = {1: 8, 5: 4}


class UnsafeModel(RuntimeError):
    """The model is not opened; the text says why, in one sentence."""


def check_model(path: Path, most_bytes: int = MOST_MODEL_BYTES) -> tuple[Path, ...]:
    """The files of external data that the model at ``path`` refers to, all of them inside its folder.

    Raises :class:`UnsafeModel` for anything else, for a file that is no ONNX model, and for one that is too large.
    """
    try:
        return _checked(path, most_bytes)
    except OSError as problem:
        raise UnsafeModel(f"{shown(path)}: cannot be read: {problem.strerror}") from None


def _checked(path: Path, most_bytes: int) -> tuple[Path, ...]:
    if path.is_dir():
        raise UnsafeModel(f"{shown(path)}: is a folder; name the file of the model in it")
    if not path.is_file():
        raise UnsafeModel(f"{shown(path)}: no such model file")
    size = path.stat().st_size
    if not 0 < size <= most_bytes:
        raise UnsafeModel(f"{shown(path)}: {size} bytes; a model has 1 to {most_bytes}")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        places = sorted(set(_locations(data, path)))
    found = tuple(_confined(path, place) for place in places)
    total = sum(file.stat().st_size for file in found)
    if total > MOST_DATA_BYTES:
        raise UnsafeModel(f"{shown(path)}: its external data have {total} bytes, more than {MOST_DATA_BYTES}")
    return found


def _confined(model: Path, place: str) -> Path:
    """The file at ``place``, which the model at ``model`` names; raises :class:`UnsafeModel` when it lies elsewhere."""
    what = f"{shown(model)}: refers to external data at {brief(place)}"
    if len(place) >= _LONGEST_PATH:
        raise UnsafeModel(f"{what}, longer than a path can be")
    windows = PureWindowsPath(place)
    if PurePosixPath(place).is_absolute() or windows.is_absolute() or windows.drive or windows.root:
        raise UnsafeModel(f"{what}, an absolute path; data must lie beside the model")
    if ".." in PurePosixPath(place).parts or ".." in windows.parts or "\0" in place or not place:
        raise UnsafeModel(f"{what}, which leads out of the model's folder")
    folder = model.resolve().parent
    file = (folder / place).resolve()
    if not file.is_relative_to(folder):
        raise UnsafeModel(f"{what}, a link that leads out of the model's folder")
    if not file.is_file():
        raise UnsafeModel(f"{what}, where no file is")
    return file


def _locations(data: mmap.mmap, path: Path) -> Iterator[str]:
    """Every ``location`` among the external-data entries of a model."""
    waiting = [("Model", 0, len(data), 0)]
    fields = 0
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise UnsafeModel(f"{shown(path)}: graphs nested deeper than {MOST_DEPTH} levels")
        if kind == "Entry":
            yield from _location(data, start, end, path)
            continue
        for number, begin, stop in _fields(data, start, end, path):
            fields += 1
            if fields > MOST_FIELDS:
                raise UnsafeModel(f"{shown(path)}: more than {MOST_FIELDS} fields")
            if inner := _MESSAGES[kind].get(number):
                waiting.append((inner, begin, stop, depth + 1))


def _location(data: mmap.mmap, start: int, end: int, path: Path) -> Iterator[str]:
    entry = {number: data[begin : min(stop, begin + _ENTRY)] for number, begin, stop in _fields(data, start, end, path)}
    if entry.get(1) == b"location":
        yield os.fsdecode(entry.get(2, b""))


def _fields(data: mmap.mmap, position: int, end: int, path: Path) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each length-delimited field between ``position`` and ``end``; the others are skipped."""
    while position < end:
        tag, position = _varint(data, position, end, path)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _, position = _varint(data, position, end, path)
        elif wire in _FIXED:
            position += _FIXED[wire]
        elif wire == 2:
            length, position = _varint(data, position, end, path)
            if length > end - position:
                raise _malformed(path)
            yield number, position, position + length
            position += length
        else:
            raise _malformed(path)
    if position != end:
        raise _malformed(path)


def _varint(data: mmap.mmap, position: int, end: int, path: Path) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _malformed(path)


def _malformed(path: Path) -> UnsafeModel:
    return UnsafeModel(f"{shown(path)}: not an ONNX model, or a damaged one")
