"""Opening a run directory: ``manifest.json`` and ``records.jsonl``, nothing else, and no torch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import msgspec

from frugalbench.analysis.plausible import manifest_fault, record_fault
from frugalbench.analysis.remote import copy_run, is_remote
from frugalbench.schema import (
    SCHEMA_VERSION,
    UNREADABLE,
    Case,
    FrugalbenchError,
    Manifest,
    Record,
    decode_manifest,
    decode_record,
)
from frugalbench.untrusted import open_bounded, read_bounded, shown

MOST_MANIFEST_BYTES = 64 * 2**20
MOST_RECORDS_BYTES = 2**31
MOST_LINE_BYTES = 16 * 2**20
"""A record of this project takes some kilobytes."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory, read. Compared by identity, so that what follows from it can be remembered."""

    path: Path
    manifest: Manifest
    records: tuple[Record, ...]
    problems: tuple[str, ...] = ()
    """What was not as it should be but could be read around."""

    def metrics(self, frame: str | None = None) -> Any:
        """One line per case, with the columns of the table ``cases`` in results/README.md.

        A pandas frame, a polars one where only that is installed, else a list of dicts; ``frame`` asks for one of
        ``pandas``, ``polars`` and ``list``. Raises :class:`FrugalbenchError` where that is not installed.
        """
        from frugalbench.analysis.frames import metrics

        return metrics(self, frame)


class _Version(msgspec.Struct):
    schema_version: int


def load_run(path: Path | str) -> Run:
    """Read the run directory ``path``, or the one on object storage at such an address.

    A last line that was being written when the run died is dropped and noted in ``problems``.
    Raises :class:`FrugalbenchError` when ``path`` is no run directory, was written by a newer
    schema, or holds a line that cannot be read, numbers that no measurement gives, or more than is read of such a file.
    """
    if is_remote(path):
        return _load_remote(str(path))
    path = Path(path)
    manifest = _decode_manifest(
        _read(path / "manifest.json", f"{path}: not a run directory", MOST_MANIFEST_BYTES), path
    )
    return _run(path, manifest, *_read_records(path / "records.jsonl"))


def decode_run(path: Path, manifest: bytes, records: bytes) -> Run:
    """The same from the contents of the two files; ``path`` is what messages name. Raises like :func:`load_run`."""
    file = path / "records.jsonl"
    return _run(path, _decode_manifest(manifest, path), *_decode_records(_bounded(BytesIO(records), file), file))


def _run(path: Path, manifest: Manifest, records: tuple[Record, ...], problems: tuple[str, ...]) -> Run:
    if manifest.state != "complete":
        problems = (*problems, f"{path}: the run is not complete ({manifest.state})")
    return Run(path, manifest, records, tuple(shown(problem) for problem in problems))


def _load_remote(address: str) -> Run:
    """A run on object storage; messages and ``path`` name its address."""
    with TemporaryDirectory(prefix="frugalbench-") as folder:
        copy_run(address, Path(folder), MOST_RECORDS_BYTES)
        try:
            run = load_run(folder)
        except FrugalbenchError as problem:
            raise FrugalbenchError(str(problem).replace(folder, address)) from None
        problems = tuple(problem.replace(folder, address) for problem in run.problems)
        return Run(Path(address), run.manifest, run.records, problems)


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
    try:
        return _decode_records(_lines(file), file)
    except OSError as error:
        raise _unreadable(f"{file}: cannot be read", file, error) from None


def _decode_records(lines: Iterable[bytes], file: Path) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    records: list[Record] = []
    cases: dict[str, Case] = {}
    for number, line, whole in _marked(lines):
        if not whole:
            return _with_unfinished(tuple(records), line, file, number)
        if line.strip():
            records.append(_shared(_decode(line, file, number), cases))
    return tuple(records), ()


def _lines(file: Path) -> Iterator[bytes]:
    """One after the other, so that a large run is never held as text beside its records."""
    with open_bounded(file, MOST_RECORDS_BYTES) as stream:
        yield from _bounded(stream, file)


def _bounded(stream: IO[bytes], file: Path) -> Iterator[bytes]:
    number = 0
    while line := stream.readline(MOST_LINE_BYTES + 1):
        number += 1
        if len(line) > MOST_LINE_BYTES:
            raise _unusable(f"{file}:{number}", f"more than {MOST_LINE_BYTES} bytes")
        yield line


def _marked(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes, bool]]:
    """Number, line, and whether it was written to its end."""
    number, torn = 0, b""
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            yield number - bool(torn), torn + line, False
            return
        if torn:
            yield number - 1, torn, True
        torn = line if b"\0" in line else b""  # a file system that grew the file before the loss of power kept the data
        if not torn:
            yield number, line, True
    if torn:
        yield number, torn, False


def _shared(record: Record, cases: dict[str, Case]) -> Record:
    """With the case of earlier records where it is the same: most of a large run's memory is repeated cases."""
    case = cases.setdefault(record.case.id, record.case)
    return msgspec.structs.replace(record, case=case) if case is not record.case and case == record.case else record


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
        raise _unreadable(what, file, error) from None


def _unreadable(what: str, file: Path, error: OSError) -> FrugalbenchError:
    return FrugalbenchError(f"{what} ({file.name}: {error.strerror}).\nName a directory that `frugalbench run` wrote.")
