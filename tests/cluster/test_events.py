"""The event engine: hand results, closed forms where these are exact, laws, and a naive simulator beside it."""

import itertools
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench.cluster import collectives
from frugalbench.cluster.events import Outcome, Program, run

LINKS, RANKS = 4, 3
RATE = st.integers(1, 50)


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """A program as plain data: rates of links, and tasks that wait for some of those before them."""
    capacity = draw(st.lists(RATE, min_size=LINKS, max_size=LINKS))
    tasks = []
    for number in range(draw(st.integers(1, 9))):
        after = draw(st.sets(st.integers(0, number - 1), max_size=2)) if number else set()
        rank = draw(st.integers(-1, RANKS - 1))
        route = sorted(draw(st.sets(st.integers(0, LINKS - 1), min_size=1, max_size=3)))
        amount, delay = draw(st.integers(0, 40)), draw(st.integers(0, 3))
        tasks.append({"rank": rank, "route": route, "amount": amount, "delay": delay, "after": sorted(after)})
    return {"capacity": capacity, "tasks": tasks}


def played(plan: dict[str, Any], slower: float = 1.0, order: tuple[int, ...] = (0, 1, 2, 3)) -> Outcome:
    """Times longer by ``slower``; links numbered in another order."""
    program = Program()
    links = {old: program.add_link(f"link {old}", plan["capacity"][old] / slower) for old in order}
    for rank in range(RANKS):
        program.add_rank(f"rank {rank}")
    for task in plan["tasks"]:
        if task["rank"] >= 0:
            program.compute(task["rank"], task["amount"] * slower, task["after"])
        else:
            uses = tuple((links[old], 1.0) for old in task["route"])
            program.transfer(uses, float(task["amount"]), task["delay"] * slower, task["after"])
    return run(program)


def naive(plan: dict[str, Any]) -> list[Fraction]:
    """Ends of all tasks, in fractions, every rate anew at every event."""
    tasks = [dict(task, after=set(task["after"])) for task in plan["tasks"]]
    for rank in range(RANKS):
        own = [number for number, task in enumerate(tasks) if task["rank"] == rank]
        for before, after in itertools.pairwise(own):
            tasks[after]["after"].add(before)
    now, ends = Fraction(0), {}
    wait = [Fraction(task["delay"] if task["rank"] < 0 else task["amount"]) for task in tasks]
    left = [Fraction(task["amount"] if task["rank"] < 0 else 0) for task in tasks]
    while len(ends) < len(tasks):
        open_ = [n for n, task in enumerate(tasks) if n not in ends and task["after"] <= ends.keys()]
        over = [n for n in open_ if wait[n] == 0 and left[n] == 0]
        if over:
            ends |= dict.fromkeys(over, now)
            continue
        flowing = [n for n in open_ if wait[n] == 0]
        rates = naive_rates({n: tasks[n]["route"] for n in flowing}, plan["capacity"])
        step = min([left[n] / rates[n] for n in flowing] + [wait[n] for n in open_ if wait[n] > 0])
        now += step
        for n in open_:
            if n in rates:
                left[n] -= rates[n] * step
            else:
                wait[n] -= step
    return [ends[n] for n in range(len(tasks))]


def naive_rates(routes: dict[int, list[int]], capacity: list[int]) -> dict[int, Fraction]:
    found: dict[int, Fraction] = {}
    while len(found) < len(routes):
        shares = {}
        for link, rate in enumerate(capacity):
            crossing = [n for n, route in routes.items() if link in route]
            fixed = sum(found[n] for n in crossing if n in found)
            if free := [n for n in crossing if n not in found]:
                shares[link] = ((rate - fixed) / Fraction(len(free)), free)
        share, free = min(shares.values(), key=lambda item: item[0])
        found |= dict.fromkeys(free, share)
    return found


@given(plans())
@settings(max_examples=150)
def test_every_task_ends_when_the_naive_simulator_says(plan) -> None:
    assert played(plan).task_end_s == pytest.approx([float(end) for end in naive(plan)])


