"""One entry for every output format."""

from collections.abc import Callable, Sequence
from pathlib import Path

from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row, rows
from frugalbench.report.tables import Table
from frugalbench.schema import FrugalbenchError, Verdict

FORMATS = ("terminal", "md", "csv", "parquet", "json", "latex", "html")


def render(
    runs: Sequence[Run], verdicts: Sequence[Verdict], fmt: str = "terminal", output: Path | None = None
) -> str | bytes:
    """The report of ``runs`` as ``fmt`` (one of :data:`FORMATS`), also written to ``output`` when given.

    Raises :class:`FrugalbenchError` for an unknown format, for Parquet without ``output``, for a missing optional
    package, and when ``output`` cannot be written.
    """
    if fmt not in FORMATS:
        raise FrugalbenchError(f"unknown format '{fmt}'; choose one of: {', '.join(FORMATS)}")
    if fmt == "parquet" and output is None:
        raise FrugalbenchError("parquet is a binary format and needs a file.\nAdd: --output cases.parquet")
    lines = [row for run in runs for row in rows(run)]
    content = _RENDERERS[fmt](runs, verdicts, lines, output)
    if output is not None:
        write(output, content)
    return content


def _terminal(runs: Sequence[Run], verdicts: Sequence[Verdict], lines: Sequence[Row], output: Path | None) -> str:
    from frugalbench.report.terminal import terminal

    return terminal(runs, verdicts, lines, _extra_tables(runs), colour=False if output else None)


def _markdown(runs: Sequence[Run], verdicts: Sequence[Verdict], lines: Sequence[Row], _: Path | None) -> str:
    from frugalbench.report.markdown import markdown

    return markdown(runs, verdicts, lines, _extra_tables(runs))


def _latex(runs: Sequence[Run], verdicts: Sequence[Verdict], lines: Sequence[Row], _: Path | None) -> str:
    from frugalbench.report.citation import latex

    return latex(runs, verdicts, lines)


def _html(runs: Sequence[Run], verdicts: Sequence[Verdict], lines: Sequence[Row], _: Path | None) -> str:
    from frugalbench.report.html import html

    return html(runs, verdicts, lines, _extra_tables(runs))


def _extra_tables(runs: Sequence[Run]) -> list[Table]:
    """Tables that belong to one workload only."""
    from frugalbench.report.accuracy import accuracy_tables
    from frugalbench.report.collectives import collectives_tables
    from frugalbench.report.conformance import conformance_tables
    from frugalbench.report.emulated import emulated_tables
    from frugalbench.report.expert_parallel import expert_parallel_tables
    from frugalbench.report.first_start import first_start_tables
    from frugalbench.report.foreign import foreign_tables
    from frugalbench.report.grown import grown_tables
    from frugalbench.report.local_steps import local_steps_tables
    from frugalbench.report.pareto import pareto_tables
    from frugalbench.report.portability import portability_tables
    from frugalbench.report.quantized import quantized_tables
    from frugalbench.report.reach import reach_tables
    from frugalbench.report.saving import saving_tables
    from frugalbench.report.task_parity import task_parity_tables
    from frugalbench.report.tax import tax_tables
    from frugalbench.report.whole_model import whole_model_tables

    makers = (
        saving_tables,
        quantized_tables,
        whole_model_tables,
        reach_tables,
        accuracy_tables,
        pareto_tables,
        portability_tables,
        first_start_tables,
        task_parity_tables,
        conformance_tables,
        collectives_tables,
        expert_parallel_tables,
        emulated_tables,
        grown_tables,
        local_steps_tables,
        foreign_tables,
        tax_tables,
    )
    return [table for make in makers for table in make(runs)]


def _csv(_: Sequence[Run], __: Sequence[Verdict], lines: Sequence[Row], ___: Path | None) -> str:
    from frugalbench.report.export import to_csv

    return to_csv(lines)


def _json(runs: Sequence[Run], verdicts: Sequence[Verdict], lines: Sequence[Row], _: Path | None) -> str:
    from frugalbench.report.export import to_json

    return to_json(runs, verdicts, lines)


def _parquet(_: Sequence[Run], __: Sequence[Verdict], lines: Sequence[Row], ___: Path | None) -> bytes:
    from frugalbench.report.export import to_parquet

    return to_parquet(lines)


_Renderer = Callable[[Sequence[Run], Sequence[Verdict], Sequence[Row], Path | None], str | bytes]
_RENDERERS: dict[str, _Renderer] = {
    "terminal": _terminal,
    "md": _markdown,
    "latex": _latex,
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
    "html": _html,
}


def write(output: Path, content: str | bytes) -> None:
    """Raises :class:`FrugalbenchError` where the file cannot be written."""
    try:
        output.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise FrugalbenchError(
            f"{output}: cannot be written ({error.strerror}).\nName a file in an existing, writable directory."
        ) from None
