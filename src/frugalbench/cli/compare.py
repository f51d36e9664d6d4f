"""``frugalbench compare``."""

import argparse
from pathlib import Path

from frugalbench.analysis.pytest_benchmark import load_any
from frugalbench.cli import output
from frugalbench.schema import FrugalbenchError

MOST_PCT = 1e6


def main(arguments: argparse.Namespace) -> int:
    """Compare two stored runs; exit code 1 when something regressed."""
    from frugalbench.analysis.compare import compare, require_common
    from frugalbench.report import compare as report
    from frugalbench.report.render import write

    limit_pct = arguments.fail_above
    if limit_pct is not None and not 0 <= limit_pct <= MOST_PCT:
        raise FrugalbenchError(f"--fail-above {limit_pct:g}: give a percentage from 0 to {MOST_PCT:g}")
    base, new = load_any(arguments.base), load_any(arguments.new)
    require_common(base, new)
    found = compare(base, new, limit_pct, _gates(arguments.gates))
    if arguments.junit:
        write(Path(arguments.junit), report.junit(found))
    if arguments.json:
        for warning in found.warnings:
            output.warn(warning)
        output.print_json(report.compared_plain(found))
    else:
        show = report.compared_markdown if arguments.format == "md" else report.compared_terminal
        print(show(found), end="")
    return 1 if found.regressions else 0


def _gates(text: str) -> tuple[str, ...]:
    """The chosen gates. Raises :class:`FrugalbenchError` for a name that is none."""
    from frugalbench.analysis.gates import GATES

    if text in ("all", "none"):
        return GATES if text == "all" else ()
    chosen = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in chosen if name not in GATES]
    if unknown:
        raise FrugalbenchError(f"--gates: no gate '{unknown[0]}'; choose from {', '.join(GATES)}, or none")
    return chosen
