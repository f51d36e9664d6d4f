"""The file that a run travels in: a zip with a table of hashes, byte for byte the same for the same run.

``submission.json`` names every other entry with its size and SHA-256. A stranger's file is opened as hostile: only
known names, no more bytes than declared, no more than fit a run; nothing is written anywhere.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from frugalbench.schema import UNREADABLE, Frozen, FrugalbenchError
from frugalbench.untrusted import brief, read_bounded

FORMAT = 1
INDEX = "submission.json"
REQUIRED = ("manifest.json", "records.jsonl")
OPTIONAL = ("report.html", "selftest.json")
MOST_FILE_BYTES = 128 * 2**20
MOST_ENTRY_BYTES = {
    INDEX: 2**18, "manifest.json": 64 * 2**20, "records.jsonl": 2**30, "report.html": 64 * 2**20,
    "selftest.json": 4 * 2**20,
}  # fmt: skip
_EPOCH = (1980, 1, 1, 0, 0, 0)


class Entry(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a submission."""

    name: str
    size_bytes: int
    sha256: str


class Index(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``submission.json`` says."""

    format: int
    run_id: str
    packed_with: str
    """Version of the package."""
    self_test: str
    """``present``, or why there is none."""
    removed: dict[str, int]
    """Kinds of texts that were replaced, and how many places."""
    files: tuple[Entry, ...]


class Unusable(FrugalbenchError):
    """A file that is no submission; ``check`` names the rule that it breaks."""

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(reason)
        self.check = check


def pack(files: Mapping[str, bytes], run_id: str, version: str, self_test: str, removed: Mapping[str, int]) -> bytes:
    """The archive's bytes. ``files`` are entries by name."""
    entries = tuple(Entry(name=n, size_bytes=len(c), sha256=_sha256(c)) for n, c in sorted(files.items()))
    index = Index(
        format=FORMAT, run_id=run_id, packed_with=version, self_test=self_test, removed=dict(sorted(removed.items())),
        files=entries,
    )  # fmt: skip
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in (
            (INDEX, msgspec.json.format(msgspec.json.encode(index), indent=1)),
            *sorted(files.items()),
        ):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type, info.external_attr, info.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            archive.writestr(info, content, compresslevel=9)
    return sink.getvalue()


def unpack(path: Path) -> tuple[Index, dict[str, bytes]]:
    """Index and contents by name, every hash checked.

    Raises :class:`Unusable` for whatever is no such archive, ``OSError`` where the file cannot be opened.
    """
    try:
        content = read_bounded(path, MOST_FILE_BYTES)
    except FrugalbenchError as problem:
        raise Unusable("archive", str(problem)) from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            _check_entries(infos, archive.comment)
            found = {info.filename: _read(archive, info) for info in infos}
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ValueError,
        OSError,
    ) as problem:
        raise Unusable("archive", f"not a readable zip file ({brief(str(problem))})") from None
    index = _index(found.pop(INDEX))
    _check_hashes(index, found)
    return index, found


def _check_entries(infos: list[zipfile.ZipInfo], comment: bytes) -> None:
    names = [info.filename for info in infos]
    known = (INDEX, *REQUIRED, *OPTIONAL)
    for name in names:
        if name not in known:
            raise Unusable("archive", f"holds {brief(name)}; a submission holds only {', '.join(known)}")
        if names.count(name) > 1:
            raise Unusable("archive", f"holds {name} more than once")
    if missing := [name for name in (INDEX, *REQUIRED) if name not in names]:
        raise Unusable("archive", f"lacks {', '.join(missing)}")
    for info in infos:
        _check_entry(info)
    if comment or any(info.comment or info.extra for info in infos):
        raise Unusable("archive", "carries comments or extra fields, which `frugalbench submit` never writes")


def _check_entry(info: zipfile.ZipInfo) -> None:
    kind = info.external_attr >> 16 & 0o170000
    if kind not in (0, 0o100000) or info.is_dir():
        raise Unusable("archive", f"{info.filename} is a link or a device, not a file")
    if info.flag_bits & 0x1:
        raise Unusable("archive", f"{info.filename} is encrypted")
    if info.compress_type not in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        raise Unusable("archive", f"{info.filename} is compressed in a way that is not read")
    if info.file_size > MOST_ENTRY_BYTES[info.filename]:
        raise Unusable(
            "archive",
            f"{info.filename} unpacks to {info.file_size} bytes, more than the {MOST_ENTRY_BYTES[info.filename]} that "
            "are read of it",
        )


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """At most what the entry declares, whatever its stream would give; the checksum must fit."""
    with archive.open(info) as stream:
        content = stream.read(info.file_size + 1)
    if len(content) != info.file_size:
        raise Unusable("archive", f"{info.filename} does not unpack to the {info.file_size} bytes that it declares")
    return content


def _index(text: bytes) -> Index:
    try:
        index = msgspec.json.decode(text, type=Index)
    except UNREADABLE as problem:
        raise Unusable("archive", f"{INDEX} cannot be read ({brief(str(problem), 120)})") from None
    if index.format != FORMAT:
        raise Unusable("archive", f"{INDEX} is of format {index.format}; this frugalbench reads {FORMAT}")
    return index


def _check_hashes(index: Index, found: Mapping[str, bytes]) -> None:
    listed = [entry.name for entry in index.files]
    if sorted(listed) != sorted(found):
        raise Unusable(
            "hashes", f"{INDEX} lists {', '.join(listed) or 'nothing'}; the archive holds {', '.join(found)}"
        )
    for entry in index.files:
        if entry.size_bytes != len(found[entry.name]) or entry.sha256 != _sha256(found[entry.name]):
            raise Unusable("hashes", f"{entry.name} is not the file whose hash {INDEX} gives: changed after packing")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
