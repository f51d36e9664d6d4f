"""``frugalbench simulate``."""

import argparse

from frugalbench.cli import output


def main(arguments: argparse.Namespace) -> int:
    """Print a modelled cluster's throughput over its size."""
    from frugalbench.cluster.model import simulate

    rows = simulate(arguments.cluster)
    if arguments.json:
        output.print_json(rows)
        return 0
    from frugalbench.report.terminal import simulation_terminal

    print(simulation_terminal([row.__class__.__name__ for row in rows]), end="")
    return 0