@given(plans())
def test_every_byte_of_every_transfer_is_carried_once_and_no_link_beats_its_rate(plan) -> None:
    outcome = played(plan)
    for number, link in enumerate(outcome.links):
        sent = sum(t["amount"] for t in plan["tasks"] if t["rank"] < 0 and number in t["route"])
        assert link.carried_bytes == pytest.approx(sent)
        assert link.carried_bytes <= link.bytes_per_s * link.busy_s * (1 + 1e-9)
        assert link.busy_s <= outcome.end_s * (1 + 1e-9)
    for number, rank in enumerate(outcome.ranks):
        assert rank.busy_s == pytest.approx(sum(t["amount"] for t in plan["tasks"] if t["rank"] == number))
        assert rank.waiting_s == pytest.approx(outcome.end_s - rank.busy_s, abs=1e-9)


@given(plans(), st.sampled_from([1e-6, 0.125, 3.0, 1e5]))
def test_slower_by_a_factor_ends_later_by_it(plan, slower) -> None:
    ends = [slower * end for end in played(plan).task_end_s]
    assert played(plan, slower).task_end_s == pytest.approx(ends)


@given(plans(), st.permutations([0, 1, 2, 3]))
def test_the_order_of_links_does_not_matter(plan, order) -> None:
    assert played(plan, order=tuple(order)).task_end_s == pytest.approx(played(plan).task_end_s)


def test_equal_programs_give_equal_outcomes() -> None:
    plan = {"capacity": [3, 5, 7, 9], "tasks": [
        {"rank": -1, "route": [n % 4, (n + 1) % 4], "amount": 10 + n, "delay": n % 2, "after": []} for n in range(9)
    ]}  # fmt: skip
    assert played(plan) == played(plan)


@given(st.integers(2, 9), st.floats(1e3, 1e9), st.floats(0, 1e-3))
def test_a_ring_step_by_step_is_its_closed_form(ranks: int, size_bytes: float, alpha_s: float) -> None:
    program = Program()
    links = [program.add_link(f"link {rank}", 1e9) for rank in range(ranks)]
    sent: list[int] = []
    for _ in range(2 * (ranks - 1)):
        after = [[sent[rank], sent[rank - 1]] if sent else [] for rank in range(ranks)]
        sent = [program.transfer(((links[r], 1.0),), size_bytes / ranks, alpha_s, after[r]) for r in range(ranks)]
    outcome = run(program)
    assert outcome.end_s == pytest.approx(2 * (ranks - 1) * (alpha_s + size_bytes / ranks / 1e9))
    whole = Program()
    uses = tuple((whole.add_link(f"link {rank}", 1e9), 1.0) for rank in range(ranks))
    whole.transfer(uses, collectives.ring_traffic_bytes(size_bytes, ranks), 2 * (ranks - 1) * alpha_s)
    assert run(whole).end_s == pytest.approx(outcome.end_s)
    assert run(whole).links[0].carried_bytes == pytest.approx(outcome.links[0].carried_bytes)


def test_two_transfers_share_a_link_and_the_longer_one_then_has_it_alone() -> None:
    program = Program()
    link = program.add_link("link", 10.0)
    short = program.transfer(((link, 1.0),), 50.0)
    long = program.transfer(((link, 1.0),), 100.0)
    outcome = run(program)
    assert (outcome.task_end_s[short], outcome.task_end_s[long]) == (10.0, 15.0)
    assert outcome.links[0].waiting_s == pytest.approx((10 - 5) + (15 - 10))
    assert outcome.links[0].busy_s == 15.0


def test_a_rank_computes_one_thing_at_a_time_and_waits_for_transfers() -> None:
    program = Program()
    link, rank = program.add_link("link", 1.0), program.add_rank("rank")
    first = program.compute(rank, 2.0)
    sent = program.transfer(((link, 1.0),), 3.0, after=[first])
    program.compute(rank, 1.0, after=[program.join([sent])])
    outcome = run(program)
    assert outcome.end_s == 6.0
    assert (outcome.ranks[0].busy_s, outcome.ranks[0].waiting_s) == (3.0, 3.0)


def test_one_link_for_many_copies_is_the_many() -> None:
    """Eight transfers that pairwise share four links, and one standing for eight on one standing for four."""
    many, one = Program(), Program()
    for number in range(4):
        link = many.add_link(f"link {number}", 7.0)
        for _ in range(2):
            many.transfer(((link, 1.0),), 21.0)
    one.transfer(((one.add_link("links", 7.0, copies=4), 2.0),), 21.0)
    assert run(many).end_s == run(one).end_s == 6.0
    assert run(many).links[0].carried_bytes == run(one).links[0].carried_bytes == 42.0
