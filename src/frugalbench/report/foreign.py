"""PyTorch on an out-of-tree device: operators by outcome per model, and what its adapter must still implement."""

from collections.abc import Sequence

from frugalbench.analysis.foreign import OUTCOMES, Census, Lack, censuses, lacks
from frugalbench.analysis.load import Run
from frugalbench.report.tables import Cell, Table
from frugalbench.units import DASH, byte_size

_COLUMNS = ("adapter", "model", "used", *OUTCOMES, "host calls", "copied", "note")
_WORDS = ("adapter", "model", "note")
_NOTES = (
    "operators by overload, seen at torch's dispatcher in one call of the model; decomposition: spelled out by torch "
    "from others that ran on the device",
    "stand-in-core has kernels for every operator that torch tags as core, stand-in-minimal for the twelve that "
    "torch's documentation requires of an adapter; both measure the interface, not silicon",
)
_LACKING = ("adapter", "operator", "needed by", "calls", "copied", "what happens")


def foreign_tables(runs: Sequence[Run]) -> list[Table]:
    """Per run the census and the lacks; empty when no run opened such a device."""
    tables: list[Table] = []
    for run in runs:
        if found := censuses(run):
            columns = tuple((name, name not in _WORDS) for name in _COLUMNS)
            lines = tuple(_line(item) for item in found)
            title = f"Operators on an out-of-tree device ({run.manifest.name})"
            tables.append(Table(title, columns, lines, _NOTES, "adaptation"))
        if missing := lacks(run):
            columns = tuple((name, name in ("calls", "copied")) for name in _LACKING)
            title = f"What an adapter must still implement ({run.manifest.name})"
            tables.append(Table(title, columns, tuple(_lack(item) for item in missing), (), "adaptation"))
    return tables


def _line(item: Census) -> tuple[Cell, ...]:
    return (
        Cell(item.adapter),
        Cell(item.model),
        Cell(str(item.used)),
        *(Cell(str(item.by_outcome[outcome])) for outcome in OUTCOMES),
        Cell(_count(item.fallback_calls)),
        Cell(byte_size(item.fallback_bytes)),
        Cell(item.fails or DASH),
    )


def _count(value: int | None) -> str:
    return DASH if value is None else str(value)


def _lack(item: Lack) -> tuple[Cell, ...]:
    return (
        Cell(item.adapter),
        Cell(item.operator),
        Cell(", ".join(item.models)),
        Cell(str(item.calls)),
        Cell(byte_size(item.copied_bytes)),
        Cell("refused, the fallback too" if item.refused else "computed on the host"),
    )
