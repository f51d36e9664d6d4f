"""What the tests of fanned-out runs share: a config that measures in a second, commands that can be interrupted."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLUGIN = Path(__file__).parent / "fixtures" / "plugin" / "doubling.toml"


def slow_config(folder: Path) -> Path:
    """The same config, measuring until somebody stops it."""
    text = (
        PLUGIN.read_text().replace("looks = [2]", "looks = [200]").replace("time_budget_s = 60", "time_budget_s = 600")
    )
    file = folder / "slow.toml"
    file.write_text(text.replace("doubling.py", str(PLUGIN.parent / "doubling.py")))
    return file


@contextmanager
def started(line: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A command that can be interrupted; it is dead afterwards."""
    process = subprocess.Popen(
        line, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(what: Callable[[], object], limit_s: float = 60.0) -> None:
    """Until ``what()`` holds."""
    stop = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < stop, "it did not come"
        time.sleep(0.05)


def manifest(folder: Path) -> dict[str, Any]:
    """Of a run directory."""
    return json.loads((folder / "manifest.json").read_text())
