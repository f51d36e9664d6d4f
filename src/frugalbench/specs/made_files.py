"""Files whose type is known because they were just written: seeded, by Python's own writers. No torch.

Words and sentences are those of Python's language reference, sources those of its standard library, so that other
versions of Python make other files; whoever uses them records a hash. Labels are magika's.
"""

import bz2
import configparser
import csv
import difflib
import gzip
import io
import json
import lzma
import plistlib
import sqlite3
import struct
import tarfile
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pickle import dumps as pickled
from xml.etree import ElementTree

import numpy as np

from frugalbench.specs.made_words import Maker

EACH = 8
"""Files of a type."""


def files(seed: int) -> Iterator[tuple[str, int, bytes]]:
    """Label, number and content; a file depends on its label, its number and the seed alone."""
    for kind, label in enumerate(sorted(_WRITERS)):
        for number in range(EACH):
            yield label, number, _WRITERS[label](Maker(np.random.default_rng([seed, kind, number])))


def _zip(maker: Maker) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for _ in range(4):
            archive.writestr(zipfile.ZipInfo(f"{maker.word()}/{maker.name()}.txt"), maker.prose())
    return stream.getvalue()


def _tar(maker: Maker) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for _ in range(3):
            data = maker.prose().encode()
            entry = tarfile.TarInfo(f"{maker.word()}/{maker.name()}.txt")
            entry.size, entry.mtime = len(data), 1_700_000_000
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def _database(maker: Maker) -> sqlite3.Connection:
    base = sqlite3.connect(":memory:")
    base.execute(f"CREATE TABLE t_{maker.name()} (id INTEGER PRIMARY KEY, name TEXT, kind TEXT, share REAL)")
    (table,) = base.execute("SELECT name FROM sqlite_master").fetchone()
    base.executemany(f"INSERT OR IGNORE INTO {table} VALUES (?, ?, ?, ?)", maker.rows(60))
    base.commit()
    return base


def _sqlite(maker: Maker) -> bytes:
    return _database(maker).serialize()


def _sql(maker: Maker) -> bytes:
    return "\n".join(_database(maker).iterdump()).encode()


def _npy(maker: Maker) -> bytes:
    stream = io.BytesIO()
    np.save(stream, maker.random.standard_normal((maker.number(30), maker.number(30))))
    return stream.getvalue()


def _npz(maker: Maker) -> bytes:
    stream = io.BytesIO()
    arrays = {maker.name(): maker.random.standard_normal(maker.number(200)) for _ in range(3)}
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _wav(maker: Maker) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setnchannels(1 + maker.number(3) % 2)
        sound.setsampwidth(2)
        sound.setframerate((8_000, 16_000, 44_100)[maker.number(4) % 3])
        sound.writeframes((maker.random.standard_normal(8_000) * 3_000).astype("<i2").tobytes())
    return stream.getvalue()


def _png(maker: Maker) -> bytes:
    width, height = 20 + maker.number(100), 20 + maker.number(60)
    rows = maker.random.integers(0, 256, (height, width), np.uint8) // 32 * 32
    filtered = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(filtered)),
             (b"IEND", b""))  # fmt: skip
    chunks = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
              for kind, data in parts)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _bmp(maker: Maker) -> bytes:
    width, height = 4 * (5 + maker.number(20)), 20 + maker.number(40)
    pixels = maker.random.integers(0, 256, 3 * width * height, np.uint8).tobytes()
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(pixels), 2835, 2835, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54) + head + pixels


def _table(delimiter: str) -> Callable[[Maker], bytes]:
    def write(maker: Maker) -> bytes:
        stream = io.StringIO()
        csv.writer(stream, delimiter=delimiter).writerows([["id", "name", "kind", "share"], *maker.rows()])
        return stream.getvalue().encode()

    return write


def _xml(maker: Maker) -> bytes:
    root = ElementTree.Element(maker.word())
    for name, value in maker.tree().items():
        ElementTree.SubElement(root, maker.word(), {"id": str(maker.number())}).text = f"{name} {value}"
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _html(maker: Maker) -> bytes:
    body = "\n".join(f"<h2>{maker.word()}</h2>\n<p>{part}</p>" for part in maker.prose(3).split("\n\n"))
    title = f"<head><meta charset='utf-8'><title>{maker.name()}</title></head>"
    return f"<!DOCTYPE html>\n<html>\n{title}\n<body>\n{body}\n</body>\n</html>\n".encode()


