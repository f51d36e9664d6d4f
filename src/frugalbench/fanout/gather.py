"""A node's run directory as it comes home: the manifest replaced as it changes, records appended as they are made."""

import os
from pathlib import Path
from typing import Any


class Gathered:
    """The folder that one node's files go to; it is made when the first of them arrives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.any = False

    def add(self, report: dict[str, Any]) -> None:
        """Write what a report brought. Raises ``OSError`` when the disk does not take it."""
        manifest, records = report.get("manifest"), report.get("records")
        if manifest or records:
            self.folder.mkdir(parents=True, exist_ok=True)
        if manifest:
            partial = self.folder / ".manifest.json.partial"
            _write(partial, manifest, "wb")
            partial.replace(self.folder / "manifest.json")
            self.any = True
        if records:
            _write(self.folder / "records.jsonl", records, "ab")


def _write(file: Path, text: str, mode: str) -> None:
    with file.open(mode) as stream:
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())
