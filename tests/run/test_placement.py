"""Busy threads get a core each for a turn, and only for a turn."""

import os
import threading
import time

from frugalbench.run.placement import busy_threads, placed, thread_cpu_ns


def test_only_steady_busy_threads_are_placed():
    before = {1: 0, 2: 0, 3: 0}
    assert busy_threads(before, {1: 9_000_000, 2: 8_000_000, 3: 1_000}, 0.01, 2) == (1, 2)
    assert busy_threads(before, {1: 9_000_000, 2: 1_000, 3: 1_000}, 0.01, 2) == (), "one busy thread needs no place"
    assert busy_threads(before, {1: 9_000_000, 2: 9_000_000, 4: 0}, 0.01, 2) == (), "threads that come and go"
    assert busy_threads(before, dict.fromkeys(before, 9_000_000), 0.01, 2) == (), "more threads than cores"


def test_a_busy_thread_is_seen_in_its_cpu_time():
    stop = threading.Event()
    spinner = threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)], daemon=True)
    spinner.start()
    before = thread_cpu_ns()
    time.sleep(0.1)
    now = thread_cpu_ns()
    stop.set()
    spinner.join()
    assert now[spinner.native_id] - before[spinner.native_id] > 1_000_000


def test_placement_ends_with_the_turn():
    me, usable = threading.get_native_id(), os.sched_getaffinity(0)
    with placed((me,)):
        assert len(os.sched_getaffinity(me)) == 1
    assert os.sched_getaffinity(me) == usable
