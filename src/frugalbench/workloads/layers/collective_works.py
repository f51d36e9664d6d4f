"""What a rank does in a call of each collective, and how its result is held against the answer.

Sizes move through one pair of buffers, so that small messages do not stay in a cache between calls. A rank's source is
its period repeated from one end to the other and is never written; what works in place does so in the result's buffer.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from frugalbench.specs import collectives as spec
from frugalbench.workloads.base import Arrays
from frugalbench.workloads.layers.expert_works import Work

_STEP = 128
"""Values at which places begin: 512 bytes, as an allocator would."""
_MOST_PLACES = 256
_MOST_MOVED = 2**26
"""Values that all places of a size span at most: 256 MiB, more than any cache."""
_CHUNK = 1024
"""Periods that are compared at a time."""


class Buffers:
    """One rank's source and result, of ``capacity`` values each."""

    def __init__(self, capacity: int, inputs: np.ndarray, rank: int, device: str) -> None:
        self.inputs, self.rank = inputs, rank
        self.source, self.result = (torch.empty(capacity, device=device) for _ in range(2))
        _repeat(self.source, torch.from_numpy(inputs[rank]).to(device))


class Collective(Work):
    """One operation on ``count`` values of the larger buffer, at one place after the other."""

    def __init__(self, dist: Any, operation: str, count: int, buffers: Buffers) -> None:
        self.dist, self.operation, self.count, self._buffers = dist, operation, count, buffers
        self._gather = _named(dist, "all_gather_single", "all_gather_into_tensor")
        self._scatter = _named(dist, "reduce_scatter_single", "reduce_scatter_tensor")
        self._stride = -(-count // _STEP) * _STEP
        spanned = min(_MOST_MOVED, len(buffers.source))
        self.places = max(1, min(_MOST_PLACES, spanned // self._stride))
        uses = spec.most_uses(operation, len(buffers.inputs))
        if uses is not None:
            self.most_calls = uses * self.places - 1

    def ready(self) -> None:
        """Put back what is reduced or received in place."""
        if self.operation in spec.IN_PLACE:
            used = min(self.places * self._stride, len(self._buffers.source))
            self._buffers.result[:used].copy_(self._buffers.source[:used])

    def once(self, position: int) -> torch.Tensor:
        begin, count = self._begin(position), self.count
        block = count // len(self._buffers.inputs)
        source, result = self._buffers.source[begin:], self._buffers.result[begin:]
        if self.operation == spec.ALL_REDUCE:
            self.dist.all_reduce(result[:count])
        elif self.operation == spec.BROADCAST:
            self.dist.broadcast(result[:count], 0)
        elif self.operation == spec.ALL_GATHER:
            self._gather(result[:count], source[:block])
        elif self.operation == spec.REDUCE_SCATTER:
            self._scatter(result[:block], source[:count])
            return result[:block]
        else:
            self.dist.all_to_all_single(result[:count], source[:count])
        return result[:count]

    def tell(self, position: int) -> Arrays:
        """Values that this rank holds after a call on a fresh buffer."""
        return {self.operation: self._fresh(position).cpu().numpy()}

    def error(self, position: int) -> float:
        """Largest error of every value after a call on a fresh buffer, over the answer's root mean square."""
        found, first, worst = self._fresh(position), 0, 0.0
        pieces = spec.answer(
            self.operation, self._buffers.rank, self.count, self._begin(position), self._buffers.inputs
        )
        for piece in pieces:
            worst = max(worst, _distance(found[first : first + piece.count], piece), key=_badness)
            first += piece.count
        return worst if first == len(found) else float("inf")

    def _fresh(self, position: int) -> torch.Tensor:
        begin = self._begin(position)
        self._buffers.result[begin : begin + self.count].fill_(torch.nan)
        self.ready()
        return self.once(position)

    def _begin(self, position: int) -> int:
        return position % self.places * self._stride


def _named(dist: Any, name: str, before: str) -> Any:
    """An operation by its name since torch 2.13, or as it was called before."""
    return getattr(dist, name, None) or getattr(dist, before)


def _badness(error: float) -> float:
    return float("inf") if np.isnan(error) else error


def _repeat(out: torch.Tensor, period: torch.Tensor) -> None:
    whole = len(out) // len(period)
    out[: whole * len(period)].view(whole, len(period)).copy_(period)
    out[whole * len(period) :].copy_(period[: len(out) - whole * len(period)])


def _distance(found: torch.Tensor, piece: spec.Piece) -> float:
    period = torch.from_numpy(np.roll(piece.period, -(piece.offset % len(piece.period)))).to(found.device)
    errors = [(part.double() - period[: part.shape[-1]]).abs().max() for part in _parts(found, len(period))]
    return float(torch.stack(errors).max() / period.square().mean().sqrt())


def _parts(found: torch.Tensor, period: int) -> Iterable[torch.Tensor]:
    """Whole periods, some at a time, and what is left."""
    whole = len(found) // period
    for first in range(0, whole, _CHUNK):
        last = min(first + _CHUNK, whole)
        yield found[first * period : last * period].view(-1, period)
    if len(found) > whole * period:
        yield found[whole * period :]
