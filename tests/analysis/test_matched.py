"""The ratio of matched proportions: the test's formula against plain maximisation, its laws, its coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench.analysis import matched
from frugalbench.analysis.matched import Matched

COUNTS = st.integers(0, 400)


def counts(both, ours, base, neither, effect=1.0):
    return Matched(both, ours, base, neither, both + ours + base + neither, effect)


def plain_score(found, ratio):
    """Variance at the constrained maximum of the likelihood, found by looking at every point of a fine grid."""
    least, most = max(0.0, (ratio - 1) / ratio), ratio / (1 + ratio)
    ours = np.linspace(least, most, 400_003)[1:-1]
    base = ratio * ours + 1 - ratio
    both = np.maximum(1 - ours - base, 1e-300)
    likelihood = found.both * np.log(both) + found.only_ours * np.log(ours) + found.only_base * np.log(base)
    best = ours[np.argmax(likelihood)]
    some = found.both + found.only_ours + found.only_base
    distance = found.both + found.only_ours - ratio * (found.both + found.only_base)
    return distance / math.sqrt(ratio * some * (best + ratio * best + 1 - ratio))


@pytest.mark.parametrize("found", [counts(800, 20, 30, 200), counts(50, 1, 4, 10), counts(300, 10, 3, 50)])
@pytest.mark.parametrize("ratio", [0.9, 0.99, 1.0, 1.02, 1.1])
def test_the_closed_form_is_the_constrained_maximum(found, ratio):
    assert matched.score(found, ratio) == pytest.approx(plain_score(found, ratio), abs=2e-3)


@settings(deadline=None)
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_the_interval_holds_the_ratio_and_exchanging_the_two_inverts_it(both, ours, base, neither):
    found, other = counts(both, ours, base, neither), counts(both, base, ours, neither)
    forth, back = matched.ratio_interval(found), matched.ratio_interval(other)
    if both + base == 0 or found.clusters < 2:
        assert forth is None
        return
    assert 0 <= forth.low <= forth.value * (1 + 1e-9) and forth.value <= forth.high * (1 + 1e-9)
    if back is not None and both:
        assert forth.low == pytest.approx(1 / back.high, rel=1e-6)
        assert forth.high == pytest.approx(1 / back.low, rel=1e-6)


@settings(deadline=None)
@given(st.integers(20, 300), st.integers(1, 40), st.integers(1, 40), st.integers(0, 300))
def test_ten_times_the_items_give_a_narrower_interval_around_the_same_ratio(both, ours, base, neither):
    few = matched.ratio_interval(counts(both, ours, base, neither))
    many = matched.ratio_interval(counts(*(10 * count for count in (both, ours, base, neither))))
    assert many.value == pytest.approx(few.value)
    assert few.low < many.low and many.high < few.high


def test_no_discordant_item_still_leaves_doubt():
    found = matched.ratio_interval(counts(1600, 0, 0, 400))
    t = matched.t_quantile(0.975, 1999)
    assert found.low == pytest.approx(1 / (1 + t * t / 1600), rel=1e-6)
    assert found.low * found.high == pytest.approx(1.0)


def test_a_base_that_is_never_right_has_no_ratio():
    assert matched.ratio_interval(counts(0, 5, 0, 20)) is None
    assert matched.items_needed(counts(0, 5, 0, 20), 0.99) is None


def pairs(rng, share, discordant, ratio, items):
    """0 and 1 per item of two methods with the given true share right (base), discordant share and ratio."""
    base = (discordant + share * (1 - ratio)) / 2
    cells = [share - base, discordant - base, base, 1 - share - discordant + base]
    drawn = rng.choice(4, size=items, p=cells)
    return (drawn <= 1).astype(int), ((drawn == 0) | (drawn == 2)).astype(int)


@pytest.mark.parametrize(
    ("share", "discordant", "ratio", "items"),
    [(0.7, 0.03, 0.99, 2000), (0.7, 0.02, 0.99, 500), (0.7, 0.01, 1.0, 500), (0.5, 0.1, 0.97, 1000)],
)
def test_the_interval_covers_what_it_promises(share, discordant, ratio, items):
    rng = np.random.default_rng(1)
    held = above = 0
    for _ in range(800):
        ours, base = pairs(rng, share, discordant, ratio, items)
        found = matched.ratio_interval(
            counts(int((ours & base).sum()), int((ours & ~base & 1).sum()), int((base & ~ours & 1).sum()), 0)
        )
        held += found.low <= ratio <= found.high
        above += found.low > ratio
    assert held / 800 > 0.93
    assert above / 800 < 0.045


def test_clusters_are_paid_for():
    """Each window of 20 items has its own chance to lose: taken as single items, the interval is far too narrow."""
    rng, size, windows, ratio = np.random.default_rng(2), 20, 100, 0.95
    numbers = np.repeat(np.arange(windows), size).tolist()
    held = naive = 0
    for _ in range(200):
        lost = rng.beta(0.3, 5.7, windows).repeat(size)
        base = rng.random(windows * size) < 0.7
        ours = base & (rng.random(windows * size) >= lost)
        found = matched.matched(ours.astype(int).tolist(), base.astype(int).tolist(), numbers)
        assert found.clusters == windows
        bounds = matched.ratio_interval(found)
        held += bounds.low <= ratio <= bounds.high
        bounds = matched.ratio_interval(Matched(found.both, found.only_ours, found.only_base, found.neither, 2000, 1.0))
        naive += bounds.low <= ratio <= bounds.high
    assert held / 200 > 0.9
    assert naive / 200 < 0.85


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.integers(1, 5))
def test_the_design_effect_is_at_least_one_and_one_for_single_items(values, size):
    alone = matched.design_effect(values, list(range(len(values))))
    together = matched.design_effect(values, [number // size for number in range(len(values))])
    assert alone == 1.0
    assert together >= 1.0


def test_items_that_repeat_each_other_count_once():
    values = [1.0, -1.0] * 50
    doubled = [value for value in values for _ in range(2)]
    effect = matched.design_effect(doubled, [number // 2 for number in range(200)])
    assert effect == pytest.approx(2 * 100 / 99)


@settings(deadline=None)
@given(
    st.integers(100, 2000), st.integers(0, 60), st.integers(0, 60), st.integers(0, 1000),
    st.sampled_from([0.95, 0.99, 0.999]),
)  # fmt: skip
def test_with_the_items_that_it_asks_for_the_same_ratio_is_settled(both, ours, base, neither, gate):
    found = counts(both, ours, base, neither)
    needed = matched.items_needed(found, gate)
    if needed is None:
        assert found.ratio == gate
        return
    times = math.ceil(needed / found.items)
    bounds = matched.ratio_interval(counts(*(times * count for count in (both, ours, base, neither))))
    assert not bounds.low < gate <= bounds.high


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(1, 500), st.floats(1, 20))
def test_a_share_lies_in_its_interval(right, more, effect):
    found = matched.share_interval(right, right + more, effect)
    assert 0 <= found.low <= found.value <= found.high <= 1
