"""A declared energy model: between idle watts and TDP watts, times the length of the window.

Nothing is read, so there is no value, only an interval, and the tier is ``modelled``. A missing bound stays missing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from frugalbench.meters.base import Availability, Energy
from frugalbench.schema import FrugalbenchError, Tier


@dataclass(frozen=True)
class DeclaredMeter:
    """``idle_w * t`` to ``tdp_w * t`` for the whole of what is declared; ``source`` says where the watts come from."""

    idle_w: float | None
    tdp_w: float | None
    source: str
    clock: Callable[[], float] = time.monotonic
    scope: str = "declared-model"
    tier: Tier = Tier.MODELLED
    update_period_s: float = 0.0
    name: str = "declared"

    @property
    def method(self) -> str:
        low = "unknown" if self.idle_w is None else f"{self.idle_w:g} W"
        high = "unknown" if self.tdp_w is None else f"{self.tdp_w:g} W"
        return f"declared, idle {low} to TDP {high} ({self.source})"

    def available(self) -> Availability:
        return Availability(True, self.method)

    def begin(self) -> float:
        return self.clock()

    def end(self, mark: float) -> Energy:
        elapsed_s = self.clock() - mark
        return Energy(None, _times(self.idle_w, elapsed_s), _times(self.tdp_w, elapsed_s))


def declare(
    idle_w: float | None, tdp_w: float | None, source: str, cores: int = 1, per_core: bool = False
) -> DeclaredMeter:
    """A meter from declared watts, of the machine or (``per_core``) of each of ``cores``.

    Raises :class:`FrugalbenchError` when both bounds are missing, one is negative or not finite, or idle exceeds TDP.
    """
    given = [watt for watt in (idle_w, tdp_w) if watt is not None]
    if not given:
        raise FrugalbenchError("energy: a declared model needs idle_w, tdp_w or both; add them to [energy]")
    if any(not 0 <= watt < float("inf") for watt in given) or given != sorted(given):
        raise FrugalbenchError(f"energy: declared watts must be 0 <= idle_w <= tdp_w, not {idle_w} and {tdp_w}")
    if not source:
        raise FrugalbenchError('energy: declared watts need a source; add source = "…" to [energy]')
    factor = cores if per_core else 1
    detail = f"{source}; {cores} cores" if per_core else source
    return DeclaredMeter(_times(idle_w, factor), _times(tdp_w, factor), detail)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
