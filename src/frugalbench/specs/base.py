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
from frugalbench.untrusted import brief, shown

SIMULATED = "sim"
"""The device that is in no machine. Only the self-test runs on it."""
MOST_LIST = 100
"""Entries of an option."""
MOST_TEXT = 1000
MOST_NUMBER = 2**40
"""No size, count or number of bytes that a workload takes is beyond it."""


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
        """Whether there is a device that torch calls ``cuda``: NVIDIA's node, or an AMD GPU. Imports nothing."""
        ...

    @property
    def gpu_l2_bytes(self) -> int:
        """Last-level cache of the device behind ``cuda``; 0 where it is not known."""
        ...

    @property
    def gpu_memory_bytes(self) -> int | None:
        """Memory of that device; ``None`` where it is not known."""
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
    and for a value of another type than its default, or of a size that no workload takes. An integer is accepted
    where a float is expected.
    """
    for key, value in settings.options.items():
        if key not in defaults:
            near = difflib.get_close_matches(key, [*defaults, "name", "device", "threads"], n=1, cutoff=0)
            raise FrugalbenchError(f"{settings.where}: unknown key '{key}'; did you mean '{near[0]}'?")
        _check_size(settings, key, value)
        default = defaults[key]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            continue
        if type(value) is not type(default):
            raise FrugalbenchError(
                f"{settings.where}: '{key}' must be {_article(default)}, not {brief(value)} ({_article(value)})"
            )
        _check_items(settings, key, value, default)
    return {**defaults, **settings.options}


def choose(settings: Settings, key: str, value: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """``value`` if it is one of ``known``; otherwise a :class:`FrugalbenchError` naming the nearest one."""
    if value not in known:
        near = difflib.get_close_matches(value, list(known), n=1, cutoff=0)
        raise FrugalbenchError(f"{settings.where}: unknown {key} '{shown(value, 100)}'; did you mean '{near[0]}'?")
    return value


def _check_size(settings: Settings, key: str, value: Any) -> None:
    """Refuse what would only keep planning busy: endless lists, sizes beyond any machine."""
    items = value if isinstance(value, list) else [value]
    if len(items) > MOST_LIST:
        raise FrugalbenchError(f"{settings.where}: '{key}' has {len(items)} entries, more than {MOST_LIST}")
    for item in items:
        if isinstance(item, int | float) and not -MOST_NUMBER <= item <= MOST_NUMBER:
            raise FrugalbenchError(f"{settings.where}: '{key}' {brief(item)} is beyond any machine")
        if isinstance(item, str) and len(item) > MOST_TEXT:
            raise FrugalbenchError(f"{settings.where}: '{key}' {brief(item)} has more than {MOST_TEXT} characters")


def _check_items(settings: Settings, key: str, value: Any, default: Any) -> None:
    if isinstance(default, list) and default:
        wrong = [item for item in value if type(item) is not type(default[0])]
        if wrong:
            raise FrugalbenchError(
                f"{settings.where}: '{key}' holds {brief(wrong[0])}; each must be {_article(default[0])}"
            )


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
