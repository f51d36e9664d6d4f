"""Tasks of lm-evaluation-harness, written ``lm_eval:NAME`` where a task's name stands. No torch; nothing is imported.

NAME is one of the library's own tasks, or a task file of the user's (``lm_eval:mine.yaml``). Its templates run as code,
so such a file needs ``--allow-code``. Only tasks that compare the likelihood of given answers can be paired: multiple
choice, with the metric ``acc``.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from frugalbench.schema import FrugalbenchError
from frugalbench.untrusted import shown

PREFIX, KIND = "lm_eval:", "requests"
PACKAGE, EXTRA = "lm-eval", "lmeval"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
_SUFFIXES = (".yaml", ".yml")


def is_one(name: str) -> bool:
    """Whether a task is one of that library's."""
    return name.startswith(PREFIX)


def is_file(name: str) -> bool:
    """Whether it is a file of the user's."""
    return is_one(name) and name.endswith(_SUFFIXES)


def absolute(name: str) -> str:
    """With the file's whole path."""
    return f"{PREFIX}{Path(name.removeprefix(PREFIX)).resolve()}" if is_file(name) else name


def label(name: str) -> str:
    """In ids and tables. Raises :class:`FrugalbenchError` for a name that cannot be one, and for a missing file."""
    own = name.removeprefix(PREFIX)
    if is_file(name) and not Path(own).is_file():
        raise FrugalbenchError(f"{shown(own, 200)}: no such task file of lm-evaluation-harness")
    short = Path(own).stem if is_file(name) else own
    if not _NAME.fullmatch(short):
        raise FrugalbenchError(f"'{shown(name, 200)}': write lm_eval:NAME or lm_eval:FILE.yaml")
    return f"lm_eval-{short}"


def files(tables: Iterable[object]) -> list[str]:
    """Task files among the ``tasks`` of a config's workload tables, each once."""
    found = [
        name for table in tables if isinstance(table, dict) for name in _texts(table.get("tasks")) if is_file(name)
    ]
    return list(dict.fromkeys(name.removeprefix(PREFIX) for name in found))


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
