"""Windows over several meters: what counts, in which order they are read, what watching does, when methods disagree."""

import os
import threading
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.meters import Energy, MeterError, Window, counting_scopes, window
from frugalbench.meters.agreement import MOST_DISAGREEMENT
from frugalbench.meters.base import SCOPES
from frugalbench.schema import Role, Tier


class Fake:
    """A meter that says what it is told to and notes when it is read."""

    def __init__(self, scope="cpu-package", joule=10.0, period_s=0.001, log=None, name="fake"):
        self.scope, self.joule, self.update_period_s, self.name, self.method = scope, joule, period_s, name, name
        self.tier, self.log = Tier.MEASURED, [] if log is None else log

    def begin(self):
        self.log.append(f"begin {self.name}")

    def end(self, _mark):
        self.log.append(f"end {self.name}")
        if isinstance(self.joule, Exception):
            raise self.joule
        return Energy(self.joule)


def over(*meters, device=None, length_s=10.0):
    now = [0.0]
    opened = window(meters, lambda: now[0], device)
    now[0] = length_s
    return opened.close(4, 2)


@pytest.mark.parametrize(
    ("scopes", "device", "counting"),
    [
        ({"cpu-package", "cpu-core", "cpu-dram", "platform", "machine"}, "cpu", {"cpu-package", "cpu-dram"}),
        ({"cpu-package", "gpu-board"}, "cpu", {"cpu-package"}),
        ({"cpu-package", "gpu-board", "gpu-board-1"}, "cuda", {"cpu-package", "gpu-board"}),
        ({"gpu-board", "machine"}, "cuda", {"gpu-board"}),
        ({"gpu-board", "machine"}, "cpu", {"machine"}),
        ({"gpu-board"}, "cpu", set()),
        ({"cpu-package", "platform"}, "cuda", set()),
        ({"cpu-package", "platform", "machine"}, "cuda", {"machine"}),
        ({"platform", "machine"}, "cpu", {"platform"}),
        ({"cpu-core", "cpu-uncore"}, "cpu", set()),
        ({"some rail"}, "cpu", set()),
        (set(), "cpu", set()),
    ],
)
def test_what_adds_up_to_the_cost_of_a_device(scopes, device, counting):
    assert counting_scopes(scopes, device) == counting


@given(st.sets(st.sampled_from((*SCOPES, "gpu-board-1", "some rail"))), st.sampled_from(("cpu", "cuda")))
def test_nothing_is_counted_twice(scopes, device):
    counting = counting_scopes(scopes, device)
    assert counting <= scopes and "cpu-core" not in counting
    assert len(counting) == 1 or not counting & {"platform", "machine"}


def test_parts_are_shown_with_no_round():
    package, core, board = over(Fake(), Fake("cpu-core"), Fake("gpu-board"), device="cpu")
    assert (package.role, package.round, package.joule) == (Role.GROSS, 2, 10.0)
    assert [(r.role, r.round, r.joule) for r in (core, board)] == [(Role.PART, None, 10.0)] * 2


def test_the_slowest_is_begun_first_and_ended_last_and_readings_keep_their_order():
    log = []
    quick, slow = Fake(name="quick", log=log), Fake("machine", name="slow", period_s=1.0, log=log)
    assert [r.scope for r in over(quick, slow)] == ["cpu-package", "machine"]
    assert log == ["begin slow", "begin quick", "end quick", "end slow"]


@given(first=st.floats(1, 1000), share=st.floats(0, 0.9))
def test_methods_that_disagree_by_more_than_a_fifth_are_modelled(first, share):
    second = first * (1 - share)
    readings = over(Fake(joule=first, name="counter"), Fake(joule=second, name="power"))
    if share > MOST_DISAGREEMENT + 1e-9:
        assert {r.tier for r in readings} == {Tier.MODELLED}
        assert {(r.low_joule, r.high_joule) for r in readings} == {(second, first)}
        assert all("counter" in r.note and "power" in r.note for r in readings)
    elif share < MOST_DISAGREEMENT - 1e-9:
        assert {(r.tier, r.note, r.low_joule) for r in readings} == {(Tier.MEASURED, "", None)}
    assert [r.joule for r in readings] == [first, second]


