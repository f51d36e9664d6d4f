"""``frugalbench explain``."""

import argparse

from frugalbench.analysis.load import load_run
from frugalbench.cli import output


def main(arguments: argparse.Namespace) -> int:
    """Walk from the verdicts of one claim back to the samples."""
    from frugalbench.analysis.explain import explain
    from frugalbench.report.explain import explanation_text

    run = load_run(arguments.run)
    for problem in run.problems:
        output.warn(problem)
    found = explain(run, arguments.claim, arguments.regime, arguments.arm)
    if arguments.json:
        output.print_json(found)
    else:
        print(explanation_text(found, arguments.samples))
    return 0
