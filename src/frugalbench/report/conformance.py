"""ONNX's own test cases, runtime by runtime: how they ended, where runtimes fall short, and how scoreboards count."""

from collections.abc import Callable, Sequence

from frugalbench.analysis.conformance import Counts, Standing, standings
from frugalbench.analysis.load import Run
from frugalbench.report.tables import Cell, Table
from frugalbench.schema import CaseOutcome
from frugalbench.units import DASH

MOST_OPERATORS = 15
_SHOWN = {
    CaseOutcome.PASSED: "passed", CaseOutcome.MISMATCH: "mismatch", CaseOutcome.LOAD_ERROR: "load error",
    CaseOutcome.RUN_ERROR: "run error", CaseOutcome.UNSUPPORTED: "unsupported", CaseOutcome.CRASH: "crash",
    CaseOutcome.TIMEOUT: "timeout",
}  # fmt: skip
_SCOREBOARD = (
    "published beside it: ONNX Runtime 1.23.2 passed 1265 of the 1437 cases of onnx 1.17.0 "
    "(github.com/onnx/backend-scoreboard, results/ort/stable/trend.json, entry of 2025-11-09, read 2026-11-22)"
)


def conformance_tables(runs: Sequence[Run]) -> list[Table]:
    """Per run that executed the suite: outcomes, the official scoreboard's counts, operators, operator sets."""
    tables = []
    for run in runs:
        if found := standings(run):
            name = run.manifest.name
            worst = _grid(f"Worst operators ({name})", "operator", found, lambda item: item.operators, _worst)
            opsets = _grid(f"Cases by operator set ({name})", "opset", found, lambda item: item.by_opset, _by_number)
            tables += [_outcomes(name, found), _scoreboard(name, found), worst, opsets]
    return [table for table in tables if table.rows]


def _outcomes(name: str, found: Sequence[Standing]) -> Table:
    titles = ("runtime", "version", "suite", "cases", *_SHOWN.values(), "all", "core", "core opsets", "7 to 22")
    words = ("runtime", "version", "suite", "core opsets")
    lines = tuple(_outcomes_line(item) for item in found)
    notes = (
        "every case ends in exactly one of the seven ways; unsupported: the runtime's own refusal, and no pass",
        "core: ai.onnx with fp32, int64, int32, bool, uint8, int8, in the operator sets that the runtime declares",
        "7 to 22: the same over these operator sets on every runtime, so that columns can be compared",
        *dict.fromkeys(item.detail("not_judged") for item in found if item.detail("not_judged")),
    )
    return Table(f"Conformance ({name})", tuple((t, t not in words) for t in titles), lines, notes, "onnx")


def _outcomes_line(item: Standing) -> tuple[Cell, ...]:
    return (
        Cell(item.backend, hint=item.record.case.id),
        Cell(item.detail("version") or DASH),
        Cell(item.detail("suite") or DASH),
        Cell(str(item.cases)),
        *(Cell(str(item.counts[outcome]), hint=_examples(item, outcome)) for outcome in _SHOWN),
        _share((item.cases, item.counts[CaseOutcome.PASSED])),
        _share(item.core),
        Cell(item.opsets or DASH),
        _share(item.common),
    )


def _examples(item: Standing, outcome: CaseOutcome) -> str:
    cases = [f"{name}: {reason}" for name, (how, reason) in item.ended.items() if how is outcome]
    return "; ".join(cases[:3])


def _share(counts: Counts | None) -> Cell:
    if counts is None or not counts[0]:
        return Cell(DASH)
    return Cell(f"{100 * counts[1] / counts[0]:.1f}%", hint=f"{counts[1]} of {counts[0]} cases")


def _scoreboard(name: str, found: Sequence[Standing]) -> Table:
    titles = ("runtime", "cases", "passed", "", "as its runner counts", " ", "as its wrappers count", "  ")
    lines = tuple(_scoreboard_line(item) for item in found)
    notes = (
        'the runner of onnx.backend.test counts "not supposed to implement it" as passed',
        "wrappers of the scoreboard (tract's, say) say that of load and run errors, crashes and timeouts too",
        _SCOREBOARD,
    )
    title = f"Conformance as the official scoreboard counts ({name})"
    return Table(title, tuple((t, t != "runtime") for t in titles), lines, notes, "onnx")


def _scoreboard_line(item: Standing) -> tuple[Cell, ...]:
    passed = item.counts[CaseOutcome.PASSED]
    runner = passed + item.counts[CaseOutcome.UNSUPPORTED]
    wrapper = item.cases - item.counts[CaseOutcome.MISMATCH]
    pairs = [(Cell(str(count)), _share((item.cases, count))) for count in (passed, runner, wrapper)]
    return Cell(item.backend), Cell(str(item.cases)), *(cell for pair in pairs for cell in pair)


def _grid(
    title: str,
    first: str,
    found: Sequence[Standing],
    of: Callable[[Standing], object],
    order: Callable[[Sequence[dict[str, Counts]]], list[str]],
) -> Table:
    """One row per key, one column per runtime: cases that passed, of those there are."""
    tallies = [tally for item in found if isinstance(tally := of(item), dict)]
    lines = tuple((Cell(key), *(Cell(_of(tally.get(key))) for tally in tallies)) for key in order(tallies))
    columns = ((first, False), *((item.backend, True) for item in found))
    return Table(title, columns, lines, ("passed of cases; node cases with their expanded forms",), "onnx")


def _of(counts: Counts | None) -> str:
    return DASH if counts is None else f"{counts[1]} of {counts[0]}"


def _worst(tallies: Sequence[dict[str, Counts]]) -> list[str]:
    """Operators with most cases that did not pass, all runtimes together."""
    missed: dict[str, int] = {}
    for tally in tallies:
        for key, (cases, passed) in tally.items():
            missed[key] = missed.get(key, 0) + cases - passed
    return [key for key, count in sorted(missed.items(), key=lambda item: (-item[1], item[0])) if count][
        :MOST_OPERATORS
    ]


def _by_number(tallies: Sequence[dict[str, Counts]]) -> list[str]:
    keys = {key for tally in tallies for key in tally if key.isdecimal() and len(key) < 6}
    return sorted(keys, key=int)
