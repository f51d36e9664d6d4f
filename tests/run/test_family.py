"""Who belongs to whom, and who must not stay."""

import os
import signal
import subprocess
import sys
import time

import pytest

from frugalbench.run import family, memory
from run.test_transport import alive, gone_within

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
TWICE = "import os, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); time.sleep(600)"


def in_a_child(action):
    """What ``action`` returns, in a forked process of its own."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(theirs, str(action()).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    return said


def test_descendants_are_found_however_the_kernel_lists_them(monkeypatch):
    with subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.run({SLEEP!r})"]) as child:
        stop = time.monotonic() + 10
        while len(found := family.descendants(child.pid)) < 1 and time.monotonic() < stop:
            time.sleep(0.02)
        monkeypatch.setattr(family, "_listed_children", lambda _: None)
        assert family.descendants(child.pid) == found
        assert child.pid in family.children(os.getpid())
        assert {child.pid, *found} <= set(family.descendants(os.getpid()))
        assert memory.rss_bytes(memory.tree(child.pid)) >= memory.pss_bytes(memory.tree(child.pid)) > 2**20
        for pid in (*found, child.pid):
            os.kill(pid, signal.SIGKILL)


def test_orphans_of_orphans_are_adopted_and_ended():
    def count():
        family.adopt_orphans()
        kept = subprocess.Popen(SLEEP)
        subprocess.run([sys.executable, "-c", TWICE], check=True)
        return family.end_strays({kept.pid}) > 0, kept.poll(), family.children(os.getpid()) == [kept.pid], kept.kill()

    assert in_a_child(count) == "(True, None, True, None)"


def test_the_marked_are_ended_the_others_are_not():
    with (
        subprocess.Popen(SLEEP, env={**os.environ, family.MARK: "ours"}, start_new_session=True) as ours,
        subprocess.Popen(SLEEP, env={**os.environ, family.MARK: "ours-not"}) as other,
    ):
        time.sleep(0.1)
        assert family.end_marked("ours") >= 1
        assert gone_within([ours.pid], 5)
        assert alive(other.pid)
        other.kill()


def test_a_worker_leads_its_session_and_volunteers_when_memory_runs_out():
    def settled():
        family.settle_as_worker()
        with open("/proc/self/oom_score_adj") as stream:  # noqa: PTH123
            return os.getsid(0) == os.getpid(), stream.read().strip()

    assert in_a_child(settled) == "(True, '1000')"


@pytest.mark.parametrize(("device", "said"), [("cpu", "MemoryError"), ("cuda", "fine")])
def test_the_hard_limit_makes_an_allocation_fail_on_the_cpu_only(device, said):
    def grab():
        memory.limit_own(2**20, device)
        try:
            kept = bytearray(2 * 2**30)
        except MemoryError:
            return "MemoryError"
        return "fine" if len(kept) else ""

    assert in_a_child(grab) == said


def test_the_kernel_s_count_of_victims(tmp_path):
    (tmp_path / "vmstat").write_text("nr_free_pages 1\noom_kill 7\n")
    assert memory.oom_kills(tmp_path) == 7
    (tmp_path / "vmstat").write_text("nr_free_pages 1\n")
    assert memory.oom_kills(tmp_path) is None
    assert memory.oom_kills(tmp_path / "none") is None
