"""What fewer exchanges cost in loss: a tiny language model trained by ranks that exchange every step, or every H steps.

The dense model and the text of :mod:`frugalbench.specs.lm_quality`. Every arm starts from the same weights and gives
rank r the same rows of the same batches in the same order, so tokens and seeds are equal; the replicate's number seeds
both. The ranks are real gloo ranks over loopback.

==============  ======================================================================================================
``every-step``  data parallelism: gradients are averaged in every step, then each rank makes the same AdamW step
``diloco-hH``   DiLoCo (Douillard et al., arXiv 2311.08105, algorithm 1): H AdamW steps of each rank by itself, then
                Nesterov momentum on the averaged difference between what they started from and what they came to;
                AdamW's moments stay with their rank
``average-hH``  the same, but the ranks go on from their plain average (outer rate 1, no momentum)
==============  ======================================================================================================

The paper's outer rate and momentum were chosen for H = 500. Together they carry an averaged difference on up to seven
times, so that with a small H they work like a larger inner rate; the plain average shows what H costs without that.
What is timed is one exchange: the all-reduce over loopback and, with local steps, the outer update.
"""

from typing import Any

from frugalbench.cluster.collectives import ring_traffic_bytes
from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError, Skipped
from frugalbench.specs import lm_quality
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take

WORKLOAD = "local_steps"
EVERY_STEP, DILOCO, AVERAGE = "every-step", "diloco", "average"
OUTER = (DILOCO, AVERAGE)
REGIME = "training"
INNER = ("adamw", "sgd")
EVALUATIONS = 32
"""Points of the loss curve; fewer where exchanges are rarer, since the loss is that of the averaged weights."""
MOST_RANKS = 8
CHECKED_EXCHANGES = 2
"""The second one shows whether momentum is carried on."""
_ITEM_BYTES = 4
_TOLERANCE = 1e-4
"""Float32 logits and averages against float64, over their root mean square."""
_RANK_MEMORY_BYTES = 260e6

