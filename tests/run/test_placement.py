"""Busy threads get a core each for a turn, and only for a turn."""

import contextlib
import os
import subprocess
import sys
import threading
import time

from frugalbench.run.placement import Watch, busy_threads, placed, spinning_threads, thread_cpu_ns


def test_only_steady_busy_threads_are_placed():
    before = {1: 0, 2: 0, 3: 0}
    assert busy_threads(before, {1: 9_000_000, 2: 8_000_000, 3: 1_000}, 0.01, 2) == (1, 2)
    assert busy_threads(before, {1: 9_000_000, 2: 1_000, 3: 1_000}, 0.01, 2) == (1,)
    assert busy_threads(before, {1: 9_000_000, 2: 9_000_000, 4: 0}, 0.01, 2) == (), "threads that come and go"
    assert busy_threads(before, dict.fromkeys(before, 9_000_000), 0.01, 2) == (), "more threads than cores"


def test_threads_that_come_and_go_within_the_window_are_told_by_the_process_clock():
    before, now = {1: 0, 2: 0}, {1: 9_000_000, 2: 8_000_000}
    assert busy_threads(before, now, 0.01, 2, process_ns=17_000_000) == (1, 2)
    assert busy_threads(before, now, 0.01, 2, process_ns=26_000_000) == ()


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


@contextlib.contextmanager
def killed(*command):
    """A process that ends with the block, also when an assertion fails in it."""
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


def test_threads_that_never_sleep_are_counted_and_quiet_processes_cost_no_wait():
    waits = []
    with killed(sys.executable, "-c", "while True: pass") as spinner:
        tries = (spinning_threads(spinner.pid, patience_s=0.05) for _ in range(20))
        assert next(filter(None, tries), 0) == 1, "it may sleep while it starts"
    with killed("sleep", "600") as sleeper:
        time.sleep(0.1)
        assert spinning_threads(sleeper.pid, sleep=waits.append) == 0
    assert sum(waits) < 0.01
    assert spinning_threads(sleeper.pid) == 0, "gone is quiet"


def test_a_single_thread_goes_where_the_turn_says():
    me, usable = threading.get_native_id(), sorted(os.sched_getaffinity(0))
    seen = []
    for turn in range(len(usable)):
        with placed((me,), turn):
            seen += os.sched_getaffinity(me)
    assert seen[:4] == usable[:4]


def test_children_count_as_threads_that_come_and_go():
    watch = Watch()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert watch.busy(0.05, 2) == ()
