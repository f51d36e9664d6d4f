"""The rows of a run as a frame of whichever package the caller has."""

from importlib import import_module
from importlib.util import find_spec
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import msgspec

from frugalbench.analysis.metrics import Row, rows
from frugalbench.schema import FrugalbenchError

if TYPE_CHECKING:
    from frugalbench.analysis.load import Run

FRAMES = ("pandas", "polars")


def metrics(run: "Run", frame: str | None = None) -> Any:
    """See :meth:`frugalbench.analysis.load.Run.metrics`."""
    if frame not in (None, "list", *FRAMES):
        raise FrugalbenchError(f"frame '{frame}': choose one of {', '.join(FRAMES)}, list")
    chosen = frame or next((name for name in FRAMES if find_spec(name)), "list")
    lines = [_flat(row) for row in rows(run)]
    return lines if chosen == "list" else _MAKERS[chosen](_package(chosen), lines)


def _flat(row: Row) -> dict[str, Any]:
    """Facts, whose names differ between workloads, as JSON text."""
    plain: dict[str, Any] = msgspec.to_builtins(row)
    return plain | {"facts": msgspec.json.encode(row.facts).decode()}


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise FrugalbenchError(f"a {name} frame needs {name}: pip install {name}") from None


def _kinds() -> dict[str, type]:
    """``float``, ``int``, ``bool`` or ``str`` of each column, also where no line has a value."""
    hints = get_type_hints(Row)
    return {field.name: _kind(hints[field.name]) for field in msgspec.structs.fields(Row)}


def _kind(hint: Any) -> type:
    kinds = [item for item in get_args(hint) if item is not NoneType] if isinstance(hint, UnionType) else [hint]
    return kinds[0] if kinds[0] in (float, int, bool) else str


def _pandas(package: Any, lines: list[dict[str, Any]]) -> Any:
    known = {float: "float64", int: "Int64", bool: "boolean"}
    found = package.DataFrame(lines, columns=list(_kinds()))
    return found.astype({name: known[kind] for name, kind in _kinds().items() if kind in known})


def _polars(package: Any, lines: list[dict[str, Any]]) -> Any:
    known = {float: package.Float64, int: package.Int64, bool: package.Boolean, str: package.String}
    return package.DataFrame(lines, schema={name: known[kind] for name, kind in _kinds().items()})


_MAKERS = {"pandas": _pandas, "polars": _polars}
