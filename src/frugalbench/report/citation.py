"""Where a table comes from, in one line that a paper can cite: command, revision, machine, date."""

from collections.abc import Iterable, Sequence

from frugalbench.analysis.command import TOOL, command_of
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row
from frugalbench.report import safe
from frugalbench.report.tables import Cell, Table, cases_tables, counts_text, untested_table, verdicts_table
from frugalbench.schema import Verdict


def citation(run: Run) -> str:
    """``frugalbench VERSION, `frugalbench run …`, revision …, on MACHINE, DATE (run ID)``."""
    manifest = run.manifest
    tool = TOOL if TOOL in manifest.versions else manifest.name
    version, command = manifest.versions.get(tool), command_of(manifest)
    parts = [
        f"{tool} {version}" if version else tool,
        *([f"`{command}`"] if command else []),
        f"revision {manifest.revision}" if manifest.revision else "revision unknown",
        f"on {evidence_of(run).machine}",
        manifest.started[:10],
    ]
    state = "" if manifest.state == "complete" else f", {manifest.state}"
    return f"{', '.join(parts)} (run {manifest.run_id}{state})"


def latex(runs: Sequence[Run], verdicts: Sequence[Verdict], rows: Sequence[Row]) -> str:
    """Verdicts and cases as ``booktabs`` tables for ``\\input``, each with what it rests on below.

    Needs the packages ``booktabs`` and ``longtable``.
    """
    found = [verdicts_table(verdicts), untested_table(verdicts), *cases_tables(rows).values()]
    sources = [citation(run) for run in runs]
    head = ["% \\usepackage{booktabs,longtable}", f"% {safe.latex_comment(counts_text(verdicts))}"]
    return "\n".join([*head, *(latex_table(table, sources) for table in found if table.rows)])


def latex_table(table: Table, sources: Sequence[str]) -> str:
    """One table; its notes and sources stand in the last lines."""
    width = len(table.columns)
    lines = [f"\\begin{{longtable}}{{@{{}}{''.join('r' if number else 'l' for _, number in table.columns)}@{{}}}}"]
    lines.append(f"\\caption{{{safe.latex(table.title)}}}\\\\")
    lines += ["\\toprule", _line(safe.latex(title) for title, _ in table.columns), "\\midrule\\endhead"]
    lines += [_line(_cell(cell) for cell in row) for row in table.rows]
    lines.append("\\bottomrule")
    for note in (*table.notes, *(f"Source: {source}" for source in sources)):
        lines.append(
            f"\\multicolumn{{{width}}}{{@{{}}p{{0.95\\linewidth}}@{{}}}}{{\\footnotesize {safe.latex(note)}}}\\\\"
        )
    return "\n".join([*lines, "\\end{longtable}", ""])


def _line(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def _cell(cell: Cell) -> str:
    text = safe.latex(cell.text)
    return f"\\textbf{{{text}}}" if cell.mark in ("supported", "refuted") else text
