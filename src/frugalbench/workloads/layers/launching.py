"""How the calls of a loaded model reach a device: one by one, or recorded once and replayed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frugalbench.backends.base import Runnable
from frugalbench.schema import Case
from frugalbench.workloads import device
from frugalbench.workloads.device import Device

EAGER, GRAPH = "eager", "graph"


def device_of(case: Case) -> Device | None:
    """What a case's calls run on, where its own clock can be asked; providers of other devices wait in each call."""
    return device.of(case.device) if case.device in ("cpu", "cuda") else None


def wanted(params: Mapping[str, Any]) -> str:
    """``graph`` or ``eager``; a case that does not say is eager."""
    return str(params.get("launch", EAGER))


def launched(runnable: Runnable, prepared: Sequence[Any], case: Case) -> tuple[Callable[[int], Any], dict[str, str]]:
    """What computes position ``index % len(prepared)``, and how it is launched; a runtime may record by itself."""
    rotation = len(prepared)

    def call(index: int) -> Any:
        return runnable.run(prepared[index % rotation])

    place = device_of(case)
    if place is None or "launch" in runnable.details:
        return call, {}
    if wanted(case.params) != GRAPH:
        return call, {"launch": EAGER}
    replay, how = place.captured(call, rotation)
    return replay, {"launch": how}
