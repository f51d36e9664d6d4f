"""The command that measures a stored run again, as far as its manifest tells."""

import shlex
from pathlib import PurePosixPath

from frugalbench.paths import shipped
from frugalbench.schema import Manifest

TOOL = "frugalbench"
_TYPED = "command line"
"""Path of a config that was no file: arms or a model named on the command line."""
REST = "what --set, --only and --device changed is in the config and plan that manifest.json holds"


def command_of(manifest: Manifest, only: str | None = None) -> str:
    """``frugalbench run CONFIG --seed N --time-budget S``; of other commands their name; of other tools' files nothing.

    A shipped config stands by its name, which is found wherever the package is installed. ``only`` is one comparison.
    """
    if TOOL not in manifest.versions:
        return ""
    path = str(manifest.config.get("path") or manifest.name)
    if path == _TYPED:
        return f"{TOOL} {shlex.quote(manifest.name)} …"
    words = [TOOL, "run", shlex.quote(_config(path)), *(["--only", shlex.quote(only)] if only else [])]
    return " ".join([*words, f"--seed {manifest.seed}", *_budget(manifest)])


def _config(path: str) -> str:
    """``configs/NAME.toml``, as a shipped config is recorded, by its name."""
    file = PurePosixPath(path)
    known = str(file.parent) == "configs" and (shipped("configs") / file.name).is_file()
    return file.stem if known else path


def _budget(manifest: Manifest) -> list[str]:
    measure = manifest.config.get("measure")
    budget_s = measure.get("time_budget_s") if isinstance(measure, dict) else None
    return [f"--time-budget {budget_s:g}"] if isinstance(budget_s, int | float) else []
