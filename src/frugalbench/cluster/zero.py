"""What ZeRO's stages keep on a device and send in a step (Rajbhandari et al., arXiv 1910.02054).

In mixed precision with Adam a parameter takes 2 bytes as weight, 2 as gradient and 12 as optimizer state. Stage 1
shards the last over ``n`` ranks, stage 2 gradients too, stage 3 weights too. Stages 1 and 2 send as much as plain data
parallelism, a reduce-scatter and an all-gather of all parameters, stage 3 gathers once more: half as much again. That
is for one microbatch a step. With ``m``, sharded gradients are added up after each and sharded weights are gathered
twice for each, as nothing else would fit: ``m + 1`` and ``3 m`` instead of 2.
"""

WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 2.0, 2.0, 12.0
"""Per parameter."""
STAGES = (1, 2, 3)
GATHERED_LAYERS = 2
"""Of stage 3: the one that computes and the one that is fetched beside it."""


def state_bytes(parameters: float, ranks: int, stage: int) -> float:
    """Weights, gradients and optimizer state of one device."""
    gradients = GRADIENT_BYTES / (ranks if stage >= 2 else 1)
    weights = WEIGHT_BYTES / (ranks if stage >= 3 else 1)
    return parameters * (weights + gradients + OPTIMIZER_BYTES / ranks)


def gathered_bytes(parameters: float, layers: int, ranks: int) -> float:
    """Whole layers that stage 3 holds at a time, of so many with ``parameters`` in all."""
    return parameters * WEIGHT_BYTES * min(GATHERED_LAYERS, layers) / layers if ranks > 1 else 0.0


def passes(stage: int, microbatches: float) -> tuple[float, float]:
    """Reduce-scatters of gradients and all-gathers of weights in a step."""
    return (1.0 if stage == 1 else microbatches), (2 * microbatches if stage == 3 else 1.0)


def sent_bytes(parameters: float, ranks: int, stage: int, microbatches: float) -> float:
    """Bytes that a device sends in a step: ``(n - 1) / n`` of the parameters for each scatter and gather."""
    scatters, gathers = passes(stage, microbatches)
    return (ranks - 1) / ranks * parameters * (scatters * GRADIENT_BYTES + gathers * WEIGHT_BYTES)
