"""Two runs held against each other as tables for a terminal, a job page and a program."""

from collections.abc import Sequence
from typing import Any

from frugalbench.analysis.compare import (
    FASTER,
    IMPROVED,
    ONLY_NEW,
    REGRESSED,
    SLOWER,
    UNDECIDED,
    Change,
    Compared,
    Shift,
)
from frugalbench.report import safe
from frugalbench.report.markdown import table_markdown
from frugalbench.report.tables import Cell, Table
from frugalbench.report.terminal import table_terminal
from frugalbench.units import DASH, seconds, share, si, significant

MOST_LINES = 60
"""Rows of cases without a finding that a page or terminal shows; JSON has them all."""
_MARKS = {REGRESSED: "refuted", SLOWER: "refuted", IMPROVED: "supported", FASTER: "supported"}
_ORDER = {REGRESSED: 0, SLOWER: 0, IMPROVED: 1, FASTER: 1, UNDECIDED: 3}


def headline(found: Compared) -> str:
    """One sentence: does something stand in the way, and what was looked at."""
    tested = [change for change in found.changes if change.confidence is not None]
    words = (REGRESSED, IMPROVED) if found.same_machine else (SLOWER, FASTER)
    counts = [f"{sum(change.outcome == word for change in tested)} {word}" for word in (*words, UNDECIDED)]
    gates = sum(gate.worse for gate in found.gates)
    times = f"{len(tested)} tested: {', '.join(counts)}" if tested else "no time could be tested"
    start = "Failed" if found.regressions else "Passed"
    if found.same_machine and found.fail_above_pct is None:
        times += " (no --fail-above, so no time fails)"
    return f"{start}. Times: {times}. Gates: {gates} worse over {found.checked} cases."


def compared_tables(found: Compared, most: int = MOST_LINES) -> list[Table]:
    """What differs around the runs first, then gates, then times; empty tables left out."""
    tables = [_environment(found), _gates(found), _times(found, most)]
    return [table for table in tables if table.rows or table.notes]


def compared_terminal(found: Compared) -> str:
    """All of it as text."""
    return f"{headline(found)}\n" + "".join(table_terminal(table) for table in compared_tables(found))


def compared_markdown(found: Compared) -> str:
    """A summary for a job page: the sentence, then the tables."""
    parts = [f"# frugalbench compare\n\n**{safe.markdown(headline(found))}**\n"]
    return "\n".join([*parts, *(table_markdown(table) for table in compared_tables(found))])


def compared_plain(found: Compared) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "regressions": found.regressions,
        "same_machine": found.same_machine,
        "differences": found.differences,
        "changes": found.changes,
        "gates": found.gates,
        "cases_checked": found.checked,
        "shifts": found.shifts,
        "floor": found.floor,
        "fail_above_pct": found.fail_above_pct,
        "warnings": found.warnings,
    }


