"""How many events a second the engine plays. The goal is a speed, so it runs by hand: ``pytest -m goal -s``."""

import random
import time

import pytest

from frugalbench.cluster.events import Program, run

GOAL_PER_S = 150_000


def ring(ranks: int) -> Program:
    """An all-reduce step by step over links of different rates: transfers that meet nobody."""
    program, seed = Program(), random.Random(1)
    links = [program.add_link(f"link {rank}", seed.uniform(1e9, 2e9)) for rank in range(ranks)]
    sent: list[int] = []
    for _ in range(2 * (ranks - 1)):
        after = [[sent[rank], sent[rank - 1]] if sent else [] for rank in range(ranks)]
        sent = [program.transfer(((links[r], 1.0),), 1e6, 1e-6, after[r]) for r in range(ranks)]
    return program


def crossing(ranks: int, rounds: int) -> Program:
    """Everybody sends to somebody drawn: transfers that meet at both ends."""
    program, seed = Program(), random.Random(1)
    up = [program.add_link(f"up {rank}", 1e9) for rank in range(ranks)]
    down = [program.add_link(f"down {rank}", 1e9) for rank in range(ranks)]
    sent: list[int] = []
    for _ in range(rounds):
        routes = [((up[rank], 1.0), (down[seed.randrange(ranks)], 1.0)) for rank in range(ranks)]
        after = [[sent[rank]] if sent else [] for rank in range(ranks)]
        sent = [program.transfer(routes[r], seed.uniform(1e6, 2e6), 1e-6, after[r]) for r in range(ranks)]
    return program


MADE = {"ring of 128": lambda: ring(128), "64 that cross": lambda: crossing(64, 100)}


def events_per_s(program: Program, rounds: int = 5) -> float:
    """The best of a few rounds, by this process's own CPU time."""
    rates = []
    for _ in range(rounds):
        start_s = time.process_time()
        played = run(program)
        rates.append(played.events / (time.process_time() - start_s))
    return max(rates)


@pytest.mark.parametrize("name", MADE)
def test_play(benchmark, name) -> None:
    assert benchmark.pedantic(run, args=(MADE[name](),), rounds=3, warmup_rounds=1).events > 10_000


@pytest.mark.goal
@pytest.mark.parametrize("name", MADE)
def test_events_per_second(name) -> None:
    found = events_per_s(MADE[name]())
    print(f"{name}: {found:,.0f} events per second")
    assert found >= GOAL_PER_S
