"""Programs that are asked for a number, in a process group of their own and with a time limit."""

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from frugalbench.meters.base import MeterError

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")


def output_of(command: Sequence[str], limit_s: float) -> str:
    """What ``command`` prints. Raises :class:`MeterError` when it is missing, fails, or takes too long."""
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", start_new_session=True, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except OSError as error:
        raise MeterError(f"{command[0]}: {error.strerror}") from error
    try:
        printed, complaint = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _kill_group(child)
        raise MeterError(f"{command[0]}: no answer within {limit_s:g} s") from None
    if child.returncode:
        raise MeterError(f"{command[0]}: exit code {child.returncode}: {_last_line(complaint or printed)}")
    return printed


def _kill_group(child: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def last_number(text: str) -> float:
    """The first number in the last line that is not empty. Raises :class:`MeterError`."""
    found = _NUMBER.search(_last_line(text))
    if found is None:
        raise MeterError(f"no number in {_last_line(text)[:80]!r}")
    return float(found[0])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"
