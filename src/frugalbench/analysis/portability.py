"""What became of each graph in each backend, and how portable its speed is; from stored records alone.

Performance portability Φ (Pennycook, Sewall and Lee, "A metric for performance portability", 2016, arXiv 1611.07409):
the harmonic mean over the backends of a device of each one's efficiency, and 0 as soon as one of them fails.
Efficiency here is the time of the fastest arm of that comparison, native ones included, over the backend's own.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from frugalbench.analysis.first_start import Start, started
from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import replicate_time_s, time_interval
from frugalbench.analysis.placed import Placed, placed
from frugalbench.analysis.statistics import counted, latest
from frugalbench.schema import Record, Status

WORKLOAD = "onnx_graphs"
NATIVE = ("torch-eager", "torch-compile")
YARDSTICK = "onnx-reference"
"""Evaluates every operator one by one to say what is right; nobody deploys it."""
PASS, NOT_RUN = "pass", "not run"
OUTCOMES = (
    "crash", "timeout", "export error", "load error", "fallback", "run error", "wrong", "no reference", NOT_RUN, PASS,
)  # fmt: skip
"""Worst first."""
_REASONS = (
    (r"ExportError", "export error"),
    (r"LoadError", "load error"),
    (r"RunError", "run error"),
    (r"SilentFallback", "fallback"),
    (r"wrong answer|answer changed", "wrong"),
    (r"no float64 reference", "no reference"),
    (r"(no answer|did not take a request) within", "timeout"),
    (r"(the )?worker (killed|died|exited|closed)|wrote into the pipe|memory limit|out of memory|printed", "crash"),
)


@dataclass(frozen=True)
class Latency:
    """Time per call in one regime, with its interval over replicates; ``share``: fastest arm's time over it."""

    regime: str
    time_s: float
    low_s: float | None
    high_s: float | None
    share: float


@dataclass(frozen=True)
class Cell:
    """One graph in one backend: the worst of its cases."""

    graph: str
    backend: str
    native: bool
    outcome: str
    reason: str
    cases: int
    passed: int
    as_asked: bool | None
    """Whether all compute ran where asked; ``None`` where nothing ran."""
    error: float | None
    """Largest over cases, and so are p50 and p99; relative to the reference's rms."""
    error_p50: float | None
    error_p99: float | None
    top1: float | None
    tolerance: float | None
    latencies: tuple[Latency, ...]
    start: Start | None = None
    """What came before the first answer."""
    placed: Placed | None = None
    """What ran where."""

    @property
    def portable(self) -> bool:
        """Whether it says something of portability: neither a native arm nor ONNX's own evaluator, the yardstick."""
        return not self.native and self.backend != YARDSTICK


@dataclass(frozen=True)
class Portability:
    """Φ of one graph in one regime."""

    graph: str
    regime: str
    phi: float
    low: float | None
    high: float | None
    running: float | None
    """The same mean over those backends alone that pass; ``None`` when none does."""
    backends: int
    passed: int


def outcome_of(record: Record) -> str:
    """One of :data:`OUTCOMES`; a capped case is slow, not broken."""
    if record.status is Status.SKIPPED:
        return NOT_RUN
    if record.status is not Status.FAILED:
        return PASS
    return next((name for pattern, name in _REASONS if re.match(pattern, record.reason)), "run error")


