"""Arms that would read a cache instead of memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory import make_case
from frugalbench.schema import Cost
from frugalbench.workloads.base import Bound
from frugalbench.workloads.residence import BEYOND_MEMORY, too_fast, too_small


class Board:
    def __init__(self, cache_bytes):
        self.held = cache_bytes

    def cache_bytes(self):
        return self.held


def bound(distinct_bytes, cache_bytes=50_000_000):
    return Bound(call=id, output=id, device=Board(cache_bytes), distinct_bytes=distinct_bytes)


@pytest.mark.parametrize("made", [bound(None), bound(51e6), bound(1e3, None), Bound(id, id, distinct_bytes=1.0)])
def test_what_streams_or_is_not_known_passes(made):
    assert too_small(made) is None


def test_a_rotation_within_the_cache_is_refused_with_both_sizes():
    assert "reads 9.54 MiB again and again, which the device's cache of 47.7 MiB holds" in too_small(bound(1e7))


def reading(weight_bytes):
    return make_case(cost=Cost(token=1.0, flop=0.0, weight_bytes=weight_bytes, traffic_bytes=2 * weight_bytes))


@given(st.floats(1e3, 1e12), st.floats(1e9, 1e13), st.floats(0.1, 10))
def test_nothing_is_faster_than_memory(weight_bytes, byte_per_s, share):
    refused = too_fast(reading(weight_bytes), share * weight_bytes / byte_per_s, byte_per_s)
    assert (refused is not None) == (1 / share > BEYOND_MEMORY)


@pytest.mark.parametrize(("device_s", "byte_per_s"), [(None, 1e12), (1e-9, None)])
def test_without_a_clock_or_a_known_rate_nothing_is_claimed(device_s, byte_per_s):
    assert too_fast(reading(1e9), device_s, byte_per_s) is None


def test_a_case_without_weights_has_nothing_to_stream():
    assert too_fast(reading(0.0), 1e-9, 1e12) is None
