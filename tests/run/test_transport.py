"""Templates, workers and what becomes of them: real processes, tiny work."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from frugalbench.run import protocol, template
from frugalbench.run.transport import Pool, WorkerGone
from run.helpers import log_entries, make_arm

FAKE = ("fake_workload",)
LIMIT_S = 30.0


@pytest.fixture
def pool(tmp_path):
    opened = Pool(tmp_path, LIMIT_S)
    yield opened
    opened.close()


def job(tmp_path, template_id=None, **params):
    return protocol.Job(
        arm=make_arm("arm", **params), seed=1, threads=1, device="cpu", cache_dir=str(tmp_path),
        scratch_dir=str(tmp_path), start_s=time.monotonic(), template_id=template_id,
    )  # fmt: skip


def load(pool, tmp_path, imports=FAKE, **params):
    worker, template_id = pool.start(imports)
    worker.request(job(tmp_path, template_id, **params), LIMIT_S)
    return worker, worker.request(protocol.Load(), LIMIT_S)


def turn(case="fake/arm/decode", calls=1):
    return protocol.Turn(case=case, calls=calls, lead_in_s=0.0, quiet_limit_s=0.0, previous_pid=None)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def gone_within(pids, limit_s):
    stop = time.monotonic() + limit_s
    while any(map(alive, pids)) and time.monotonic() < stop:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_workers_are_fresh_forks_of_one_template(pool, tmp_path):
    first, loaded = load(pool, tmp_path)
    second, other = load(pool, tmp_path)
    assert pool.start(FAKE)[1] == "template-1"
    assert len(pool.pids()) == 1
    assert len({first.pid, second.pid, os.getpid(), *pool.pids()}) == 4
    assert (loaded.pid, other.pid) == (first.pid, second.pid)
    assert Path(f"/proc/{first.pid}/stat").read_text().rsplit(")", 1)[1].split()[1] == str(pool.pids()[0])


def test_a_process_may_hold_more_descriptors_than_select_knows(pool, tmp_path):
    """As a test suite that measures with the ``frugal`` fixture may."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != limits[1] < 1200:
        pytest.skip("may not open as many here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 1200), limits[1]))
    with contextlib.ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        last = [opened.enter_context(Path(os.devnull).open()) for _ in range(1030)][-1]
        assert last.fileno() >= 1024
        worker, loaded = load(pool, tmp_path)
        assert loaded.pid == worker.pid
        worker.finish()
        assert gone_within([worker.pid], 5)


def test_each_set_of_imports_has_its_own_template(pool):
    assert pool.template(FAKE).id != pool.template(("json", *FAKE)).id
    assert pool.template(FAKE) is pool.template(FAKE)
    assert {frozenset(name.split()) for name in pool.import_s()} == {frozenset(FAKE), frozenset(["json", *FAKE])}


def test_a_template_with_threads_is_not_forked(pool, tmp_path):
    worker, template_id = pool.start(("fake_threads",))
    ready = pool.template(("fake_threads",)).ready
    assert (ready.threads, ready.spoilt_by) == (2, "fake_threads")
    assert re.fullmatch(r"started 1 thread \(.+\)", ready.spoilt_how)
    assert template_id is None
    worker.request(job(tmp_path), LIMIT_S)
    assert worker.request(protocol.Load(), LIMIT_S).pid == worker.pid
    worker.finish()


def test_a_worker_is_forked_from_what_starts_no_threads_and_imports_the_rest_itself(pool):
    worker, template_id = pool.start(("json", "fake_threads", *FAKE))
    lean = pool.template(("json", *FAKE))
    assert template_id == lean.id and pool.pids() == [lean.pid]
    assert Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()[1] == str(lean.pid)
    assert pool.start(("json", "fake_threads", *FAKE))[1] == lean.id
    assert list(pool.spoilt()) == ["fake_threads"] and pool.pids() == [lean.pid] and len(pool.import_s()) == 2


def test_a_template_that_asked_cuda_is_not_forked_although_it_has_one_thread(pool):
    """torch tells only in a forked process that CUDA would refuse it."""
    _, template_id = pool.start(("fake_asks_cuda", *FAKE))
    assert template_id == pool.template(FAKE).id
    assert pool.spoilt() == {"fake_asks_cuda": "asked the CUDA driver, which does not outlive a fork"}


@pytest.mark.parametrize(
    ("imports", "reason"),
    [
        (("fake_is_missing",), r"import fake_is_missing: package fake_is_missing is missing .*: pip install"),
        (("fake_dies",), r"import died: the library gave up"),
    ],
)
def test_a_failed_import_is_the_reason_every_time(pool, imports, reason):
    for _ in range(2):
        with pytest.raises(WorkerGone, match=reason):
            pool.start(imports)
    assert pool.start(FAKE)[1] is not None


def test_imports_that_take_too_long(tmp_path):
    pool = Pool(tmp_path, 0.0)
    with pytest.raises(WorkerGone, match="imports took longer"):
        pool.start(FAKE)
    assert gone_within(pool.pids(), 5)
    pool.close()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("kill", r"worker killed by SIGKILL"),
        ("exit", r"worker exited with code 3"),
        ("segfault", r"worker killed by SIGSEGV"),
    ],
)
@pytest.mark.parametrize("imports", [FAKE, ("json", *FAKE), ("fake_threads",)], ids=["fork", "grown", "spawn"])
def test_the_exit_of_a_worker_is_relayed(pool, tmp_path, how, reason, imports):
    pool.template(("json",))
    worker, template_id = pool.start(imports)
    worker.request(job(tmp_path, template_id, die_in="load", how=how), LIMIT_S)
    with pytest.raises(WorkerGone, match=reason):
        worker.request(protocol.Load(), LIMIT_S)
    with pytest.raises(WorkerGone, match=reason):
        worker.request(protocol.Load(), LIMIT_S)
    worker.close()


