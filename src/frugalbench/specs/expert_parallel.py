"""One expert layer split over gloo ranks, beside the same layer on one rank. Layers and tokens: ``specs/moe_ffn.py``.

Each of R ranks holds E/R of the routed experts (the shared ones all) and T/R of the tokens. A step routes its own
tokens, tells every rank how many rows come for each expert, sends a row per token and chosen expert to the expert's
owner (dispatch), computes, sends the answers back (combine) and adds them up: the layer of GShard (arXiv 2006.16668,
section 3) without a capacity, so that no token is dropped and the blocks are as unequal as the routing.

Cases of one rank group, in one arm: ``ep-step``, the whole; ``ep-exchange``, its all-to-alls with the same counts and
no experts; ``ep-compute``, its experts on the received rows with no exchange; ``alltoall``, equal blocks, from which
a model of the interconnect is fitted. The other arm, ``single``, has all experts, all tokens and as many threads.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import msgspec

from frugalbench import native_build
from frugalbench.interconnect import all_to_all_terms
from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError, Skipped
from frugalbench.specs import accounting
from frugalbench.specs import moe_ffn as moe
from frugalbench.specs.allreduce import ITEM_BYTES, KIB, MOST_RANKS, RANK_MEMORY_BYTES
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.specs.moe_inputs import BATCHES

WORKLOAD = "expert_parallel"
STEP, EXCHANGE, COMPUTE = "ep-step", "ep-exchange", "ep-compute"
SPLIT = (STEP, EXCHANGE, COMPUTE)
SINGLE, CALIBRATION = "single", "alltoall"
COLLECTIVE = "collective"
REGIMES = ("decode", "batch", "prefill")
NATIVE, TORCH = "moe-native", "moe-sorted"
"""Variants of ``moe_ffn`` whose experts compute here: the own kernel where a compiler can build it, else torch."""

_COUNT_BYTES = 8
_MOVED_EXACTLY = 1e-9
"""Rows are moved, not changed; what is compared are their products with a float64 vector."""

_LAYER = ("shape", "scale", "d_model", "d_expert", "experts", "top_k", "n_shared", "routing", "stream_bytes")
DEFAULTS: dict[str, Any] = {
    **{key: moe.DEFAULTS[key] for key in _LAYER},
    "ranks": 2,
    "regimes": list(REGIMES),
    "decode_tokens": 16,
    "batch_tokens": 64,
    "prefill_tokens": 512,
    "sizes_kib": [1, 4, 16, 64, 256, 1024, 4096],
}
"""Tokens are those of all ranks together; ``sizes_kib`` is what one rank holds in the calibration."""


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison of the rank group with one rank that has everything.

    Skipped with a reason without a core per rank, without torch and on another device than the CPU. Raises
    :class:`FrugalbenchError` for an unknown key, an impossible value, and what does not divide over the ranks.
    """
    options = take(settings, DEFAULTS)
    ranks = options["ranks"]
    check(settings, options)
    layer = split_layer(settings, machine, options)
    label = f"{layer.cases[0].shape}-r{ranks}"
    group = (*calibration(settings, options, label), *split_cases(layer, label, settings.device))
    single = tuple(_single(case, label, settings.device) for case in layer.cases)
    if reason := _obstacle(settings, machine, ranks):
        return Expansion(skipped=tuple(Skipped(case=case, reason=reason) for case in (*group, *single)))
    imports = ("torch", "torch.distributed")
    arms = (
        Arm(id=f"{WORKLOAD}/{label}/ranks", cases=group, imports=imports, memory_bytes=_group_bytes(layer, ranks)),
        Arm(id=f"{WORKLOAD}/{label}/{SINGLE}", cases=single, imports=imports, memory_bytes=layer.memory_bytes),
    )
    name = f"{WORKLOAD}/{label}"
    return Expansion(comparisons=(Comparison(id=name, workload=WORKLOAD, arms=arms, estimate_s=15.0, competes=False),))


