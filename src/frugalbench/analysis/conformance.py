"""What records of ``onnx_conformance`` say: how the cases of a suite ended on each runtime, and what was lost since."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from frugalbench.analysis.load import Run
from frugalbench.analysis.statistics import counted, latest
from frugalbench.schema import CaseOutcome, Record

WORKLOAD = "onnx_conformance"
MOST_COUNT = 2**40
Counts = tuple[int, int]
"""Cases, and how many of them passed."""


@dataclass(frozen=True)
class Standing:
    """One runtime in one run. Whatever a file does not tell is ``None`` or empty."""

    record: Record
    counts: Mapping[CaseOutcome, int]
    core: Counts | None
    """Core element types, operator sets that the runtime declares."""
    common: Counts | None
    """The same over the window of operator sets that is shared by all runtimes."""
    operators: Mapping[str, Counts]
    by_opset: Mapping[str, Counts]
    passed: frozenset[str]
    ended: Mapping[str, tuple[CaseOutcome, str]]
    """Cases that did not pass: how they ended, and why."""

    @property
    def backend(self) -> str:
        return self.record.case.backend

    @property
    def cases(self) -> int:
        return sum(self.counts.values())

    def detail(self, name: str) -> str:
        """A plain detail of the record as text; empty where it has none."""
        found = self.record.details.get(name)
        return str(found)[:200] if isinstance(found, str | int | float) else ""

    @property
    def opsets(self) -> str:
        """Operator sets of the core cases, with a mark where the runtime declares none."""
        found = self.record.details.get("opsets")
        if not isinstance(found, list) or len(found) != 2 or not all(isinstance(item, int) for item in found):
            return ""
        return f"{found[0]} to {found[1]}" + ("" if self.record.details.get("opsets_declared") is True else ", assumed")


def standings(run: Run) -> list[Standing]:
    """One per runtime, device and suite, in the order of the records."""
    found: dict[str, Record] = {}
    for record in latest(run.records):
        if record.case.workload == WORKLOAD and counted(record) and "cases" in record.facts:
            found.setdefault(record.case.id, record)
    return [_standing(record) for record in found.values()]


def _standing(record: Record) -> Standing:
    details = record.details
    return Standing(
        record=record,
        counts={outcome: _fact(record, outcome.value) or 0 for outcome in CaseOutcome},
        core=_pair(record, "core") or _pair(record, "sampled_core"),
        common=_pair(record, "common") or _pair(record, "sampled_common"),
        operators=_tally(details.get("operators")),
        by_opset=_tally(details.get("by_opset")),
        passed=frozenset(_names(details.get("passed"))),
        ended=dict(_ended(details.get("not_passed"))),
    )


def _fact(record: Record, name: str) -> int | None:
    found = record.facts.get(name)
    return int(found.value) if found is not None and found.value is not None and 0 <= found.value < MOST_COUNT else None


def _pair(record: Record, name: str) -> Counts | None:
    cases, passed = _fact(record, f"{name}_cases"), _fact(record, f"{name}_passed")
    return None if cases is None or passed is None else (cases, passed)


def _tally(value: Any) -> dict[str, Counts]:
    items = value.items() if isinstance(value, dict) else ()
    return {str(key): (pair[0], pair[1]) for key, pair in items if _is_pair(pair)}


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(i) is int and 0 <= i < MOST_COUNT for i in value)


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _ended(value: Any) -> Iterable[tuple[str, tuple[CaseOutcome, str]]]:
    for outcome in CaseOutcome:
        cases = value.get(outcome.value) if isinstance(value, dict) else None
        for name, reason in cases.items() if isinstance(cases, dict) else ():
            yield str(name), (outcome, str(reason))


@dataclass(frozen=True)
class Lost:
    """A case that passed and no longer does."""

    case: str
    name: str
    outcome: CaseOutcome
    reason: str


def lost(base: Iterable[Standing], new: Iterable[Standing]) -> list[Lost]:
    """Cases that passed in ``base`` and ended otherwise in ``new`` on the same runtime and device, of any version.

    A case that ``new`` did not execute, because it is a sample or its suite lacks it, is not lost.
    """
    before: dict[tuple[str, str], set[str]] = {}
    for item in base:
        before.setdefault((item.backend, item.record.case.device), set()).update(item.passed)
    return [
        Lost(item.record.case.id, name, outcome, reason)
        for item in new
        for name, (outcome, reason) in item.ended.items()
        if name in before.get((item.backend, item.record.case.device), ())
    ]
