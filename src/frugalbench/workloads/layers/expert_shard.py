"""One rank's share of an expert-parallel layer. Every rank runs this same code at the same time.

Shape suffixes: T tokens of this rank, D model width, E experts, K experts per token, R ranks, S = T·K rows that leave,
sorted by expert, N rows that come in, sorted by the rank that sent them and then by expert.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from frugalbench.interconnect import all_to_all_terms, uneven_terms
from frugalbench.specs.expert_parallel import NATIVE
from frugalbench.specs.moe_inputs import expert_weights, router_weights, token_batches
from frugalbench.workloads.layers import ffn

EXCHANGES = 3
"""All-to-alls of a step: counts, rows out, answers back."""


class Exchange:
    """All-to-alls over the ranks of ``torch.distributed``."""

    def __init__(self, dist: Any):
        self.dist = dist
        self.rank, self.ranks = int(dist.get_rank()), int(dist.get_world_size())

    def equal(self, blocks: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Block i of R equal ones along the first axis goes to rank i."""
        self.dist.all_to_all_single(out, blocks)
        return out

    def uneven(self, rows: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
        """The first ``sent[0]`` rows go to rank 0, the next to rank 1; ``received[i]`` rows come from rank i."""
        out = rows.new_empty((sum(received), *rows.shape[1:]))
        self.dist.all_to_all_single(out, rows, received, sent)
        return out

    def everyone(self, own: torch.Tensor) -> torch.Tensor:
        """Each rank's tensor of one shape, stacked."""
        found = [torch.empty_like(own) for _ in range(self.ranks)]
        self.dist.all_gather(found, own.contiguous())
        return torch.stack(found)


@dataclass(frozen=True)
class Sent:
    """Routed rows before they leave."""

    rows: torch.Tensor
    """S x D."""
    tokens: torch.Tensor
    """Where each row comes from, S."""
    weights: torch.Tensor
    """Its mixing weight, S x 1."""
    counts: torch.Tensor
    """Rows by expert, E."""
    splits: list[int]
    """Rows for each rank."""


@dataclass(frozen=True)
class Received:
    """Rows at their experts' owner."""

    rows: torch.Tensor
    """N x D."""
    counts: torch.Tensor
    """Rows by sending rank and own expert, R x E/R."""
    splits: list[int]
    """Rows from each rank."""


@dataclass(frozen=True)
class Batch:
    """One batch of this rank's tokens, as it is routed and as it arrives."""

    sent: Sent
    received: Received
    counts: torch.Tensor
    """Rows by receiving rank, sending rank and the receiver's expert; known to all."""

    def terms(self) -> tuple[float, float]:
        """Steps and bytes of the exchange as the model of the interconnect counts them."""
        row_bytes = self.sent.rows.element_size() * self.sent.rows.shape[1]
        ranks, count_bytes = len(self.counts), self.counts.element_size() * self.sent.counts.numel()
        moved = (self.counts.sum(2).T * row_bytes).tolist()
        told, rows = all_to_all_terms(count_bytes, ranks), uneven_terms(moved)
        return told[0] + 2 * rows[0], told[1] + 2 * rows[1]


class Shard:
    """E/R experts of every copy, the shared ones, the router, and this rank's tokens."""

    def __init__(self, params: dict[str, Any], rank: int, device: str = "cpu"):
        self.params, self.rank, self.device, self.seed = params, rank, device, int(params["seed"])
        self.own = params["experts"] // params["ranks"]
        router_ED = torch.from_numpy(router_weights(self.seed, params)).to(device)
        held = [self._held(copy) for copy in range(params["copies"])]
        make = NativeExperts if params["expert_arm"] == NATIVE else TorchExperts
        self.route = make.router(router_ED, params)
        self.experts = [make(gate_up, down, params) for gate_up, down, *_ in held]
        self.shared = [make(gate_up, down, params) for *_, gate_up, down in held] if params["n_shared"] else []
        self.implementation = self.experts[0].implementation
        self._tokens: dict[tuple[str, int], torch.Tensor] = {}
        self._batches: dict[tuple[str, int], list[Batch]] = {}
        self.exchange: Any = None
        """An :class:`Exchange`, once the ranks have met."""

    def _held(self, copy: int) -> tuple[torch.Tensor, ...]:
        """Own experts' ``gate_up`` and ``down``, then those of the shared ones."""
        whole, first, routed = (
            expert_weights(self.seed, self.params, copy),
            self.rank * self.own,
            self.params["experts"],
        )
        parts = (slice(first, first + self.own), slice(routed, None))
        arrays = [whole[name][part].copy() for part in parts for name in ("gate_up", "down")]
        return tuple(torch.from_numpy(array).to(self.device) for array in arrays)

    def tokens(self, regime: str, count: int) -> torch.Tensor:
        """Batches x T x D: this rank's rows of a trace of ``count`` tokens."""
        if (regime, count) not in self._tokens:
            whole = token_batches(self.seed, {**self.params, "tokens": count}, regime)
            own = count // self.params["ranks"]
            mine = whole[:, self.rank * own : (self.rank + 1) * own].copy()
            self._tokens[regime, count] = torch.from_numpy(mine).to(self.device)
        return self._tokens[regime, count]

    def batches(self, regime: str, count: int) -> list[Batch]:
        """All batches of a trace, routed and dispatched once."""
        if (regime, count) not in self._batches:
            self._batches[regime, count] = [self._batch(x_TD) for x_TD in self.tokens(regime, count)]
        return self._batches[regime, count]

    def _batch(self, x_TD: torch.Tensor) -> Batch:
        sent = self.sort(x_TD, *self.route(x_TD))
        received = self.dispatch(sent)
        return Batch(sent, received, self.exchange.everyone(received.counts))

    def step(self, x_TD: torch.Tensor, copy: int) -> torch.Tensor:
        """The layer on this rank's tokens."""
        expert_TK, weight_TK = self.route(x_TD)
        return self.mix(x_TD, expert_TK, weight_TK, copy)

    def mix(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, copy: int) -> torch.Tensor:
        """The same with a routing that is given."""
        sent = self.sort(x_TD, expert_TK, weight_TK)
        received = self.dispatch(sent)
        answers_SD = self.combine(self.compute(received, copy), received, sent)
        y_TD = torch.zeros_like(x_TD).index_add_(0, sent.tokens, answers_SD * sent.weights)
        return y_TD + self.always(x_TD, copy) if self.shared else y_TD

    def sort(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> Sent:
        """A row per token and chosen expert, by expert; equal ones in the order of the tokens."""
        expert_S = expert_TK.flatten()
        order_S = expert_S.argsort(stable=True)
        token_S = order_S // expert_TK.shape[1]
        counts_E = torch.bincount(expert_S, minlength=self.params["experts"])
        splits = counts_E.view(-1, self.own).sum(1).tolist()
        return Sent(x_TD[token_S], token_S, weight_TK.flatten()[order_S, None], counts_E, splits)

    def dispatch(self, sent: Sent) -> Received:
        """Counts, then rows, to the experts' owners."""
        counts_RE = self.exchange.equal(sent.counts, torch.empty_like(sent.counts)).view(-1, self.own)
        splits = counts_RE.sum(1).tolist()
        return Received(self.exchange.uneven(sent.rows, sent.splits, splits), counts_RE, splits)

    def combine(self, answers_ND: torch.Tensor, received: Received, sent: Sent) -> torch.Tensor:
        """Answers back to where their rows came from, in the order in which these left: S x D."""
        answers_SD: torch.Tensor = self.exchange.uneven(answers_ND, received.splits, sent.splits)
        return answers_SD

    def compute(self, received: Received, copy: int) -> torch.Tensor:
        """Every row through its expert, N x D."""
        rows_ND = received.rows
        if not len(rows_ND):
            return rows_ND
        expert_N = self._own_numbers.repeat_interleave(received.counts.flatten(), output_size=len(rows_ND))
        return self.experts[copy](rows_ND, expert_N[:, None])

    def always(self, x_TD: torch.Tensor, copy: int) -> torch.Tensor:
        """Sum of the shared experts, T x D."""
        return self.shared[copy](x_TD, self._shared_numbers.expand(len(x_TD), -1))

    @cached_property
    def _own_numbers(self) -> torch.Tensor:
        """Number of the own expert that each count is about, for the counts of all ranks in a row."""
        return torch.arange(self.own, device=self.device).repeat(self.params["ranks"])

    @cached_property
    def _shared_numbers(self) -> torch.Tensor:
        return torch.arange(self.params["n_shared"], device=self.device)[None]


class NativeExperts:
    """The own kernel."""

    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor, params: dict[str, Any]):  # noqa: ARG002
        from frugalbench.backends import native_moe

        self.kernel, self.gate_up, self.down = native_moe.kernel(), gate_up, down
        self.implementation = f"native: own {self.kernel.path} kernel"

    def __call__(self, x_TD: torch.Tensor, expert_TK: torch.Tensor) -> torch.Tensor:
        """Sum of each row's experts with weight 1."""
        chosen = expert_TK.to(torch.int32).contiguous()
        return self.kernel.forward(x_TD, chosen, torch.ones(chosen.shape), self.gate_up, self.down)[0]

    @staticmethod
    def router(router_ED: torch.Tensor, params: dict[str, Any]) -> Any:
        """x to numbers and mixing weights of each token's experts, T x K."""
        from frugalbench.backends import native_moe

        kernel, gate = native_moe.kernel(), [params[key] for key in ("top_k", "gate", "normalise", "routed_scale")]
        return lambda x_TD: kernel.route(x_TD, router_ED, *gate)


class TorchExperts:
    """torch's products, one per expert hit."""

    implementation = ffn.SortedMoe.implementation

    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor, params: dict[str, Any]):
        self.layer = ffn.SortedMoe({"gate_up": gate_up, "down": down}, params)

    def __call__(self, x_TD: torch.Tensor, expert_TK: torch.Tensor) -> torch.Tensor:
        """Sum of each row's experts with weight 1."""
        return self.layer.mix(x_TD, expert_TK, x_TD.new_ones(expert_TK.shape))

    @staticmethod
    def router(router_ED: torch.Tensor, params: dict[str, Any]) -> Any:
        """x to numbers and mixing weights of each token's experts, T x K."""
        return ffn.Mixture({"router": router_ED}, {**params, "n_shared": 0}).route
