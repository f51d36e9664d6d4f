"""Operators on an out-of-tree device: what became of them, model by model, and what its adapter still lacks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from frugalbench.analysis.load import Run
from frugalbench.analysis.statistics import latest
from frugalbench.schema import Record, Status

WORKLOAD = "foreign_device"
OUTCOMES = ("native", "decomposition", "fallback", "missing")


@dataclass(frozen=True)
class Census:
    """One model on one adapter."""

    adapter: str
    model: str
    used: int
    by_outcome: dict[str, int]
    """Operators by overload."""
    fallback_calls: int | None
    """``None`` where the adapter does not count them."""
    fallback_bytes: float | None
    fails: str
    """Why no answer came; empty when one did."""


@dataclass(frozen=True)
class Lack:
    """One operator that an adapter leaves to the host, or refuses."""

    adapter: str
    operator: str
    models: tuple[str, ...]
    calls: int
    copied_bytes: int | None
    refused: bool


def censuses(run: Run) -> list[Census]:
    """Every model that was counted, or failed, by adapter in the order of the run."""
    return [_census(record) for record in _speaking(run)]


def lacks(run: Run) -> list[Lack]:
    """Operators that keep a model off the device, those that most models need first; calls and bytes of one call of
    each model."""
    found: dict[tuple[str, str, bool], list[tuple[str, int, int | None]]] = {}
    for record in _speaking(run):
        for name, calls, copied, refused in _lacking(record):
            found.setdefault((record.case.variant, name, refused), []).append((record.case.shape, calls, copied))
    made = [_lack(key, uses) for key, uses in found.items()]
    return sorted(made, key=lambda item: (item.adapter, -len(item.models), -item.calls, item.operator))


def _speaking(run: Run) -> list[Record]:
    """One record per case: every worker counts the same."""
    first: dict[str, Record] = {}
    for record in latest(run.records):
        if record.case.workload == WORKLOAD and record.status is not Status.SKIPPED and not record.interrupted:
            first.setdefault(record.case.id, record)
    return list(first.values())


def _census(record: Record) -> Census:
    counted = {outcome: _number(record, f"operators_{outcome}") for outcome in OUTCOMES}
    calls = _number(record, "fallback_calls")
    return Census(
        adapter=record.case.variant,
        model=record.case.shape,
        used=round(_number(record, "operators_used") or 0),
        by_outcome={outcome: round(value or 0) for outcome, value in counted.items()},
        fallback_calls=None if calls is None else round(calls),
        fallback_bytes=_number(record, "fallback_bytes"),
        fails=record.reason if record.status is not Status.OK else "",
    )


def _number(record: Record, fact: str) -> float | None:
    found = record.facts.get(fact)
    return found.value if found else None


def _lacking(record: Record) -> Iterator[tuple[str, int, int | None, bool]]:
    """Name, calls, bytes, and whether it was refused; a record is whatever its file says."""
    for name, tally in _table(record.details.get("fallbacks")).items():
        tally = _table(tally)
        copied = tally.get("copied_bytes")
        yield name, _whole(tally.get("calls")), _whole(copied) if copied is not None else None, False
    operators = _table(record.details.get("operators"))
    if not record.details.get("fallbacks"):
        yield from ((name, _whole(calls), None, False) for name, calls in _table(operators.get("fallback")).items())
    yield from ((name, _whole(calls), None, True) for name, calls in _table(operators.get("missing")).items())


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int:
    return value if type(value) is int else 0


def _lack(key: tuple[str, str, bool], uses: list[tuple[str, int, int | None]]) -> Lack:
    copied = [item for _, _, item in uses if item is not None]
    return Lack(
        adapter=key[0],
        operator=key[1],
        models=tuple(model for model, _, _ in uses),
        calls=sum(calls for _, calls, _ in uses),
        copied_bytes=sum(copied) if copied else None,
        refused=key[2],
    )
