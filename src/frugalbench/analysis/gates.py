"""What two runs of the same code must agree on without any statistics: work, bytes, memory, placement, accuracy.

A gate fails on what became worse; what became better is shown. Times are judged elsewhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from frugalbench.analysis.conformance import Lost, lost, standings
from frugalbench.analysis.load import Run
from frugalbench.analysis.statistics import counted, latest
from frugalbench.schema import Frozen, Record, Status
from frugalbench.units import byte_size, significant

GATES = ("status", "work", "bytes", "memory", "placement", "accuracy", "conformance")
_PSS_SHARE, _PSS_BYTES = 0.05, 4 * 2**20
"""Resident memory differs from start to start: worse is more than both, in every replicate."""


class Gate(Frozen, frozen=True, kw_only=True):
    """One figure of one case that the two runs do not agree on."""

    gate: str
    """One of :data:`GATES`."""
    case: str
    what: str
    base: str
    new: str
    worse: bool

    @property
    def text(self) -> str:
        """One line."""
        return f"{self.case}: {self.what} {self.base} → {self.new}"


@dataclass(frozen=True)
class _Fact:
    gate: str
    more_is_worse: bool
    slack: float
    """Relative change that counts as none."""


_COSTS = {"flop": "work", "op": "work", "weight_bytes": "bytes", "traffic_bytes": "bytes"}
_FACTS = {
    "weight_bytes": _Fact("bytes", True, 1e-9),
    "file_bytes": _Fact("bytes", True, 1e-3),
    "padding_share": _Fact("work", True, 1e-6),
    "ran_as_asked": _Fact("placement", False, 1e-9),
    "share_nodes_asked": _Fact("placement", False, 1e-9),
    "fallback_calls": _Fact("placement", True, 1e-9),
    "output_error": _Fact("accuracy", True, 0.01),
    "parity": _Fact("accuracy", False, 1e-9),
    "accuracy": _Fact("accuracy", False, 1e-9),
    "agreement": _Fact("accuracy", False, 1e-9),
    "perplexity": _Fact("accuracy", True, 0.001),
    "divergence": _Fact("accuracy", True, 0.01),
}
"""Slack covers sums in another order (accuracy) and names inside a file (its bytes)."""


def gates(base: Run, new: Run, chosen: Iterable[str] = GATES) -> tuple[Gate, ...]:
    """Everything on which ``new`` differs from ``base``, in the order of :data:`GATES`, cases in both runs only."""
    wanted = set(chosen)
    before, after = _by_case(base), _by_case(new)
    found = [gate for case in before.keys() & after.keys() for gate in _case(case, before[case], after[case])]
    found += [_lost(item) for item in lost(standings(base), standings(new))]
    order = {name: at for at, name in enumerate(GATES)}
    kept = [gate for gate in found if gate.gate in wanted]
    return tuple(sorted(kept, key=lambda gate: (order[gate.gate], not gate.worse, gate.case, gate.what)))


def in_both(base: Run, new: Run) -> int:
    """How many cases the gates looked at."""
    return len(_by_case(base).keys() & _by_case(new).keys())


def _lost(item: Lost) -> Gate:
    ended = f"{item.outcome.value} ({item.reason})" if item.reason else item.outcome.value
    return Gate(gate="conformance", case=item.case, what=item.name, base="passed", new=ended, worse=True)


def _by_case(run: Run) -> dict[str, list[Record]]:
    """Every case's records, the pilot too: it also computes and verifies."""
    found: dict[str, list[Record]] = {}
    for record in latest(run.records):
        if record.status is not Status.SKIPPED and not record.interrupted:
            found.setdefault(record.case.id, []).append(record)
    return found


def _case(name: str, base: Sequence[Record], new: Sequence[Record]) -> Iterable[Gate]:
    before, after = state(base), state(new)
    if before is not after:
        yield _gate("status", name, "status", before.value, _why(after, new), worse=_RANK[after] > _RANK[before])
    good = [[record for record in side if counted(record)] for side in (base, new)]
    if all(good):
        yield from _costs(name, good[0][-1], good[1][-1])
        yield from _facts(name, _values(good[0]), _values(good[1]))
        yield from _placement(name, good[0][-1].details, good[1][-1].details)
        yield from _memory(name, *([r.pss_bytes for r in side if r.pss_bytes] for side in good))


