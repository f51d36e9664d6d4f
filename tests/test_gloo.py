"""What the model of gloo must obey whatever the network: bounds, monotony, and the cases that can be done by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.gloo import (
    BURST_BYTES,
    SEGMENT_BYTES,
    Costs,
    Network,
    Port,
    Wan,
    all_reduce_s,
    all_to_all_s,
    segments,
    step_s,
)

MB = 1e6
COSTS = Costs(message_s=1e-4, payload=1.0)
ranks = st.integers(2, 8)
sizes = st.integers(1, 16 * 2**20).map(lambda elements: 4 * elements // 4 * 4)


def alike(count: int, rate: float = 10 * MB, **fields: object) -> Network:
    return Network(ports=(Port(rate_bytes_per_s=rate),) * count, **fields)  # type: ignore[arg-type]


@given(ranks, sizes)
def test_no_all_reduce_beats_its_bytes_or_its_messages(count: int, size_bytes: int) -> None:
    time_s = all_reduce_s(alike(count), size_bytes, COSTS)
    sent = 2 * (count - 1) / count * size_bytes
    assert time_s >= (sent - 4 * BURST_BYTES) / (10 * MB)
    assert time_s >= 2 * (count - 1) * COSTS.message_s


@given(ranks, sizes, st.integers(1, 1000))
def test_more_bytes_never_take_less(count: int, size_bytes: int, more: int) -> None:
    assert all_reduce_s(alike(count), size_bytes + 64 * more, COSTS) >= 0.999 * all_reduce_s(
        alike(count), size_bytes, COSTS
    )


@given(ranks, sizes, st.floats(1.0, 8.0))
def test_a_slower_link_or_a_later_rank_never_helps(count: int, size_bytes: int, slower: float) -> None:
    fast = alike(count)
    slow = Network(ports=(*fast.ports[:-1], Port(rate_bytes_per_s=10 * MB / slower)))
    base_s = all_reduce_s(fast, size_bytes, COSTS)
    assert all_reduce_s(slow, size_bytes, COSTS) >= base_s * (1 - 1e-9)
    late = [0.0] * (count - 1) + [slower]
    assert slower <= all_reduce_s(fast, size_bytes, COSTS, late) <= slower + base_s * (1 + 1e-9)


def test_a_large_all_reduce_runs_at_the_rate_of_its_links() -> None:
    size_bytes = 2**28
    for count in (2, 4, 8):
        perfect_s = 2 * (count - 1) / count * size_bytes / (10 * MB)
        assert all_reduce_s(alike(count), size_bytes, COSTS) == pytest.approx(perfect_s, rel=0.02)


def test_a_delay_between_sites_is_paid_for_every_turn_of_the_ring() -> None:
    ports = tuple(Port(rate_bytes_per_s=10 * MB, site=rank // 2) for rank in range(4))
    far = Network(ports=ports, wan=Wan(rate_bytes_per_s=10 * MB, delay_s=0.01))
    near = Network(ports=tuple(Port(rate_bytes_per_s=10 * MB) for _ in range(4)))
    extra_s = all_reduce_s(far, 4096, COSTS) - all_reduce_s(near, 4096, COSTS)
    assert extra_s >= 2 * 0.01


@given(ranks, sizes)
def test_segments_cover_the_buffer(count: int, size_bytes: int) -> None:
    per_rank, segment_bytes = segments(size_bytes, count)
    assert per_rank >= 2
    assert segment_bytes <= SEGMENT_BYTES
    assert count * per_rank * segment_bytes >= size_bytes


def test_all_to_all_is_as_long_as_its_busiest_link() -> None:
    block = 10 * MB
    even = [[block] * 4] * 4
    assert all_to_all_s(alike(4), even, COSTS) == pytest.approx(3.0, rel=0.02)
    popular = [[3 * block, block, block, block]] * 4
    assert all_to_all_s(alike(4), popular, COSTS) == pytest.approx(9.0, rel=0.1)
    assert all_to_all_s(alike(4), [[0.0] * 4] * 4, COSTS) < 0.001


@given(st.integers(1, 64), st.floats(0.001, 0.2), st.floats(1.0, 3.0))
def test_a_step_waits_for_the_slowest_rank_and_overlap_hides_the_shorter_part(
    steps: int, compute_s: float, pace: float
) -> None:
    network = Network(ports=(Port(rate_bytes_per_s=10 * MB), Port(rate_bytes_per_s=10 * MB, pace=pace)))
    exchange_s = all_reduce_s(network, 2**20, COSTS)
    computing_s = steps * compute_s * pace
    after_s = step_s(network, 2**20, COSTS, compute_s, steps)
    beside_s = step_s(network, 2**20, COSTS, compute_s, steps, overlap=True)
    assert beside_s == pytest.approx(max(computing_s, exchange_s))
    assert computing_s <= after_s <= (computing_s + exchange_s) * (1 + 1e-9)


def test_shares_of_the_work_by_speed_wait_for_nobody() -> None:
    network = Network(ports=(Port(rate_bytes_per_s=10 * MB), Port(rate_bytes_per_s=10 * MB, pace=2.0)))
    equal_s, fair_s = (step_s(network, 2**20, COSTS, 1.0, shares=shares) for shares in ((1.0, 1.0), (4 / 3, 2 / 3)))
    assert equal_s == step_s(network, 2**20, COSTS, 1.0)
    assert fair_s - all_reduce_s(network, 2**20, COSTS) == pytest.approx(4 / 3)


def test_one_rank_and_nothing_to_send_take_no_time() -> None:
    assert all_reduce_s(alike(1), 2**20, COSTS) == 0.0
    assert all_reduce_s(alike(3), 0, COSTS) == 0.0