def test_what_a_dying_worker_printed_last_is_in_the_reason(pool, tmp_path):
    worker, template_id = pool.start(FAKE)
    arm = make_arm("arm")
    unknown = replace(arm, cases=(replace(arm.cases[0], workload="unheard-of"),))
    with pytest.raises(WorkerGone, match=r"exited with code 1: KeyError: 'unheard-of'"):
        worker.request(replace(job(tmp_path, template_id), arm=unknown), LIMIT_S)


def test_an_exception_is_a_problem_and_the_worker_lives_on(pool, tmp_path):
    worker, _ = load(pool, tmp_path, die_in="output", how="raise")
    (tmp_path / "reference").mkdir()
    reply = worker.request(protocol.Verify("fake/arm/decode", str(tmp_path / "reference"), 1.0), LIMIT_S)
    assert isinstance(reply, protocol.Problem)
    assert isinstance(worker.request(turn(), LIMIT_S), protocol.Turned)


def test_no_answer_in_time_kills_the_worker(pool, tmp_path):
    worker, template_id = pool.start(FAKE)
    worker.request(job(tmp_path, template_id, hang_in="load"), LIMIT_S)
    with pytest.raises(WorkerGone, match="no answer within 1 s; killed"):
        worker.request(protocol.Load(), 0.6)
    assert not alive(worker.pid)


@pytest.mark.parametrize("imports", [FAKE, ("fake_threads",)], ids=["fork", "spawn"])
@pytest.mark.parametrize("end", ["finish", "kill"])
def test_what_a_worker_left_behind_is_gone_when_its_end_is_known(pool, tmp_path, imports, end):
    log = str(tmp_path / "log")
    worker, _ = load(pool, tmp_path, imports, log=log, stray=True)
    (entry,) = log_entries(log, "stray")
    assert alive(entry["stray"])
    getattr(worker, end)()
    assert not alive(entry["stray"])
    assert not alive(worker.pid)


