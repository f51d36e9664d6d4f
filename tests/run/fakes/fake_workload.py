"""A builder whose arms do as their case's ``params`` say, and log when they computed.

``work_s`` busy time of a call · ``log`` file of JSON lines · ``wrong`` answers off by one · ``hang_in`` / ``die_in``
``reference``, ``load``, ``output`` or ``call`` · ``die_at`` which fresh start (from 0) misbehaves, default all ·
``how`` to die · ``hold_bytes`` allocated at load · ``slow_load`` seconds asleep after that · ``void_turns`` turns
of this worker that the environment spoils · ``key`` of the reference.
"""

import contextlib
import ctypes
import json
import os
import signal
import time
from pathlib import Path

import numpy as np

from frugalbench.meters import environment
from frugalbench.workloads.base import Bound

ROTATION = 3
_turns = 0
_void_turns: set[int] = set()


def _void_reason(*_):
    """In place of the real one, so that a busy machine cannot change what a test sees."""
    global _turns
    _turns += 1
    return "spoilt by the test" if _turns - 1 in _void_turns else None


environment.void_reason = _void_reason


def write(params, **entry):
    if "log" in params:
        fd = os.open(params["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(fd, json.dumps({"pid": os.getpid(), **entry}).encode() + b"\n")
        os.close(fd)


@contextlib.contextmanager
def logged(params, name, what):
    begin = time.monotonic()
    yield
    write(params, name=name, what=what, begin=begin, end=time.monotonic())


def spin(duration_s):
    stop = time.perf_counter() + duration_s
    while time.perf_counter() < stop:
        pass


DEATHS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "segfault": lambda: ctypes.string_at(0),
    "template": lambda: os.kill(os.getppid(), signal.SIGKILL),
    "raise": lambda: 1 / 0,
}


def misbehave(params, where, start):
    if params.get("die_at", start) != start:
        return
    if params.get("hang_in") == where:
        time.sleep(600)
    if params.get("die_in") == where:
        DEATHS[params["how"]]()


def earlier_starts(params, arm):
    if "log" not in params or not Path(params["log"]).exists():
        return 0
    entries = map(json.loads, Path(params["log"]).read_text().splitlines())
    return sum(entry["what"] == "start" and entry["name"] == arm for entry in entries)


class Loaded:
    artefacts = ()

    def __init__(self, arm):
        params = arm.cases[0].params
        self.start = earlier_starts(params, arm.id)
        with logged(params, arm.id, "start"):
            pass
        with logged(params, arm.id, "load"):
            self.held = np.ones(params.get("hold_bytes", 0), np.uint8)
            time.sleep(params.get("slow_load", 0))
            misbehave(params, "load", self.start)
            spin(0.002)
        _void_turns.update(params.get("void_turns", ()))

    def bind(self, case):
        params = case.params
        if params.get("unbindable"):
            raise RuntimeError("this case cannot be bound")

        def answer(index, where):
            misbehave(params, where, self.start)
            with logged(params, case.id, where):
                spin(params.get("work_s", 0.001))
            return np.arange(4.0) + index % ROTATION + params.get("wrong", 0)

        return Bound(
            call=lambda index: answer(index, "call"),
            output=lambda index: {"y": answer(index, "output")},
            rotation=ROTATION,
        )

    def close(self):
        pass


def load(arm, context):  # noqa: ARG001
    return Loaded(arm)


def reference(case, context):  # noqa: ARG001
    misbehave(case.params, "reference", 0)
    with logged(case.params, case.id, "reference"):
        spin(0.002)
        return {"y": np.arange(4.0) + np.arange(float(ROTATION))[:, None]}


def reference_key(case):
    return case.params.get("key", "shared")
