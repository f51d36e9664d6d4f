"""The run directory: ``manifest.json`` and ``records.jsonl``. Nothing already written is ever lost or overwritten."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from frugalbench.schema import (
    SCHEMA_VERSION,
    UNREADABLE,
    FrugalbenchError,
    Manifest,
    Record,
    decode_manifest,
    decode_record,
    encode,
)


class Store:
    """Append-only access to one run directory."""

    def __init__(self, path: Path):
        self.path = path
        self.scratch = Path(tempfile.mkdtemp(prefix="frugalbench-"))
        self._records = (path / "records.jsonl").open("ab")

    @classmethod
    def create(cls, path: Path) -> "Store":
        """A new run directory; refuses one that already holds a run."""
        if any((path / name).exists() for name in ("manifest.json", "records.jsonl")):
            raise FrugalbenchError(
                f"{path}: already holds a run; add --resume to go on with it, or choose another --out"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            return cls(path)
        except OSError as problem:
            raise FrugalbenchError(
                f"{path}: cannot write the run there ({problem.strerror}); choose another --out"
            ) from None

    @classmethod
    def reopen(cls, path: Path) -> tuple["Store", Manifest, list[Record]]:
        """An earlier run to go on with. A half-written last line is cut off."""
        manifest = read_manifest(path)
        records = _read_and_trim(path / "records.jsonl")
        try:
            return cls(path), manifest, records
        except OSError as problem:
            raise FrugalbenchError(f"{path}: cannot write there ({problem.strerror})") from None

    def append(self, records: Iterable[Record]) -> None:
        """Write records, each fsynced; raises :class:`FrugalbenchError` when the disk is full."""
        for record in records:
            self._write(encode(record) + b"\n")

    def _write(self, line: bytes) -> None:
        start = self._records.tell()
        try:
            self._records.write(line)
            self._records.flush()
            os.fsync(self._records.fileno())
        except OSError as problem:
            with contextlib.suppress(OSError):
                self._records.truncate(start)
            raise FrugalbenchError(
                f"{self.path}/records.jsonl: {problem.strerror}; what was measured so far is kept; "
                f"make room and go on with --resume --out {self.path}"
            ) from None

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest atomically."""
        target = self.path / "manifest.json"
        partial = self.path / ".manifest.json.partial"
        try:
            with partial.open("wb") as stream:
                stream.write(msgspec.json.format(encode(manifest), indent=1) + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(target)
        except OSError as problem:
            raise FrugalbenchError(f"{target}: {problem.strerror}; the records so far are kept") from None

    def close(self) -> None:
        """Close the files and remove the scratch folder."""
        with contextlib.suppress(OSError):
            self._records.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a run directory, or a :class:`FrugalbenchError` that says why there is none."""
    file = path / "manifest.json"
    try:
        text = file.read_bytes()
    except OSError:
        raise FrugalbenchError(
            f"{path}: not a run directory (no manifest.json); start one with `frugalbench run`"
        ) from None
    try:
        version = msgspec.json.decode(text, type=dict).get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise FrugalbenchError(
                f"{file}: written by a newer frugalbench "
                f"(schema {version}, this one reads up to {SCHEMA_VERSION}); upgrade"
            )
        return decode_manifest(text)
    except UNREADABLE as problem:
        raise FrugalbenchError(f"{file}: damaged: {problem}") from None


def _read_and_trim(file: Path) -> list[Record]:
    """All whole records; what a crash left of a half-written last line is cut off."""
    whole = file.read_bytes() if file.exists() else b""
    complete = whole[: whole.rfind(b"\n") + 1]
    try:
        records = [decode_record(line) for line in complete.splitlines() if line.strip()]
    except UNREADABLE as problem:
        raise FrugalbenchError(f"{file}: damaged: {problem}") from None
    newest = max((record.schema_version for record in records), default=0)
    if newest > SCHEMA_VERSION:
        raise FrugalbenchError(
            f"{file}: holds records of schema {newest}, this one reads up to {SCHEMA_VERSION}; upgrade"
        )
    if len(complete) < len(whole):
        with file.open("r+b") as stream:
            stream.truncate(len(complete))
    return records
