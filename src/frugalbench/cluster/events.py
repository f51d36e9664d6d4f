"""Discrete events at the level of transfers: ranks that compute, links that transfers share, and what waits for what.

A :class:`Program` is a graph of tasks: a computation occupies its rank, a transfer occupies links at a max-min fair
rate (:mod:`frugalbench.cluster.sharing`), a join only waits. :func:`run` plays it and counts, for every link and every
rank, busy seconds, bytes and waiting. A collective is one transfer over all links of its ring or tree, since its
streams go at the pace of the slowest. Identical ranks or links may stand for each other: ``copies`` says how many, and
everything here is then per copy.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from frugalbench.cluster.sharing import Uses, fill
from frugalbench.schema import Frozen

SAME_TIME = 1e-12
"""Events this close, relative to the time, are one moment: links are shared anew once for all of them."""
ROUNDING = 1e-9
"""Of the time: a shorter loss is the last digits of a difference."""
_WAITING, _DELAYED, _RUNNING = 0, 1, 2


@dataclass
class Program:
    """Links, ranks and tasks. Tasks are numbered in the order in which they were added."""

    link_names: list[str] = field(default_factory=list)
    capacity: list[float] = field(default_factory=list)
    link_copies: list[int] = field(default_factory=list)
    rank_names: list[str] = field(default_factory=list)
    rank_copies: list[int] = field(default_factory=list)
    rank: list[int] = field(default_factory=list)
    amount: list[float] = field(default_factory=list)
    delay_s: list[float] = field(default_factory=list)
    uses: list[Uses] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    after: list[list[int]] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    """Each rank's newest computation; -1 before the first."""

    def add_link(self, name: str, bytes_per_s: float, copies: int = 1) -> int:
        """A link in one direction, and its number."""
        self.link_names.append(name)
        self.capacity.append(bytes_per_s)
        self.link_copies.append(copies)
        return len(self.capacity) - 1

    def add_rank(self, name: str, copies: int = 1) -> int:
        """A rank, and its number."""
        self.rank_names.append(name)
        self.rank_copies.append(copies)
        self.last.append(-1)
        return len(self.last) - 1

    def compute(self, rank: int, seconds: float, after: Iterable[int] = ()) -> int:
        """Seconds of work on a rank, after the tasks named and after what the rank was given before."""
        before = self.last[rank]
        self.last[rank] = task = self._add(rank, seconds, 0.0, (), (*after, *([before] if before >= 0 else [])))
        return task

    def transfer(self, uses: Uses, size_bytes: float, delay_s: float = 0.0, after: Iterable[int] = ()) -> int:
        """Bytes over links, after ``delay_s`` in which no link is used (start-up and propagation)."""
        return self._add(-1, size_bytes, delay_s, uses, after)

    def join(self, after: Iterable[int]) -> int:
        """A task that is over when all those are."""
        return self._add(-1, 0.0, 0.0, (), after)

    def _add(self, rank: int, amount: float, delay_s: float, uses: Uses, after: Iterable[int]) -> int:
        task = len(self.rank)
        self.rank.append(rank)
        self.amount.append(amount)
        self.delay_s.append(delay_s)
        self.uses.append(uses)
        self.after.append([])
        waits = 0
        for before in after:
            self.after[before].append(task)
            waits += 1
        self.waits.append(waits)
        return task


class LinkUse(Frozen, frozen=True, kw_only=True):
    """What one link (or each of its copies) did."""

    name: str
    copies: int
    bytes_per_s: float
    """Its rate."""
    carried_bytes: float
    busy_s: float
    """While at least one transfer was on it."""
    waiting_s: float
    """What transfers took beyond what they take alone, summed; charged to the link that limited them last."""


class RankUse(Frozen, frozen=True, kw_only=True):
    """What one rank (or the slowest of its copies) did."""

    name: str
    copies: int
    busy_s: float
    waiting_s: float
    """From the start to the end of the program, without the computing."""


class Outcome(Frozen, frozen=True, kw_only=True):
    """A program that was played."""

    end_s: float
    events: int
    links: tuple[LinkUse, ...]
    ranks: tuple[RankUse, ...]
    task_end_s: tuple[float, ...]
    """When each task was over."""


def run(program: Program) -> Outcome:
    """Play a program from time 0. Deterministic: equal programs give equal outcomes."""
    return _Engine(program).run()


