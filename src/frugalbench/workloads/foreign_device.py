"""Builder of ``foreign_device``: a model on a device behind PrivateUse1, its operators counted, its answer checked.

A fallback does not fail a case here: it is what is counted. The timed call is the model as a user would run it, outside
the census.
"""

import json
from typing import Any

import numpy as np
import torch

from frugalbench.backends import foreign
from frugalbench.schema import Arm, Artefact, Case, Quantity, Tier
from frugalbench.specs.foreign_device import STAND_INS
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.layers.foreign_models import Place, Subject, subject
from frugalbench.workloads.layers.operator_census import DECOMPOSED, MISSING, NATIVE, OUTCOMES, Census, Watch

_SOURCE = "operators by overload, seen at torch's dispatcher in one call before timing"


def load(arm: Arm, context: Context) -> "ForeignDevice":
    """Open the arm's device. Raises ``RuntimeError`` where the adapter finds none."""
    variant = arm.cases[0].variant
    torch.set_num_threads(context.threads)
    stand_in = variant in STAND_INS
    name = "stand-in" if stand_in else variant
    device = foreign.open_device(name, core=variant == "stand-in-core")
    built = (foreign.built(),) if stand_in else ()
    artefacts = tuple(Artefact(name="stand-in device", build_s=item.build_s, cached=item.cached) for item in built)
    return ForeignDevice(device, context, artefacts)


def prepare(arm: Arm, context: Context) -> None:  # noqa: ARG001
    """Compile the stand-in, once per torch."""
    if arm.cases[0].variant in STAND_INS:
        foreign.built()


class ForeignDevice:
    """An open device."""

    def __init__(self, device: foreign.Device, context: Context, artefacts: tuple[Artefact, ...]) -> None:
        self.device, self.context, self.artefacts = device, context, artefacts

    def bind(self, case: Case) -> Bound:
        """Build the model there, count its operators in one call, and make it callable."""
        made = subject(case.shape, case.params, self.context, Place(self.device.name, torch.float32))
        census, on_device, on_host, answer = self._counted(made)
        state = made.setup()
        return Bound(
            call=lambda _: made.step(state),
            output=lambda _: answer,
            synchronize=self.device.synchronize,
            against="the same model in float64 on the processor",
            facts=_facts(census, on_host),
            details=self._details(census, on_device, on_host),
            capped=_refusal(census),
        )

    def _counted(self, made: Subject) -> tuple[Census, dict[str, foreign.Tally], dict[str, foreign.Tally], Arrays]:
        state = made.setup()
        self.device.reset()
        with self.device.listen(), Watch(self.device) as watch:
            found = made.step(state)
            on_device, on_host = self.device.tallies()
        answer = {name: value.detach().cpu().numpy() for name, value in found.items()}
        return watch.census, on_device, on_host, answer

    def _details(
        self, census: Census, on_device: dict[str, foreign.Tally], on_host: dict[str, foreign.Tally]
    ) -> dict[str, Any]:
        return {
            "adapter": self.device.adapter,
            "kernels_registered": len(self.device.registered) + len(foreign.REQUIRED) if on_device else None,
            "operators": {outcome: census.with_outcome(outcome) for outcome in OUTCOMES},
            "device_kernels": {name: tally.calls for name, tally in on_device.items()},
            "fallbacks": {
                name: {"calls": tally.calls, "copied_bytes": tally.copied_bytes} for name, tally in on_host.items()
            },
        }

    def close(self) -> None:
        """Nothing outlives the process."""


def _facts(census: Census, on_host: dict[str, foreign.Tally]) -> dict[str, Quantity]:
    counts = {outcome: float(len(census.with_outcome(outcome))) for outcome in OUTCOMES}
    facts = {
        "operators_used": _count(sum(counts.values())),
        "operators_without_fallback": _count(counts[NATIVE] + counts[DECOMPOSED]),
        **{f"operators_{outcome}": _count(number) for outcome, number in counts.items()},
    }
    if on_host:
        copied = float(sum(tally.copied_bytes or 0 for tally in on_host.values()))
        facts["fallback_calls"] = _count(float(sum(tally.calls for tally in on_host.values())))
        facts["fallback_bytes"] = Quantity(
            value=copied,
            unit="bytes",
            tier=Tier.MEASURED,
            source="operands and results of fallbacks, one call",
        )
    return facts


def _count(value: float) -> Quantity:
    return Quantity(value=value, unit="1", tier=Tier.MEASURED, source=_SOURCE)


def _refusal(census: Census) -> str:
    """Why the model cannot be timed: without the census it would stop at the first operator that is missing."""
    missing = census.with_outcome(MISSING)
    return f"the adapter lacks {', '.join(missing)}, which its fallback refuses too" if missing else ""


def reference(case: Case, context: Context) -> Arrays:
    """What the model answers in float64 on the processor; attention and experts are computed another way there."""
    made = subject(case.shape, case.params, context, Place("cpu", torch.float64))
    found = made.step(made.setup())
    return {name: value.detach().numpy()[None].astype(np.float64) for name, value in found.items()}


def reference_key(case: Case) -> str:
    """Adapters share their references."""
    return json.dumps([case.workload, case.shape, case.params], sort_keys=True)
