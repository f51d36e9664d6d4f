"""Ctrl-C and ``--resume`` as a user meets them: the command line in a process of its own."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from frugalbench.schema import Status, decode_manifest, decode_record

pytestmark = pytest.mark.real

CONFIG = """
name = "fake"
seed = 7
[measure]
looks = [4]
rounds = 4
pilot_rounds = 1
sample_s = 0.02
lead_in_s = 0.0
warmup_limit_s = 0.02
[[workload]]
name = "fake"
comparisons = 2
work_s = 0.02
"""


def command(*words):
    return [sys.executable, "-m", "frugalbench.cli.main", *map(str, words)]


def call(*words):
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=60, check=False)


def records(out):
    lines = (out / "records.jsonl").read_bytes().splitlines() if (out / "records.jsonl").exists() else []
    return [decode_record(line) for line in lines]


def manifest(out):
    return decode_manifest((out / "manifest.json").read_bytes())


def has(out, count):
    with contextlib.suppress(Exception):
        return len(records(out)) >= count
    return False


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that got its Ctrl-C in the second replicate of the first comparison."""
    home = tmp_path_factory.mktemp("interrupted")
    (home / "fake.toml").write_text(CONFIG)
    process = subprocess.Popen(
        command("run", home / "fake.toml", "--out", home / "run"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    stop = time.monotonic() + 30
    while not has(home / "run", 4) and time.monotonic() < stop:
        time.sleep(0.02)
    time.sleep(0.15)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return home, process.returncode, out, err, records(home / "run"), manifest(home / "run")


def test_interrupted_is_130_and_says_how_to_go_on(interrupted):
    home, code, _, err, _, _ = interrupted
    assert code == 130
    assert "Traceback" not in err
    assert f"--resume --out {home / 'run'}" in err


def test_what_was_measured_is_kept(interrupted):
    *_, kept, state = interrupted
    assert state.state == "interrupted"
    whole = [record for record in kept if not record.interrupted]
    cut = [record for record in kept if record.interrupted]
    assert len(whole) >= 4
    assert {record.status for record in whole} == {Status.OK}
    assert len({record.replicate for record in cut}) == 1
    assert state.ended is not None
    assert state.machine_after is not None


def test_no_process_is_left_behind(interrupted):
    for record in interrupted[4]:
        if record.worker:
            with pytest.raises(ProcessLookupError):
                os.kill(record.worker.pid, 0)


def test_a_changed_fingerprint_is_refused(interrupted):
    home = interrupted[0]
    other = home / "other"
    other.mkdir()
    for name in ("manifest.json", "records.jsonl"):
        (other / name).write_bytes((home / "run" / name).read_bytes())
    stored = json.loads((other / "manifest.json").read_text())
    stored["machine_before"]["fingerprint"] = "another-machine"
    (other / "manifest.json").write_text(json.dumps(stored))
    before = (other / "records.jsonl").read_bytes()
    done = call("run", home / "fake.toml", "--out", other, "--resume")
    assert done.returncode == 2
    assert "measured on another machine (fingerprint another-machine" in done.stderr
    assert "Traceback" not in done.stderr
    assert (other / "records.jsonl").read_bytes() == before


def test_running_into_the_same_directory_is_refused(interrupted):
    home = interrupted[0]
    done = call("run", home / "fake.toml", "--out", home / "run")
    assert done.returncode == 2
    assert "already holds a run; add --resume" in done.stderr


def test_two_runs_at_once_are_refused_and_the_first_one_goes_on(interrupted):
    home, *_, kept, _ = interrupted
    lock = os.open(home / "run" / "records.jsonl", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    for words in ((), ("--resume",)):
        done = call("run", home / "fake.toml", "--out", home / "run", *words)
        assert done.returncode == 2
        assert "another run is writing there; wait until it has ended" in done.stderr
    os.close(lock)
    assert records(home / "run") == kept


def test_resume_completes_and_counts_nothing_twice(interrupted):
    home, *_, kept, _ = interrupted
    done = call("run", home / "fake.toml", "--out", home / "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"frugalbench: fake-0: replicate \d+ was interrupted; kept, not counted, measured again", done.stderr
    )
    found = records(home / "run")
    assert found[: len(kept)] == kept
    counted = Counter((r.comparison, r.replicate, r.arm) for r in found if not r.interrupted)
    assert counted == Counter(
        (name, number, arm) for name in ("fake-0", "fake-1") for number in range(5) for arm in ("left", "right")
    )
    after = manifest(home / "run")
    assert after.state == "complete"
    assert after.decisions.keys() == {"fake-0", "fake-1"}
    assert after.harness.parent_cpu_s < after.harness.wall_s


@pytest.mark.parametrize("how", ["out-of-nowhere", "a-file"])
def test_resuming_what_is_no_run_is_refused(tmp_path, how):
    (tmp_path / "fake.toml").write_text(CONFIG)
    (tmp_path / "a-file").write_text("not a run")
    done = call("run", tmp_path / "fake.toml", "--out", tmp_path / how, "--resume")
    assert (done.returncode, "not a run directory" in done.stderr) == (2, True), done.stderr


def test_a_disk_that_fills_up_ends_the_run_and_resume_completes_it(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "none", disk], capture_output=True).returncode:
        pytest.skip("may not mount here")
    try:
        (tmp_path / "fake.toml").write_text(CONFIG)
        done = call("run", tmp_path / "fake.toml", "--out", disk / "run")
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert "No space left on device" in done.stderr
        assert f"make room and go on with --resume --out {disk / 'run'}" in done.stderr
        kept = records(disk / "run")
        assert kept
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        done = call("run", tmp_path / "fake.toml", "--out", disk / "run", "--resume")
        assert done.returncode == 0, done.stderr
        assert records(disk / "run")[: len(kept)] == kept
        assert manifest(disk / "run").state == "complete"
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