class _Engine:
    """Slots by number of task or link; only links whose transfers changed are shared anew."""

    def __init__(self, program: Program) -> None:
        self.program = program
        tasks, links = len(program.rank), len(program.capacity)
        self.heap: list[tuple[float, int, int]] = []
        self.phase = [_WAITING] * tasks
        self.stamp = [0] * tasks
        """Events with another stamp are stale: the transfer's rate has changed since."""
        self.left = list(program.amount)
        self.rate = [0.0] * tasks
        self.since_s = [0.0] * tasks
        self.begun_s = [0.0] * tasks
        self.limit = [-1] * tasks
        self.end_s = [math.nan] * tasks
        self.users: list[dict[int, float]] = [{} for _ in range(links)]
        self.busy_since_s = [0.0] * links
        self.busy_s = [0.0] * links
        self.carried_bytes = [0.0] * links
        self.waiting_s = [0.0] * links
        self.rank_busy_s = [0.0] * len(program.last)
        self.entered: list[int] = []
        self.changed: set[int] = set()
        self.waits = list(program.waits)
        self.events = 0

    def run(self) -> Outcome:
        self._start([task for task, waits in enumerate(self.waits) if not waits], 0.0)
        self._share(0.0)
        heap, stamp = self.heap, self.stamp
        now_s = 0.0
        while heap:
            moment_s = heap[0][0] * (1 + SAME_TIME)
            while heap and heap[0][0] <= moment_s:
                now_s, task, version = heappop(heap)
                if version != stamp[task]:
                    continue
                self.events += 1
                if self.phase[task] == _DELAYED:
                    self._enter(task, now_s)
                else:
                    self._start(self._finish(task, now_s), now_s)
            if self.entered or self.changed:
                self._share(now_s)
        return self._outcome(now_s)

    def _start(self, ready: list[int], now_s: float) -> None:
        """Begin what nothing holds back any more, joins and what follows them included."""
        program = self.program
        while ready:
            task = ready.pop()
            self.begun_s[task] = now_s
            if program.rank[task] >= 0:
                self.phase[task] = _RUNNING
                heappush(self.heap, (now_s + program.amount[task], task, 0))
            elif program.delay_s[task] > 0:
                self.phase[task] = _DELAYED
                heappush(self.heap, (now_s + program.delay_s[task], task, 0))
            elif program.uses[task] and program.amount[task] > 0:
                self._enter(task, now_s)
            else:
                ready += self._finish(task, now_s)

    def _enter(self, task: int, now_s: float) -> None:
        """A transfer reaches its links."""
        self.phase[task] = _RUNNING
        self.begun_s[task] = self.since_s[task] = now_s
        uses, users = self.program.uses[task], self.users
        if not uses or not self.left[task] > 0:
            self.stamp[task] += 1
            heappush(self.heap, (now_s, task, self.stamp[task]))
            return
        for link, weight in uses:
            crossing = users[link]
            if not crossing:
                self.busy_since_s[link] = now_s
            crossing[task] = weight
        self.entered.append(task)

    def _finish(self, task: int, now_s: float) -> list[int]:
        """A task is over: what it held is free, and what waited for it alone is returned."""
        program = self.program
        self.end_s[task] = now_s
        rank = program.rank[task]
        if rank >= 0:
            self.rank_busy_s[rank] += program.amount[task]
        elif self.rate[task] > 0:
            self._leave(task, now_s)
        ready = []
        for follower in program.after[task]:
            self.waits[follower] -= 1
            if not self.waits[follower]:
                ready.append(follower)
        return ready

    def _leave(self, task: int, now_s: float) -> None:
        amount, capacity = self.program.amount[task], self.program.capacity
        alone_s = 0.0
        for link, weight in self.program.uses[task]:
            crossing = self.users[link]
            del crossing[task]
            moved = amount * weight
            self.carried_bytes[link] += moved
            alone_s = max(alone_s, moved / capacity[link])
            if crossing:
                self.changed.add(link)
            else:
                self.busy_s[link] += now_s - self.busy_since_s[link]
        lost_s = now_s - self.begun_s[task] - alone_s
        if lost_s > ROUNDING * now_s:
            self.waiting_s[self.limit[task]] += lost_s

    def _share(self, now_s: float) -> None:
        """New rates for what entered or lost a neighbour at this moment; nothing else is looked at."""
        entered, self.entered = self.entered, []
        for task in entered:
            if not self._goes_alone(task, now_s):
                self.changed.update(link for link, _ in self.program.uses[task])
        if self.changed:
            changed, self.changed = self.changed, set()
            rates = fill(self._component(changed), self.users, self.program.uses, self.program.capacity)
            for task, (rate, limit) in rates.items():
                self._set_rate(task, rate, limit, now_s)

    def _goes_alone(self, task: int, now_s: float) -> bool:
        """Give a transfer whose links nobody else uses the rate of the narrowest; False where it must share."""
        users, capacity = self.users, self.program.capacity
        rate, limit = math.inf, -1
        for link, weight in self.program.uses[task]:
            if len(users[link]) > 1:
                return False
            here = capacity[link] / weight
            if here < rate:
                rate, limit = here, link
        self._set_rate(task, rate, limit, now_s)
        return True

    def _component(self, links: set[int]) -> set[int]:
        """Every link that these share a transfer with, directly or over others."""
        found, stack, seen = set(links), list(links), set()
        while stack:
            for task in self.users[stack.pop()]:
                if task in seen:
                    continue
                seen.add(task)
                for link, _ in self.program.uses[task]:
                    if link not in found:
                        found.add(link)
                        stack.append(link)
        return found

    def _set_rate(self, task: int, rate: float, limit: int, now_s: float) -> None:
        self.limit[task] = limit
        before = self.rate[task]
        if rate == before:
            return
        left = max(0.0, self.left[task] - before * (now_s - self.since_s[task]))
        self.left[task], self.since_s[task], self.rate[task] = left, now_s, rate
        self.stamp[task] += 1
        heappush(self.heap, (now_s + left / rate, task, self.stamp[task]))

    def _outcome(self, end_s: float) -> Outcome:
        program = self.program
        return Outcome(
            end_s=end_s,
            events=self.events,
            links=tuple(
                LinkUse(
                    name=name,
                    copies=program.link_copies[link],
                    bytes_per_s=program.capacity[link],
                    carried_bytes=self.carried_bytes[link],
                    busy_s=self.busy_s[link],
                    waiting_s=self.waiting_s[link],
                )
                for link, name in enumerate(program.link_names)
            ),
            ranks=tuple(
                RankUse(
                    name=name,
                    copies=program.rank_copies[rank],
                    busy_s=self.rank_busy_s[rank],
                    waiting_s=end_s - self.rank_busy_s[rank],
                )
                for rank, name in enumerate(program.rank_names)
            ),
            task_end_s=tuple(self.end_s),
        )