_RANK = {Status.OK: 0, Status.CAPPED: 1, Status.FAILED: 2, Status.SKIPPED: 3}


def state(records: Sequence[Record]) -> Status:
    """What became of a case: the worst that happened to any of its replicates; capped and yet timed is good."""
    return max((_outcome(record) for record in records), key=lambda status: _RANK[status])


def _outcome(record: Record) -> Status:
    return Status.OK if record.status is Status.CAPPED and record.samples else record.status


def _why(status: Status, records: Sequence[Record]) -> str:
    reasons = [record.reason for record in records if record.status is status and record.reason]
    return f"{status.value} ({reasons[-1][:200]})" if reasons else status.value


def _costs(name: str, base: Record, new: Record) -> Iterable[Gate]:
    if base.case.cost is None or new.case.cost is None or not base.case.cost.token or not new.case.cost.token:
        return
    for what, gate in _COSTS.items():
        before = getattr(base.case.cost, what) / base.case.cost.token
        after = getattr(new.case.cost, what) / new.case.cost.token
        yield from _number(name, _Fact(gate, True, 1e-6), f"{what} per token", before, after)


def _values(records: Sequence[Record]) -> dict[str, float]:
    """Fact to the median over replicates."""
    seen: dict[str, list[float]] = {}
    for record in records:
        for what in _FACTS.keys() & record.facts.keys():
            value = record.facts[what].value
            if value is not None:
                seen.setdefault(what, []).append(value)
    return {what: median(values) for what, values in seen.items()}


def _facts(name: str, base: Mapping[str, float], new: Mapping[str, float]) -> Iterable[Gate]:
    for what in sorted(base.keys() & new.keys()):
        yield from _number(name, _FACTS[what], what, base[what], new[what])


def _number(case: str, fact: _Fact, what: str, before: float, after: float) -> Iterable[Gate]:
    if abs(after - before) > fact.slack * max(abs(before), abs(after)):
        show = byte_size if what.endswith("_bytes") else _exact
        shown = show(before), show(after)
        if shown[0] == shown[1]:
            shown = f"{before:.10g}", f"{after:.10g}"
        yield _gate(fact.gate, case, what, *shown, worse=(after > before) is fact.more_is_worse)


def _exact(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else significant(value, 4)


def _placement(name: str, base: Mapping[str, object], new: Mapping[str, object]) -> Iterable[Gate]:
    """A provider or device that takes nodes now and took none before; how many nodes each has is shown."""
    before, after = (_nodes(side.get("placement")) for side in (base, new))
    if before and after and before != after:
        worse = bool(after.keys() - before.keys())
        yield _gate("placement", name, "nodes per device", _listed(before), _listed(after), worse=worse)


def _nodes(placement: object) -> dict[str, int]:
    if not isinstance(placement, dict):
        return {}
    return {
        str(device): sum(count for count in nodes.values() if isinstance(count, int))
        for device, nodes in placement.items()
        if isinstance(nodes, dict)
    }


def _listed(nodes: Mapping[str, int]) -> str:
    return ", ".join(f"{device} {count}" for device, count in sorted(nodes.items()))


def _memory(name: str, base: Sequence[float], new: Sequence[float]) -> Iterable[Gate]:
    if not base or not new:
        return
    before, after = median(base), median(new)
    far = abs(after - before) > max(_PSS_SHARE * before, _PSS_BYTES)
    if far and (min(new) > max(base) or max(new) < min(base)):
        yield _gate("memory", name, "pss_bytes", byte_size(before), byte_size(after), worse=after > before)


def _gate(gate: str, case: str, what: str, base: str, new: str, *, worse: bool) -> Gate:
    return Gate(gate=gate, case=case, what=what, base=base, new=new, worse=worse)