def junit(found: Compared) -> bytes:
    """JUnit XML: a test per case and metric, and per gate that found something. A regression is a failure."""
    from xml.etree import ElementTree

    suites = ElementTree.Element("testsuites", name="frugalbench compare")
    times = [(f"{c.case} {c.metric}", "times", _told(c) if c.alarm else "", _told(c)) for c in found.changes]
    shared = [(f"all cases {s.metric}", "times", shift_text(s) if s.alarm else "", shift_text(s)) for s in found.shifts]
    gates = [(f"{g.case} {g.what}", f"gate {g.gate}", g.text if g.worse else "", g.text) for g in found.gates]
    for name, tests in (("times", [*times, *shared]), ("gates", gates or [_no_gate(found)])):
        failures = sum(bool(failure) for _, _, failure, _ in tests)
        attributes = {"name": name, "tests": str(len(tests)), "failures": str(failures), "errors": "0"}
        suite = ElementTree.SubElement(suites, "testsuite", attributes)
        for title, group, failure, told in tests:
            case = ElementTree.SubElement(suite, "testcase", name=_xml(title), classname=f"frugalbench.{group}")
            if failure:
                ElementTree.SubElement(case, "failure", message=_xml(failure)).text = _xml(told)
            else:
                ElementTree.SubElement(case, "system-out").text = _xml(told)
    ElementTree.indent(suites)
    return bytes(ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


def _no_gate(found: Compared) -> tuple[str, str, str, str]:
    return f"{found.checked} cases", "gate", "", "nothing differs"


def _xml(text: str) -> str:
    """Spelled out: XML has no place for most control characters."""
    return safe.terminal(text).encode(errors="backslashreplace").decode().replace("\ufffe", "").replace("\uffff", "")


def _told(change: Change) -> str:
    """One case in one line."""
    spans = f" [{_digits(change.low)}, {_digits(change.high)}]" if change.low is not None else ""
    found = "" if change.detectable is None else f"{share(change.detectable)} would have been found four times in five"
    could = f"; {found}" if found else ""
    note = f"; {change.note}" if change.note else ""
    return f"{change.outcome}: new/base {_digits(change.ratio)}{spans}{could}{note}"


def shift_text(shift: Shift) -> str:
    """What all cases have in common, in one line."""
    told = (
        f"all {shift.cases} cases together: {shift.metric} {_digits(shift.ratio)} times the base's, cases apart by "
        f"{share(shift.spread)} more than their replicates explain"
    )
    if shift.alarm:
        return f"{told}; more than a machine drifts by itself"
    return f"{told}; the machine or everything, two runs cannot say: a case must stand out from it"


def _digits(ratio: float | None) -> str:
    if ratio is None:
        return DASH
    return f"{ratio:.3f}" if 0.1 < ratio < 10 else significant(ratio)


def _environment(found: Compared) -> Table:
    shown = found.differences[:MOST_LINES]
    rows = tuple((Cell(d.what), Cell(d.base), Cell(d.new)) for d in shown)
    more = () if len(shown) == len(found.differences) else (f"{len(found.differences) - len(shown)} more in --json",)
    columns = (("what", False), ("base", False), ("new", False))
    return Table("What differs around the runs", columns, rows, (*found.warnings, *more))


def _gates(found: Compared) -> Table:
    columns = (("gate", False), ("case", False), ("what", False), ("base", False), ("new", False), ("", False))
    shown = found.gates[:MOST_LINES]
    rows = tuple(
        (
            Cell(gate.gate), Cell(gate.case), Cell(gate.what), Cell(gate.base), Cell(gate.new),
            Cell("worse" if gate.worse else "better or other", mark="refuted" if gate.worse else ""),
        )
        for gate in shown
    )  # fmt: skip
    more = () if len(shown) == len(found.gates) else (f"{len(found.gates) - len(shown)} more in --json",)
    return Table("Gates", columns, rows, more)


def _times(found: Compared, most: int) -> Table:
    there = [change for change in found.changes if change.outcome != ONLY_NEW]
    ordered = sorted(there, key=lambda change: (_ORDER.get(change.outcome, 2), -(change.ratio or 0)))
    telling = [change for change in ordered if _ORDER.get(change.outcome, 2) < 3]
    shown = ordered[: max(most, len(telling[: 4 * most]))]
    columns = [("case", False), ("base", True), ("new", True), ("new/base [low, high]", True), ("detects", True)]
    if not found.same_machine:
        columns.append(("of roofline", True))
    rows = tuple(_line(change, not found.same_machine) for change in shown)
    title = "Times" if found.same_machine else "New machine against base machine"
    return Table(title, (*columns, ("", False)), rows, tuple(_notes(found, len(ordered) - len(shown))))


def _notes(found: Compared, hidden: int) -> Sequence[str]:
    notes = [f"{hidden} more cases in --json"] if hidden > 0 else []
    fresh = [change.case for change in found.changes if change.outcome == ONLY_NEW]
    notes += [f"{len(fresh)} cases only in new, {fresh[0]} first"] if fresh else []
    notes += [shift_text(shift) for shift in found.shifts]
    if any(change.confidence for change in found.changes):
        notes.append(
            "intervals: Welch's t over fresh processes, at the level that Holm's procedure gives each case (5% over "
            f"all), widened by {found.floor:.2%}; detects: the smallest slowdown named four times in five"
        )
    if found.same_machine and found.fail_above_pct:
        notes.append(
            f"fails: named, and more than {found.fail_above_pct:g}% slower as measured; a slowdown of exactly "
            f"{found.fail_above_pct:g}% measures more than that half of the time"
        )
    return notes


def _line(change: Change, machines: bool) -> tuple[Cell, ...]:
    show = seconds if change.metric == "time" else lambda value: si(value, "J/token")
    bounds = "" if change.low is None else f" [{_digits(change.low)}, {_digits(change.high)}]"
    hint = f"Welch's t over {change.replicates[0]} and {change.replicates[1]} replicates"
    word = f"{change.outcome}{', beyond the limit' if change.alarm else ''}{f' ({change.note})' if change.note else ''}"
    roofline = " → ".join(share(value) for value in change.roofline)
    return (
        Cell(change.case if change.metric == "time" else f"{change.case} (energy)"),
        Cell(show(change.base)),
        Cell(show(change.new)),
        Cell(_digits(change.ratio) + bounds, hint=hint),
        Cell(DASH if change.detectable is None else share(change.detectable)),
        *([Cell(roofline)] if machines else []),
        Cell(word, mark=_MARKS.get(change.outcome, "")),
    )