def _svg(maker: Maker) -> bytes:
    shapes = "\n".join(
        f'  <rect x="{maker.number(90)}" y="{maker.number(90)}" width="{maker.number(40)}" height="9" fill="navy"/>'
        for _ in range(12)
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 130 100">\n{shapes}\n</svg>\n'.encode()


def _ini(maker: Maker) -> bytes:
    parser, stream = configparser.ConfigParser(), io.StringIO()
    for name in dict.fromkeys(maker.name() for _ in range(5)):
        parser[name] = {maker.name(): str(maker.number()), maker.name(): maker.word(), "path": f"/var/{maker.word()}"}
    parser.write(stream)
    return stream.getvalue().encode()


def _mail(maker: Maker) -> bytes:
    message = EmailMessage()
    message["From"], message["To"] = (f"{maker.word()}@example.org" for _ in range(2))
    message["Subject"], message["Date"] = f"{maker.word()} {maker.word()}", "Mon, 23 Nov 2026 10:00:00 +0000"
    message["Message-ID"] = f"<{maker.number()}.{maker.number()}@example.org>"
    message.set_content(maker.prose(2))
    return message.as_bytes()


def _diff(maker: Maker) -> bytes:
    path = maker.module()
    old = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    new = [line.replace("self", maker.word()) if number % 40 == 7 else line for number, line in enumerate(old)]
    new.insert(3, f"# {maker.name()}\n")
    return "".join(difflib.unified_diff(old, new, f"a/{path.name}", f"b/{path.name}")).encode()


def _subtitles(maker: Maker) -> bytes:
    shown = (f"{n + 1}\n00:00:{2 * n:02d},000 --> 00:00:{2 * n + 1:02d},500\n{part}\n"
             for n, part in enumerate(maker.prose(3).splitlines()[:24]) if part)  # fmt: skip
    return "\n".join(shown).encode()


def _calendar(maker: Maker) -> bytes:
    events = "".join(
        f"BEGIN:VEVENT\r\nUID:{maker.number()}@example.org\r\nDTSTAMP:20261123T{maker.number(14) + 8:02d}0000Z\r\n"
        f"SUMMARY:{maker.word()} {maker.word()}\r\nEND:VEVENT\r\n" for _ in range(8)
    )  # fmt: skip
    return f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//{maker.word()}//EN\r\n{events}END:VCALENDAR\r\n".encode()


_WRITERS: dict[str, Callable[[Maker], bytes]] = {
    "applebplist": lambda maker: plistlib.dumps(maker.tree(), fmt=plistlib.FMT_BINARY),
    "appleplist": lambda maker: plistlib.dumps(maker.tree()),
    "bmp": _bmp,
    "bzip": lambda maker: bz2.compress(maker.prose().encode()),
    "csv": _table(","),
    "diff": _diff,
    "eml": _mail,
    "gzip": lambda maker: gzip.compress(maker.prose().encode(), mtime=maker.number()),
    "html": _html,
    "ics": _calendar,
    "ini": _ini,
    "json": lambda maker: json.dumps(maker.tree(), indent=2).encode(),
    "jsonl": lambda maker: "".join(json.dumps(maker.tree()) + "\n" for _ in range(12)).encode(),
    "npy": _npy,
    "npz": _npz,
    "pickle": lambda maker: pickled(maker.tree()),
    "png": _png,
    "python": lambda maker: maker.module().read_bytes(),
    "sql": _sql,
    "sqlite": _sqlite,
    "srt": _subtitles,
    "svg": _svg,
    "tar": _tar,
    "tsv": _table("\t"),
    "txt": lambda maker: maker.prose().encode(),
    "wav": _wav,
    "xml": _xml,
    "xz": lambda maker: lzma.compress(maker.prose().encode()),
    "zip": _zip,
    "zlibstream": lambda maker: zlib.compress(maker.prose().encode()),
}
