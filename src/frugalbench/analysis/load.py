"""Opening a run directory: ``manifest.json`` and ``records.jsonl``, nothing else, and no torch."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from frugalbench.analysis.plausible import manifest_fault, record_fault
from frugalbench.schema import (
    SCHEMA_VERSION,
    UNREADABLE,
    FrugalbenchError,
    Manifest,
    Record,
    decode_manifest,
    decode_record,
)
from frugalbench.untrusted import read_bounded, shown

MOST_MANIFEST_BYTES = 64 * 2**20
MOST_RECORDS_BYTES = 2**31
MOST_LINE_BYTES = 16 * 2**20
"""A record of this project takes some kilobytes."""


@dataclass(frozen=True)
class Run:
    """One run directory, read."""

    path: Path
    manifest: Manifest
    records: tuple[Record, ...]
    problems: tuple[str, ...] = ()
    """What was not as it should be but could be read around."""


class _Version(msgspec.Struct):
    schema_version: int


def load_run(path: Path | str) -> Run:
    """Read the run directory ``path``.

    A last line that was being written when the run died is dropped and noted in ``problems``.
    Raises :class:`FrugalbenchError` when ``path`` is no run directory, was written by a newer
    schema, or holds a line that cannot be read, numbers that no measurement gives, or more than is read of such a file.
    """
    path = Path(path)
    manifest = _decode_manifest(
        _read(path / "manifest.json", f"{path}: not a run directory", MOST_MANIFEST_BYTES), path
    )
    return _run(path, manifest, *_read_records(path / "records.jsonl"))


def decode_run(path: Path, manifest: bytes, records: bytes) -> Run:
    """The same from the contents of the two files; ``path`` is what messages name. Raises like :func:`load_run`."""
    return _run(path, _decode_manifest(manifest, path), *_decode_records(records, path / "records.jsonl"))


def _run(path: Path, manifest: Manifest, records: tuple[Record, ...], problems: tuple[str, ...]) -> Run:
    if manifest.state != "complete":
        problems = (*problems, f"{path}: the run is not complete ({manifest.state})")
    return Run(path, manifest, records, tuple(shown(problem) for problem in problems))


def _decode_manifest(text: bytes, path: Path) -> Manifest:
    file = path / "manifest.json"
    try:
        _check_version(text, file)
        manifest = decode_manifest(text)
    except UNREADABLE as error:
        raise _damaged(file, str(error)) from None
    if reason := manifest_fault(manifest):
        raise _damaged(file, reason)
    return manifest


def _damaged(file: Path, reason: str) -> FrugalbenchError:
    return FrugalbenchError(f"{file}: cannot be read ({reason}).\nRestore it from a copy, or run the config again.")


def _read_records(file: Path) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    if not file.exists():
        return (), (f"{file}: missing; nothing was measured yet",)
    return _decode_records(_read(file, f"{file}: cannot be read", MOST_RECORDS_BYTES), file)


def _decode_records(content: bytes, file: Path) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    lines = content.split(b"\n")
    if (longest := max(map(len, lines))) > MOST_LINE_BYTES:
        number = 1 + next(index for index, line in enumerate(lines) if len(line) == longest)
        raise _unusable(f"{file}:{number}", f"{longest} bytes, more than {MOST_LINE_BYTES}")
    unfinished = lines.pop()
    if lines and b"\0" in lines[-1]:  # a file system that grew the file before the loss of power kept the data from it
        unfinished = lines.pop() + b"\n" + unfinished
    records = tuple(_decode(line, file, number) for number, line in enumerate(lines, 1) if line.strip())
    if not unfinished.strip():
        return records, ()
    return _with_unfinished(records, unfinished, file, len(lines) + 1)


def _with_unfinished(
    records: tuple[Record, ...], line: bytes, file: Path, number: int
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """A last line without its newline: kept when whole, dropped when it is only the beginning of one."""
    try:
        _check_version(line, f"{file}:{number}")
        last = decode_record(line)
    except UNREADABLE:
        return records, (f"{file}:{number}: half-written last line dropped; `frugalbench run --resume` repeats it",)
    if reason := record_fault(last):
        raise _unusable(f"{file}:{number}", reason)
    return (*records, last), ()


def _decode(line: bytes, file: Path, number: int) -> Record:
    try:
        record = decode_record(line)
    except UNREADABLE as error:
        where = f"{file}:{number}"
        _check_version_loosely(line, where)
        raise _unusable(where, str(error)) from None
    if record.schema_version > SCHEMA_VERSION:
        raise _newer(record.schema_version, f"{file}:{number}")
    if reason := record_fault(record):
        raise _unusable(f"{file}:{number}", reason)
    return record


def _unusable(where: str, reason: str) -> FrugalbenchError:
    return FrugalbenchError(
        f"{where}: this record cannot be read ({reason}).\nDelete that line, or restore the file from a copy."
    )


def _check_version(text: bytes, where: Path | str) -> None:
    version = msgspec.json.decode(text, type=_Version).schema_version
    if version > SCHEMA_VERSION:
        raise _newer(version, where)


def _check_version_loosely(line: bytes, where: str) -> None:
    try:
        _check_version(line, where)
    except UNREADABLE:
        return


def _newer(version: int, where: Path | str) -> FrugalbenchError:
    return FrugalbenchError(
        f"{where}: written with schema version {version}; this frugalbench reads up to {SCHEMA_VERSION}.\n"
        "Upgrade with `pip install --upgrade frugalbench`."
    )


def _read(file: Path, what: str, most_bytes: int) -> bytes:
    try:
        return read_bounded(file, most_bytes)
    except OSError as error:
        raise FrugalbenchError(
            f"{what} ({file.name}: {error.strerror}).\nName a directory that `frugalbench run` wrote."
        ) from None
