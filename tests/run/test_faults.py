"""Arms that break in every way we could think of, through the real engine: each becomes one failed record with a reason
to act on, its neighbours are complete, and no process outlives the run.
"""

import os
import re
import time
from pathlib import Path

import pytest

from frugalbench.run import family
from frugalbench.schema import Status
from run.helpers import log_entries, make_arm, make_comparison, make_config, run_fake

pytestmark = pytest.mark.real

MIB = 2**20
WRONG_SHAPE = r"^wrong answer: error not finite or of the wrong shape"
PIPE = r"^wrote into the pipe of the harness: "
LIMIT = r"0\.5 GiB allowed for each.*; raise measure\.memory_limit_bytes"

FAULTS = {
    "segfaults": ({"die_in": "output", "how": "segfault"}, r"^worker killed by SIGSEGV"),
    "killed": ({"die_in": "call", "how": "kill"}, r"^worker killed by SIGKILL, .* at the last look|not looked at yet"),
    "exits": ({"die_in": "load", "how": "exit"}, r"^worker exited with code 3"),
    "calls-exit": ({"die_in": "load", "how": "sys.exit"}, r"^SystemExit: the library had enough"),
    "hangs": ({"hang_in": "output"}, r"^no answer within 4 s; killed"),
    "hangs-with-child": ({"hang_in": "output", "stray": True}, r"^no answer within 4 s; killed"),
    "dies-with-child": ({"die_in": "call", "how": "kill", "stray": True}, r"^worker killed by SIGKILL"),
    "garbage": ({"die_in": "load", "how": "garbage"}, PIPE + r"no message begins with b'progress"),
    "garbage-hangs": ({"die_in": "call", "how": "garbage and hang"}, PIPE + r"no message begins with b'progress"),
    "garbage-inside": ({"die_in": "output", "how": "not msgpack"}, PIPE + r"(.*malformed|.* bytes after the end)"),
    "half-a-message": ({"die_in": "load", "how": "half a message"}, r"^no answer within 4 s; killed"),
    "wrong-message": ({"die_in": "load", "how": "wrong message"}, r"answered Load with Finished|bytes after the end"),
    "closes-its-pipe": ({"die_in": "load", "how": "close"}, r"^the worker closed its pipe and lived on; killed"),
    "prints-too-much": ({"print_bytes": 80 * MIB, "hang_in": "output"}, r"^printed 0\.1 GiB; killed"),
    "grows": ({"grow_bytes": 200 * MIB}, r"^memory limit: this worker holds .*" + LIMIT),
    "holds": ({"hold_bytes": 700 * MIB}, r"^memory limit: this worker holds .*" + LIMIT),
    "grabs": ({"die_in": "load", "how": "grab"}, r"^(memory limit: this worker holds|out of memory: ).*" + LIMIT),
    "spins": ({"leak_threads": 2}, r"^keeps [12] threads? running when it is not its turn"),
    "not-a-number": ({"wrong": float("nan")}, WRONG_SHAPE),
    "misshapen": ({"misshapen": True}, WRONG_SHAPE),
    "misses-a-package": (
        {"misses": "openvino_that_is_not_there.runtime"},
        r"^package openvino_that_is_not_there is missing .*: pip install openvino_that_is_not_there$",
    ),
    "misses-a-part": (
        {"misses": "numpy.there_is_none"},
        r"^module numpy.there_is_none is missing .* pip install -U numpy$",
    ),
    "gpu-full": ({"die_in": "load", "how": "gpu full"}, r"^the GPU's memory is full; take fewer arms, .*: CUDA out of"),
    "gpu-lost": ({"die_in": "call", "how": "gpu lost"}, r"^the GPU was lost; see `dmesg` for Xid, .*: CUDA error: GPU"),
    "changes": ({"changes_at": 9}, r"^answer changed between calls: right at first, after \d+ timed ones error"),
}
HARMLESS = {"prints": {"print_bytes": MIB}, "leaves-child": {"stray": True}}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults")
    log = str(path / "log")
    arms = [make_arm(name, log=log) for name in ("fine", "fine-too")]
    arms += [make_arm(name, log=log, **params) for name, (params, _) in FAULTS.items()]
    arms += [make_arm(name, log=log, **params) for name, params in HARMLESS.items()]
    before = set(family.parents())
    result = run_fake(
        path / "run", make_comparison(*arms), load_limit_s=4.0, rounds=4, pilot_rounds=4, time_budget_s=120.0,
        memory_limit_bytes=8 * 2**30, worker_memory_limit_bytes=512 * MIB,
    )  # fmt: skip
    return result, log, before


