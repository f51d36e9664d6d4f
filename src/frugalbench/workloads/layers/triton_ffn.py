"""The mixture on the own Triton kernels (``kernels/triton/moe.py``), for NVIDIA GPUs; forward only."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from frugalbench.backends.base import content_key, recall, remember
from frugalbench.schema import Artefact
from frugalbench.specs import routing
from frugalbench.workloads.layers import triton_file
from frugalbench.workloads.layers.ffn import Mixture

_REPLAYS = 3
"""Timed replays of a plan's graph; the quickest counts."""


def kernel() -> Any:
    """The kernels' module."""
    return triton_file.load("moe")


class TritonMoe(Mixture):
    """Routing in one kernel behind the router's product; gate, up and activation fused; tokens gathered inside; each
    copy's answer stored, then added up in the order of choices."""

    implementation = "Triton: own grouped kernels"

    def __init__(self, weights: dict[str, torch.Tensor], params: dict[str, Any]):
        super().__init__(weights, params)
        self.host_waits = ""
        self.plans: dict[int, Any] = {}
        """By number of copies, where another plan than the default is wanted."""

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        logits_TE = functional.linear(x_TD, self.weights["router"])
        gate = self.top_k, self.gate, self.normalise, self.routed_scale
        expert_TK, weight_TK = kernel().choose(logits_TE, *gate, self.n_shared, x_TD.dtype)
        if self.capacity_factor:
            expert_TK = self._within_capacity(expert_TK)
        return self.mix(x_TD, expert_TK, weight_TK)

    def mix(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        weights = self.weights["gate_up"], self.weights["down"]
        y_TD: torch.Tensor = kernel().mixture(
            x_TD, expert_TK, weight_TK, *weights, plan=self.plans.get(expert_TK.numel())
        )
        return y_TD

    def details(self, expert_TK: torch.Tensor) -> dict[str, Any]:
        """Rows of blocks that hold no copy, as a share of the copies."""
        copies, experts = expert_TK.numel(), len(self.weights["down"])
        plan = self.plans.get(copies) or kernel().plans(copies, experts, self.weights["down"].dtype)[0]
        sizes_E = torch.bincount(expert_TK.flatten(), minlength=experts)
        blocks = copies if len(expert_TK) == 1 else int((-(-sizes_E // plan.tokens)).sum())
        return {"padding_share": blocks * plan.tokens / copies - 1}

    def _within_capacity(self, expert_TK: torch.Tensor) -> torch.Tensor:
        """The choices, −1 where an expert is full; in the order of :meth:`Mixture.copies`, without its wait for the
        number of copies that are kept."""
        tokens, routed_TK = len(expert_TK), expert_TK[:, : self.top_k]
        expert_S, order_S = routed_TK.t().flatten().sort(stable=True)
        place_S = torch.arange(len(expert_S), device=expert_S.device) - torch.searchsorted(expert_S, expert_S)
        kept_S = place_S < routing.capacity(self.capacity_factor, tokens, self.experts, self.top_k)
        kept_TK = torch.empty_like(kept_S).scatter_(0, order_S, kept_S).view(self.top_k, tokens).t()
        return torch.cat([torch.where(kept_TK, routed_TK, -1), expert_TK[:, self.top_k :]], dim=1)


def tuned(layer: TritonMoe, batches: Sequence[torch.Tensor], cache_dir: Path) -> tuple[Any, Artefact]:
    """The quickest plan for such batches on this device, remembered for every later worker, and what it took to find.

    All plans are tried as CUDA graphs over the same batches. Raises ``RuntimeError`` when none fits the device.
    """
    T, K = len(batches[0]), layer.top_k + layer.n_shared
    E, D, F = layer.weights["down"].shape
    dtype = batches[0].dtype
    parts = {
        "shape": [T, K, E, D, F, layer.capacity_factor],
        "dtype": str(dtype),
        **triton_file.tools("moe", batches[0].device),
    }
    path = cache_dir / "triton" / f"plan-{content_key(parts)}.json"
    known = recall(path)
    found: dict[str, Any]
    if known is None:
        begin = time.perf_counter()
        times = _trials(layer, batches, kernel().plans(T * K, E, dtype), T * K)
        best = min(times, key=lambda trial: trial[1])
        trials = [[_listed(plan), trial_s] for plan, trial_s in times]
        found = {"plan": _listed(best[0]), "build_s": time.perf_counter() - begin, "trials": trials}
        remember(path, found)
    else:
        found = known
    tokens, expand, reduce, group = found["plan"]
    plan = kernel().Plan(tokens, kernel().Tiles(*expand), kernel().Tiles(*reduce), group)
    return plan, Artefact(name=f"triton/{T}-tokens", build_s=found["build_s"], cached=known is not None)


def _listed(plan: Any) -> list[Any]:
    return [plan.tokens, list(plan.expand), list(plan.reduce), plan.group]


def _trials(
    layer: TritonMoe, batches: Sequence[torch.Tensor], plans: Sequence[Any], copies: int
) -> list[tuple[Any, float]]:
    """Seconds of all batches with each plan that fits the device."""
    from triton.runtime.errors import TritonError

    found: list[tuple[Any, float]] = []
    refusals: list[str] = []
    for plan in plans:
        layer.plans[copies] = plan
        try:
            found.append((plan, replay_s(lambda: [layer(x_TD) for x_TD in batches])))
        except TritonError as problem:
            refusals.append(str(problem).splitlines()[0])
    del layer.plans[copies]
    if not found:
        raise RuntimeError(f"no plan of the Triton kernel fits this device: {refusals[0]}")
    return found


def replay_s(work: Any) -> float:
    """Seconds of some work on the current CUDA device, recorded as a graph; the quickest of a few replays.

    The work is run before it is recorded, which compiles what it needs.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        kept = work()
    graph.replay()
    times: list[float] = []
    for _ in range(_REPLAYS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) * 1e-3)
    del kept
    return min(times)
