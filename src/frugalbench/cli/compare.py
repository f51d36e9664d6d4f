"""``frugalbench compare``."""

import argparse
import sys

from frugalbench.analysis.load import load_run
from frugalbench.cli import output


def main(arguments: argparse.Namespace) -> int:
    """Compare two stored runs; exit code 1 when something regressed."""
    from frugalbench.report.compare import compare, compared_table
    from frugalbench.report.terminal import table_terminal

    compared = compare(load_run(arguments.base), load_run(arguments.new), arguments.fail_above)
    for warning in compared.warnings:
        print(f"frugalbench: {warning}", file=sys.stderr)
    if arguments.json:
        output.print_json(
            {"changes": compared.changes, "regressions": compared.regressions, "warnings": compared.warnings}
        )
    else:
        print(table_terminal(compared_table(compared)), end="")
    return 1 if compared.regressions else 0
