"""The grouped mixture through torch.compile: one graph for each number of tokens, which all copies share."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from frugalbench.backends import torch_compile
from frugalbench.backends.base import content_key, recall, remember
from frugalbench.schema import Artefact
from frugalbench.workloads.layers.ffn import GroupedMoe, Mixture, chosen


@torch.library.custom_op("frugalbench::grouped_mm", mutates_args=())  # type: ignore[untyped-decorator]
def _grouped_mm(x_SK: torch.Tensor, weight_ENK: torch.Tensor, end_E: torch.Tensor) -> torch.Tensor:
    return functional.grouped_mm(x_SK, weight_ENK.transpose(1, 2), offs=end_E)


@_grouped_mm.register_fake  # type: ignore[untyped-decorator]
def _(x_SK: torch.Tensor, weight_ENK: torch.Tensor, end_E: torch.Tensor) -> torch.Tensor:
    del end_E
    return x_SK.new_empty((x_SK.shape[0], weight_ENK.shape[1]))


def _mixture(
    x_TD: torch.Tensor, weights: dict[str, torch.Tensor], gate: tuple[int, str, bool, float], n_shared: int
) -> torch.Tensor:
    """:class:`GroupedMoe` as one function of its weights, so that no copy of the layer needs a graph of its own."""
    expert_TK, weight_TK = chosen(x_TD, weights["router"], *gate)
    if n_shared:
        shared = len(weights["router"]) + torch.arange(n_shared, device=x_TD.device)
        expert_TK = torch.cat([expert_TK, shared.expand(len(expert_TK), -1)], dim=1)
        weight_TK = torch.cat([weight_TK, weight_TK.new_ones(len(weight_TK), n_shared)], dim=1)
    expert_S, order_S = expert_TK.flatten().sort()
    token_S = order_S // expert_TK.shape[1]
    every_E = torch.arange(len(weights["gate_up"]), device=x_TD.device)
    end_E = torch.searchsorted(expert_S, every_E, right=True).to(torch.int32)
    gate_SF, up_SF = _grouped_mm(x_TD[token_S], weights["gate_up"], end_E).chunk(2, dim=-1)
    y_SD = _grouped_mm(functional.silu(gate_SF) * up_SF, weights["down"], end_E)
    return torch.zeros_like(x_TD).index_add_(0, token_S, y_SD * weight_TK.flatten()[order_S, None])


_compiled = torch.compile(_mixture, fullgraph=True, dynamic=False)
"""A whole graph or an error: what inductor cannot take never runs eagerly instead."""


class CompiledMoe(GroupedMoe):
    """torch.compile of :class:`GroupedMoe`, routing included; the grouped product itself is a call out of the graph."""

    implementation = "torch.compile of sorted copies around torch.nn.functional.grouped_mm"

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        gate = self.top_k, self.gate, self.normalise, self.routed_scale
        y_TD: torch.Tensor = _compiled(x_TD, self.weights, gate, self.n_shared)
        return y_TD


def set_up(cache_dir: Path) -> None:
    """Where compiled code is kept. Raises ``RuntimeError`` when this machine cannot compile."""
    version, reason = torch_compile.available()
    if version is None:
        raise RuntimeError(reason)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_dir / "inductor")


def build(layer: Mixture, x_TD: torch.Tensor, cache_dir: Path, params: dict[str, Any]) -> Artefact:
    """The first call at a number of tokens, which compiles or takes the code from inductor's cache."""
    before, begin = _lookups(), time.perf_counter()
    with torch.inference_mode():
        layer(x_TD)
    build_s = time.perf_counter() - begin
    hits, misses = (after - earlier for after, earlier in zip(_lookups(), before, strict=True))
    cached = hits > 0 and misses == 0
    widths = {key: params[key] for key in ("d_model", "d_expert", "experts", "top_k", "n_shared", "tokens")}
    kind = {"dtype": str(x_TD.dtype), "torch": torch.__version__}
    path = cache_dir / "inductor" / f"built-{content_key({**widths, **kind})}.json"
    remembered = recall(path) if cached else None
    if not cached:
        remember(path, {"build_s": build_s})
    return Artefact(
        name=f"inductor/{len(x_TD)}-tokens", build_s=(remembered or {}).get("build_s", build_s), cached=cached
    )


def _lookups() -> tuple[int, int]:
    """Hits and misses of inductor's graph cache so far, as it counts them itself."""
    from torch._dynamo.utils import counters

    found = counters["inductor"]
    return int(found["fxgraph_cache_hit"]), int(found["fxgraph_cache_miss"] + found["fxgraph_cache_bypass"])
