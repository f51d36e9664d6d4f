"""What a rank does in a call of each case, the same on every rank at the same time; and how it tells rank 0.

:meth:`Work.once` is one call. :meth:`Work.advance` is what ranks in lockstep do at a time; :meth:`Work.tell` does one
call and gathers the outputs, which is never timed.
"""

from collections.abc import Sequence
from typing import Any

import torch

from frugalbench.cluster.emulate.lockstep import Order, rank_input
from frugalbench.schema import Case
from frugalbench.specs import expert_parallel as spec
from frugalbench.specs.moe_inputs import probe
from frugalbench.workloads.base import Arrays
from frugalbench.workloads.layers.expert_shard import Exchange, Shard


class Work:
    """One case, on one rank."""

    most_calls = 1 << 30
    """Calls of a window, beside one that is not timed."""

    def ready(self) -> None:
        """What must be put right before a window."""

    def once(self, position: int) -> Any:
        """The call at this position of the rotation."""
        raise NotImplementedError

    def tell(self, position: int) -> Arrays:
        """The same call, and what all ranks found."""
        raise NotImplementedError

    def advance(self, position: int, calls: int) -> tuple[int, Any]:  # noqa: ARG002
        """One call; how many there were, and its result. It waits for the other ranks by itself."""
        return 1, self.once(position)


class _OfLayer(Work):
    def __init__(self, shard: Shard, case: Case):
        self.shard, self.case, self.exchange = shard, case, shard.exchange
        where = case.regime, case.params["tokens"]
        self.tokens, self.batches = shard.tokens(*where), shard.batches(*where)

    def _at(self, position: int) -> tuple[int, int]:
        """Batch and copy."""
        return position % len(self.batches), position % len(self.shard.experts)

    def _gathered(self, y_TD: torch.Tensor) -> Arrays:
        return {"y": self.exchange.everyone(y_TD).flatten(0, 1).cpu().numpy()}


class Step(_OfLayer):
    """The whole layer."""

    def once(self, position: int) -> torch.Tensor:
        batch, copy = self._at(position)
        return self.shard.step(self.tokens[batch], copy)

    def tell(self, position: int) -> Arrays:
        return self._gathered(self.once(position))


class Moves(_OfLayer):
    """The all-to-alls of a step, with its counts, of rows that are ready to leave and come back as they are."""

    def once(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self.batches[self._at(position)[0]]
        received = self.shard.dispatch(batch.sent)
        return received.rows, self.shard.combine(received.rows, received, batch.sent)

    def tell(self, position: int) -> Arrays:
        arrived, returned = self.once(position)
        return {"arrived": self._products(arrived), "returned": self._products(returned)}

    def _products(self, rows: torch.Tensor) -> Any:
        """R x all rows: each rank's rows times a fixed vector, in their order, then zeros."""
        all_rows = self.case.params["tokens"] * self.case.params["top_k"]
        vector = torch.from_numpy(probe(self.shard.seed, rows.shape[1])).to(rows.device)
        padded = vector.new_zeros(all_rows)
        padded[: len(rows)] = rows.double() @ vector
        return self.exchange.everyone(padded).cpu().numpy()


class Computes(_OfLayer):
    """The experts of a step on the rows that they get, already there.

    Without an exchange the ranks do not wait for each other, so they start together, do as many calls as rank 0 says,
    and meet again after the last: one message at either end of the window.
    """

    def once(self, position: int) -> torch.Tensor:
        batch, copy = self._at(position)
        if self.shard.shared:
            self.shard.always(self.tokens[batch], copy)
        return self.shard.compute(self.batches[batch].received, copy)

    def advance(self, position: int, calls: int) -> tuple[int, Any]:
        wanted, answer = torch.tensor([calls]), None
        self.exchange.dist.broadcast(wanted, 0)
        for index in range(position, position + int(wanted)):
            answer = self.once(index)
        self.exchange.dist.barrier()
        return int(wanted), answer

    def tell(self, position: int) -> Arrays:
        """The answers are sent back and added up, so that they are the layer's."""
        (number, copy), x_TD = self._at(position), self.tokens[self._at(position)[0]]
        sent, received = self.batches[number].sent, self.batches[number].received
        answers_SD = self.shard.combine(self.once(position), received, sent)
        y_TD = torch.zeros_like(x_TD).index_add_(0, sent.tokens, answers_SD * sent.weights)
        return self._gathered(y_TD + self.shard.always(x_TD, copy) if self.shard.shared else y_TD)


class Blocks(Work):
    """All-to-all of equal blocks."""

    def __init__(self, exchange: Exchange, case: Case, device: str = "cpu"):
        source = rank_input(case.params["seed"], exchange.rank, case.params["elements"])
        self.exchange, self.source = exchange, torch.from_numpy(source).to(device)
        self.buffer = torch.empty_like(self.source)

    def once(self, position: int) -> torch.Tensor:  # noqa: ARG002
        return self.exchange.equal(self.source, self.buffer)

    def tell(self, position: int) -> Arrays:
        return {"blocks": self.exchange.everyone(self.once(position)).cpu().numpy()}


_WORKS: dict[str, Any] = {spec.STEP: Step, spec.EXCHANGE: Moves, spec.COMPUTE: Computes}


class Part:
    """One rank: its shard, and its work in each of the arm's cases."""

    def __init__(self, rank: int, cases: Sequence[Case], device: str = "cpu"):
        layers = [case.params for case in cases if case.variant in spec.SPLIT]
        self.cases, self.device = cases, device
        self.threads = max([params["threads_per_rank"] for params in layers], default=1)
        self.shard = Shard(layers[0], rank, device) if layers else None
        self.exchange: Any = None
        self._works: dict[int, Work] = {}

    @property
    def implementation(self) -> str:
        """What computes the experts."""
        return self.shard.implementation if self.shard else ""

    def meet(self, dist: Any) -> None:
        """Take part in the group."""
        torch.set_num_threads(self.threads)
        self.exchange = Exchange(dist)
        if self.shard is not None:
            self.shard.exchange = self.exchange

    def work(self, number: int) -> Work:
        """The work of case ``number``. The first time, all ranks must ask for it together: they exchange rows."""
        if number not in self._works:
            with torch.inference_mode():
                self._works[number] = self._made(self.cases[number])
        return self._works[number]

    def _made(self, case: Case) -> Work:
        if case.variant == spec.CALIBRATION:
            return Blocks(self.exchange, case, self.device)
        work: Work = _WORKS[case.variant](self.shard, case)
        return work


class Turn:
    """Call after call of one case from a position on; an :class:`Order` in force, on any rank."""

    def __init__(self, part: Part, order: Order):
        number, self.telling = divmod(order.work - 1, 2)
        self.work, self.position, self.calls = part.work(number), order.position, 1

    @staticmethod
    def code(number: int, telling: bool) -> int:
        """What an order for case ``number`` says."""
        return 1 + 2 * number + telling

    def __call__(self) -> Any:
        """One call, or with ``calls`` set on rank 0 as many as may go without waiting for the others."""
        with torch.inference_mode():
            done, answer = self._advance()
        self.position += done
        return answer

    def _advance(self) -> tuple[int, Any]:
        if self.telling:
            return 1, self.work.tell(self.position)
        return self.work.advance(self.position, self.calls)
