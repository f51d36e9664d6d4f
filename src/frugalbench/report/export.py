"""Rows and verdicts for other programs: CSV, JSON and Parquet.

One file holds one line per case, a folder one file per table of :mod:`frugalbench.report.columns`. Missing numbers are
empty or null, units in the column names. ``facts`` is a JSON object in CSV and Parquet, because its keys differ between
workloads.
"""

import csv
import gc
import io
import re
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row
from frugalbench.analysis.noise import noise, share_void
from frugalbench.analysis.statistics import latest
from frugalbench.report import safe
from frugalbench.report.columns import EXPORTS, Export
from frugalbench.schema import FrugalbenchError, Verdict

EXTRA_HINT = "pip install 'frugalbench[report]'"


def to_csv(items: Sequence[msgspec.Struct], kind: type[msgspec.Struct] = Row) -> str:
    """CSV with a header line; ``items`` are all of type ``kind`` (:class:`Row` or :class:`Verdict`)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(kind), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: safe.csv_value(value) for name, value in flat(item).items()} for item in items)
    return text.getvalue()


def to_json(runs: Sequence[Run], verdicts: Sequence[Verdict], rows: Sequence[Row]) -> str:
    """One JSON document: ``runs`` (identity, machine, harness, problems), ``verdicts``, ``cases``."""
    document = {"runs": [_run_summary(run) for run in runs], "verdicts": verdicts, "cases": rows}
    document["noise"] = [part for run in runs for part in _noise(run)]
    return safe.json_text(msgspec.json.format(msgspec.json.encode(document)).decode()) + "\n"


def _noise(run: Run) -> list[dict[str, Any]]:
    """What the environment did to each comparison, and last to the whole run (comparison is empty)."""
    parts = noise(latest(run.records))
    return [{"run": run.manifest.run_id, **msgspec.to_builtins(part)} for part in (*parts, share_void(parts))]


def write_tables(runs: Sequence[Run], folder: Path, fmt: str) -> list[Path]:
    """Every table as ``folder/NAME.fmt`` (``csv``, ``parquet`` or ``json``), written line by line.

    Raises :class:`FrugalbenchError` where the folder cannot be written, and for Parquet without pyarrow.
    """
    write, made = _WRITERS[fmt], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _no_collection():
            for table in EXPORTS:
                made.append(folder / f"{table.name}.{fmt}")
                write(table, runs, made[-1])
    except OSError as error:
        raise FrugalbenchError(
            f"{folder}: cannot be written ({error.strerror}).\nName a folder that can be made or written."
        ) from None
    return made


BATCH = 10_000
"""Lines that are turned into text or Arrow columns at once."""


def _batches(table: Export, runs: Sequence[Run]) -> Iterator[list[tuple[Any, ...]]]:
    lines = table.lines(runs)
    while batch := list(islice(lines, BATCH)):
        yield batch


@contextmanager
def _no_collection() -> Iterator[None]:
    """Lines are made by the million and none is part of a cycle: looking for cycles takes an eighth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _csv_table(table: Export, runs: Sequence[Run], file: Path) -> None:
    texts = [place for place, kind in enumerate(table.kinds()) if kind is str]
    with file.open("wb") as stream:
        stream.write(",".join(table.columns()).encode() + b"\n")
        for batch in _batches(table, runs):
            for plain, found in groupby(batch, _plainness(batch, texts)):
                lines = list(found)
                stream.write(_plain_lines(lines) if plain else _any_lines(lines, texts))


def _plainness(batch: Sequence[tuple[Any, ...]], texts: Sequence[int]) -> Callable[[tuple[Any, ...]], bool]:
    """Tells lines of which every text is plain. Whole columns are looked at first: most hold few words."""
    odd = [at for at in texts if not all(map(_is_plain, {line[at] for line in batch}))]
    return lambda line: all(_is_plain(line[at]) for at in odd)


def _plain_lines(lines: Sequence[tuple[Any, ...]]) -> bytes:
    """As JSON writes them, which is faster than the csv module; its quoted text is csv's too."""
    text = msgspec.json.encode(lines)[2:-2].replace(b"],[", b"\n").replace(b"null", b"")
    return text.replace(b"true", b"True").replace(b"false", b"False") + b"\n"


def _any_lines(lines: Iterable[tuple[Any, ...]], texts: Sequence[int]) -> bytes:
    made, cells = io.StringIO(), _Cells({None: None})
    writer = csv.writer(made, lineterminator="\n")
    for line in map(list, lines):
        for at in texts:
            line[at] = cells[line[at]]
        writer.writerow(line)
    return made.getvalue().encode()


