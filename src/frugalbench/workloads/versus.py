"""Runs what the user named on the command line of ``versus``: a Python callable, or a command.

A callable is timed in a loop as tight as ``timeit``'s; a command is started without a shell unless it needs one.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.schema import Arm, Case
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.installed import enter, require_used

_FIRST = "the answer of the first arm"


class CallableArm:
    """A function of the user's, called over and over in this process."""

    artefacts = ()

    def __init__(self, arm: Arm) -> None:
        params = arm.cases[0].params
        added = enter(params["site"], _beside(params["call"][0])) if "site" in params else ()
        function = find(*params["call"])
        arguments = _arguments(find(*params["setup"])()) if "setup" in params else ()
        self._call: Callable[[], object] = function if not arguments else lambda: function(*arguments)
        self._batch = _plain(function) if not arguments else _with(function, arguments)
        if added:
            require_used(added, params["site"], self._call)

    def bind(self, _case: Case) -> Bound:
        """The callable; its answer is looked at only with ``--check``."""
        return Bound(
            call=lambda _index: self._call(),
            output=lambda _index: _arrays(self._call()),
            batch=self._batch,
            against=_FIRST,
        )

    def close(self) -> None:
        """Nothing of ours to release."""


def _beside(place: str) -> str:
    return str(Path(place).parent) if place.endswith(".py") else ""


def _plain(function: Callable[[], object]) -> Callable[[int, int], object]:
    def batch(_first: int, calls: int) -> None:
        for _ in repeat(None, calls):
            function()

    return batch


def _with(function: Callable[..., object], arguments: tuple[object, ...]) -> Callable[[int, int], object]:
    if len(arguments) == 1:
        (argument,) = arguments

        def single(_first: int, calls: int) -> None:
            for _ in repeat(None, calls):
                function(argument)

        return single

    def several(_first: int, calls: int) -> None:
        for _ in repeat(None, calls):
            function(*arguments)

    return several


def _arguments(made: object) -> tuple[object, ...]:
    """What a set-up function returned, as arguments: nothing, a tuple of several, or one."""
    return () if made is None else made if isinstance(made, tuple) else (made,)


def find(place: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of a file or module. Raises ``RuntimeError`` with one sentence when there is none."""
    module = _from_file(Path(place)) if place.endswith(".py") else _from_module(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise RuntimeError(f"{place} has no '{name}'")
        found = getattr(found, part)
    if not callable(found):
        raise RuntimeError(f"{place}:{name} cannot be called")
    if inspect.iscoroutinefunction(found) or inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found):
        raise RuntimeError(f"{place}:{name} is async or yields: calling it computes nothing yet; name one that runs it")
    return found  # type: ignore[no-any-return]


def _from_module(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")
    return importlib.import_module(name)


def _from_file(path: Path) -> Any:
    """The module in a file; modules beside it can be imported, as when Python runs the file."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = path.stem
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class CommandArm:
    """A command, started afresh for each call, its output thrown away."""

    artefacts = ()

    def __init__(self, arm: Arm) -> None:
        params = arm.cases[0].params
        self._words: list[str] = params["command"]
        self._ignore_failure = bool(params["ignore_failure"])
        quiet = os.open(os.devnull, os.O_RDWR)
        self._actions = [(os.POSIX_SPAWN_DUP2, quiet, fd) for fd in (0, 1, 2)]
        self._pid: int | None = None

    def bind(self, _case: Case) -> Bound:
        """The command; ``output`` is its exit code."""
        return Bound(
            call=lambda _index: self._run(),
            output=lambda _index: {"exit code": np.array([float(self._run())])},
            against=_FIRST,
        )

    def _run(self) -> int:
        self._pid = os.posix_spawnp(self._words[0], self._words, os.environ, file_actions=self._actions)
        _, status = os.waitpid(self._pid, 0)
        self._pid = None
        code = os.waitstatus_to_exitcode(status)
        if code and not self._ignore_failure:
            how = f"exited with code {code}" if code > 0 else f"was killed by signal {-code}"
            raise RuntimeError(f"the command {how}; add --ignore-failure to time it all the same")
        return code

    def close(self) -> None:
        """Nothing to release."""


def load(arm: Arm, _context: Context) -> CallableArm | CommandArm:
    """Import and set up the callable, or get ready to start the command."""
    return CommandArm(arm) if "command" in arm.cases[0].params else CallableArm(arm)


def reference(case: Case, context: Context) -> Arrays:
    """With ``--check`` the first arm's own answer stands in for a reference, leading axis 1; otherwise unused."""
    loaded = load(Arm(id=case.variant, cases=(case,), imports=()), context)
    try:
        return {name: array[None] for name, array in loaded.bind(case).output(0).items()}
    finally:
        loaded.close()


def reference_key(case: Case) -> str:
    """One for all arms: ``--check`` asks whether they answer alike."""
    return case.workload


def _arrays(value: object) -> Arrays:
    """An answer as arrays that can be compared: each number or array of numbers, and the form that holds them as text.

    Raises ``RuntimeError`` for what cannot be compared.
    """
    numbers: list[np.ndarray] = []
    form = _form(value, numbers).encode(errors="surrogatepass")
    named = {f"number {index}": array for index, array in enumerate(numbers)}
    return {"form": np.frombuffer(form, np.uint8).astype(np.float64), **named}


def _form(value: Any, numbers: list[np.ndarray]) -> str:
    if value is None or isinstance(value, str | bytes):
        return repr(value)
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: repr(item[0]))
        return "{" + ", ".join(f"{key!r}: {_form(item, numbers)}" for key, item in items) + "}"
    if (array := _numbers(value)) is not None:
        numbers += [array] if array.size else []
        return f"numbers{array.shape}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_form(item, numbers) for item in value) + "]"
    if isinstance(value, int):
        return str(value)
    raise RuntimeError(f"--check cannot compare a {type(value).__name__}: return numbers, text, lists or dicts of them")


def _numbers(value: Any) -> np.ndarray | None:
    """A number, array, tensor or regular list of numbers as float64; ``None`` for anything else."""
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = value.double() if str(value.dtype) == "torch.bfloat16" else value
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag])
    return array.astype(np.float64) if array.dtype.kind in "biuf" else None
