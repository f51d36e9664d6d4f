"""First load, compilation and first inference, apart from steady latency: a matrix, lines of evidence, a table."""

from collections.abc import Iterator, Sequence

from frugalbench.analysis.first_start import Start, Step, starts_of
from frugalbench.analysis.load import Run
from frugalbench.report.tables import Cell, Table
from frugalbench.units import DASH, seconds, significant

_SCALES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
NOTES = (
    "load + compile + first inference, medians over fresh processes that had imported their libraries; –: no such step",
    "95% intervals from three starts on, and none that spans a factor of a thousand",
    "in brackets: taken from a cache on disk in every start, the time is that of the build that filled it",
    "model files had been read just before, so the file cache was warm; a runtime that compiles in its first calls has "
    "them under compile",
)


def first_start_tables(runs: Sequence[Run]) -> list[Table]:
    """Per run and workload a matrix of graphs and backends; empty when no record tells of its start."""
    return [table for run in runs for table in _tables(run)]


def _tables(run: Run) -> Iterator[Table]:
    found = starts_of(run)
    for workload in dict.fromkeys(key[0] for key in found):
        graphs = dict.fromkeys(key[1] for key in found if key[0] == workload)
        backends = dict.fromkeys(key[2] for key in found if key[0] == workload)
        rows = tuple(
            (Cell(graph), *(_cell(found.get((workload, graph, name))) for name in backends)) for graph in graphs
        )
        columns = (("graph", False), *((name, False) for name in backends))
        yield Table(f"First start, {workload} ({run.manifest.name})", columns, rows, NOTES, "onnx")


def _cell(start: Start | None) -> Cell:
    if start is None:
        return Cell(DASH)
    hint = "; ".join(f"{name} {text}" for name, text, _ in start_lines(start))
    return Cell(steps_text(start), hint=f"{hint}; steady {seconds(start.steady_s)}")


def steps_text(start: Start) -> str:
    """``load + compile + first inference`` in one unit."""
    steps = (start.load, start.compile, start.first_inference)
    longest = max((step.time_s for step in steps if step), default=0.0)
    scale, unit = next((item for item in _SCALES if longest >= item[0]), _SCALES[-1])
    parts = [DASH if step is None else _bracketed(significant(step.time_s / scale), step) for step in steps]
    return f"{' + '.join(parts)} {unit}"


def _bracketed(text: str, step: Step) -> str:
    return text if step.starts else f"({text})"


def step_text(step: Step | None) -> str:
    """A time with its interval; in brackets where it comes from a cache."""
    return DASH if step is None else _bracketed(spanned(step.time_s, step.low_s, step.high_s), step)


def spanned(time_s: float, low_s: float | None, high_s: float | None) -> str:
    """A time with its interval, whose bounds show their unit only where it is another one."""
    middle = seconds(time_s)
    if low_s is None or high_s is None:
        return middle
    unit = middle.partition(" ")[2]
    bounds = [text.removesuffix(f" {unit}") for text in (seconds(low_s), seconds(high_s))]
    return f"{middle} [{', '.join(bounds)}]"


def start_lines(start: Start) -> Iterator[tuple[str, str, str]]:
    """Name, time and how it was obtained, of each step that there is."""
    how = f"{_count(start.starts)} in a fresh process each; {start.note}"
    for name, step in (("first load", start.load), ("compilation", start.compile)):
        if step is not None:
            yield name, step_text(step), how if step.starts else "of the build that filled the cache on disk"
    if start.cached_compile is not None:
        share = f"{start.cached_starts} of {_count(start.starts)}"
        yield "compilation through the cache", step_text(start.cached_compile), share
    if start.first_inference is not None:
        yield "first inference", step_text(start.first_inference), how


def _count(starts: int) -> str:
    return f"{starts} start{'s' if starts != 1 else ''}"


def backends_table(found: Sequence[tuple[str, Start]]) -> Table:
    """One line for each backend of a single model."""
    columns = (("first start of", False), ("load", True), ("compile", True), ("first inference", True))
    rows = tuple(
        (Cell(name), *(Cell(step_text(step)) for step in (start.load, start.compile, start.first_inference)))
        for name, start in found
    )
    return Table("", columns, rows)
