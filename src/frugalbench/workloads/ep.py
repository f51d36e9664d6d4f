"""The split layer of ``expert_parallel`` on ranks that torchrun or Slurm started; rank 0 prints one line of JSON.

On one machine, over gloo::

    torchrun --nproc-per-node 2 -m frugalbench.workloads.ep --routing zipf-1

On two nodes of eight GPUs, over NCCL; under Slurm::

    srun --nodes 2 --ntasks-per-node 1 torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d \\
        --rdzv-endpoint "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29500" \\
        -m frugalbench.workloads.ep --device cuda --scale 1 --prefill-tokens 4096

Across machines, gloo needs to be told its interface: ``GLOO_SOCKET_IFNAME=eth0``, say.

The options are those of the workload (``--decode-tokens``, ``--sizes-kib`` …; the ranks are torchrun's), and
``--device``, ``--rounds``, ``--window-s``, ``--threads`` of a rank, ``--seed``. Outputs of all ranks are checked
against the float64 layer before anything is timed. The line holds, per regime, medians over paired rounds: ``step_s``,
``exchange_s`` (the step's all-to-alls alone), ``compute_s`` (its experts alone, slowest rank), ``exchange_share`` of
the step; and from all-to-alls of equal blocks ``predicted_exchange_s``, its ``miss``, and ``predicted_share``, of
itself and ``compute_s``. Exit status 2: the request is wrong; 1: a wrong answer, or a rank was lost.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from frugalbench.interconnect import Wire, all_to_all_terms, fit_wire
from frugalbench.machine import Machine
from frugalbench.native_build import find_compiler
from frugalbench.schema import Case, FrugalbenchError
from frugalbench.specs import expert_parallel as spec
from frugalbench.specs.base import Settings, take
from frugalbench.workloads import expert_parallel as builder
from frugalbench.workloads import torchrun
from frugalbench.workloads.base import Arrays, Context
from frugalbench.workloads.ep_timing import Clock, Times, host_s, measure
from frugalbench.workloads.layers.expert_works import Part
from frugalbench.workloads.torchrun import WrongAnswer, agreed

WHERE = "frugalbench.workloads.ep"
MOST_RANKS = 4096
_OWN = {"device": "", "rounds": 15, "window_s": 0.2, "threads": 0, "seed": 1}


@dataclass(frozen=True)
class _View:
    """What planning asks of a machine, the same on every rank."""

    logical_cores: int
    last_level_cache_bytes: int

    def installed(self, package: str) -> str | None:
        del package
        return "here"

    def has_cuda(self) -> bool:
        return False

    @property
    def gpu_l2_bytes(self) -> int:
        return 0

    @property
    def gpu_memory_bytes(self) -> int | None:
        return None


def main(argv: Sequence[str]) -> int:
    """The exit status. Only rank 0 speaks."""
    return torchrun.answer(lambda: [json.dumps(run(argv))])


def run(argv: Sequence[str]) -> dict[str, Any]:
    """Join, check, measure; what rank 0 prints. Raises :class:`FrugalbenchError` and :class:`WrongAnswer`."""
    options = {key: default for key, default in spec.DEFAULTS.items() if key != "ranks"}
    asked = vars(torchrun.parser(WHERE, "Time an expert layer split over ranks.", {**options, **_OWN}).parse_args(argv))
    own = {key: asked.pop(key) for key in _OWN}
    settings, options = _asked(asked, own, torchrun.ranks(WHERE))
    device = torchrun.join(own["device"])
    try:
        return _measured(settings, options, device, own)
    finally:
        dist.destroy_process_group()


def _asked(asked: dict[str, Any], own: dict[str, Any], ranks: int) -> tuple[Settings, dict[str, Any]]:
    """Refuses what cannot be before the ranks meet."""
    own["device"] = torchrun.device_for(own["device"], WHERE)
    if min(own["rounds"], own["window_s"]) <= 0 or own["threads"] < 0:
        raise FrugalbenchError(f"{WHERE}: --rounds and --window-s must be positive, --threads not below 0")
    threads = own["threads"] or max(1, len(os.sched_getaffinity(0)) // torchrun.ranks_here())
    settings = Settings(spec.WORKLOAD, own["device"], threads * ranks, own["seed"], {**asked, "ranks": ranks}, WHERE)
    options = take(settings, spec.DEFAULTS)
    spec.check(settings, options, MOST_RANKS)
    spec.split_layer(settings, _View(1, 1), options)
    return settings, options


def _measured(settings: Settings, options: dict[str, Any], device: str, own: dict[str, Any]) -> dict[str, Any]:
    cases = _cases(settings, options, device)
    part = Part(dist.get_rank(), cases, device)
    part.meet(dist)
    with torch.inference_mode():
        works = {case.id: part.work(number) for number, case in enumerate(cases)}
        errors = {case.id: _check(case, works[case.id].tell(0), device) for case in cases}
        clock = Clock(part.exchange, device)
        times = host_s(measure(works, clock, own["rounds"], own["window_s"], settings.seed, torchrun.progress))
    return _line(part, cases, errors, times, device)


def _cases(settings: Settings, options: dict[str, Any], device: str) -> tuple[Case, ...]:
    """The same on every rank: the cache is rank 0's, the own kernel computes where all can build it."""
    view = _View(1, agreed(Machine.detect().last_level_cache_bytes, device, first=True))
    native = device == "cpu" and find_compiler() is not None
    experts = spec.NATIVE if agreed(native, device) else spec.TORCH
    layer = spec.split_layer(settings, view, options, experts)
    label = f"{layer.cases[0].shape}-r{options['ranks']}"
    name = device.partition(":")[0]
    return (*spec.calibration(settings, options, label), *spec.split_cases(layer, label, name))


