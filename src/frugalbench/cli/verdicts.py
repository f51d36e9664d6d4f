"""``frugalbench verdicts``."""

import argparse
import sys
from pathlib import Path

from frugalbench.cli import output, session
from frugalbench.analysis.load import load_run


def main(arguments: argparse.Namespace) -> int:
    """Print the verdict table of stored runs, or splice it into a file."""
    runs = [load_run(path) for path in arguments.runs]
    for warning in (*session.claim_warnings(runs), *(problem for item in runs for problem in item.problems)):
        print(f"frugalbench: {warning}", file=sys.stderr)
    verdicts = session.judge(runs)
    if arguments.splice:
        return _splice(Path(arguments.splice))
    if arguments.json:
        output.print_json(verdicts)
        return 0
    if arguments.format == "md":
        from frugalbench.report.markdown import verdicts_markdown

        print(verdicts_markdown(verdicts), end="")
        return 0
    from frugalbench.report.terminal import verdicts_terminal

    print(verdicts_terminal(verdicts), end="")
    return 0


def _splice(file: Path) -> int:
    from frugalbench.report.splice import splice

    changed = splice(file, produce)
    print(f"{file}: {'updated' if changed else 'already up to date'}")
    return 0


def produce(command: str) -> str:
    """The table that the command in a marker stands for; run directories are looked up from the current folder."""
    from frugalbench.report.markdown import verdicts_markdown

    words = command.split()[2:]
    names = [word for position, word in enumerate(words) if not word.startswith("--") and (words[position - 1] != "--format")]
    return verdicts_markdown(session.judge([load_run(name) for name in names]))
