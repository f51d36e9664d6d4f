"""Measure efficiency claims about AI systems on the machine in front of you.

The public API: :func:`run` measures a config, :func:`load_run` reads a run directory, :func:`judge` gives its
verdicts; :class:`Workload`, :class:`Backend` and :class:`Meter` are what an extension provides.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Backend", "Meter", "Workload", "judge", "load_run", "run"]

_PLACES = {
    "run": ("frugalbench.cli.session", "run"),
    "judge": ("frugalbench.cli.judging", "judge"),
    "load_run": ("frugalbench.analysis.load", "load_run"),
    "Workload": ("frugalbench.workloads.base", "Loaded"),
    "Backend": ("frugalbench.backends.base", "Backend"),
    "Meter": ("frugalbench.meters.base", "Meter"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'frugalbench' has no attribute '{name}'")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)
