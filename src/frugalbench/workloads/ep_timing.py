"""Timing on ranks that nobody orders about: all do the same work in the same seeded order, and the slowest counts."""

import math
import random
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

from frugalbench.workloads.layers.expert_shard import Exchange
from frugalbench.workloads.layers.expert_works import Work

Times = dict[str, list[float]]
"""Seconds per call of each work, round by round."""

_LOOKS = 3
"""Calls that say how many fill a window."""


class Clock:
    """Windows of calls, begun by all ranks together."""

    def __init__(self, exchange: Exchange, device: str):
        self.exchange, self.device = exchange, device
        self._mark = torch.zeros(1, device=device, dtype=torch.float64)
        self._positions: dict[int, int] = {}

    def settle(self) -> None:
        """Wait for this rank's device."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def greatest(self, values: list[float]) -> list[float]:
        """The largest over all ranks, value by value."""
        found = torch.tensor(values, device=self.device, dtype=torch.float64)
        self.exchange.dist.all_reduce(found, op=self.exchange.dist.ReduceOp.MAX)
        return [float(value) for value in found.tolist()]

    def window_s(self, work: Work, calls: int) -> float:
        """This rank's time per call of ``calls`` calls in a row, after one that is not timed and a meeting of all."""
        first = self._positions.get(id(work), 0)
        self._positions[id(work)] = first + calls
        work.once(first)
        self.settle()
        self.exchange.dist.all_reduce(self._mark)
        self.settle()
        begin_s = time.perf_counter()
        for position in range(first, first + calls):
            work.once(position)
        self.settle()
        return (time.perf_counter() - begin_s) / calls


def measure(
    works: Mapping[str, Work], clock: Clock, rounds: int, window_s: float, seed: int,
    progress: Callable[[str], None] = lambda _: None,
) -> Times:  # fmt: skip
    """Every work once a round, in an order that the seed shuffles anew; the time of the slowest rank."""
    looks = {name: median(clock.window_s(work, 1) for _ in range(_LOOKS)) for name, work in works.items()}
    agreed = clock.greatest(list(looks.values()))
    calls = {name: max(1, math.ceil(window_s / look_s)) for name, look_s in zip(works, agreed, strict=True)}
    own: Times = {name: [] for name in works}
    for number in range(rounds):
        order = sorted(works)
        random.Random(f"{seed}/{number}").shuffle(order)
        progress(f"round {number + 1} of {rounds}")
        for name in order:
            own[name].append(clock.window_s(works[name], calls[name]))
    return {name: clock.greatest(times_s) for name, times_s in own.items()}
