"""``frugalbench query``."""

import argparse
import sys

from frugalbench.analysis.load import Run, load_run
from frugalbench.analysis.remote import is_remote
from frugalbench.cli import judging
from frugalbench.untrusted import shown


def main(arguments: argparse.Namespace) -> int:
    """Ask the tables of stored runs in SQL."""
    from frugalbench.report.query import answer_csv, answer_json, answer_table, query
    from frugalbench.report.terminal import table_terminal

    runs = [_read(path) for path in arguments.runs]
    found = query(runs, arguments.sql)
    judging.warn(runs)
    chosen = "json" if arguments.json else arguments.format
    if chosen == "terminal":
        print(table_terminal(answer_table(found)), end="")
    else:
        print((answer_csv if chosen == "csv" else answer_json)(found), end="")
    return 0


def _read(path: str) -> Run:
    if is_remote(path):
        print(f"reading {shown(path)}", file=sys.stderr)
    return load_run(path)
