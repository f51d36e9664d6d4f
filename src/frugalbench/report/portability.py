"""The matrix backend x graph, and the one page on a single model: what would stop you from moving it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

from frugalbench.analysis.load import Run
from frugalbench.analysis.portability import NOT_RUN, PASS, Cell, Latency, Portability, cells, file_facts, portabilities
from frugalbench.report.first_start import NOTES as FIRST_START_NOTES
from frugalbench.report.first_start import backends_table, spanned
from frugalbench.report.tables import Cell as Text
from frugalbench.report.tables import Table
from frugalbench.report.terminal import table_terminal
from frugalbench.units import DASH, byte_size, significant

WIDTH = 80
SLOW = 0.5
"""A backend below this share of the fastest arm's speed is named among what would stop a move."""
_MOST_OPERATORS = 8
_MATRIX_NOTES = (
    "largest error over the reference's rms, then speed as a share of the fastest arm's (worst of all sizes)",
    "anything but a number is the outcome; reasons stand in the table of failed cases",
)

_PLACEMENT_NOTES = (
    "what ran; − nodes of the file that were fused, folded or dropped, + casts, copies and changes of layout that the "
    "runtime put in; bytes copied between host and device in one call, where there are any",
    "kernels, modules or one graph: the runtime tells no more of what it executes",
)


def portability_tables(runs: Sequence[Run]) -> list[Table]:
    """Per run the matrix and Φ of each graph; empty when no run has any."""
    found = [(run, [cell for cell in cells(run) if cell.backend != "any"]) for run in runs]
    made = [table for run, tried in found if tried for table in _run_tables(run, tried)]
    return [table for table in made if table.rows]


def _run_tables(run: Run, tried: Sequence[Cell]) -> tuple[Table, ...]:
    return _matrix(run, tried), _phi(run), _placement(run, tried)


def _matrix(run: Run, found: Sequence[Cell]) -> Table:
    return _crossed(f"Graphs and backends ({run.manifest.name})", found, _cell, _MATRIX_NOTES)


def _crossed(
    title: str, found: Sequence[Cell], show: Callable[[Cell | None], Text], notes: tuple[str, ...]
) -> Table:  # fmt: skip
    """Graphs down, backends across."""
    backends = list(dict.fromkeys(cell.backend for cell in found))
    graphs = list(dict.fromkeys(cell.graph for cell in found))
    at = {(cell.graph, cell.backend): cell for cell in found}
    rows = tuple((Text(graph), *(show(at.get((graph, name))) for name in backends)) for graph in graphs)
    return Table(title, (("graph", False), *((name, False) for name in backends)), rows, notes, "onnx")


def _placement(run: Run, found: Sequence[Cell]) -> Table:
    """What each runtime executed of each graph, as counts; operators and kernels in the hint."""
    told = [cell for cell in found if cell.placed]
    return _crossed(f"Nodes that ran ({run.manifest.name})", told, _nodes, _PLACEMENT_NOTES)


def _nodes(cell: Cell | None) -> Text:
    if cell is None or cell.placed is None:
        return Text(DASH)
    return Text(cell.placed.brief, mark="ok" if cell.as_asked else "failed", hint=cell.placed.full)


def _cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text(DASH)
    if cell.outcome != PASS:
        some = f" {cell.cases - cell.passed} of {cell.cases}" if cell.passed else ""
        return Text(f"{cell.outcome}{some}", mark="failed" if cell.outcome != NOT_RUN else "skipped", hint=cell.reason)
    error = DASH if cell.error is None else f"{cell.error:.0e}"
    share = min((item.share for item in cell.latencies), default=None)
    return Text(f"{error}, {significant(share, 2)}", mark="ok", hint=f"{cell.passed} of {cell.cases} cases")


