"""Scenes of the event engine played again in simpy, process by process: same ends to a millionth.

Nothing is shared with the engine: flows are processes that are interrupted whenever another begins or ends, ranks and
stages are resources, steps are barriers. Rates of flows are found link by link, the narrowest first.
"""

import random
from collections.abc import Generator, Iterable
from typing import Any

import pytest

from frugalbench.cluster.events import Program, run

simpy = pytest.importorskip("simpy")
CLOSE = 1e-6
Route = dict[int, float]
"""Link to weight."""


class Network:
    """Links that flows share by max-min fairness."""

    def __init__(self, env: Any, capacity: list[float]) -> None:
        self.env, self.capacity, self.flows = env, capacity, []

    def send(self, route: Route, size: float, delay: float = 0.0) -> Generator[Any, Any, None]:
        yield self.env.timeout(delay)
        flow = {"route": route, "left": size, "rate": 0.0, "since": self.env.now, "process": self.env.active_process}
        self.flows.append(flow)
        self._share(flow)
        while flow["left"] > 1e-9 * size:
            try:
                yield self.env.timeout(flow["left"] / flow["rate"])
                flow["left"] = 0.0
            except simpy.Interrupt:
                pass
        self.flows.remove(flow)
        self._share(flow)

    def _share(self, cause: dict[str, Any]) -> None:
        for flow in self.flows:
            flow["left"] -= flow["rate"] * (self.env.now - flow["since"])
            flow["since"] = self.env.now
        for flow, rate in self._rates():
            if rate != flow["rate"]:
                flow["rate"] = rate
                if flow is not cause:
                    flow["process"].interrupt()

    def _rates(self) -> Iterable[tuple[dict[str, Any], float]]:
        room, open_ = list(self.capacity), list(self.flows)
        while open_:
            load = {n: sum(f["route"].get(n, 0.0) for f in open_) for n in range(len(room))}
            link = min((n for n in load if load[n]), key=lambda n: room[n] / load[n])
            share = room[link] / load[link]
            for flow in [f for f in open_ if link in f["route"]]:
                open_.remove(flow)
                for other, weight in flow["route"].items():
                    room[other] -= weight * share
                yield flow, share


def star(flows: list[tuple[float, int, int, float, float]], up: list[float], down: list[float]) -> list[float]:
    """Ends of flows ``(start, from, to, size, weight)`` over uplinks and downlinks, in simpy."""
    env, ends = simpy.Environment(), [0.0] * len(flows)
    network = Network(env, up + down)

    def flow(number: int, start: float, source: int, target: int, size: float, weight: float) -> Any:
        yield env.process(network.send({source: weight, len(up) + target: weight}, size, start))
        ends[number] = env.now

    for number, item in enumerate(flows):
        env.process(flow(number, *item))
    env.run()
    return ends


@pytest.mark.parametrize("seed", range(8))
def test_flows_on_a_star(seed: int) -> None:
    draw = random.Random(seed)
    up, down = ([draw.choice([1e9, 2.5e9, 1e10]) for _ in range(5)] for _ in range(2))
    flows = [
        (draw.uniform(0, 2), *draw.sample(range(5), 2), draw.uniform(1e8, 2e10), draw.choice([1.0, 1.0, 2.0]))
        for _ in range(24)
    ]
    program = Program()
    links = [program.add_link(f"link {n}", rate) for n, rate in enumerate(up + down)]
    for start, source, target, size, weight in flows:
        program.transfer(((links[source], weight), (links[5 + target], weight)), size, start)
    assert run(program).task_end_s == pytest.approx(star(flows, up, down), rel=CLOSE)


@pytest.mark.parametrize(("wire", "micro"), [(1e9, 8), (1e10, 8), (2e8, 12)])
def test_a_pipeline(wire: float, micro: int) -> None:
    """Five stages of unlike speed; each microbatch is computed and sent on, also where sending is what limits."""
    stages, size, delay = [0.02, 0.05, 0.03, 0.02, 0.04], 1e7, 1e-3
    program = Program()
    ranks = [program.add_rank(f"stage {n}") for n in range(len(stages))]
    links = [program.add_link(f"link {n}", wire) for n in range(len(stages) - 1)]
    last = []
    for _ in range(micro):
        sent: list[int] = []
        for number, seconds in enumerate(stages):
            done = program.compute(ranks[number], seconds, sent)
            if number < len(links):
                sent = [program.transfer(((links[number], 1.0),), size, delay, [done])]
        last.append(done)
    env, ends = simpy.Environment(), []
    network = Network(env, [wire] * len(links))
    free = [simpy.Resource(env) for _ in stages]

    def batch() -> Any:
        for number, seconds in enumerate(stages):
            with free[number].request() as turn:
                yield turn
                yield env.timeout(seconds)
            if number < len(links):
                yield env.process(network.send({number: 1.0}, size, delay))
        ends.append(env.now)

    for _ in range(micro):
        env.process(batch())
    env.run()
    found = run(program)
    assert [found.task_end_s[task] for task in last] == pytest.approx(ends, rel=CLOSE)


@pytest.mark.parametrize("seed", range(4))
def test_steps_wait_for_their_stragglers(seed: int) -> None:
    """Each step, every rank computes for a time of its own; the slowest lets all exchange over all uplinks."""
    draw, ranks, steps, size = random.Random(seed), 6, 10, 3e8
    rates = [draw.choice([1e9, 2e9]) for _ in range(ranks)]
    times = [[draw.lognormvariate(-3, 0.4) for _ in range(ranks)] for _ in range(steps)]
    program = Program()
    workers = [program.add_rank(f"rank {n}") for n in range(ranks)]
    ring = tuple((program.add_link(f"up {n}", rate), 1.0) for n, rate in enumerate(rates))
    noise = program.transfer((ring[0],), 2e9)
    before: list[int] = []
    for row in times:
        computed = [program.compute(rank, seconds, before) for rank, seconds in zip(workers, row, strict=True)]
        before = [program.transfer(ring, size, 1e-4, [program.join(computed)])]
    env, ends = simpy.Environment(), []
    network = Network(env, rates)

    def training() -> Any:
        for row in times:
            yield simpy.AllOf(env, [env.timeout(seconds) for seconds in row])
            yield env.process(network.send(dict.fromkeys(range(ranks), 1.0), size, 1e-4))
        ends.append(env.now)

    def other() -> Any:
        yield env.process(network.send({0: 1.0}, 2e9))
        ends.append(env.now)

    env.process(training())
    env.process(other())
    env.run()
    found = run(program)
    assert sorted(ends) == pytest.approx(sorted([found.task_end_s[before[0]], found.task_end_s[noise]]), rel=CLOSE)
    assert sum(rank.busy_s for rank in found.ranks) == pytest.approx(sum(map(sum, times)))
