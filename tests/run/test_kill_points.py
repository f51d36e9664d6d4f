"""The short version of ``tests/benchmarks/kill_points.py``: a few random kills, nothing lost, nothing counted twice."""

import pytest

from benchmarks.kill_points import kill_points, table

pytestmark = pytest.mark.real


def test_random_kills_lose_nothing_and_count_nothing_twice():
    tally = kill_points(8, seed=4)
    assert tally.clean, table(tally)
    assert sum(tally.points.values()) == 8
    assert tally.acknowledged > 20