def test_a_sum_is_no_better_than_its_worst_part():
    readings = over(
        Fake(), Fake("gpu-board", 187.0), Fake("gpu-board", 327.0, name="power"), Fake("machine"), device="cuda"
    )
    assert [r.tier for r in readings] == [Tier.MODELLED, Tier.MODELLED, Tier.MODELLED, Tier.MEASURED]
    assert (readings[0].low_joule, readings[0].high_joule) == (10.0, 10.0)


def test_a_disagreement_about_what_does_not_count_leaves_the_rest_alone():
    readings = over(Fake(), Fake("gpu-board", 187.0), Fake("gpu-board", 327.0, name="power"), device="cpu")
    assert [r.tier for r in readings] == [Tier.MEASURED, Tier.MODELLED, Tier.MODELLED]


def test_a_window_too_short_for_the_slower_method_is_let_pass():
    readings = over(Fake(joule=1.0), Fake(joule=2.0, period_s=1.0), length_s=9.0)
    assert {r.tier for r in readings} == {Tier.MEASURED}


def test_a_failed_method_is_no_disagreement():
    good, bad = over(Fake(), Fake(joule=MeterError("lost")))
    assert (good.tier, good.joule) == (Tier.MEASURED, 10.0) and (bad.joule, bad.error) == (None, "lost")


class Watched(Fake):
    """A meter that wants to be looked at; a look may take long or fail."""

    look_period_s = 0.002

    def __init__(self, look=lambda: None, **options):
        super().__init__(**options)
        self.looks_s, self.look = [], look

    def sample(self, _mark):
        self.looks_s.append(time.monotonic())
        self.look()

    def stop(self, _mark):
        self.log.append(f"stop {self.name}")


def wait_for(condition, limit_s=5.0):
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert condition()


def test_a_watched_window_looks_now_and_then_and_leaves_no_thread():
    meter = Watched()
    opened = Window([meter], watched=True)
    wait_for(lambda: len(meter.looks_s) >= 3)
    opened.close(1)
    assert meter.log == ["begin fake", "stop fake", "end fake"]
    assert all(later - earlier >= 0.002 for earlier, later in pairwise(meter.looks_s))
    seen = len(meter.looks_s)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("meter-")]
    assert len(meter.looks_s) == seen


def test_watched_and_unwatched_meters_share_a_window():
    meters = (Fake(), Watched(scope="machine"), Fake("gpu-board"))
    assert [r.joule for r in Window(meters, watched=True).close(1)] == [10.0] * 3


def test_a_meter_that_is_slow_to_look_at_holds_up_no_other():
    inside, release = threading.Event(), threading.Event()
    slow = Watched(look=lambda: (inside.set(), release.wait(5)), name="slow", period_s=1.0)
    quick = Watched(name="quick", log=slow.log)
    opened = Window([quick, slow], watched=True)
    assert inside.wait(5)
    wait_for(lambda: len(quick.looks_s) >= 3)
    closing = threading.Thread(target=opened.close, args=(1,))
    closing.start()
    wait_for(lambda: "end quick" in slow.log)
    assert "end slow" not in slow.log
    release.set()
    closing.join()
    assert slow.log[-1] == "end slow"


def test_looks_are_not_bound_to_the_core_of_who_opened_the_window():
    usable = os.sched_getaffinity(0)
    seen = []
    meter = Watched(look=lambda: seen.append(os.sched_getaffinity(0)))
    try:
        os.sched_setaffinity(0, {min(usable)})
        opened = Window([meter], watched=True, cores=usable)
        wait_for(lambda: seen)
        opened.close(1)
    finally:
        os.sched_setaffinity(0, usable)
    assert seen[0] == usable


def test_a_look_that_breaks_takes_nothing_down():
    meter = Watched(look=lambda: 1 / 0)
    opened = Window([meter], watched=True)
    wait_for(lambda: len(meter.looks_s) >= 2)
    assert opened.close(1)[0].joule == 10.0


def test_an_unwatched_window_starts_no_thread():
    before = threading.active_count()
    opened = Window([Watched()])
    assert threading.active_count() == before
    opened.close(1)