def check(settings: Settings, options: dict[str, Any], most_ranks: int = MOST_RANKS) -> None:
    """Raise :class:`FrugalbenchError` for what no group of ranks can be asked; the layer checks itself."""
    for regime in options["regimes"]:
        choose(settings, "regime", regime, REGIMES)
    ranks, sizes_kib = options["ranks"], options["sizes_kib"]
    if not 2 <= ranks <= most_ranks:
        raise FrugalbenchError(f"{settings.where}: 'ranks' must be 2 to {most_ranks}, not {ranks}")
    if len(set(sizes_kib)) < 2 or min(sizes_kib) < 1 or len(set(sizes_kib)) < len(sizes_kib):
        raise FrugalbenchError(
            f"{settings.where}: 'sizes_kib' must hold two or more distinct positive integers, not {sizes_kib}"
        )


def split_layer(settings: Settings, machine: MachineView, options: dict[str, Any], experts: str | None = None) -> Arm:
    """The layer on one rank, as ``moe_ffn`` plans it: one case per regime, with ``params`` of the split beside its own.

    ``experts`` is :data:`NATIVE` or :data:`TORCH`; by default what can be had here. Raises
    :class:`FrugalbenchError` for a layer that cannot be, and where experts or tokens do not divide over the ranks.
    """
    ranks = options["ranks"]
    experts = experts or (NATIVE if native_build.find_compiler() else TORCH)
    threads_per_rank = max(1, settings.threads // ranks)
    asked = {key: options[key] for key in (*_LAYER, "regimes")} | {"variants": [experts]}
    asked |= {f"{regime}_tokens": [options[f"{regime}_tokens"]] for regime in REGIMES}
    inner = dataclasses.replace(settings, device="cpu", threads=ranks * threads_per_rank, options=asked)
    (comparison,) = moe.expand(inner, machine).comparisons
    (arm,) = comparison.arms
    _check_split(settings.where, arm.cases, ranks)
    added = {"ranks": ranks, "threads_per_rank": threads_per_rank, "expert_arm": experts, "seed": settings.seed}
    cases = (msgspec.structs.replace(case, params=case.params | added) for case in arm.cases)
    return msgspec.structs.replace(arm, cases=tuple(cases))


def _check_split(where: str, cases: Iterable[Case], ranks: int) -> None:
    for case in cases:
        experts, tokens = case.params["experts"], case.params["tokens"]
        if experts % ranks:
            raise FrugalbenchError(f"{where}: {experts} experts do not divide over {ranks} ranks; take a divisor")
        if tokens % ranks:
            name = f"{case.regime}_tokens"
            raise FrugalbenchError(f"{where}: '{name}' {tokens} does not divide over {ranks} ranks; take a multiple")


def _obstacle(settings: Settings, machine: MachineView, ranks: int) -> str:
    if settings.device != "cpu":
        return (
            f"gloo ranks run on the CPU, not on '{settings.device}'; across GPUs, the same step runs by torchrun -m "
            "frugalbench.workloads.ep"
        )
    if ranks > machine.logical_cores:
        return f"{ranks} ranks need a core each; this machine has {machine.logical_cores}"
    return "" if machine.installed("torch") else "torch is not installed"


def _group_bytes(layer: Arm, ranks: int) -> float:
    """All ranks' experts, a whole layer that each draws its share from, the rows of every batch as they leave and come,
    and a process more per follower."""
    rows: int = sum(BATCHES[case.regime] * case.params["tokens"] * case.params["top_k"] for case in layer.cases)
    rows_bytes: float = 2.0 * ITEM_BYTES * rows * layer.cases[0].params["d_model"]
    return layer.memory_bytes + rows_bytes + (ranks - 1) * (_cost(layer.cases[0]).weight_bytes + RANK_MEMORY_BYTES)


def calibration(settings: Settings, options: dict[str, Any], label: str) -> tuple[Case, ...]:
    """All-to-all of equal blocks, a case per size; the elements are a multiple of the ranks."""
    return tuple(_alltoall(size_kib * KIB, options["ranks"], settings, label) for size_kib in options["sizes_kib"])


def _alltoall(size_bytes: int, ranks: int, settings: Settings, label: str) -> Case:
    elements = size_bytes // ITEM_BYTES // ranks * ranks
    moved_bytes = all_to_all_terms(elements * ITEM_BYTES, ranks)[1]
    return Case(
        id=f"{WORKLOAD}/{label}/{CALIBRATION}/{size_bytes // KIB}kib/gloo/{settings.device}",
        workload=WORKLOAD,
        variant=CALIBRATION,
        shape=f"r{ranks}-{size_bytes // KIB}kib",
        regime=COLLECTIVE,
        backend="gloo",
        device=settings.device,
        dtype="float32",
        params={"ranks": ranks, "elements": elements, "size_bytes": elements * ITEM_BYTES, "seed": settings.seed},
        cost=Cost(token=0.0, flop=0.0, weight_bytes=0.0, traffic_bytes=moved_bytes),
        tolerance=_MOVED_EXACTLY,
    )


def split_cases(layer: Arm, label: str, device: str) -> tuple[Case, ...]:
    """The three cases of each regime."""
    return tuple(_split(case, variant, label, device) for case in layer.cases for variant in SPLIT)


def _split(case: Case, variant: str, label: str, device: str) -> Case:
    moved = variant == EXCHANGE
    fields = {
        "variant": variant,
        "backend": "gloo" if moved else case.backend,
        "cost": _COSTS[variant](case),
        "tolerance": _MOVED_EXACTLY if moved else case.tolerance,
        "peaks": () if moved else case.peaks,
    }
    return _renamed(case, label, device, fields)


def _single(case: Case, label: str, device: str) -> Case:
    return _renamed(case, label, device, {"variant": SINGLE})


def _renamed(case: Case, label: str, device: str, fields: dict[str, Any]) -> Case:
    fields = {"variant": case.variant, "backend": case.backend, **fields}
    where = f"{label}/{fields['variant']}/{case.regime}-{case.params['tokens']}/{fields['backend']}/{device}"
    return msgspec.structs.replace(
        case, id=f"{WORKLOAD}/{where}", workload=WORKLOAD, shape=label, device=device, **fields
    )


def _step_cost(case: Case) -> Cost:
    """The layer's own: what the exchange moves is no work that the layer needs. Shared experts and router are held by
    every rank."""
    cost, params = _cost(case), case.params
    shared = accounting.swiglu_ffn_parameters(params["d_model"], params["n_shared"] * params["d_expert"])
    twice = (params["ranks"] - 1) * (shared + params["d_model"] * params["experts"])
    return msgspec.structs.replace(
        cost, weight_bytes=cost.weight_bytes + ITEM_BYTES * twice, parameters=cost.parameters + twice
    )


def _exchange_cost(case: Case) -> Cost:
    """Every row there and back, those whose expert is at home too, for they are copied; and E counts per rank."""
    params = case.params
    rows_bytes = 2 * ITEM_BYTES * params["tokens"] * params["top_k"] * params["d_model"]
    counts_bytes = _COUNT_BYTES * params["ranks"] * params["experts"]
    return Cost(token=_cost(case).token, flop=0.0, weight_bytes=0.0, traffic_bytes=float(rows_bytes + counts_bytes))


def _compute_cost(case: Case) -> Cost:
    """The layer without its router; a row per token and expert comes and goes instead of one per token."""
    cost, params = _cost(case), case.params
    T, D, K, router = params["tokens"], params["d_model"], params["top_k"], params["d_model"] * params["experts"]
    return msgspec.structs.replace(
        cost,
        flop=cost.flop - accounting.linear_flop(T, params["experts"], D),
        weight_bytes=cost.weight_bytes - ITEM_BYTES * router,
        traffic_bytes=cost.traffic_bytes - ITEM_BYTES * (router - 2 * (K - 1) * T * D),
        parameters=cost.parameters - router,
        active_parameters=cost.active_parameters - router,
    )


def _cost(case: Case) -> Cost:
    assert case.cost is not None
    return case.cost


_COSTS = {STEP: _step_cost, EXCHANGE: _exchange_cost, COMPUTE: _compute_cost}
