"""``frugalbench submit``."""

import argparse
import getpass
import os
import platform
import re
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from frugalbench import __version__
from frugalbench.analysis.load import Run, load_run
from frugalbench.cli import output
from frugalbench.cli.floor import self_test_of
from frugalbench.schema import FrugalbenchError

MOST_SHOWN = 6
LEAST_SECRET = 8
"""Characters of an environment variable's value that is looked for; shorter ones stand in words by chance."""
_HOST_FILES = (Path("/etc/hosts"), Path("/etc/resolv.conf"))
_SECRET = re.compile(r"(?i)token|secret|passw|api_?key|access_key|credential")


def main(arguments: argparse.Namespace) -> int:
    """Pack a run without what identifies its owner; shows everything before anything is written."""
    from frugalbench.analysis.submission import hosts
    from frugalbench.analysis.submission.archive import pack
    from frugalbench.analysis.submission.scrub import Scrubber
    from frugalbench.analysis.submission.vet import PRESENT

    run = load_run(arguments.run)
    documents = _Documents(run.path)
    others = hosts.named(documents) | hosts.apart_from(_others(), documents)
    scrubber = Scrubber(_names() | {str(run.manifest.machine_before.get("host", ""))} | others)
    files, self_test = _files(run, documents, scrubber, arguments.page)
    target = Path(arguments.out or f"{run.manifest.run_id}.frugalbench.zip")
    removed = {kind: sum(texts.values()) for kind, texts in scrubber.removed.items()}
    content = pack(files, run.manifest.run_id, __version__, self_test, removed)
    report = _checked(content, target)
    if arguments.json:
        shown = {kind: dict(texts) for kind, texts in scrubber.removed.items()}
        output.print_json({**report, "file": str(target), "removed": shown, "self_test": self_test})
    else:
        _show(scrubber.removed, report, "in the file" if self_test == PRESENT else self_test)
    if not report["accepted"]:
        output.warn(f"{arguments.run}: `frugalbench check` would refuse it, so nothing is written")
        return 1
    if not _agreed(arguments, target):
        return 2
    _write(target, content)
    output.warn(f"written: {target} ({len(content)} bytes); results/CONTRIBUTING.md says where it goes")
    return 0


def _names() -> set[str]:
    """Words that name this host, its user and the folder that is theirs, and secrets of its environment."""
    host = {socket.gethostname(), platform.node(), os.environ.get("HOSTNAME", "")}
    people = {os.environ.get(key, "") for key in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")} | {Path.home().name}
    with suppress(OSError, KeyError):
        people.add(getpass.getuser())
    secret = {value for key, value in os.environ.items() if _SECRET.search(key) and len(value) >= LEAST_SECRET}
    return {part for name in host for part in (name, name.partition(".")[0])} | people | secret


def _others() -> set[str]:
    """Names of other hosts that this session's environment and this machine's own files tell."""
    from frugalbench.analysis.submission import hosts

    return hosts.of_environment(os.environ) | hosts.of_machine(*map(_text, _HOST_FILES))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class _Documents:
    """Manifest and records as plain data, read anew each time: a run may be larger than memory holds of it. The
    half-written last line, which the reader of the run has named already, is left out."""

    folder: Path

    def __iter__(self) -> Iterator[Any]:
        yield msgspec.json.decode((self.folder / "manifest.json").read_bytes())
        with (self.folder / "records.jsonl").open("rb") as stream:
            for line in filter(bytes.strip, stream):
                with suppress(msgspec.DecodeError):
                    yield msgspec.json.decode(line)


def _files(run: Run, documents: Iterable[Any], scrubber: Any, page: bool) -> tuple[dict[str, bytes], str]:
    """Entries of the archive, and what to say of the self-test."""
    from frugalbench.analysis.submission.vet import PRESENT
    from frugalbench.cli.replay import page_of

    manifest, *records = (msgspec.json.encode(scrubber.clean(item)) for item in documents)
    found = {"manifest.json": manifest, "records.jsonl": b"".join(record + b"\n" for record in records)}
    self_test, why = _self_test(run)
    if self_test is not None:
        found["selftest.json"] = msgspec.json.encode(scrubber.clean(self_test))
    if page:
        found["report.html"] = page_of(found)
    return found, PRESENT if self_test is not None else why


def _self_test(run: Run) -> tuple[dict[str, Any] | None, str]:
    """The result whose floor the run used, without the folder of its records."""
    from frugalbench.plan import DEVICES

    fingerprint = str(run.manifest.machine_before.get("fingerprint"))
    results = [found for device in DEVICES if (found := self_test_of(fingerprint, device))]
    for found in results:
        if found["aa_floor"] == run.manifest.floor:
            return {name: value for name, value in found.items() if name != "runs"}, ""
    return None, "this machine's self-test is not the one that the run used" if results else "never self-tested"


def _checked(content: bytes, target: Path) -> dict[str, Any]:
    """What ``frugalbench check`` says of the bytes that would be written."""
    from frugalbench.analysis.submission.vet import vet
    from frugalbench.cli.replay import checks, page_of, remarks

    with tempfile.TemporaryDirectory(prefix="frugalbench-") as folder:
        file = Path(folder) / target.name
        file.write_bytes(content)
        report = vet(file, checks(), page_of, remarks, output.late_progress())[0]
        output.end_progress()
        return dict(msgspec.to_builtins(report))


def _show(removed: dict[str, Any], report: dict[str, Any], self_test: str) -> None:
    output.say("In the file:")
    for name, value in report["contents"].items():
        output.say(f"  {name.replace('_', ' ')}: {_plain(value)}")
    output.say(f"  self-test: {self_test}")
    output.say("Replaced by placeholders:" if removed else "Nothing had to be removed.")
    for line in _removed_lines(removed):
        output.say(f"  {line}")
    for refusal in report["refusals"]:
        output.say(f"refused ({refusal['check']}): {refusal['where']}: {refusal['reason']}")


def _plain(value: Any) -> str:
    return ", ".join(f"{name} {size} bytes" for name, size in value.items()) if isinstance(value, dict) else str(value)


def _removed_lines(removed: dict[str, Any]) -> Iterator[str]:
    for kind, texts in removed.items():
        most: Iterable[tuple[str, int]] = texts.most_common(MOST_SHOWN)
        yield from (f"{kind}: {text} ({count} times)" for text, count in most)
        if len(texts) > MOST_SHOWN:
            yield f"{kind}: and {len(texts) - MOST_SHOWN} more"


def _agreed(arguments: argparse.Namespace, target: Path) -> bool:
    if arguments.yes:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        output.warn("nothing is written without a word of yours: add --yes")
        return False
    sys.stderr.write(f"Write {target}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _write(target: Path, content: bytes) -> None:
    try:
        if target.exists() and target.read_bytes() != content:
            raise FrugalbenchError(f"{target}: is there already and differs; choose another --out")
        target.write_bytes(content)
    except OSError as problem:
        raise FrugalbenchError(f"{target}: cannot be written: {problem.strerror}") from None
