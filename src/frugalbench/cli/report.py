"""``frugalbench report``."""

import argparse
import sys
from pathlib import Path

from frugalbench.analysis.load import load_run
from frugalbench.cli import session
from frugalbench.untrusted import shown


def main(arguments: argparse.Namespace) -> int:
    """Render stored runs."""
    from frugalbench.report.render import render

    runs = [load_run(path) for path in arguments.runs]
    session.warn(runs)
    target = Path(arguments.output) if arguments.output else None
    chosen = "json" if arguments.json else arguments.format
    content = render(runs, session.judge(runs), chosen, target)
    if target is not None:
        print(f"wrote {shown(target)}", file=sys.stderr if arguments.json else sys.stdout)
        if arguments.json:
            print(content, end="")
    elif isinstance(content, str):
        print(content, end="")
    return 0
