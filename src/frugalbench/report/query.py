"""SQL over the tables of runs, with DuckDB in memory: read only, without files, network or extensions."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec

from frugalbench.analysis.load import Run
from frugalbench.report import safe
from frugalbench.report.columns import EXPORTS
from frugalbench.report.export import BATCH, arrow_schema, arrow_table
from frugalbench.report.tables import Cell, Table
from frugalbench.schema import FrugalbenchError
from frugalbench.units import DASH
from frugalbench.untrusted import shown

EXTRA_HINT = "pip install 'frugalbench[query]'"
ALIASES = {"metrics": "cases"}
MOST_SHOWN = 200
"""Lines of a table for a terminal."""
_LOCKS = (
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


@dataclass(frozen=True)
class Answer:
    """What a query gave."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def query(runs: Sequence[Run], sql: str) -> Answer:
    """The answer to one SELECT over the tables of ``runs``; only the tables that it names are built.

    Raises :class:`FrugalbenchError` without DuckDB or pyarrow, for anything but one query, and for what DuckDB refuses.
    """
    duckdb, pa = _packages()
    connection = duckdb.connect(":memory:")
    try:
        _must_be_one_query(duckdb, connection, sql)
        _make(connection, pa)
        _fill(connection, pa, runs, set(re.findall(r"\w+", sql.lower())))
        for lock in _LOCKS:
            connection.execute(lock)
        found = connection.execute(sql)
        return Answer(_unique([column[0] for column in found.description]), tuple(found.fetchall()))
    except duckdb.Error as problem:
        raise FrugalbenchError(_refused(problem)) from None
    finally:
        connection.close()


def _packages() -> tuple[Any, Any]:
    try:
        import duckdb
        import pyarrow as pa
    except ImportError as missing:
        raise FrugalbenchError(f"query needs {missing.name}, which is not installed.\nInstall: {EXTRA_HINT}") from None
    return duckdb, pa


def _must_be_one_query(duckdb: Any, connection: Any, sql: str) -> None:
    statements = connection.extract_statements(sql)
    allowed = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
    if len(statements) != 1 or statements[0].type not in allowed:
        raise FrugalbenchError("query: give one SELECT (or DESCRIBE, SUMMARIZE, EXPLAIN); the tables are read only")


def _make(connection: Any, pa: Any) -> None:
    """Every table, empty."""
    for table in EXPORTS:
        _bring(
            connection, f"CREATE TABLE {table.name} AS SELECT * FROM incoming", arrow_schema(pa, table).empty_table()
        )
    for name, target in ALIASES.items():
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {target}")


def _fill(connection: Any, pa: Any, runs: Sequence[Run], named: set[str]) -> None:
    """The tables that a query may name, a batch at a time."""
    wanted = named | {target for name, target in ALIASES.items() if name in named}
    for table in EXPORTS:
        lines = table.lines(runs) if table.name in wanted else iter(())
        while batch := list(islice(lines, BATCH)):
            _bring(connection, f"INSERT INTO {table.name} SELECT * FROM incoming", arrow_table(pa, table, batch))


def _bring(connection: Any, statement: str, incoming: Any) -> None:
    connection.register("incoming", incoming)
    connection.execute(statement)
    connection.unregister("incoming")


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """A second column of a name gets a number, so that no value is lost in an object."""
    made: list[str] = []
    for name in names:
        number, free = 2, name
        while free in made:
            number, free = number + 1, f"{name}_{number}"
        made.append(free)
    return tuple(made)


def _refused(problem: Exception) -> str:
    """DuckDB's first line; where a table was not found, which ones there are."""
    first = shown(str(problem).strip().split("\n")[0], 300)
    names = ", ".join([*(table.name for table in EXPORTS), *ALIASES])
    return f"query: {first}" + (f"\nTables: {names}." if "Table with name" in first else "")


def answer_csv(found: Answer) -> str:
    """With a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([safe.csv_value(name) for name in found.columns])
    writer.writerows([safe.csv_value(_plain(value)) for value in row] for row in found.rows)
    return text.getvalue()


def answer_json(found: Answer) -> str:
    """A list of objects."""
    items = [dict(zip(found.columns, map(_plain, row), strict=True)) for row in found.rows]
    return safe.json_text(msgspec.json.format(msgspec.json.encode(items), indent=1).decode()) + "\n"


def _plain(value: Any) -> Any:
    """Lists and maps as JSON text, dates and the like as text."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple | dict):
        return msgspec.json.encode(value, enc_hook=str).decode()
    return str(value)


def answer_table(found: Answer) -> Table:
    """For a terminal: numbers to six digits, the first lines only."""
    numbers = [
        any(isinstance(row[n], int | float) for row in found.rows[:MOST_SHOWN]) for n in range(len(found.columns))
    ]
    rest = len(found.rows) - MOST_SHOWN
    notes = (f"{rest} more lines; --format csv gives them all",) if rest > 0 else ()
    rows = tuple(tuple(Cell(_shown(value)) for value in row) for row in found.rows[:MOST_SHOWN])
    title = f"{len(found.rows)} line{'' if len(found.rows) == 1 else 's'}"
    return Table(title, tuple(zip(found.columns, numbers, strict=True)), rows, notes)


def _shown(value: Any) -> str:
    if value is None:
        return DASH
    return f"{value:.6g}" if isinstance(value, float) else str(_plain(value))
