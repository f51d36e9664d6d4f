"""``frugalbench history``."""

import argparse
from pathlib import Path

from frugalbench.cli import output


def main(arguments: argparse.Namespace) -> int:
    """Show one metric over the runs of a folder, with the places where its level changes."""
    from frugalbench.analysis.history import history
    from frugalbench.report.history import history_table
    from frugalbench.report.terminal import table_terminal

    found = history(Path(arguments.folder), arguments.metric, arguments.case)
    if arguments.json:
        for problem in found.problems:
            output.warn(problem)
        output.print_json({"runs": found.runs, "series": found.series, "problems": found.problems})
    else:
        print(table_terminal(history_table(found)), end="")
    return 0
