"""``frugalbench report``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from frugalbench.analysis.load import Run
from frugalbench.analysis.pytest_benchmark import load_any
from frugalbench.cli import judging, output
from frugalbench.schema import FrugalbenchError
from frugalbench.untrusted import shown

TABLE_FORMATS = ("csv", "parquet", "json")
"""Which a folder can hold, one file per table."""


def main(arguments: argparse.Namespace) -> int:
    """Render stored runs."""
    from frugalbench.report.render import render

    runs = [load_any(path) for path in arguments.runs]
    judging.warn(runs)
    target = Path(arguments.output) if arguments.output else None
    chosen = "json" if arguments.json else arguments.format
    if target is not None and (target.is_dir() or arguments.output.endswith("/")):
        return _tables(runs, target, chosen, arguments.json)
    content = render(runs, judging.judge(runs), chosen, target)
    if target is not None:
        output.wrote(target, arguments.json)
        if arguments.json:
            print(content, end="")
    elif isinstance(content, str):
        print(content, end="")
    return 0


def _tables(runs: Sequence[Run], folder: Path, chosen: str, as_json: bool) -> int:
    """One file per table."""
    from frugalbench.report.export import write_tables

    if chosen not in TABLE_FORMATS:
        raise FrugalbenchError(f"{folder}: a folder, but {chosen} is one file.\nName a file, or use --format csv.")
    print(f"writing {len(runs)} run(s) as {chosen} tables", file=sys.stderr)
    made = write_tables(runs, folder, chosen)
    if as_json:
        output.print_json({"written": [str(path) for path in made]})
    else:
        print("\n".join(f"wrote {shown(path)}" for path in made))
    return 0
