"""``frugalbench history``."""

import argparse
from pathlib import Path

from frugalbench.analysis.history import History
from frugalbench.cli import output
from frugalbench.schema import FrugalbenchError


def main(arguments: argparse.Namespace) -> int:
    """Show one metric over the runs of a folder, with the places where its level changes."""
    from frugalbench.analysis.history import history

    if arguments.format == "html" and not arguments.output:
        raise FrugalbenchError("history: a page needs a file.\nAdd: --output history.html")
    found = history(Path(arguments.folder), arguments.metric, arguments.case)
    if arguments.output:
        _write(found, arguments)
    if arguments.json:
        for problem in found.problems:
            output.warn(problem)
        output.print_json({"runs": found.runs, "series": found.series, "problems": found.problems})
    elif not arguments.output:
        print(_table(found), end="")
    return 0


def _table(found: History) -> str:
    from frugalbench.report.history import history_table
    from frugalbench.report.terminal import table_terminal

    return table_terminal(history_table(found))


def _write(found: History, arguments: argparse.Namespace) -> None:
    """``--output``: the page, or the table as text."""
    from frugalbench.report.history_page import history_page
    from frugalbench.report.render import write

    file, show = Path(arguments.output), output.progress()
    page = arguments.format == "html" or (arguments.format is None and file.suffix in (".html", ".htm"))
    write(file, history_page(found, arguments.folder, arguments.case, show) if page else _table(found))
    output.end_progress()
    output.wrote(file, arguments.json)
