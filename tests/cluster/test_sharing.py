"""Max-min fair rates: the property that defines them, whatever the links and transfers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.cluster.sharing import Uses, fill

CLOSE = 1 + 1e-9


@st.composite
def crossings(draw: st.DrawFn) -> tuple[list[float], list[Uses]]:
    """Capacities of links, and transfers over them."""
    links = draw(st.integers(1, 6))
    capacity = draw(st.lists(st.floats(1.0, 1e3), min_size=links, max_size=links))
    route = st.dictionaries(st.integers(0, links - 1), st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=1)
    return capacity, [tuple(item.items()) for item in draw(st.lists(route, min_size=1, max_size=10))]


def shared(capacity: list[float], uses: list[Uses]) -> dict[int, tuple[float, int]]:
    users: list[dict[int, float]] = [{} for _ in capacity]
    for task, route in enumerate(uses):
        for link, weight in route:
            users[link][task] = weight
    return fill(range(len(capacity)), users, uses, capacity)


@given(crossings())
def test_no_link_above_its_rate_and_everyone_has_a_full_link_where_none_is_faster(crossing) -> None:
    capacity, uses = crossing
    found = shared(capacity, uses)
    assert set(found) == set(range(len(uses)))
    carried = [sum(found[t][0] * dict(route).get(link, 0.0) for t, route in enumerate(uses)) for link in range(9)]
    assert all(sent <= limit * CLOSE for sent, limit in zip(carried, capacity, strict=False))
    for task, (rate, limit) in found.items():
        assert rate > 0 and limit in dict(uses[task])
        assert carried[limit] * CLOSE >= capacity[limit]
        assert all(other <= rate * CLOSE for t, (other, _) in found.items() if limit in dict(uses[t]))


def test_the_textbook_line_of_links() -> None:
    """One long transfer over three links, one short one on each: the narrowest link decides, the rest is used up."""
    uses: list[Uses] = [((0, 1.0), (1, 1.0), (2, 1.0)), ((0, 1.0),), ((1, 1.0),), ((2, 1.0),)]
    rates = {task: rate for task, (rate, _) in shared([10.0, 4.0, 6.0], uses).items()}
    assert rates == pytest.approx({0: 2.0, 1: 8.0, 2: 2.0, 3: 4.0})


def test_a_transfer_that_crosses_twice_counts_twice() -> None:
    rates = shared([9.0], [((0, 2.0),), ((0, 1.0),)])
    assert [rate for rate, _ in rates.values()] == pytest.approx([3.0, 3.0])