DEFAULTS: dict[str, Any] = {
    "outer": list(OUTER),
    "local_steps": [4, 16, 64],
    "replicas": 2,
    "d_model": 64,
    "layers": 3,
    "heads": 4,
    "d_ff": 256,
    "seq": 64,
    "batch": 16,
    "steps": 384,
    "inner": "adamw",
    "learning_rate": 6e-3,
    "clip": 1.0,
    "outer_learning_rate": 0.7,
    "outer_momentum": 0.9,
}
"""``outer``: what stands beside data parallelism. ``batch`` is that of all replicas together. ``clip``: largest norm of
a gradient, 0 for none. The outer rate and momentum are those of arXiv 2311.08105 (recalled)."""


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison: data parallelism, and each of ``outer`` with each of ``local_steps``.

    Skipped with a reason without a core per rank, without torch and on another device than the CPU. Raises
    :class:`FrugalbenchError` for an unknown key, an impossible value, or numbers that do not divide.
    """
    options = take(settings, DEFAULTS)
    _check(settings, options)
    label = f"d{options['d_model']}x{options['layers']}-r{options['replicas']}"
    ways = [(EVERY_STEP, 1), *((outer, steps) for outer in options["outer"] for steps in options["local_steps"])]
    arms = tuple(_arm(settings, options, label, *way) for way in ways)
    if reason := _obstacle(settings, machine, options["replicas"]):
        return Expansion(skipped=tuple(Skipped(case=arm.cases[0], reason=reason) for arm in arms))
    comparison = Comparison(
        id=f"{WORKLOAD}/{label}", workload=WORKLOAD, arms=arms, estimate_s=15.0 * len(arms), competes=False
    )
    return Expansion(comparisons=(comparison,))


def _obstacle(settings: Settings, machine: MachineView, ranks: int) -> str:
    if settings.device != "cpu":
        return f"gloo ranks run on the CPU, not on '{settings.device}'"
    if ranks > machine.logical_cores:
        return f"{ranks} ranks need a core each; this machine has {machine.logical_cores}"
    return "" if machine.installed("torch") else "torch is not installed"


def _check(settings: Settings, options: dict[str, Any]) -> None:
    where, local_steps = settings.where, options["local_steps"]
    if not local_steps or min(local_steps) < 1 or len(set(local_steps)) < len(local_steps):
        raise FrugalbenchError(f"{where}: 'local_steps' must hold distinct positive integers, not {local_steps}")
    for outer in options["outer"]:
        choose(settings, "outer", outer, OUTER)
    if not options["outer"] or len(set(options["outer"])) < len(options["outer"]):
        raise FrugalbenchError(f"{where}: 'outer' must hold distinct names, at least one, not {options['outer']}")
    for key in ("d_model", "layers", "heads", "d_ff", "seq", "batch", "steps"):
        if options[key] < 1:
            raise FrugalbenchError(f"{where}: '{key}' must be at least 1, not {options[key]}")
    if not 2 <= options["replicas"] <= MOST_RANKS:
        raise FrugalbenchError(f"{where}: 'replicas' must be 2 to {MOST_RANKS}, not {options['replicas']}")
    for whole, part in (("d_model", "heads"), ("batch", "replicas")):
        if options[whole] % options[part]:
            raise FrugalbenchError(f"{where}: '{part}' {options[part]} must divide '{whole}' {options[whole]}")
    if wrong := [steps for steps in local_steps if options["steps"] % steps]:
        raise FrugalbenchError(
            f"{where}: 'steps' {options['steps']} must be a multiple of every 'local_steps', and is not of {wrong[0]}"
        )
    choose(settings, "inner optimizer", options["inner"], INNER)
    _check_rates(settings, options)
    if options["seq"] + 1 > min(len(part) for part in lm_quality.text()):
        raise FrugalbenchError(f"{where}: 'seq' {options['seq']} is longer than the text")


def _check_rates(settings: Settings, options: dict[str, Any]) -> None:
    for key, least, most in (("learning_rate", 0, 1), ("outer_learning_rate", 0, 2), ("clip", -1, 1e6)):
        if not least < options[key] <= most:
            raise FrugalbenchError(
                f"{settings.where}: '{key}' lies between {max(least, 0)} and {most:g}, not {options[key]}"
            )
    if options["clip"] < 0 or not 0 <= options["outer_momentum"] < 1:
        raise FrugalbenchError(f"{settings.where}: 'clip' is at least 0, 'outer_momentum' from 0 to below 1")


def _arm(settings: Settings, options: dict[str, Any], label: str, outer: str, local_steps: int) -> Arm:
    variant = EVERY_STEP if outer == EVERY_STEP else f"{outer}-h{local_steps}"
    mine = {key: value for key, value in options.items() if not key.startswith("outer")}
    params = {**mine, **_outer(options, outer), "local_steps": local_steps, "text": lm_quality.digest()}
    case = Case(
        id=f"{WORKLOAD}/{variant}/{label}/{REGIME}/gloo/{settings.device}",
        workload=WORKLOAD,
        variant=variant,
        shape=label,
        regime=REGIME,
        backend="gloo",
        device=settings.device,
        dtype="float32",
        params=params,
        cost=cost(params),
        tolerance=_TOLERANCE,
    )
    held = params["replicas"] * (_RANK_MEMORY_BYTES + 32.0 * weights(params))
    return Arm(
        id=f"{WORKLOAD}/{label}/{variant}", cases=(case,), imports=("torch", "torch.distributed"), memory_bytes=held
    )


def _outer(options: dict[str, Any], outer: str) -> dict[str, Any]:
    """Rate and momentum of the outer step; nothing where there is none."""
    if outer == EVERY_STEP:
        return {}
    if outer == AVERAGE:
        return {"outer_learning_rate": 1.0, "outer_momentum": 0.0}
    return {key: options[key] for key in ("outer_learning_rate", "outer_momentum")}


def weights(params: dict[str, Any]) -> int:
    """Of the model, all of them exchanged."""
    return lm_quality.cost(params, "dense").parameters


def cost(params: dict[str, Any]) -> Cost:
    """Of one exchange: every rank's values added up. No tokens are processed in it."""
    ranks, elements = params["replicas"], weights(params)
    return Cost(
        token=0.0,
        flop=float((ranks - 1) * elements),
        weight_bytes=0.0,
        traffic_bytes=ring_traffic_bytes(_ITEM_BYTES * elements, ranks),
        parameters=elements,
    )


def exchanged_bytes(params: dict[str, Any]) -> float:
    """What a rank sends in the whole training: a ring all-reduce of all weights, or gradients, per exchange."""
    return float(params["steps"] // params["local_steps"] * cost(params).traffic_bytes)


def step_token(params: dict[str, Any]) -> int:
    """Tokens of one step, all replicas together."""
    return int(params["batch"] * params["seq"])
