"""``frugalbench check``."""

import argparse
from pathlib import Path
from typing import Any

from frugalbench.cli import output
from frugalbench.schema import FrugalbenchError


def main(arguments: argparse.Namespace) -> int:
    """Say whether a file may be taken, and each reason against it; 1 where it may not."""
    from frugalbench.analysis.submission.vet import vet
    from frugalbench.cli.replay import checks, page_of, remarks

    path = Path(arguments.file)
    try:
        report, files = vet(path, checks(), page_of, remarks, output.late_progress())
        output.end_progress()
    except OSError as problem:
        raise FrugalbenchError(f"{path}: cannot be read: {problem.strerror}") from None
    if arguments.unpack and report.accepted:
        _unpack(files, Path(arguments.unpack))
    if arguments.json:
        output.print_json(report)
    else:
        _show(report)
        if arguments.unpack and report.accepted:
            output.say(f"Unpacked to {arguments.unpack}")
    return 0 if report.accepted else 1


def _show(report: Any) -> None:
    for name, value in report.contents.items():
        output.say(f"  {name.replace('_', ' ')}: {_plain(value)}")
    for remark in report.remarks:
        output.say(f"  note: {remark}")
    for refusal in report.refusals:
        output.say(f"refused ({refusal.check}): {refusal.where}: {refusal.reason}")
    output.say(f"{report.file}: {'accepted' if report.accepted else 'refused'}")


def _plain(value: Any) -> str:
    return ", ".join(f"{name} {size} bytes" for name, size in value.items()) if isinstance(value, dict) else str(value)


def _unpack(files: dict[str, bytes], folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FrugalbenchError(f"{folder}: is not an empty folder; choose another --unpack")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as problem:
        raise FrugalbenchError(f"{folder}: cannot be written: {problem.strerror}") from None