def _phi(run: Run) -> Table:
    columns = (("graph", False), ("regime", False), ("Φ", True), ("of those that run", True), ("backends", True))
    rows = tuple(
        (Text(item.graph), Text(item.regime), Text(phi_text(item)), Text(significant(item.running)),
         Text(f"{item.passed} of {item.backends}"))
        for item in portabilities(run)
    )  # fmt: skip
    notes = (
        "Φ: harmonic mean of the backends' speed over the fastest arm's, 0 when one of them fails (arXiv 1611.07409)",
    )
    return Table(f"Performance portability ({run.manifest.name})", columns, rows, notes, "onnx")


def phi_text(item: Portability) -> str:
    """Φ with its interval over replicates."""
    if item.low is None or item.high is None:
        return significant(item.phi)
    return f"{significant(item.phi)} [{significant(item.low)}, {significant(item.high)}]"


def page(run: Run, absent: Mapping[str, str]) -> str:
    """One page on the single model of ``run``; ``absent`` maps backends that are not installed to how to get them."""
    found = cells(run)
    facts = file_facts(run, found[0].graph)
    params = run.manifest.plan.comparisons[0].arms[0].cases[0].params
    parts = [_head(facts, params, found), "", table_terminal(_backends(found)).strip("\n"), ""]
    parts += ["asked: all compute ran where asked; share: speed over that of the fastest arm", ""]
    parts += _starts(found) + _nodes_ran(found)
    parts += [f"Φ over {_count(item)} at {item.regime}: {phi_text(item)}" + _rest(item) for item in portabilities(run)]
    parts += ["", "What would stop you from moving this model"]
    stops = blockers(run)
    parts += [fill(f"- {line}", WIDTH, subsequent_indent="  ") for line in stops or ["nothing that was found here"]]
    parts += [fill(f"not tried: {name}: {why}", WIDTH, subsequent_indent="  ") for name, why in absent.items()]
    return "\n".join(parts) + "\n"


def _starts(found: Sequence[Cell]) -> list[str]:
    """What each backend needed before it gave its first answer."""
    told = [(cell.backend, cell.start) for cell in found if cell.start]
    if not told:
        return []
    lines = [fill(note, WIDTH, subsequent_indent="  ") for note in FIRST_START_NOTES]
    return [table_terminal(backends_table(told)).strip("\n"), "", *lines, ""]


def _nodes_ran(found: Sequence[Cell]) -> list[str]:
    told = [f"{cell.backend} {cell.placed.brief}" for cell in found if cell.placed]
    said = "what ran (− fused, folded or dropped nodes of the file, + put in by the runtime):"
    return [*(fill(f"{said} {'; '.join(told)}", WIDTH, subsequent_indent="  ").splitlines()), ""] if told else []


def _count(item: Portability) -> str:
    return f"{item.backends} backend{'s' if item.backends != 1 else ''}"


def _rest(item: Portability) -> str:
    if item.passed == item.backends or item.running is None:
        return ""
    return f"; {significant(item.running)} over the {item.passed} that pass"


def _head(facts: Mapping[str, Any], params: Mapping[str, Any], found: Sequence[Cell]) -> str:
    opset = ", ".join(f"{domain} {version}" for domain, version in facts["opset"].items())
    size = byte_size(float(facts["file_bytes"] + facts["external_bytes"]))
    lines = [
        f"{found[0].graph}: {size}, opset {opset}, IR {facts['ir_version']}, by {facts['producer'] or 'unknown'}",
        f"{facts['nodes']} nodes: {_operators(facts['operators'])}",
        *(f"input {item['name']}: {item['dtype']} {_shape(item['shape'])}" for item in facts["inputs"]),
        f"sizes tried: {_sizes(params, found)}",
        f"answers held against: {params['reference']}" + (f" ({facts['no_exact']})" if facts["no_exact"] else ""),
    ]
    if tolerance := next((cell.tolerance for cell in found if cell.tolerance), None):
        lines.append(
            f"tolerance: {tolerance:.1e} of the reference's rms ({facts['depth']} sums of products in a row, the "
            f"longest of {facts['reduction']})"
        )
    return "\n".join(fill(line, WIDTH, subsequent_indent="  ") for line in lines)


