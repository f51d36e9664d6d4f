"""Whole language models: what each arm holds, and how fast it reads a prompt and generates; the two are never averaged.

Descriptive, beside the verdicts, as :mod:`frugalbench.analysis.quantized` has it for the linear layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from frugalbench.analysis.load import Run
from frugalbench.analysis.quantized import Product, products
from frugalbench.schema import Tier

WORKLOAD = "model_decode"


@dataclass(frozen=True)
class ModelArm:
    """One arm of one model in both regimes."""

    shape: str
    variant: str
    context: int
    """Tokens in the cache when one is generated; 0 where no record says."""
    decode: Product | None
    prefill: Product | None

    @property
    def stored_bytes(self) -> float | None:
        """All weights as loaded."""
        return self._fact("weight_bytes")

    @property
    def bits_per_weight(self) -> float | None:
        """Of what is loaded, scales, gains and look-up tables included."""
        found = [item.bytes_per_weight for item in self._known if item.bytes_per_weight]
        return 8 * found[0] if found else None

    @property
    def error(self) -> float | None:
        """Distance to the float64 answer of the unquantised model, relative rms, the larger of the regimes; of arms in
        float32 the largest error of a logit."""
        found = [item.row.output_error or item.row.verification_error for item in self._known]
        return max((error for error in found if error is not None), default=None)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """How the times were obtained."""
        return tuple(dict.fromkeys(item.row.tier for item in self._known if item.row.tier))

    @property
    def _known(self) -> list[Product]:
        return [item for item in (self.decode, self.prefill) if item is not None]

    def _fact(self, name: str) -> float | None:
        found = [item.row.facts[name].value for item in self._known if name in item.row.facts]
        return found[0] if found else None


def model_arms(run: Run) -> list[ModelArm]:
    """Every counted arm, by model, the fastest to generate first."""
    contexts = _contexts(run)
    arms: dict[tuple[str, str], dict[str, Product]] = {}
    for item in products(run, WORKLOAD):
        arms.setdefault((item.shape, item.row.variant), {})[item.regime] = item
    found = [
        ModelArm(shape, variant, contexts.get(shape, 0), regimes.get("decode"), regimes.get("prefill"))
        for (shape, variant), regimes in arms.items()
    ]
    return sorted(found, key=_order)


def _order(arm: ModelArm) -> tuple[str, bool, float]:
    time_s = arm.decode.row.time_s if arm.decode else None
    return arm.shape, time_s is None, time_s or 0.0


def _contexts(run: Run) -> Mapping[str, int]:
    """Shape to tokens in the cache; a parameter is whatever its file says."""
    cases = [record.case for record in run.records if record.case.workload == WORKLOAD]
    return {case.shape: context for case in cases if isinstance(context := case.params.get("context"), int)}


def prompt_tokens(arms: Sequence[ModelArm]) -> int:
    """Tokens of the prompt that the arms read; 0 where none did."""
    return next((arm.prefill.tokens for arm in arms if arm.prefill), 0)
