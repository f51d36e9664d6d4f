"""A builder whose arms do as their case's ``params`` say, and log when they computed.

``work_s`` busy time of a call · ``log`` file of JSON lines · ``wrong`` answers off by one · ``hang_in`` / ``die_in``
``reference``, ``load``, ``output`` or ``call`` · ``die_at`` which fresh start (from 0) misbehaves, default all ·
``how`` to die · ``hang_file`` made by who hangs · ``hold_bytes`` allocated at load · ``slow_load`` seconds asleep
after that · ``void_turns`` turns of this worker that the environment spoils · ``key`` of the reference.

Faults: ``stray`` a child that hangs, double-forked into a session of its own · ``leak_threads`` that spin after
``leak_at`` calls · ``spin_on_s`` how long a thread spins on after a call · ``changes_at`` the call from which on the
answer is off by one · ``misshapen`` answers · ``misses`` a module that load imports · ``grow_bytes`` more held after
each call · ``print_bytes`` printed at load · ``no_path`` why load finds no kernel · ``capped``
why loading showed it to be hopeless.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import numpy as np

from frugalbench.meters import environment
from frugalbench.run import protocol
from frugalbench.workloads.base import Bound, NoPath

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


def pipes():
    """Every socket of this process: the worker's pipe is among them."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(link.readlink()).startswith("socket:"):
                yield int(link.name)


def write_to_pipes(data):
    for fd in pipes():
        os.write(fd, data)


def message(reply):
    body = protocol.msgspec.msgpack.encode(reply)
    return protocol._LENGTH.pack(len(body)) + body


def hang_after(action):
    action()
    time.sleep(600)


def grab():
    """Far faster than anyone looks."""
    kept = []
    while True:
        kept.append(np.ones(2**26, np.uint8))


def raise_of(name, text):
    """As torch does, which has a class of its own for full memory."""
    raise type(name, (RuntimeError,), {})(text)


FULL = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
LOST = "CUDA error: GPU is lost\nCUDA kernel errors might be asynchronously reported at some other API call"
DEATHS = {
    "gpu full": lambda: raise_of("OutOfMemoryError", FULL),
    "gpu lost": lambda: raise_of("AcceleratorError", LOST),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "sys.exit": lambda: sys.exit("the library had enough"),
    "segfault": lambda: ctypes.string_at(0),
    "template": lambda: os.kill(os.getppid(), signal.SIGKILL),
    "raise": lambda: 1 / 0,
    "garbage": lambda: write_to_pipes(b"progress: 10%\n"),
    "garbage and hang": lambda: hang_after(lambda: write_to_pipes(b"progress: 10%\n")),
    "half a message": lambda: hang_after(lambda: write_to_pipes(message(protocol.Finished())[:-3])),
    "not msgpack": lambda: write_to_pipes(protocol._LENGTH.pack(4) + b"\xc1\xc1\xc1\xc1"),
    "wrong message": lambda: write_to_pipes(message(protocol.Finished())),
    "close": lambda: hang_after(lambda: [os.close(fd) for fd in list(pipes())]),
    "grab": grab,
}
TWICE = "import os, sys, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); {rest}"
SLEEPER = "print(os.getpid(), flush=True); sys.stdout.close(); os.close(1); time.sleep(600)"


def stray(params, arm):
    """A hanging child that its parent has lost sight of; its pid goes into the log."""
    code = TWICE.format(rest=SLEEPER)
    pid = int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout)
    write(params, name=arm, what="stray", stray=pid)


def spin_forever():
    while True:
        pass


def misbehave(params, where, start):
    if params.get("die_at", start) != start:
        return
    if params.get("hang_in") == where:
        if "hang_file" in params:
            Path(params["hang_file"]).touch()
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
            if "no_path" in params:
                raise NoPath(params["no_path"])
            if "misses" in params:
                import_module(params["misses"])
            if "print_bytes" in params:
                print("x" * params["print_bytes"], flush=True)
            spin(0.002)
        if params.get("stray"):
            stray(params, arm.id)
        _void_turns.update(params.get("void_turns", ()))

    def bind(self, case):
        params = case.params
        if params.get("unbindable"):
            raise RuntimeError("this case cannot be bound")

        calls = []
        leaked = []

        def answer(index, where):
            misbehave(params, where, self.start)
            calls.append(np.ones(params.get("grow_bytes", 0) if where == "call" else 0, np.uint8))
            while len(leaked) < params.get("leak_threads", 0) and len(calls) > params.get("leak_at", 0):
                leaked.append(threading.Thread(target=spin_forever, daemon=True))
                leaked[-1].start()
            with logged(params, case.id, where):
                spin(params.get("work_s", 0.001))
            if "spin_on_s" in params and not any(thread.is_alive() for thread in leaked):
                leaked.append(threading.Thread(target=spin, args=(params["spin_on_s"],), daemon=True))
                leaked[-1].start()
            right = np.arange(4.0) + index % ROTATION + params.get("wrong", 0)
            changed = right + (len(calls) > params.get("changes_at", 1e9))
            return changed[None] if params.get("misshapen") else changed

        return Bound(
            call=lambda index: answer(index, "call"),
            output=lambda index: {"y": answer(index, "output")},
            rotation=ROTATION,
            capped=params.get("capped", ""),
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
