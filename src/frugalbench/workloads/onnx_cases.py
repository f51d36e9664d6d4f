"""Conformance cases executed in batches, each batch in a process of its own.

A runtime may crash, hang or corrupt its process. The parent reads one line per finished case; when the child dies or
keeps silent too long, the case that it was on is the one to blame, and a new child goes on with the next. What a child
prints goes into a log; its last line is the reason of a crash.
"""

import os
import re
import select
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from frugalbench.backends.case_runners import CaseRunner, Unsupported, case_runner, is_small
from frugalbench.schema import CaseOutcome
from frugalbench.workloads import onnx_census
from frugalbench.workloads.onnx_census import Entry

_START_LIMIT_S = 60.0
_NETWORK_FACTOR = 6.0
"""Whole networks get so many times the limit of a case: the reference evaluator is plain Python."""
_LONGEST_REASON = 160
_READ_BYTES = 2**16
_TAIL_BYTES = 4096
_BFLOAT16_RTOL = 2.0**-6
"""Two units in the last place of bfloat16, as ``onnx.backend.test`` allows."""
_NOISE = re.compile(r"Load model from \S+ failed:\s*|^\[ONNXRuntimeError\] : \d+ : ")
_FRAMES = ("Check '", "Exception from ", "While validating", "Stack backtrace")


class Started(msgspec.Struct, frozen=True, tag=True):
    """First line of a child: its runtime is imported."""

    version: str
    opsets: tuple[int, int] | None


class Ended(msgspec.Struct, frozen=True, tag=True):
    """How one case ended."""

    name: str
    outcome: CaseOutcome
    reason: str = ""
    time_s: float = 0.0


@dataclass(frozen=True)
class Bench:
    """What all children need: the runtime, where the cases lie, how long one may take, where to print."""

    backend: str
    device: str
    folder: Path
    case_limit_s: float
    batch: int
    log: Path


def execute(bench: Bench, entries: Sequence[Entry]) -> tuple[Started, list[Ended]]:
    """How each of ``entries`` ends, in their order. Raises ``RuntimeError`` where the runtime itself does not start."""
    started, ended = None, list[Ended]()
    while len(ended) < len(entries) or started is None:
        part = entries[len(ended) : len(ended) + bench.batch]
        for line in _batch(bench, part):
            if isinstance(line, Started):
                started = line
            else:
                ended.append(line)
    return started, ended


def _batch(bench: Bench, entries: Sequence[Entry]) -> Iterator[Started | Ended]:
    """Lines of one child, and the end of the case that killed it, if one did."""
    inlet, outlet = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_child(bench, entries, outlet)
    os.close(outlet)
    lines = _Lines(inlet)
    done, up = 0, False
    try:
        while done < len(entries):
            limit_s = _limit_s(bench, entries[done]) if up else _START_LIMIT_S
            line = lines.next(limit_s)
            if isinstance(line, str):
                status, pid = _end(pid), 0
                yield _blamed(bench, entries[done], up, line, limit_s, status)
                return
            done, up = done + isinstance(line, Ended), True
            yield line
    finally:
        os.close(inlet)
        if pid:
            _end(pid)


def _limit_s(bench: Bench, entry: Entry) -> float:
    return bench.case_limit_s * (_NETWORK_FACTOR if entry.kind == "real" else 1.0)


def _blamed(bench: Bench, entry: Entry, up: bool, why: str, limit_s: float, status: int) -> Ended:
    words = _last_words(bench.log)
    if not up:
        raise RuntimeError(f"{bench.backend} does not start: {words or f'no sign of life within {limit_s:g} s'}")
    if why == "silent":
        return Ended(entry.name, CaseOutcome.TIMEOUT, f"more than {limit_s:g} s", limit_s)
    code = os.waitstatus_to_exitcode(status)
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Ended(entry.name, CaseOutcome.CRASH, f"{how}: {words}"[:_LONGEST_REASON] if words else how)


def _end(pid: int) -> int:
    """Reap a child: at once if it is gone, else after a kill. Its wait status."""
    for _ in range(50):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


class _Lines:
    """Lines from a pipe, with a time limit for each."""

    def __init__(self, inlet: int):
        self.inlet, self.text = inlet, b""
        self.poller = select.poll()
        self.poller.register(inlet, select.POLLIN)
        self.decoder: msgspec.json.Decoder[Started | Ended] = msgspec.json.Decoder(Started | Ended)

    def next(self, limit_s: float) -> Started | Ended | str:
        """The next line; ``"silent"`` when none came in time, ``"gone"`` when nobody is left to write one."""
        stop = time.monotonic() + limit_s
        while b"\n" not in self.text:
            left_s = stop - time.monotonic()
            if left_s <= 0 or not self.poller.poll(1000 * left_s):
                return "silent"
            part = os.read(self.inlet, _READ_BYTES)
            if not part:
                return "gone"
            self.text += part
        line, self.text = self.text.split(b"\n", 1)
        return self.decoder.decode(line)


