"""A module of this package run as a program of its own: one JSON request in, one JSON answer out.

What a stranger's file or runtime can do (crash, hang) ends the child and not its caller.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_LAST_WORDS = 300


@dataclass(frozen=True)
class Answer:
    """What became of a request."""

    outcome: str
    """``done``, ``refused`` (the child said why), ``crash`` or ``timeout``."""
    value: dict[str, Any]
    reason: str = ""


def ask(module: str, request: Mapping[str, Any], limit_s: float, follow: bool = False) -> Answer:
    """Run ``module`` on ``request`` for at most ``limit_s``; it ends with its caller. ``follow`` shows its progress."""
    with tempfile.TemporaryDirectory(prefix="frugalbench-apart-") as folder:
        answer = Path(folder) / "answer.json"
        program = [sys.executable, "-P", "-m", module, str(answer)]
        said = None if follow else subprocess.PIPE
        child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said)
        try:
            _, errors = child.communicate(json.dumps(request).encode(), timeout=limit_s)
        except subprocess.TimeoutExpired:
            return Answer("timeout", {}, f"no answer within {limit_s:.0f} s")
        finally:
            child.kill()
            child.wait()
        return _read(answer, child.returncode, errors or b"")


def _read(answer: Path, code: int, errors: bytes) -> Answer:
    try:
        found = json.loads(answer.read_bytes())
    except (OSError, ValueError):
        return Answer("crash", {}, _obituary(code, errors))
    return Answer("refused", {}, found["refused"]) if "refused" in found else Answer("done", found["done"])


def _obituary(code: int, errors: bytes) -> str:
    how = f"exited with code {code}"
    if code < 0:
        with suppress(ValueError):
            how = f"was killed by {signal.Signals(-code).name}"
    lines = errors.decode(errors="replace").strip().splitlines()
    return f"the process {how}" + (f": {lines[-1][:_LAST_WORDS]}" if lines else "")


def serve(work: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """In the child: answer the one request with what ``work`` makes of it, or with its problem in one line."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answer = Path(sys.argv[1])
    try:
        found: dict[str, Any] = {"done": work(json.load(sys.stdin))}
    except (Exception, SystemExit) as problem:
        text = " ".join(str(problem).split())
        told = type(problem).__module__.startswith(("frugalbench", "__main__")) or type(problem) is RuntimeError
        found = {"refused": (text if told else f"{type(problem).__name__}: {text}")[:1000]}
    temporary = answer.with_suffix(".partial")
    temporary.write_text(json.dumps(found), encoding="utf-8")
    temporary.replace(answer)
    sys.stderr.flush()
    os._exit(0)  # threads and static objects of a runtime must not turn an answer into a crash