def test_nobody_looks_while_a_worker_is_not_to_be_disturbed(pool, tmp_path):
    worker, template_id = pool.start(FAKE)
    worker.request(job(tmp_path, template_id, hang_in="load"), LIMIT_S)
    looks, begin = [], time.monotonic()
    with pytest.raises(WorkerGone, match="no answer within 2 s"):
        worker.request(protocol.Load(), 2.0, lambda: looks.append(time.monotonic()), undisturbed_s=1.4)
    assert looks
    assert looks[0] - begin >= 1.4


def test_a_watch_may_kill_the_worker(pool, tmp_path):
    worker, template_id = pool.start(FAKE)
    worker.request(job(tmp_path, template_id, hang_in="load"), LIMIT_S)
    with pytest.raises(WorkerGone, match=r"^too greedy$"):
        worker.request(protocol.Load(), LIMIT_S, lambda: "too greedy")
    assert not alive(worker.pid)


def test_finish_ends_the_worker_and_close_the_template(pool, tmp_path):
    worker, _ = load(pool, tmp_path)
    worker.finish()
    assert not alive(worker.pid)
    other, _ = load(pool, tmp_path)
    pool.close()
    assert gone_within([other.pid, *pool.pids()], 5)


def test_a_template_that_was_killed_is_a_gone_worker_and_nothing_worse(pool, tmp_path):
    worker, _ = load(pool, tmp_path)
    os.kill(pool.pids()[0], signal.SIGKILL)
    assert gone_within([worker.pid], 5)
    for _ in range(2):
        with contextlib.suppress(WorkerGone):
            pool.start(FAKE)


def test_idle_workers_and_their_template_use_no_cpu(pool, tmp_path):
    workers = [load(pool, tmp_path)[0] for _ in range(2)]
    pids = [worker.pid for worker in workers] + pool.pids()
    time.sleep(0.05)
    before = [cpu_ns(pid) for pid in pids]
    time.sleep(0.3)
    assert [cpu_ns(pid) for pid in pids] == pytest.approx(before, abs=1e6)


def cpu_ns(pid):
    """CPU time of a sleeping process: the first field of its schedstat."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def test_the_parent_uses_no_cpu_while_a_worker_computes(pool, tmp_path):
    worker, _ = load(pool, tmp_path, work_s=0.1)
    cpu_s, begin_s = time.process_time(), time.monotonic()
    reply = worker.request(turn(calls=4), LIMIT_S, lambda: None)
    assert time.monotonic() - begin_s > 0.4
    assert reply.environment.cpu_s > 0.05
    assert time.process_time() - cpu_s < 0.02


_PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from frugalbench.run import protocol
from frugalbench.run.transport import Pool
from run.helpers import log_entries
from run.test_transport import job, load, turn
here = Path({here!r})
pool = Pool(here, 30.0)
log = str(here / "log")
idle, _ = load(pool, here, log=log, stray=True)
grown, _ = load(pool, here, ("json", "fake_workload"))
spawned, _ = load(pool, here, ("fake_threads",), log=log, stray=True)
strays = [entry["stray"] for entry in log_entries(log, "stray")]
busy, _ = load(pool, here, work_s=600)
protocol.send(busy._channel, turn())
print(*pool.pids(), idle.pid, grown.pid, spawned.pid, busy.pid, *strays, flush=True)
busy.request(turn(), 600)
"""


def test_everything_dies_with_a_parent_that_is_killed(tmp_path):
    code = _PARENT.format(tests=str(Path(__file__).parents[1]), here=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 9, "two of them are children that hang in sessions of their own"
        assert all(map(alive, pids))
        parent.kill()
    assert gone_within(pids, 10)


def test_output_of_workers_goes_to_their_logs(pool, tmp_path, capfd):
    worker, _ = load(pool, tmp_path, die_in="output", how="raise")
    worker.request(protocol.Verify("fake/arm/decode", str(tmp_path), 1.0), LIMIT_S)
    assert re.search(r"Traceback", (tmp_path / "worker-1.log").read_text())
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_was_just_forked_has_one_thread(pool, tmp_path):
    worker, _ = load(pool, tmp_path)
    assert len(list(Path(f"/proc/{worker.pid}/task").iterdir())) == 1
    assert template.thread_count() >= 1