def _check(case: Case, told: Arrays, device: str) -> float:
    """Largest error over the answer's root mean square. Rank 0 computes the answer; all ranks end if it is wrong."""
    error = 0.0
    if dist.get_rank() == 0:
        folder = Path()
        answers = builder.reference(case, Context(case.params["seed"], 1, "cpu", folder, folder))
        error = max(_distance(told[name], array[0]) for name, array in answers.items())
    found = torch.tensor([error], device=device, dtype=torch.float64)
    dist.broadcast(found, 0)
    if not float(found) <= (case.tolerance or 0.0):
        raise WrongAnswer(f"{case.id}: wrong answer: error {float(found):.3g}, allowed {case.tolerance:.3g}")
    return float(found)


def _distance(output: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(output - expected).max() / np.sqrt(np.mean(np.square(expected))))


def _line(part: Part, cases: Sequence[Case], errors: dict[str, float], times: Times, device: str) -> dict[str, Any]:
    equal = [case for case in cases if case.variant == spec.CALIBRATION]
    points = [(float(case.params["size_bytes"]), median(times[case.id])) for case in equal]
    ranks = dist.get_world_size()
    wire = fit_wire([all_to_all_terms(size_bytes, ranks) for size_bytes, _ in points], [time_s for _, time_s in points])
    steps = [case for case in cases if case.variant == spec.STEP]
    return {
        "workload": spec.WORKLOAD,
        "shape": steps[0].shape,
        "ranks": ranks,
        "ranks_per_node": torchrun.ranks_here(),
        "threads_per_rank": part.threads,
        "device": torchrun.device_name(device),
        "transport": dist.get_backend(),
        "experts": part.implementation,
        "torch": torch.__version__,
        "rounds": len(times[cases[0].id]),
        "alpha_s": wire.alpha_s,
        "beta_s_per_byte": wire.beta_s_per_byte,
        "alltoall": [{"size_bytes": size_bytes, "time_s": time_s} for size_bytes, time_s in points],
        "regimes": [_regime(part, cases, step, errors, times, wire) for step in steps],
    }


def _regime(
    part: Part, cases: Sequence[Case], step: Case, errors: dict[str, float], times: Times, wire: Wire
) -> dict[str, Any]:
    mine = {case.variant: case.id for case in cases if case.regime == step.regime}
    step_s, exchange_s, compute_s = (times[mine[variant]] for variant in spec.SPLIT)
    assert part.shard is not None
    batches = part.shard.batches(step.regime, step.params["tokens"])
    terms = [batch.terms() for batch in batches]
    predicted_s = wire.time_s((terms[0][0], fmean(moved for _, moved in terms)))
    return {
        "regime": step.regime,
        "tokens": step.params["tokens"],
        "step_s": median(step_s),
        "exchange_s": median(exchange_s),
        "compute_s": median(compute_s),
        "exchange_share": median(part_s / whole_s for part_s, whole_s in zip(exchange_s, step_s, strict=True)),
        "predicted_exchange_s": predicted_s,
        "predicted_share": predicted_s / (predicted_s + median(compute_s)),
        "miss": predicted_s / median(exchange_s) - 1,
        "exchange_bytes": fmean(moved for _, moved in terms),
        "rank_imbalance": builder.imbalance(batches),
        "error": max(errors[name] for name in mine.values()),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
