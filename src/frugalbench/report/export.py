"""Rows and verdicts for other programs: CSV, JSON and Parquet.

One line per case, missing numbers empty or null, units in the column names. ``facts`` is a JSON object in CSV and
Parquet, because its keys differ between workloads.
"""

import csv
import io
import types
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import msgspec

from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row
from frugalbench.analysis.noise import noise, share_void
from frugalbench.analysis.statistics import latest
from frugalbench.report import safe
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


def to_parquet(rows: Sequence[Row]) -> bytes:
    """A Parquet file of the cases, typed. Needs pyarrow, which the ``report`` extra brings."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise FrugalbenchError(
            f"parquet needs pyarrow, which is not installed.\nInstall it with: {EXTRA_HINT}"
        ) from None
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
