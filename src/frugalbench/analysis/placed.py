"""Where each node of a graph ran, what became of the file's nodes, and what was copied; from stored records alone.

Records may come from anywhere: what is not of the shape that a worker writes is left out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frugalbench.schema import Record
from frugalbench.units import byte_size

_MOST_KINDS = 6
_MOST_PLACES = 20


@dataclass(frozen=True)
class Placed:
    """What one runtime executed of one graph."""

    places: dict[str, dict[str, int]]
    """Device or provider to operator type to number of nodes."""
    grain: str
    """What is counted: a ``node``, ``kernel``, ``module``, ``parameter``, or the whole ``graph``."""
    model: int | None
    """Nodes of the file."""
    absorbed: int | None
    """Nodes of the file that were fused, folded or dropped; ``None`` where the runtime does not tell."""
    inserted: dict[str, int]
    """Operator type to number of nodes that the runtime put in: casts, copies, changes of layout."""
    copied_bytes: int | None
    """Between host and device in one call; ``None`` where the runtime does not tell."""
    kernels: dict[str, int]
    """Kernel to number of nodes that it computed; empty where the runtime names none."""

    @property
    def executed(self) -> int:
        """Nodes that ran."""
        return sum(sum(kinds.values()) for kinds in self.places.values())

    @property
    def brief(self) -> str:
        """Counts alone: ``46 nodes, −4 +2, 1.2 KiB``; of a runtime that tells of no nodes what it tells."""
        what = f"{self.executed} {self.grain}{'s' if self.executed != 1 else ''}"
        less = "" if not self.absorbed else f" −{self.absorbed}"
        more = "" if not self.inserted else f" +{sum(self.inserted.values())}"
        copied = f", {byte_size(self.copied_bytes)}" if self.copied_bytes else ""
        return f"{what}{',' if less or more else ''}{less}{more}{copied}"

    @property
    def full(self) -> str:
        """Places with their operators, what became of the file's nodes, kernels and copies."""
        parts = [f"{place}: {_listed(kinds)}" for place, kinds in self.places.items()]
        if self.absorbed is not None:
            parts.append(f"{self.absorbed} of the file's {self.model} nodes were fused, folded or dropped")
        if self.grain == "node":
            parts.append(f"put in by the runtime: {_listed(self.inserted) or 'none'}")
        parts += [f"kernels: {_listed(self.kernels)}"] if self.kernels else []
        if self.copied_bytes is not None:
            parts.append(f"copied between host and device: {byte_size(self.copied_bytes)} a call")
        return "; ".join(parts)


@dataclass(frozen=True)
class PlacedNode:
    """One node that a runtime executed; ``None`` for what it does not tell."""

    node: str
    operator: str | None
    place: str
    """Device or provider."""
    kernel: str | None
    dtype: str | None
    time_s: float | None
    """In one observed call, profiler included."""
    time_share: float | None
    """Of all nodes' time."""
    inserted: bool
    """Put in by the runtime."""
    origins: tuple[str, ...] | None
    """Nodes of the file that went into it."""


def placed(record: Record) -> Placed | None:
    """What the record says; ``None`` where it names no place."""
    details = record.details
    places = _table(details.get("placement"))
    if not places:
        return None
    nodes, runtime = _mapping(details.get("nodes")), _mapping(details.get("runtime"))
    return Placed(
        places=places,
        grain=str(nodes.get("grain", "node")),
        model=_count(nodes.get("model")),
        absorbed=_count(nodes.get("absorbed")),
        inserted=_counts(nodes.get("inserted")),
        copied_bytes=_count(nodes.get("copied_bytes")),
        kernels=_counts(runtime.get("kernels")),
    )


def placed_nodes(record: Record) -> list[PlacedNode]:
    """Every node that the record lists; empty where nobody asked for them."""
    found = record.details.get("node_list")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    total_s = sum(_seconds(row.get("time_s")) or 0.0 for row in rows)
    return [_placed_node(row, total_s) for row in rows]


def _placed_node(row: Mapping[str, Any], total_s: float) -> PlacedNode:
    time_s, origins = _seconds(row.get("time_s")), row.get("from")
    return PlacedNode(
        node=str(row.get("node", "")), operator=_text(row.get("operator")), place=str(row.get("place", "")),
        kernel=_text(row.get("kernel")), dtype=_text(row.get("dtype")), time_s=time_s,
        time_share=time_s / total_s if time_s is not None and total_s else None, inserted=row.get("inserted") is True,
        origins=tuple(map(str, origins)) if isinstance(origins, list) else None,
    )  # fmt: skip


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < math.inf else None


def _table(found: object) -> dict[str, dict[str, int]]:
    pairs = list(_mapping(found).items())[:_MOST_PLACES]
    return {str(place): counts for place, kinds in pairs if (counts := _counts(kinds))}


def _counts(found: object) -> dict[str, int]:
    return {str(name): count for name, value in _mapping(found).items() if (count := _count(value)) is not None}


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _listed(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    rest = len(ordered) - _MOST_KINDS
    told = [f"{name} {count}" for name, count in ordered[:_MOST_KINDS]]
    return ", ".join([*told, f"{sum(n for _, n in ordered[_MOST_KINDS:])} of {rest} more kinds"] if rest > 0 else told)