@pytest.mark.parametrize("arm", FAULTS)
def test_a_fault_is_one_failed_record_with_its_reason(zoo, arm):
    (record,) = zoo[0].of(arm)
    assert record.status is Status.FAILED
    assert re.search(FAULTS[arm][1], record.reason), record.reason
    assert "\n" not in record.reason


@pytest.mark.parametrize("arm", ["fine", "fine-too", *HARMLESS])
def test_the_rest_of_the_plan_completes(zoo, arm):
    for replicate in (0, 1, 2):
        record = zoo[0].one(arm, replicate)
        assert (record.status, record.reason) == (Status.OK, "")
        assert len([sample for sample in record.samples if sample.void is None]) == 4
    assert zoo[0].outcome.state == "complete"


def test_no_process_survives_the_run(zoo):
    _, log, before = zoo
    strays = [entry["stray"] for entry in log_entries(log, "stray")]
    assert len(strays) >= 3
    assert not [pid for pid in strays if alive(pid)]
    ours = family.descendants(os.getpid())
    assert not [pid for pid in ours if alive(pid) and pid not in before]


def test_one_worker_may_hold_as_much_as_all_of_them_unless_the_config_says_less():
    assert make_config(memory_limit_bytes=7).measure.worker_limit_bytes == 7
    assert make_config(memory_limit_bytes=7, worker_memory_limit_bytes=3).measure.worker_limit_bytes == 3


def test_what_a_changing_arm_sampled_is_kept_but_failed(zoo):
    record = zoo[0].one("changes", 0)
    assert len(record.samples) == 4
    assert not record.verification.passed
    assert record.facts["parity"].value == 0.0


def test_neighbours_were_not_timed_beside_spinning_threads(zoo):
    """The arm whose threads spin is found out before the first turn."""
    assert zoo[0].one("spins", 0).samples == ()


def test_a_spinning_pool_that_falls_asleep_is_no_fault(tmp_path):
    """As Intel's OpenMP does: 0.2 s after the work, far beyond the limit of a turn."""
    arms = make_arm("pool", log=str(tmp_path / "log"), spin_on_s=0.25), make_arm("other", log=str(tmp_path / "log"))
    result = run_fake(tmp_path / "run", make_comparison(*arms), looks=(1,), rounds=3)
    assert {record.status for record in result.records} == {Status.OK}


def test_an_arm_that_begins_to_spin_later_is_attributed(tmp_path):
    arms = make_arm("late", leak_threads=1, leak_at=20, work_s=0.005), make_arm("other", work_s=0.005)
    result = run_fake(tmp_path / "run", make_comparison(*arms), looks=(1,), rounds=30, pilot_rounds=1)
    reasons = {record.arm: record.reason for record in result.records if record.status is Status.FAILED}
    assert reasons.keys() == {"late"}
    assert reasons["late"].startswith("keeps 1 thread running when it is not its turn")
    assert len(result.one("other", 1).samples) >= 30


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_child_dies_with_its_arm_not_only_with_the_run(tmp_path):
    log = str(tmp_path / "log")
    comparisons = [
        make_comparison(make_arm("a", "one", log=log, stray=True), name="one"),
        make_comparison(make_arm("b", "two", log=log, work_s=0.01), name="two"),
    ]
    run_fake(tmp_path / "run", *comparisons, looks=(1,), decide=lambda *_: note_strays(log))
    seen = log_entries(log, "seen")
    assert [entry["alive"] for entry in seen] == [[], []]


def note_strays(log):
    from fake_workload import write

    from run.helpers import stop_at

    strays = [entry["stray"] for entry in log_entries(log, "stray")]
    write({"log": log}, what="seen", alive=[pid for pid in strays if alive(pid)], begin=time.monotonic())
    return stop_at(1)([], 1)
