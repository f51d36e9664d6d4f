"""What every workload spec provides. A spec knows shapes, inputs, costs and tolerances, and no torch.

A spec module is listed in :data:`frugalbench.specs.SPECS` under its workload's name and has

``expand(settings, machine) -> Expansion``
    turns one ``[[workload]]`` table of a config into comparisons, with a reason for each case left out.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from frugalbench.schema import Case, Comparison, FrugalbenchError, Skipped


class MachineView(Protocol):
    """The few facts about the machine that planning needs."""

    @property
    def logical_cores(self) -> int: ...

    @property
    def last_level_cache_bytes(self) -> int: ...

    def installed(self, package: str) -> str | None:
        """Version of an importable distribution (its name on the package index), or ``None``. Imports nothing."""
        ...

    def has_cuda(self) -> bool:
        """Whether an NVIDIA device node is present. Imports nothing."""
        ...


@dataclass(frozen=True)
class Settings:
    """One ``[[workload]]`` table of a config."""

    workload: str
    device: str
    threads: int
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    """Every other key of the table, checked by the spec with :func:`take`."""
    where: str = "config"
    """File and table, for error messages."""


@dataclass(frozen=True)
class Expansion:
    """What a spec makes of its settings."""

    comparisons: tuple[Comparison, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    modelled: tuple[Case, ...] = ()


def take(settings: Settings, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``settings`` over ``defaults``.

    Raises :class:`FrugalbenchError` for an unknown key (naming the place and the nearest valid key)
    and for a value of another type than its default. An integer is accepted where a float is expected.
    """
    for key, value in settings.options.items():
        if key not in defaults:
            near = difflib.get_close_matches(key, [*defaults, "name", "device", "threads"], n=1, cutoff=0)
            raise FrugalbenchError(f"{settings.where}: unknown key '{key}'; did you mean '{near[0]}'?")
        default = defaults[key]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            continue
        if type(value) is not type(default):
            raise FrugalbenchError(
                f"{settings.where}: '{key}' must be {_article(default)}, not {value!r} ({_article(value)})"
            )
        _check_items(settings, key, value, default)
    return {**defaults, **settings.options}


def choose(settings: Settings, key: str, value: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """``value`` if it is one of ``known``; otherwise a :class:`FrugalbenchError` naming the nearest one."""
    if value not in known:
        near = difflib.get_close_matches(value, list(known), n=1, cutoff=0)
        raise FrugalbenchError(f"{settings.where}: unknown {key} '{value}'; did you mean '{near[0]}'?")
    return value


def _check_items(settings: Settings, key: str, value: Any, default: Any) -> None:
    if isinstance(default, list) and default:
        wrong = [item for item in value if type(item) is not type(default[0])]
        if wrong:
            raise FrugalbenchError(f"{settings.where}: '{key}' holds {wrong[0]!r}; each must be {_article(default[0])}")


def _article(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "a table",
    }
    return names.get(type(value), type(value).__name__)