def cells(run: Run) -> list[Cell]:
    """Every graph and backend that the run tried, in its order."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in _records(run):
        groups.setdefault((record.case.shape, record.case.variant), []).append(record)
    fastest = _fastest(run)
    return [_cell(graph, name, records, fastest) for (graph, name), records in groups.items()]


def _records(run: Run) -> list[Record]:
    return [record for record in latest(run.records) if record.case.workload == WORKLOAD and not record.interrupted]


def _cell(graph: str, name: str, records: list[Record], fastest: dict[tuple[str, str], str]) -> Cell:
    worst = min(records, key=lambda record: OUTCOMES.index(outcome_of(record)))
    bad = {record.case.id for record in records if outcome_of(record) != PASS}
    as_asked = [fact.value for record in records if (fact := record.facts.get("ran_as_asked"))]
    checks = [record.verification for record in records if record.verification]
    return Cell(
        graph=graph,
        backend=name,
        native=name in NATIVE,
        outcome=outcome_of(worst),
        reason=worst.reason,
        cases=len({record.case.id for record in records}),
        passed=len({record.case.id for record in records} - bad),
        as_asked=all(value == 1 for value in as_asked) if as_asked else None,
        error=max((check.error for check in checks if check.error is not None), default=None),
        error_p50=_largest(records, "error_p50"),
        error_p99=_largest(records, "error_p99"),
        top1=min((fact.value for r in records if (fact := r.facts.get("top1_agreement")) and fact.value is not None),
                 default=None),
        tolerance=max((check.tolerance for check in checks), default=None),
        latencies=tuple(_latencies(graph, records, fastest)),
        start=started(records),
        placed=next((found for record in records if (found := placed(record))), None),
    )  # fmt: skip


def _largest(records: Sequence[Record], fact: str) -> float | None:
    return max((q.value for r in records if (q := r.facts.get(fact)) and q.value is not None), default=None)


def _times(records: Iterable[Record]) -> dict[tuple[str, str, str], dict[int, float]]:
    """(graph, regime, backend) to replicate to time per call, of what counts."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for record in records:
        time_s = replicate_time_s(record) if counted(record) else None
        if time_s is not None:
            key = (record.case.shape, record.case.regime, record.case.variant)
            found.setdefault(key, {})[record.replicate] = time_s
    return found


def _fastest(run: Run) -> dict[tuple[str, str], Any]:
    """(graph, regime) to the fastest arm's name and its times by replicate."""
    best: dict[tuple[str, str], tuple[float, str, dict[int, float]]] = {}
    for (graph, regime, name), times in _times(_records(run)).items():
        mine = (median(times.values()), name, times)
        best[graph, regime] = min(best.get((graph, regime), mine), mine, key=lambda item: item[0])
    return {key: (name, times) for key, (_, name, times) in best.items()}


def _latencies(graph: str, records: Sequence[Record], fastest: dict[tuple[str, str], Any]) -> Iterable[Latency]:
    for (_, regime, _), times in _times(records).items():
        low, high = time_interval(list(times.values()))
        shares = _shares(times, fastest[graph, regime][1])
        yield Latency(regime, median(times.values()), low, high, median(shares.values()) if shares else 0.0)


def _shares(times: dict[int, float], best: dict[int, float]) -> dict[int, float]:
    """Efficiency by replicate, over those that both arms took part in."""
    return {number: best[number] / time_s for number, time_s in times.items() if number in best}


def portabilities(run: Run) -> list[Portability]:
    """Φ of each graph and regime over the portable backends that the run tried."""
    times, fastest = _times(_records(run)), _fastest(run)
    table = [cell for cell in cells(run) if cell.portable and cell.outcome != NOT_RUN]
    return [
        _portability(graph, regime, [cell for cell in table if cell.graph == graph], times, fastest[graph, regime][1])
        for graph, regime in fastest
        if any(cell.graph == graph for cell in table)
    ]


def _portability(
    graph: str,
    regime: str,
    row: Sequence[Cell],
    times: dict[tuple[str, str, str], dict[int, float]],
    best: dict[int, float],
) -> Portability:
    timed = [times[key] for cell in row if cell.outcome == PASS and (key := (graph, regime, cell.backend)) in times]
    means = _harmonic([_shares(item, best) for item in timed])
    running = median(means) if means else None
    whole = bool(means) and len(timed) == len(row)
    low, high = time_interval(means) if whole else (None, None)
    high = None if high is None else max(min(high, 1.0), running or 0.0)
    passed = sum(cell.outcome == PASS for cell in row)
    return Portability(graph, regime, running if whole and running else 0.0, low, high, running, len(row), passed)


def _harmonic(shares: Sequence[dict[int, float]]) -> list[float]:
    """Harmonic mean over backends, one for each replicate that all of them finished."""
    common = set.intersection(*(set(item) for item in shares)) if shares else set()
    return [len(shares) / sum(1 / item[number] for item in shares) for number in sorted(common)]


def file_facts(run: Run, graph: str) -> dict[str, Any]:
    """What was read of a graph's file before anything ran: of a file in the params, of an export in the details."""
    for record in _records(run):
        if record.case.shape == graph:
            found = record.case.params.get("file") or record.details.get("export")
            if found:
                return dict(found)
    return {}
