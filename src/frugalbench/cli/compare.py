"""``frugalbench compare``."""

import argparse

from frugalbench.analysis.load import load_run
from frugalbench.cli import output
from frugalbench.schema import FrugalbenchError

MOST_PCT = 1e6


def main(arguments: argparse.Namespace) -> int:
    """Compare two stored runs; exit code 1 when something regressed."""
    from frugalbench.report.compare import compare, compared_table
    from frugalbench.report.terminal import table_terminal

    limit_pct = arguments.fail_above
    if limit_pct is not None and not 0 <= limit_pct <= MOST_PCT:
        raise FrugalbenchError(f"--fail-above {limit_pct:g}: give a percentage from 0 to {MOST_PCT:g}")
    compared = compare(load_run(arguments.base), load_run(arguments.new), limit_pct)
    for warning in compared.warnings:
        output.warn(warning)
    if arguments.json:
        output.print_json(
            {"changes": compared.changes, "regressions": compared.regressions, "warnings": compared.warnings}
        )
    else:
        print(table_terminal(compared_table(compared)), end="")
    return 1 if compared.regressions else 0