def _sizes(params: Mapping[str, Any], found: Sequence[Cell]) -> str:
    if "feed" in params:
        return f"those of {params['feed']}"
    regimes = list(dict.fromkeys(item.regime for cell in found for item in cell.latencies))
    fixed = ", ".join(f"{name} {size}" for name, size in params["dims"].items())
    return f"{', '.join(regimes) or 'as declared'}" + (f"; at the first: {fixed}" if fixed else "")


def _operators(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in list(counts.items())[:_MOST_OPERATORS]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f", and {more} other operators" if more > 0 else "")


def _shape(shape: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _backends(found: Sequence[Cell]) -> Table:
    columns = (("backend", False), ("outcome", False), ("asked", False), ("error", True), ("at", False),
               ("per call", True), ("share", True))  # fmt: skip
    return Table("", columns, tuple(row for cell in found for row in _rows(cell)))


def _rows(cell: Cell) -> Iterable[tuple[Text, ...]]:
    asked = DASH if cell.as_asked is None else "yes" if cell.as_asked else "no"
    error = DASH if cell.error is None else f"{cell.error:.1e}"
    start = (Text(cell.backend), Text(cell.outcome, mark="ok" if cell.outcome == PASS else "failed"), Text(asked),
             Text(error))  # fmt: skip
    blank = (Text(""), Text(""), Text(""), Text(""))
    if not cell.latencies:
        yield (*start, Text(DASH), Text(DASH), Text(DASH))
    for number, item in enumerate(cell.latencies):
        yield (
            *(blank if number else start),
            Text(item.regime),
            Text(time_text(item)),
            Text(significant(item.share, 2)),
        )


def time_text(item: Latency) -> str:
    """Time per call with its interval."""
    return spanned(item.time_s, item.low_s, item.high_s)


def blockers(run: Run) -> list[str]:
    """What stands in the way of moving the run's first graph, worst first, one sentence each."""
    found = cells(run)
    facts = file_facts(run, found[0].graph)
    lines = [_said(cell) for cell in found if cell.portable and cell.outcome not in (PASS, NOT_RUN)]
    lines += [_bisect_hint(facts, cell) for cell in found if cell.outcome in ("wrong", "load error")][:1]
    lines += [
        f"{cell.backend}: runs at {significant(share, 2)} of the fastest arm's speed"
        for cell in found
        if cell.portable
        and cell.outcome == PASS
        and (share := min((item.share for item in cell.latencies), default=1.0)) < SLOW
    ]
    return lines + (_of_file(facts) if facts else [])


def _said(cell: Cell) -> str:
    """The outcome with its reason, which may begin with the same words."""
    reason = cell.reason.partition("Error: ")[2] or cell.reason
    return f"{cell.backend}: {reason if reason.startswith(cell.outcome) else f'{cell.outcome}: {reason}'}"


def _bisect_hint(facts: Mapping[str, Any], cell: Cell) -> str:
    where = facts.get("path", "MODEL.onnx")
    return f"frugalbench bisect {where} --backend {cell.backend} names the node where it begins"


def _of_file(facts: Mapping[str, Any]) -> list[str]:
    """What the file itself says, whatever ran here."""
    lines = []
    if facts["custom_operators"]:
        names = ", ".join(facts["custom_operators"])
        lines.append(f"operators outside of the standard, which only some runtimes know: {names}")
    if (opset := facts["opset"].get("ai.onnx", 0)) > _COMMON_OPSET:
        lines.append(f"opset {opset} is newer than the {_COMMON_OPSET} that most runtimes and converters take today")
    if not any(isinstance(dim, str) for item in facts["inputs"] for dim in item["shape"]):
        lines.append("every size is fixed in the file: another batch or length needs another export")
    if facts["external_bytes"]:
        lines.append(f"weights lie in {len(facts['external_files'])} files beside it, which must move along")
    if facts["no_exact"]:
        lines.append(f"no float64 reference: agreement was only checked against another runtime ({facts['no_exact']})")
    return lines


_COMMON_OPSET = 22
"""Opset 23 brought Attention and RMSNormalization as operators, which several runtimes lack."""
