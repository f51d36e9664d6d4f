"""``frugalbench verdicts``."""

import argparse
from pathlib import Path

from frugalbench.analysis.load import load_run
from frugalbench.cli import judging, output


def main(arguments: argparse.Namespace) -> int:
    """Print the verdict table of stored runs, or splice it into a file."""
    runs = [load_run(path) for path in arguments.runs]
    judging.warn(runs)
    verdicts = judging.judge(runs)
    if arguments.splice:
        changed = _splice(Path(arguments.splice))
        if not arguments.json:
            print(f"{arguments.splice}: {'updated' if changed else 'already up to date'}")
            return 0
    if arguments.json:
        output.print_json(verdicts)
        return 0
    if arguments.format == "md":
        from frugalbench.report.markdown import brief_markdown, verdicts_markdown

        print((brief_markdown if arguments.brief else verdicts_markdown)(verdicts), end="")
        return 0
    if arguments.brief:
        from frugalbench.report.brief import brief_table
        from frugalbench.report.terminal import table_terminal

        print(table_terminal(brief_table(verdicts)), end="")
        return 0
    from frugalbench.report import safe
    from frugalbench.report.machines import machines_table, published_table
    from frugalbench.report.noise import noise_lines
    from frugalbench.report.terminal import table_terminal, verdicts_terminal

    print(verdicts_terminal(verdicts), end="")
    for table in (machines_table(verdicts, runs), published_table(verdicts, brief=True)):
        if table.rows:
            print("\n" + table_terminal(table), end="")
    print("\n".join(("", *map(safe.terminal, noise_lines(runs)))))
    return 0


def _splice(file: Path) -> bool:
    from frugalbench.report.splice import splice

    return splice(file, produce)


def produce(command: str) -> str:
    """The table that the command in a marker stands for; run directories are looked up from the current folder."""
    from frugalbench.report.markdown import brief_markdown, verdicts_markdown

    words = command.split()[2:]
    show = brief_markdown if "--brief" in words else verdicts_markdown
    names = [
        word for position, word in enumerate(words) if not word.startswith("--") and (words[position - 1] != "--format")
    ]
    return show(judging.judge([load_run(name) for name in names]))
