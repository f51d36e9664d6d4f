"""Energy meters: one file per source. ``pick`` chooses, ``window`` measures."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frugalbench.meters import declared, nvml, powercap
from frugalbench.meters.base import Availability, Energy, Meter, MeterError, Window
from frugalbench.schema import FrugalbenchError, NothingRunsHere

__all__ = [
    "KINDS",
    "Availability",
    "Energy",
    "Meter",
    "MeterError",
    "MeterSettings",
    "Window",
    "declared",
    "nvml",
    "pick",
    "powercap",
    "probes",
    "window",
]


@dataclass(frozen=True)
class MeterSettings:
    """The ``[energy]`` table of a config, resolved for this machine."""

    kind: str = "auto"
    """A key of :data:`KINDS`; ``auto``: all that answer, and the declared model where watts are declared."""
    idle_w: float | None = None
    tdp_w: float | None = None
    source: str = ""
    """Where the declared watts come from."""
    per_core: bool = False
    cores: int = 1
    powercap_root: Path = powercap.ROOT
    nvml_driver: Any = None


def pick(settings: MeterSettings) -> list[Meter]:
    """The meters to open windows on; each of them answered when it was read just now.

    Raises :class:`FrugalbenchError` for an unknown kind or bad watts, and :class:`NothingRunsHere` when the kind that
    was asked for by name does not answer here.
    """
    if settings.kind not in KINDS:
        raise FrugalbenchError(f"energy: unknown meter '{settings.kind}'; choose one of {', '.join(KINDS)}")
    candidates = KINDS[settings.kind](settings)
    working = [meter for meter in candidates if meter.available()]
    if settings.kind in _MEASURING and not working:
        why = _MEASURING[settings.kind](settings)
        raise NothingRunsHere(f"energy: {settings.kind} does not answer: {why.detail}; {why.remedy}")
    return working


def window(meters: Sequence[Meter], clock: Callable[[], float] = time.monotonic) -> Window:
    """Open a window over ``meters``; ``.close(calls=n)`` returns their readings, one :class:`schema.Reading` each."""
    return Window(meters, clock)


def probes(settings: MeterSettings | None = None) -> dict[str, Availability]:
    """What each measuring kind answers here."""
    settings = settings or MeterSettings()
    return {kind: look(settings) for kind, look in _MEASURING.items()}


def _powercap(settings: MeterSettings) -> list[Meter]:
    return list(powercap.discover(settings.powercap_root))


def _nvml(settings: MeterSettings) -> list[Meter]:
    return nvml.discover(settings.nvml_driver)


def _declared(settings: MeterSettings) -> list[Meter]:
    s = settings
    return [declared.declare(s.idle_w, s.tdp_w, s.source, s.cores, s.per_core)]


def _auto(settings: MeterSettings) -> list[Meter]:
    modelled = [] if settings.idle_w is None and settings.tdp_w is None else _declared(settings)
    return [*_powercap(settings), *_nvml(settings), *modelled]


KINDS: dict[str, Callable[[MeterSettings], list[Meter]]] = {
    "auto": _auto,
    "powercap": _powercap,
    "nvml": _nvml,
    "declared": _declared,
    "none": lambda _settings: [],
}
"""Name in a config to the meters it stands for."""

_MEASURING: dict[str, Callable[[MeterSettings], Availability]] = {
    "powercap": lambda settings: powercap.probe(settings.powercap_root),
    "nvml": lambda settings: nvml.probe(settings.nvml_driver),
}
