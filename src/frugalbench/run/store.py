"""The run directory: ``manifest.json`` and ``records.jsonl``. Nothing already written is ever lost or overwritten.

A record is acknowledged when the ``fsync`` of its line returned; then it survives the death of any process and the loss
of power. Whoever appends holds a lock on the file, so two runs never write into one directory.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from frugalbench.schema import (
    SCHEMA_VERSION,
    UNREADABLE,
    Comparison,
    FrugalbenchError,
    Manifest,
    Plan,
    Record,
    Status,
    decode_manifest,
    decode_record,
    encode,
)

_SCRATCH = "frugalbench-"
_STALE_S = 3600.0


class Store:
    """Append-only access to one run directory."""

    def __init__(self, path: Path):
        self.path = path
        self.dropped: tuple[str, ...] = ()
        """What reopening cut off, one line each."""
        self._records = os.open(path / "records.jsonl", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(self._records, path)
            _sync_folder(path)
            self.scratch, self._scratch_lock = _make_scratch()
        except BaseException:
            os.close(self._records)
            raise

    @classmethod
    def create(cls, path: Path) -> "Store":
        """A new run directory; refuses one that already holds a run, or that another run is being written into."""
        try:
            _must_not_lead_away(path)
            missing = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
            for folder in missing:
                _sync_folder(folder.parent)
            opened = cls(path)
        except OSError as problem:
            raise FrugalbenchError(
                f"{path}: cannot write the run there ({problem.strerror}); choose another --out"
            ) from None
        if why := _occupied(path):
            opened.close()
            raise FrugalbenchError(f"{path}: {why}")
        return opened

    @classmethod
    def reopen(cls, path: Path) -> tuple["Store", Manifest, list[Record]]:
        """An earlier run to go on with. A half-written last line is cut off, which :attr:`dropped` tells."""
        read_manifest(path)
        _must_not_lead_away(path)
        try:
            opened = cls(path)
        except OSError as problem:
            raise FrugalbenchError(f"{path}: cannot write there ({problem.strerror})") from None
        try:
            manifest = read_manifest(path)  # now that nobody else can be writing it
            records = opened._read_and_trim()
        except OSError as problem:
            opened.close()
            raise FrugalbenchError(f"{path}/records.jsonl: {problem.strerror}; nothing was changed") from None
        except FrugalbenchError:
            opened.close()
            raise
        opened.dropped += tuple(half_measured(manifest.plan, records))
        return opened, manifest, records

    def _read_and_trim(self) -> list[Record]:
        """All whole records; what a crash left of a half-written last line is cut off."""
        file = self.path / "records.jsonl"
        whole = file.read_bytes()
        lines, torn = split_lines(whole)
        records = [_decode(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
        if torn:
            os.ftruncate(self._records, len(whole) - len(torn))
            os.fsync(self._records)
            self.dropped = (f"{file}:{len(lines) + 1}: half-written last line dropped ({len(torn)} bytes)",)
        return records

    def append(self, records: Iterable[Record]) -> None:
        """Write records, each fsynced; raises :class:`FrugalbenchError` when the disk is full."""
        for record in records:
            self._write(encode(record) + b"\n")

    def _write(self, line: bytes) -> None:
        start = os.fstat(self._records).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._records, rest) :]
            os.fsync(self._records)
        except OSError as problem:
            with contextlib.suppress(OSError):
                os.ftruncate(self._records, start)
            raise FrugalbenchError(
                f"{self.path}/records.jsonl: {problem.strerror}; what was measured so far is kept; "
                f"make room and go on with --resume --out {self.path}"
            ) from None

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest atomically."""
        target = self.path / "manifest.json"
        partial = self.path / ".manifest.json.partial"
        try:
            partial.unlink(missing_ok=True)
            with partial.open("xb") as stream:
                stream.write(msgspec.json.format(encode(manifest), indent=1) + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(target)
            _sync_folder(self.path)
        except OSError as problem:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise FrugalbenchError(
                f"{target}: {problem.strerror}; the records so far are kept; "
                f"make room and go on with --resume --out {self.path}"
            ) from None

    def close(self) -> None:
        """Close the files, which frees the directory for others, and remove the scratch folder."""
        for descriptor in (self._records, self._scratch_lock):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._records = self._scratch_lock = -1
        shutil.rmtree(self.scratch, ignore_errors=True)


def _occupied(path: Path) -> str | None:
    """Why no new run may begin here. Records come only after the manifest: an empty file alone holds nothing."""
    if (path / "manifest.json").exists():
        return "already holds a run; add --resume to go on with it, or choose another --out"
    if (path / "records.jsonl").stat().st_size:
        return "holds records.jsonl but no manifest.json to go on from; choose another --out"
    return None


def _must_not_lead_away(path: Path) -> None:
    """Refuse a records file that is a link: whoever made the directory could have laid one that leads out of it."""
    if (path / "records.jsonl").is_symlink():
        raise FrugalbenchError(f"{path}/records.jsonl: is a link, which is not written through; choose another --out")


def _lock(descriptor: int, path: Path) -> None:
    """Keep other runs out for as long as the file is open; the kernel frees it however we end."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FrugalbenchError(
            f"{path}: another run is writing there; wait until it has ended, or choose another --out"
        ) from None
    except OSError:
        return  # a file system without locks


def _sync_folder(folder: Path) -> None:
    """Make what was created or renamed in ``folder`` survive a loss of power, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _make_scratch() -> tuple[Path, int]:
    """A locked folder for temporary files, after removing those that killed runs left behind."""
    _remove_stale(Path(tempfile.gettempdir()))
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH))
    descriptor = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return scratch, descriptor


