"""What the engine costs beside what it measures. Gates on counts and paired shares only, never on absolute times."""

import os
import socket
import stat
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from frugalbench.run import protocol, schedule, transport
from frugalbench.schema import Environment
from run.helpers import FAKES, make_arm, make_comparison, run_fake

TURN = protocol.Turn(
    case="moe_ffn/qwen3-30b-a3b@0.25/dense-equal-active/decode-4/torch/cpu", calls=1000, lead_in_s=0.002,
    quiet_limit_s=0.05, previous_pid=123456,
)  # fmt: skip
TURNED = protocol.Turned(
    calls=1000, time_s=1.23456789e-5, start_s=123.456789,
    environment=Environment(
        wall_s=0.0123456, cpu_s=0.0123456, run_delay_s=1e-6, steal_s=0.0, foreign_cpu_s=0.01,
        quiet_wait_s=6e-4, clock_hz=2.5e9,
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FAKES), prepend=os.pathsep)
    monkeypatch.setenv("FRUGALBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FRUGALBENCH_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def echo():
    """A channel whose other end answers each turn at once."""
    ours, theirs = socket.socketpair()

    def answer():
        try:
            while True:
                protocol.receive(theirs, protocol.Request)
                protocol.send(theirs, TURNED)
        except EOFError:
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    yield ours
    ours.close()
    thread.join()


def test_messages_of_one_turn(benchmark, echo):
    def turn():
        protocol.send(echo, TURN)
        return protocol.receive(echo, protocol.Reply)

    assert benchmark.pedantic(turn, rounds=50, iterations=10, warmup_rounds=2) == TURNED


def test_order_of_a_round(benchmark):
    names = [f"case-{number}" for number in range(8)]
    assert sorted(benchmark(schedule.shuffled, 1, names, "comparison", 3, "decode", 7)) == names


def test_a_turn_is_a_few_hundred_bytes():
    sizes = [len(protocol.msgspec.msgpack.encode(message)) for message in (TURN, TURNED)]
    assert sum(sizes) < 700


def test_a_turn_is_one_message_each_way(tmp_path, monkeypatch):
    """Whatever is sent beyond a turn's request and reply would disturb the very next turn."""
    sent = Counter()
    real = transport.protocol.send
    monkeypatch.setattr(
        transport.protocol,
        "send",
        lambda channel, message: (sent.update([type(message).__name__]), real(channel, message)),
    )
    result = run_fake(
        tmp_path / "run", make_comparison(make_arm("a"), make_arm("b")), looks=(2,), rounds=6, pilot_rounds=2
    )
    samples = sum(len(record.samples) for record in result.records)
    starts = 2 * 3
    assert samples == 2 * (2 + 6 + 6)
    assert sent.pop("Turn") == samples
    assert {sent[name] for name in ("Load", "Calibrate")} == {starts}
    assert sent["Verify"] == 2 * starts, "before the turns and after them"
    assert sum(sent.values()) <= 8 * starts


def test_every_record_is_one_write_and_one_fsync(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda fd: calls.extend([fd] if stat.S_ISREG(os.fstat(fd).st_mode) else []))
    result = run_fake(tmp_path / "run", make_comparison(make_arm("a"), make_arm("b")), looks=(1,), rounds=3)
    assert len(calls) == len(result.records) == 4


@pytest.mark.goal
def test_the_parent_uses_at_most_2_percent_of_the_wall_time(tmp_path):
    """Turns of 20 ms, as in a real run: the workers are busy throughout, the parent sleeps in poll."""
    arms = (make_arm("a", work_s=0.02), make_arm("b", work_s=0.02))
    begin_s, cpu_s = time.monotonic(), time.process_time()
    run_fake(tmp_path / "run", make_comparison(*arms), looks=(1,), rounds=80, pilot_rounds=1, sample_s=0.02)
    wall_s, cpu_s = time.monotonic() - begin_s, time.process_time() - cpu_s
    assert wall_s > 2
    assert cpu_s <= 0.02 * wall_s


@pytest.mark.goal
def test_a_template_pays_for_itself(tmp_path):
    """A forked worker starts faster than one that imports everything again: paired, turn by turn."""
    pool = transport.Pool(tmp_path, 30.0)
    forked, spawned = ("fake_workload",), ("fake_threads",)
    for imports in (forked, spawned):
        _start_s(pool, imports, tmp_path)
    ratios = sorted(_start_s(pool, spawned, tmp_path) / _start_s(pool, forked, tmp_path) for _ in range(5))
    pool.close()
    assert ratios[2] > 2


def _start_s(pool: transport.Pool, imports: tuple[str, ...], scratch: Path) -> float:
    begin_s = time.perf_counter()
    worker, template_id = pool.start(imports)
    job = protocol.Job(
        arm=make_arm("a"), seed=1, threads=1, device="cpu", cache_dir=str(scratch), scratch_dir=str(scratch),
        start_s=0.0, template_id=template_id,
    )  # fmt: skip
    worker.request(job, 30.0)
    took_s = time.perf_counter() - begin_s
    worker.finish()
    return took_s
