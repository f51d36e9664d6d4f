"""AMD GPU energy through amdsmi: the board's energy accumulator, and socket power integrated as a cross-check.

The accumulator counts steps of ``counter_resolution`` microjoules. A board that is split into partitions is refused:
its counters cover all of them together.
"""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from frugalbench.meters import kfd
from frugalbench.meters.base import Availability, Meter, MeterError, first_working
from frugalbench.meters.trace import CounterMeter, TraceMeter

UPDATE_PERIOD_S = 0.1
"""How often the firmware publishes its figures is not documented; this is on the slow side."""

_WHOLE_BOARD = ("SPX", "N/A")
"""Compute partition of a board that is not split; older ones cannot be."""
_POWER_KEYS = ("current_socket_power", "average_socket_power")
_ENERGY_KEYS = ("energy_accumulator", "power")
"""Names of the accumulator's steps; the second one before ROCm 6.1."""


def discover(
    library: Any = None, environ: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
) -> list[Meter]:
    """Counter and power meters of the boards that HIP may use, the first one's with the scope ``gpu-board``.

    Empty without the library or its driver. ``library`` is the ``amdsmi`` module or something that answers like it.
    """
    try:
        library = library or _load()
        handles = visible(library.amdsmi_get_processor_handles(), environ)
    except Exception:  # amdsmi raises its own classes; its import fails without ROCm's library
        return []
    return [meter for place, handle in enumerate(handles) for meter in _of_board(library, handle, place, clock)]


def visible(handles: list[Any], environ: Mapping[str, str]) -> list[Any]:
    """The handles that ``ROCR_VISIBLE_DEVICES`` leaves, and of these those that HIP's own variable names, by number;
    none where a board is named otherwise: another one's joules would be worse."""
    left = list(handles)
    for names in (kfd.VISIBLE[:1], kfd.VISIBLE[1:]):
        given = next((environ[name] for name in names if name in environ), None)
        if given is not None:
            named = [name.strip() for name in given.split(",")]
            left = [left[int(name)] for name in named if name.isdigit() and int(name) < len(left)]
    return left


def _of_board(library: Any, handle: Any, place: int, clock: Callable[[], float]) -> list[Meter]:
    scope = "gpu-board" if place == 0 else f"gpu-board-{place}"
    refused = partial(refused_as_partition, library, handle, place)
    counter = CounterMeter(
        name=f"amdsmi energy gpu{place}",
        scope=scope,
        method="amdsmi energy accumulator",
        read=partial(energy_j, library, handle, place),
        update_period_s=UPDATE_PERIOD_S,
        remedy="the board or its driver has no such counter (virtual machines have none)",
        refused=refused,
    )
    power = TraceMeter(
        name=f"amdsmi power gpu{place}",
        scope=scope,
        method="amdsmi socket power, integrated",
        read=partial(power_w, library, handle, place),
        update_period_s=UPDATE_PERIOD_S,
        remedy="the board or its driver does not tell its power",
        refused=refused,
        clock=clock,
    )
    return [counter, power]


def energy_j(library: Any, handle: Any, place: int) -> float:
    """Joules since the driver was loaded. Raises :class:`MeterError`."""
    answer = _asked(library.amdsmi_get_energy_count, handle, place)
    steps = _number(answer, _ENERGY_KEYS, f"gpu{place}: energy accumulator")
    return steps * _number(answer, ("counter_resolution",), f"gpu{place}: counter resolution") * 1e-6


def power_w(library: Any, handle: Any, place: int) -> float:
    """Watts of the socket just now, or on average. Raises :class:`MeterError`."""
    return _number(_asked(library.amdsmi_get_power_info, handle, place), _POWER_KEYS, f"gpu{place}: socket power")


def refused_as_partition(library: Any, handle: Any, place: int) -> Availability | None:
    """Why a split board is no meter; ``None`` where it is whole."""
    try:
        partition = str(library.amdsmi_get_gpu_compute_partition(handle))
    except Exception:  # not supported: boards that cannot be split
        return None
    if partition in _WHOLE_BOARD:
        return None
    detail = f"gpu{place} is split ({partition}): the board's energy is not the partition's"
    return Availability(False, detail, "amd-smi set --compute-partition SPX, or a meter of the machine")


def probe(library: Any = None) -> Availability:
    """Whether the energy of a board can be read."""
    try:
        library = library or _load()
    except ImportError:
        return Availability(False, "amdsmi is not installed", "pip install 'frugalbench[amd]'  (only with an AMD GPU)")
    except Exception as error:  # as above
        remedy = "install the amdgpu driver; join the groups render and video"
        return Availability(False, f"amdsmi does not answer: {error}", remedy)
    return first_working(discover(library), Availability(False, "amdsmi shows no board", "check amd-smi list"))


def _load() -> Any:
    import amdsmi

    amdsmi.amdsmi_init()
    return amdsmi


def _asked(function: Callable[[Any], Any], handle: Any, place: int) -> Any:
    try:
        return function(handle)
    except Exception as error:  # as above
        raise MeterError(f"gpu{place}: {getattr(function, '__name__', 'amdsmi')} failed: {error}") from error


def _number(answer: Any, keys: tuple[str, ...], what: str) -> float:
    """The first of ``keys`` that holds a number; amdsmi writes ``N/A`` for what a board does not have."""
    for key in keys:
        try:
            return float(answer[key])
        except (KeyError, TypeError, ValueError):
            continue
    raise MeterError(f"{what} is not available")