def _remove_stale(folder: Path) -> None:
    for item in folder.glob(f"{_SCRATCH}????????"):
        with contextlib.suppress(OSError):
            stat = item.lstat()
            if stat.st_uid == os.getuid() and time.time() - stat.st_mtime > _STALE_S and _is_free(item):
                shutil.rmtree(item, ignore_errors=True)


def _is_free(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)
    return True


def split_lines(whole: bytes) -> tuple[list[bytes], bytes]:
    """Complete lines, and what a crash left of the last one.

    Only the last line can be torn, because each is fsynced before the next. A file system may have grown the file
    before it wrote the data: then there are zero bytes, which no record contains, and the line counts as torn too.
    """
    *lines, torn = whole.split(b"\n")
    if lines and b"\0" in lines[-1]:
        torn = lines.pop() + b"\n" + torn
    return lines, torn


def came_to_a_worker(record: Record) -> bool:
    """Whether a worker had the case, be it to find that there is no kernel for it; others are skipped unseen."""
    return record.status is not Status.SKIPPED or record.worker is not None


def half_measured(plan: Plan, records: Iterable[Record]) -> list[str]:
    """Replicates that a run left unfinished, a sentence each: kept on disk, not counted, measured again."""
    measured = [record for record in records if came_to_a_worker(record)]
    return [line for comparison in plan.comparisons for line in _half_measured(comparison, measured)]


def _half_measured(comparison: Comparison, measured: Iterable[Record]) -> Iterator[str]:
    wanted = {case.id for arm in comparison.arms for case in arm.cases}
    found: dict[int, list[Record]] = {}
    for record in measured:
        if record.comparison == comparison.id:
            found.setdefault(record.replicate, []).append(record)
    for number, records in sorted(found.items()):
        whole = [record for record in records if not record.interrupted]
        if not {record.case.id for record in whole} >= wanted:
            how = "is half-written" if whole else "was interrupted"
            yield f"{comparison.id}: replicate {number} {how}; kept, not counted, measured again"
        if number == (0 if comparison.competes else 1):
            wanted -= {record.case.id for record in whole if record.status is Status.FAILED or not record.samples}


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


def _decode(line: bytes, where: str) -> Record:
    try:
        record = decode_record(line)
    except UNREADABLE as problem:
        raise FrugalbenchError(
            f"{where}: damaged: {problem}\nDelete that line, or restore the file from a copy; then go on with --resume."
        ) from None
    if record.schema_version > SCHEMA_VERSION:
        raise FrugalbenchError(
            f"{where}: a record of schema {record.schema_version}, this one reads up to {SCHEMA_VERSION}; upgrade"
        )
    return record
