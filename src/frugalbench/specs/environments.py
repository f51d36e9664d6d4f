"""Two installed versions of one package as arms: where a virtual environment, or a ``pip --target`` folder, has it."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

from frugalbench.schema import FrugalbenchError


def site_of(text: str) -> str:
    """The folder to import modules from. Raises :class:`FrugalbenchError` where there is none for this Python."""
    folder = Path(text)
    mine = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not folder.is_dir():
        raise FrugalbenchError(f"--env {text}: no such folder; name a virtual environment or a pip --target folder")
    if (folder / "lib" / mine / "site-packages").is_dir():
        return str((folder / "lib" / mine / "site-packages").resolve())
    others = sorted(path.parent.name for path in folder.glob("lib/python3*/site-packages"))
    if others:
        raise FrugalbenchError(f"--env {text}: made for {others[0]}, and this is {mine}; make it with this Python")
    return str(folder.resolve())


def holds(site: str, module: str) -> bool:
    """Whether ``module`` itself lies in ``site``; what a ``.pth`` file adds is seen only by the worker."""
    return PathFinder.find_spec(module.partition(".")[0], [site]) is not None
