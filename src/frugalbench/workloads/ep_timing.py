"""Timing on ranks that nobody orders about: all do the same work in the same seeded order, and the slowest counts."""

import math
import random
from collections.abc import Callable, Mapping
from statistics import median

import torch

from frugalbench.workloads import device as devices
from frugalbench.workloads.base import Bound
from frugalbench.workloads.layers.expert_shard import Exchange
from frugalbench.workloads.layers.expert_works import Work
from frugalbench.workloads.stopwatch import Elapsed, timed

Windows = dict[str, list[Elapsed]]
"""Seconds per call of each work by both clocks, round by round."""
Times = dict[str, list[float]]
"""The same by the host's clock."""

_LOOKS = 3
"""Calls that say how many fill a window."""


class Clock:
    """Windows of calls, begun by all ranks together. A device's events must fit inside them."""

    def __init__(self, exchange: Exchange, device: str):
        self.exchange, self.device = exchange, device
        self.place = devices.of(device)
        self._mark = torch.zeros(1, device=device, dtype=torch.float64)
        self._positions: dict[int, int] = {}

    def settle(self) -> None:
        """Wait for this rank's device."""
        if self.place is not None:
            self.place.synchronize()

    def greatest(self, values: list[float]) -> list[float]:
        """The largest over all ranks, value by value."""
        found = torch.tensor(values, device=self.device, dtype=torch.float64)
        self.exchange.dist.all_reduce(found, op=self.exchange.dist.ReduceOp.MAX)
        return [float(value) for value in found.tolist()]

    def window(self, work: Work, calls: int) -> Elapsed:
        """This rank's time per call of ``calls`` calls in a row, after one that is not timed and a meeting of all."""
        first = self._positions.get(id(work), 0)
        self._positions[id(work)] = first + calls
        work.ready()
        work.once(first)
        self.settle()
        self.exchange.dist.all_reduce(self._mark)

        def several() -> object:
            found = None
            for position in range(first, first + calls):
                found = work.once(position)
            return found

        whole = timed(several, Bound(work.once, work.tell, synchronize=self.settle, device=self.place))
        return Elapsed(whole.host_s / calls, None if whole.device_s is None else whole.device_s / calls)

    def slowest(self, windows: list[Elapsed]) -> list[Elapsed]:
        """Each window of the rank that took longest, clock by clock."""
        hosts = self.greatest([window.host_s for window in windows])
        own = [window.device_s for window in windows if window.device_s is not None]
        devices_s: list[float | None] = [*self.greatest(own)] if own else [None] * len(hosts)
        return [Elapsed(host, device) for host, device in zip(hosts, devices_s, strict=True)]


def measure(
    works: Mapping[str, Work], clock: Clock, rounds: int, window_s: float, seed: int,
    progress: Callable[[str], None] = lambda _: None,
) -> Windows:  # fmt: skip
    """Every work once a round, in an order that the seed shuffles anew; the time of the slowest rank."""
    looks = {name: median(clock.window(work, 1).host_s for _ in range(_LOOKS)) for name, work in works.items()}
    longest = clock.greatest(list(looks.values()))
    calls = {name: _calls(works[name], window_s / look_s) for name, look_s in zip(works, longest, strict=True)}
    own: Windows = {name: [] for name in works}
    for number in range(rounds):
        order = sorted(works)
        random.Random(f"{seed}/{number}").shuffle(order)
        progress(f"round {number + 1} of {rounds}")
        for name in order:
            own[name].append(clock.window(works[name], calls[name]))
    return {name: clock.slowest(windows) for name, windows in own.items()}


def host_s(windows: Windows) -> Times:
    """What the host's clock says."""
    return {name: [window.host_s for window in found] for name, found in windows.items()}


def _calls(work: Work, filling: float) -> int:
    return max(1, min(math.ceil(filling), work.most_calls))
