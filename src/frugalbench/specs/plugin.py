"""A workload of one's own, without forking: ``name = "file.py:Class"`` or ``"module:Class"`` in a config.

The class is made without arguments, in the parent and in each worker, and is spec and builder in one: ``expand`` as in
:mod:`frugalbench.specs.base`, ``load``, ``reference`` and ``reference_key`` (and ``prepare``, if there is something to
build) as in :mod:`frugalbench.workloads.base`. It is code: nothing here runs unless the user said ``--allow-code``.
"""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from frugalbench.schema import FrugalbenchError
from frugalbench.specs.base import Expansion, MachineView, Settings
from frugalbench.untrusted import brief, shown

METHODS = ("expand", "load", "reference", "reference_key")


def is_plugin(name: str) -> bool:
    """Whether a workload's name stands for code outside of this package."""
    return ":" in name


def reference(name: str, config_path: str) -> str:
    """``FILE:CLASS`` with an absolute path (a file is looked up from the config's folder), or ``MODULE:CLASS``."""
    place, _, kind = name.rpartition(":")
    if not place.endswith(".py"):
        return name
    return f"{(Path(config_path).resolve().parent / place).resolve()}:{kind}"


def references(config: Any) -> dict[str, str]:
    """Every workload of ``config`` that is code outside of this package, and where that code is."""
    names = [str(table["name"]) for table in config.workloads]
    return {name: reference(name, config.path) for name in names if is_plugin(name)}


def load(found: str) -> Any:
    """An instance of the class that :func:`reference` names; imports and runs its code.

    Raises :class:`FrugalbenchError` in one line where it cannot be imported, made, or lacks a method.
    """
    place, _, kind = found.rpartition(":")
    try:
        made = getattr(_module(place), kind)()
    except FrugalbenchError:
        raise
    except (Exception, SystemExit) as problem:
        raise FrugalbenchError(f"{found}: cannot be loaded: {_told(problem)}") from None
    lacking = [name for name in METHODS if not callable(getattr(made, name, None))]
    if lacking:
        raise FrugalbenchError(f"{found}: a workload needs {', '.join(METHODS)}; this class has no {lacking[0]}")
    return made


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    name = f"frugalbench_plugin_{hashlib.sha256(place.encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise FrugalbenchError(f"{place}: no such file; a workload's file is looked up from its config's folder")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def expand(found: str, settings: Settings, machine: MachineView) -> Expansion:
    """What the class at ``found`` makes of its table; its faults become one line that names it."""
    made = load(found)
    try:
        expansion = made.expand(settings, machine)
    except FrugalbenchError:
        raise
    except Exception as problem:
        raise FrugalbenchError(f"{settings.where}: {found}: expand failed: {_told(problem)}") from None
    if not isinstance(expansion, Expansion):
        raise FrugalbenchError(f"{settings.where}: {found}: expand returned {brief(expansion)}, not an Expansion")
    if expansion.modelled:
        raise FrugalbenchError(f"{settings.where}: {found}: a workload of one's own is measured, not modelled")
    return expansion


def _told(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return shown(f"{type(problem).__name__}: {text}" if text else type(problem).__name__, 300)
