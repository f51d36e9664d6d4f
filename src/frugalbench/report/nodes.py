"""Every node that a runtime executed of a graph, one table for each backend, where a run listed them."""

from collections.abc import Iterator, Sequence

from frugalbench.analysis.load import Run
from frugalbench.analysis.placed import PlacedNode, placed_nodes
from frugalbench.analysis.portability import WORKLOAD
from frugalbench.analysis.statistics import latest
from frugalbench.report.tables import Cell, Table
from frugalbench.units import DASH, seconds, share

_NOTES = (
    "after fusion, in the order in which the runtime tells of its nodes; + put in by the runtime",
    "time: of the node in one observed call, profiler included, and its share of all nodes' time",
)


def listed(run: Run) -> dict[str, list[PlacedNode]]:
    """Backend to the nodes that it executed of the run's first graph; empty where the run did not list them."""
    found: dict[str, list[PlacedNode]] = {}
    for record in latest(run.records):
        if record.case.workload == WORKLOAD and record.case.variant not in found and (nodes := placed_nodes(record)):
            found[record.case.variant] = nodes
    return found


def nodes_tables(run: Run) -> list[Table]:
    """One table for each backend."""
    return [_table(backend, nodes) for backend, nodes in listed(run).items()]


def _table(backend: str, nodes: Sequence[PlacedNode]) -> Table:
    """What no node tells has no column."""
    told = [(title, [_cell(title, node) for node in nodes]) for title in ("operator", "ran on", "type", "time", "node")]
    made_of = [", ".join(node.origins or ()) for node in nodes]
    if any(text != node.node for text, node in zip(made_of, nodes, strict=True) if text):
        told.append(("made of", made_of))
    shown = [(title, texts) for title, texts in told if any(texts)]
    columns = tuple((title, title == "time") for title, _ in shown)
    rows = tuple(tuple(Cell(text or DASH) for text in row) for row in zip(*(texts for _, texts in shown), strict=True))
    count = f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}"
    return Table(f"{backend}: {count}", columns, rows, tuple(_notes(nodes)))


def _cell(title: str, node: PlacedNode) -> str:
    if title == "operator":
        return f"{'+ ' if node.inserted else ''}{node.operator or ''}"
    if title == "ran on":
        return f"{node.place} {node.kernel}" if node.kernel else node.place
    if title == "type":
        return node.dtype or ""
    return node.node if title == "node" else _time(node)


def _time(node: PlacedNode) -> str:
    if node.time_s is None:
        return ""
    return seconds(node.time_s) + (f" {share(node.time_share)}" if node.time_share is not None else "")


def _notes(nodes: Sequence[PlacedNode]) -> Iterator[str]:
    yield _NOTES[0]
    yield _NOTES[1] if any(node.time_s is not None for node in nodes) else "this runtime tells no times of its nodes"