class _Cells(dict[str | None, str | None]):
    """Text as csv holds it. Names and units repeat themselves; long texts are not kept."""

    def __missing__(self, text: str) -> str:
        made = str(safe.csv_value(text))
        if len(text) < _MOST_KEPT:
            self[text] = made
        return made


_MOST_KEPT = 200
_PLAIN = re.compile(r"[A-Za-z0-9_./:;%()\[\] -]*")
_WORDS = re.compile("null|true|false")


def _is_plain(value: str | None) -> bool:
    """Whether JSON and csv write it alike, no brackets of lists are in it and no spreadsheet computes it."""
    return value is None or (len(value) < _MOST_KEPT and _is_plain_text(value))


@lru_cache(maxsize=4096)
def _is_plain_text(value: str) -> bool:
    return bool(_PLAIN.fullmatch(value)) and not _WORDS.search(value) and safe.csv_value(value) == value


def _json_table(table: Export, runs: Sequence[Run], file: Path) -> None:
    """A list of objects, one a line."""
    line = msgspec.defstruct(table.name, table.columns(), gc=False)  # encodes faster than a dict
    encode_lines = msgspec.json.Encoder().encode_lines
    with file.open("wb") as stream:
        lead = b"[\n"
        for batch in _batches(table, runs):
            lines = encode_lines([line(*values) for values in batch])[:-1]
            stream.write(lead + _safe_json(lines.replace(b"\n", b",\n")))
            lead = b",\n"
        stream.write(b"\n]\n" if lead == b",\n" else b"[]\n")


def _safe_json(document: bytes) -> bytes:
    """Of what msgspec wrote, only what is beyond ASCII, and DEL, can be obeyed by a terminal."""
    return document if document.isascii() and b"\x7f" not in document else safe.json_text(document.decode()).encode()


def _parquet_table(table: Export, runs: Sequence[Run], file: Path) -> None:
    pa, pq = _arrow()
    repeated = [name for name, kind in zip(table.columns(), table.kinds(), strict=True) if kind is not float]
    with pq.ParquetWriter(file, arrow_schema(pa, table), use_dictionary=repeated) as writer:
        for batch in _batches(table, runs):
            writer.write_table(arrow_table(pa, table, batch))


def arrow_schema(pa: Any, table: Export) -> Any:
    """The Arrow schema of a table."""
    known = {float: pa.float64(), int: pa.int64(), bool: pa.bool_(), str: pa.string()}
    return pa.schema([(n, known[kind]) for n, kind in zip(table.columns(), table.kinds(), strict=True)])


def arrow_table(pa: Any, table: Export, lines: Sequence[tuple[Any, ...]]) -> Any:
    """Some lines, at least one, of a table as Arrow columns."""
    schema = arrow_schema(pa, table)
    pairs = zip(zip(*lines, strict=True), schema, strict=True)
    return pa.Table.from_arrays([pa.array(values, type=field.type) for values, field in pairs], schema=schema)


_WRITERS: dict[str, Callable[[Export, Sequence[Run], Path], None]] = {
    "csv": _csv_table,
    "parquet": _parquet_table,
    "json": _json_table,
}


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise FrugalbenchError(
            f"parquet needs pyarrow, which is not installed.\nInstall it with: {EXTRA_HINT}"
        ) from None
    return pa, pq


def to_parquet(rows: Sequence[Row]) -> bytes:
    """A Parquet file of the cases, typed. Needs pyarrow, which the ``report`` extra brings."""
    pa, pq = _arrow()
    hints = get_type_hints(Row)
    schema = pa.schema([(name, _arrow_type(pa, hints[name])) for name in _columns(Row)])
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([flat(row) for row in rows], schema=schema), sink)
    return sink.getvalue()


def flat(item: msgspec.Struct) -> dict[str, Any]:
    """A struct as one level of plain values; what is nested becomes JSON text."""
    plain = msgspec.to_builtins(item)
    return {k: msgspec.json.encode(v).decode() if isinstance(v, (dict, list)) else v for k, v in plain.items()}


def _columns(kind: type[msgspec.Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(kind)]


def _arrow_type(pa: Any, hint: Any) -> Any:
    kinds = [k for k in get_args(hint) if k is not types.NoneType] if isinstance(hint, types.UnionType) else [hint]
    known = {float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
    return known.get(kinds[0], pa.string())


def _run_summary(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    names = ["run_id", "name", "state", "started", "ended", "seed", "revision", "claims_hash", "versions"]
    names += ["machine_before", "machine_after", "harness", "notes"]
    return {name: getattr(manifest, name) for name in names} | {"problems": run.problems}
