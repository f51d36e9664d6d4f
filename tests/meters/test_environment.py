"""What is seen of a window, and which windows are void."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from frugalbench.meters import counters
from frugalbench.meters.counters import PAGE_BYTES, TICK_S
from frugalbench.meters.environment import (
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
        ({"memory_stall_s": 0.049, "swapped_bytes": 49e6, "throttled": False, "gpu_throttle": ()}, None),
        ({"memory_stall_s": 0.051}, "memory stall 51.0 ms above 50.0 ms"),
        ({"swapped_bytes": 51e6}, "swapping 51.0 MB above 50.0 MB"),
        ({"wall_s": 0.02, "swapped_bytes": 2 * 4096.0}, None),
        ({"throttled": True}, "CPU throttled"),
        ({"gpu_throttle": ("hw thermal slowdown", "sw power cap")}, "GPU throttled: hw thermal slowdown"),
        ({"gpu_throttle": ("sw power cap",)}, None),  # the arm's own doing
        ({"major_faults": 999, "preemptions": 999, "temperature_c": 99.0, "clock_hz": 1e8}, None),  # recorded only
    ],
)
def test_void_reason(changes, void):
    reason = void_reason(environment(**changes), threads=2, cores=2)
    assert (reason is None) if void is None else reason.startswith(void)


def test_void_reason_never_looks_at_the_workers_own_time():
    spoilt = {"run_delay_s": 0.5}
    reasons = {void_reason(environment(cpu_s=cpu_s, **spoilt), 2, 2) for cpu_s in (0.0, 1.0, 2.0)}
    assert len(reasons) == 1


def fake_proc(tmp_path, busy=(100, 0, 50), steal=0, threads=None, stall_us=None, swapped=None):
    stat = " ".join(map(str, (*busy, 1000, 5, 2, 3, steal, 7, 0)))
    (tmp_path / "stat").write_text(f"cpu  {stat}\ncpu0 1 2 3\n")
    for tid, delay_ns in (threads or {}).items():
        folder = tmp_path / str(os.getpid()) / "task" / str(tid)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schedstat").write_text(f"123456789 {delay_ns} 42\n")
    if stall_us is not None:
        (tmp_path / "pressure").mkdir(exist_ok=True)
        (tmp_path / "pressure/memory").write_text(
            f"some avg10=1.00 avg60=0.00 avg300=0.00 total={stall_us}\nfull avg10=0.00 avg60=0.00 total=3\n"
        )
    if swapped is not None:
        devices = "/dev/zram0 partition 1048576 0 100\n" if swapped else ""
        (tmp_path / "swaps").write_text(f"Filename Type Size Used Priority\n{devices}")
        pages_in, pages_out = swapped or (0, 0)
        (tmp_path / "vmstat").write_text(f"nr_free_pages 7\npswpin {pages_in}\npswpout {pages_out}\npgfault 1\n")
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


def test_memory_stall_and_swap_are_differences(tmp_path):
    probe = EnvironmentProbe(proc=fake_proc(tmp_path, stall_us=1_000, swapped=(10, 20)), sys=tmp_path)
    probe.begin()
    fake_proc(tmp_path, stall_us=3_500, swapped=(11, 24))
    seen = probe.end()
    assert seen.memory_stall_s == pytest.approx(0.0025)
    assert seen.swapped_bytes == 5 * PAGE_BYTES
    probe.close()


@pytest.mark.parametrize(("swapped", "expected"), [((), 0.0), (None, None)])
def test_without_swap_nothing_is_swapped_and_an_unknown_is_none(tmp_path, swapped, expected):
    """An empty /proc/swaps is a fact; a /proc without the file says nothing."""
    probe = EnvironmentProbe(proc=fake_proc(tmp_path, swapped=swapped), sys=tmp_path)
    probe.begin()
    assert probe.end().swapped_bytes == expected
    probe.close()


def test_the_real_counters_are_read_here():
    """Of this kernel: whatever exists in /proc must be read as a number, not lost to the parser."""
    probe = EnvironmentProbe()
    probe.begin()
    seen = probe.end()
    probe.close()
    assert seen.swapped_bytes is not None and seen.major_faults >= 0 and seen.preemptions >= 0
    assert (seen.memory_stall_s is not None) == Path("/proc/pressure/memory").exists()
    vmstat = os.open("/proc/vmstat", os.O_RDONLY)
    assert counters.swapped_pages(vmstat) >= 0
    os.close(vmstat)


def fake_sensor(root, folder, name_file, name, value_file, value):
    place = root / "class" / folder
    place.mkdir(parents=True)
    (place / name_file).write_text(name + "\n")
    (place / value_file).write_text(f"{value}\n")


def test_temperature_is_that_of_the_processor(tmp_path):
    fake_sensor(tmp_path, "hwmon/hwmon0", "name", "nvme", "temp1_input", 40_000)
    fake_sensor(tmp_path, "hwmon/hwmon1", "name", "coretemp", "temp1_input", 71_500)
    fake_sensor(tmp_path, "thermal/thermal_zone0", "type", "x86_pkg_temp", "temp", 60_000)
    probe = EnvironmentProbe(proc=tmp_path, sys=tmp_path)
    probe.begin()
    assert probe.end().temperature_c == pytest.approx(71.5)
    probe.close()
    assert counters.temperature_file(tmp_path / "nowhere") is None


def test_a_throttle_count_that_grew_is_throttling(tmp_path):
    count = tmp_path / "devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    count.parent.mkdir(parents=True)
    count.write_text("7\n")
    probe = EnvironmentProbe(proc=tmp_path, sys=tmp_path)
    for grown, expected in ((7, False), (8, True), (8, False)):
        probe.begin()
        count.write_text(f"{grown}\n")
        assert probe.end().throttled is expected
    probe.close()


def test_gpu_reasons_of_both_ends_are_united(tmp_path):
    answers = iter([("sw power cap",), None, None, None, ("b", "a"), ("a",)])
    probe = EnvironmentProbe(proc=tmp_path, sys=tmp_path, gpu_reasons=lambda: next(answers))
    found = []
    for _ in range(3):
        probe.begin()
        found.append(probe.end().gpu_throttle)
    assert found == [("sw power cap",), None, ("a", "b")]


BURN = "import time\nwhile time.process_time() < {}: pass"


def test_the_cpu_time_of_a_command_that_was_waited_for_is_the_workers_own():
    """A workload that runs commands is not called foreign load."""
    probe = EnvironmentProbe()
    probe.begin()
    subprocess.run([sys.executable, "-c", BURN.format(0.15)], check=True)
    seen = probe.end()
    probe.close()
    assert seen.cpu_s >= 0.15
    assert seen.foreign_cpu_s <= seen.wall_s * os.cpu_count() - 0.15 + 2 * TICK_S * os.cpu_count()


def test_a_rank_that_ends_in_the_window_is_counted_once():
    """A child given as ``pids`` moves from its own clock to that of the reaped children."""
    child = subprocess.Popen(
        [sys.executable, "-c", BURN.format(0.2) + "\nprint(flush=True)\ninput()"], stdin=-1, stdout=-1
    )
    child.stdout.readline()
    probe = EnvironmentProbe(pids=(child.pid,))
    probe.begin()
    child.communicate(b"\n")
    seen = probe.end()
    probe.close()
    assert 0.0 <= seen.cpu_s < 0.15  # not its 0.2 s from before the window


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