def _last_words(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = stream.read().decode(errors="replace").strip().splitlines()
    return _plain(lines[-1]) if lines else ""


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text).strip()[:_LONGEST_REASON]


# --- the child --------------------------------------------------------------------------------------------------------


def _be_child(bench: Bench, entries: Sequence[Entry], outlet: int) -> None:
    """Import the runtime, execute the cases, tell of each; never returns."""
    code = 1
    try:
        log = os.open(bench.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        runner = case_runner(bench.backend, bench.device)
        _tell(outlet, Started(runner.version, runner.declared()))
        for entry in entries:
            begin = time.monotonic()
            outcome, reason = _attempt(runner, bench.folder / entry.name)
            _tell(outlet, Ended(entry.name, outcome, reason, round(time.monotonic() - begin, 6)))
        code = 0
    except BaseException as problem:
        os.write(2, f"\n{reason_of(problem)}\n".encode())
    finally:
        os._exit(code)


def _tell(outlet: int, line: Started | Ended) -> None:
    text = msgspec.json.encode(line) + b"\n"
    while text:
        text = text[os.write(outlet, text) :]


def _attempt(runner: CaseRunner, folder: Path) -> tuple[CaseOutcome, str]:
    """What becomes of one case. Runtimes written in Rust may raise what is no ``Exception``."""
    case = onnx_census.read(folder)
    stage = CaseOutcome.LOAD_ERROR
    try:
        run = runner.open_case(case.path)
        stage = CaseOutcome.RUN_ERROR
        for given in case.sets:
            if why := difference(given.outputs, run(given.inputs), case.rtol, case.atol):
                return CaseOutcome.MISMATCH, why
    except Unsupported as refusal:
        return CaseOutcome.UNSUPPORTED, reason_of(refusal, named=False)
    except BaseException as problem:
        return stage, reason_of(problem)
    return CaseOutcome.PASSED, ""


def reason_of(problem: BaseException, named: bool = True) -> str:
    """The first line of an exception that says something, without paths of ours; bounded."""
    lines = [_NOISE.sub("", _NOISE.sub("", line)).strip() for line in str(problem).splitlines()]
    telling = next((line for line in lines if line and not line.startswith(_FRAMES)), "")
    name = type(problem).__name__
    return _plain(f"{name}: {telling}" if named and telling else telling or name)


# --- comparing --------------------------------------------------------------------------------------------------------


def difference(expected: Any, found: Any, rtol: float, atol: float, place: str = "outputs") -> str:
    """How ``found`` differs from ``expected`` (arrays, lists of them, ``None``) beyond tolerance; empty if it does not.

    Types and shapes must agree; values may differ by ``atol + rtol |expected|``, NaN equals NaN, text must be equal.
    """
    if isinstance(expected, list):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return f"{place}: {_kind(found)} in place of a sequence of {len(expected)}"
        pairs = enumerate(zip(expected, found, strict=True))
        name = "output" if place == "outputs" else f"{place} item"
        return next(filter(None, (difference(a, b, rtol, atol, f"{name} {i}") for i, (a, b) in pairs)), "")
    if expected is None or found is None:
        return "" if expected is found else f"{place}: {_kind(found)} in place of {_kind(expected)}"
    return _array_difference(np.asarray(expected), np.asarray(found), rtol, atol, place)


def _kind(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"a sequence of {len(value)}"
    return "nothing" if value is None else f"{np.asarray(value).dtype} of shape {np.asarray(value).shape}"


def _array_difference(expected: np.ndarray, found: np.ndarray, rtol: float, atol: float, place: str) -> str:
    text = expected.dtype.kind in "OUS"
    alike = found.dtype.kind in "OUS" if text else found.dtype == expected.dtype
    if found.shape != expected.shape or not alike:
        return f"{place}: {_kind(found)} in place of {_kind(expected)}"
    if text:
        wrong = np.asarray(expected != found)
        return f"{place}: {wrong.sum()} of {wrong.size} texts differ" if wrong.any() else ""
    if expected.dtype.name == "bfloat16":
        rtol = max(rtol, _BFLOAT16_RTOL)
    wide = np.float32 if is_small(expected.dtype) else expected.dtype
    exact, given = expected.astype(wide), found.astype(wide)
    with np.errstate(all="ignore"):
        wrong = ~np.isclose(given, exact, rtol=rtol, atol=atol, equal_nan=True)
        worst = np.abs(given.astype(np.complex128) - exact)[wrong].max() if wrong.any() else 0.0
    if not wrong.any():
        return ""
    return f"{place}: {wrong.sum()} of {wrong.size} values differ, by up to {worst:.3g}; rtol {rtol:g}, atol {atol:g}"
