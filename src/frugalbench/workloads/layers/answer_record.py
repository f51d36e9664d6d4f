"""What a record says of a model's answers: facts with their units, one bit per item, and where the items come from."""

import base64
from typing import Any

import numpy as np

from frugalbench.schema import Case, Quantity, Tier
from frugalbench.specs.tasks import Split, Task
from frugalbench.specs.whole_models import ANALOGUE
from frugalbench.workloads.layers.answers import Answers

ANALOGUE_NOTE = "a tiny model trained on the spot: no evidence on larger ones"


def described(case: Case, task: Task, split: Split) -> dict[str, Any]:
    """The task, and what to know of the model."""
    return {
        "task": {
            "name": task.name, "kind": task.kind, "source": task.source, "licence": task.licence,
            "digest": split.digest, "classes": len(task.classes), "train": len(split.train),
        },
        **({"note": ANALOGUE_NOTE} if case.params["scope"] == ANALOGUE else {}),
    }  # fmt: skip


def answer_facts(outcome: Answers) -> dict[str, Quantity]:
    """Shares and means over all items."""
    items = f"{len(outcome.correct)} items"
    found = {"accuracy": measured(float(outcome.correct.mean()), "1", f"share right of {items}")}
    if outcome.loss is not None:
        found["perplexity"] = measured(float(np.exp(outcome.loss.mean())), "1", f"exp of the mean loss over {items}")
    if outcome.divergence is not None:
        found["divergence"] = measured(outcome.divergence, "nat/token", "KL from the unquantised model's distribution")
    if outcome.agreement is not None:
        found["agreement"] = measured(outcome.agreement, "1", "same first choice as the unquantised model")
    return found


def measured(value: float, unit: str, source: str) -> Quantity:
    """A quantity that was counted or computed here."""
    return Quantity(value=float(value), unit=unit, tier=Tier.MEASURED, source=source)


def packed(bits: np.ndarray) -> str:
    """Eight bits to a byte, the first item in the highest, in base64."""
    return base64.b64encode(np.packbits(bits).tobytes()).decode()
