"""What is seen of a window, and which windows are void."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from frugalbench.meters.environment import (
    TICK_S,
    EnvironmentProbe,
    has_running_thread,
    pss_bytes,
    void_reason,
    wait_until_quiet,
)
from frugalbench.schema import Environment


def environment(**changes) -> Environment:
    usual = {"wall_s": 1.0, "cpu_s": 2.0, "run_delay_s": 0.0, "steal_s": 0.0, "foreign_cpu_s": 0.0}
    return Environment(**(usual | changes))


@pytest.mark.parametrize(
    ("changes", "void"),
    [
        ({}, None),
        ({"run_delay_s": None, "steal_s": None, "foreign_cpu_s": None}, None),
        ({"run_delay_s": 0.099}, None),
        ({"run_delay_s": 0.101}, "run delay"),
        ({"steal_s": 0.099}, None),
        ({"steal_s": 0.11}, "steal"),
        ({"foreign_cpu_s": 0.19}, None),
        ({"foreign_cpu_s": 0.21}, "foreign CPU"),
        ({"wall_s": 0.02, "steal_s": TICK_S}, None),  # one tick is resolution
        ({"wall_s": 0.02, "steal_s": 2 * TICK_S}, "steal"),
        ({"wall_s": 0.02, "foreign_cpu_s": 4 * TICK_S}, None),  # two ticks on each of two cores
        ({"wall_s": 0.02, "foreign_cpu_s": 5 * TICK_S}, "foreign CPU"),
    ],
)
def test_void_reason(changes, void):
    reason = void_reason(environment(**changes), threads=2, cores=2)
    assert (reason is None) if void is None else reason.startswith(void)


def test_void_reason_never_looks_at_the_workers_own_time():
    spoilt = {"run_delay_s": 0.5}
    reasons = {void_reason(environment(cpu_s=cpu_s, **spoilt), 2, 2) for cpu_s in (0.0, 1.0, 2.0)}
    assert len(reasons) == 1


def fake_proc(tmp_path, busy=(100, 0, 50), steal=0, threads=None):
    stat = " ".join(map(str, (*busy, 1000, 5, 2, 3, steal, 7, 0)))
    (tmp_path / "stat").write_text(f"cpu  {stat}\ncpu0 1 2 3\n")
    for tid, delay_ns in (threads or {}).items():
        folder = tmp_path / str(os.getpid()) / "task" / str(tid)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schedstat").write_text(f"123456789 {delay_ns} 42\n")
    return tmp_path


def test_run_delay_sums_threads_and_new_threads_count_from_zero(tmp_path):
    probe = EnvironmentProbe(proc=fake_proc(tmp_path, threads={10: 5_000_000, 11: 1_000_000}), sys=tmp_path)
    probe.begin()
    fake_proc(tmp_path, busy=(130, 0, 60), steal=4, threads={10: 7_000_000, 11: 1_500_000, 12: 9_000_000})
    seen = probe.end()
    assert seen.run_delay_s == pytest.approx(0.0115)
    assert seen.steal_s == pytest.approx(4 * TICK_S)
    assert seen.foreign_cpu_s == pytest.approx(40 * TICK_S - seen.cpu_s)
    assert seen.throttled is None and seen.clock_hz is None
    probe.close()


def test_unreadable_counters_are_none_not_zero(tmp_path):
    probe = EnvironmentProbe(proc=tmp_path, sys=tmp_path)
    probe.begin()
    seen = probe.end(quiet_wait_s=0.25, quiet=False)
    assert (seen.run_delay_s, seen.steal_s, seen.foreign_cpu_s) == (None, None, None)
    assert (seen.quiet_wait_s, seen.quiet) == (0.25, False)


def entries(folder):
    return len(list(Path(folder).iterdir()))


def test_threads_that_end_are_let_go():
    before = entries("/proc/self/fd")
    probe = EnvironmentProbe()
    stop = threading.Event()
    crowd = [threading.Thread(target=stop.wait) for _ in range(8)]
    for thread in crowd:
        thread.start()
    probe.begin()
    stop.set()
    for thread in crowd:
        thread.join()
    deadline = time.monotonic() + 2
    while entries("/proc/self/task") > 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert probe.end().run_delay_s is not None
    assert entries("/proc/self/fd") <= before + 4 + entries("/proc/self/task")
    probe.close()
    assert entries("/proc/self/fd") == before


def test_end_needs_begin():
    with pytest.raises(RuntimeError, match="begin"):
        EnvironmentProbe().end()


def test_the_probe_sees_its_own_cpu_time():
    probe = EnvironmentProbe()
    probe.begin()
    started = time.process_time()
    while time.process_time() - started < 0.02:
        pass
    seen = probe.end()
    assert seen.wall_s >= 0.02 and seen.cpu_s >= 0.02


def test_quiet_waiting_on_a_fake_clock():
    spinning = iter([True, False, True, False, False])  # one still look is not enough
    waits = []
    assert wait_until_quiet(1, 60.0, running=lambda _pid: next(spinning), sleep=waits.append)[1]
    assert len(waits) == 4
    waited_s, quiet = wait_until_quiet(1, 0.0, running=lambda _pid: True, sleep=waits.append)
    assert not quiet and waited_s >= 0


def test_the_caller_itself_is_no_reason_to_wait():
    waited_s, quiet = wait_until_quiet(os.getpid(), 5.0)
    assert quiet and waited_s < 5.0


def test_quiet_waiting_on_real_processes():
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.1)
        assert has_running_thread(spin.pid)
        assert wait_until_quiet(spin.pid, 0.05, pause_s=0.01)[1] is False
        assert pss_bytes(spin.pid) > 100_000
    finally:
        spin.kill()
        spin.wait()
    assert wait_until_quiet(spin.pid, 1.0)[1] is True  # gone is quiet
    assert pss_bytes(spin.pid) is None
