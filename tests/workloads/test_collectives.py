"""Collectives under torchrun: real gloo ranks, and groups that stand in for NCCL and get something wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench.cli.main import main as command
from frugalbench.cluster.published.points import read
from frugalbench.cluster.published.predict import predict
from frugalbench.schema import FrugalbenchError
from frugalbench.specs import collectives as spec

torch = pytest.importorskip("torch")

from frugalbench.workloads import collectives, torchrun  # noqa: E402
from frugalbench.workloads import device as devices  # noqa: E402
from frugalbench.workloads.layers.collective_works import Buffers, Collective  # noqa: E402
from workloads.torchrun_ranks import torchrun as started  # noqa: E402

SMALL = ["--begin", "8", "--end", "64KiB", "--factor", "32", "--rounds", "2", "--window-s", "0.005"]
RANKS = 8


@pytest.mark.real
def test_two_ranks_tell_times_and_rates_that_the_model_is_held_against(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.csv"
    done = started(collectives.WHERE, *SMALL, "--json", "--points", str(mine), "--system", "2x H100 NVLink4")
    assert done.returncode == 0 and "FutureWarning" not in done.stderr, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["operation"], line["size_bytes"]) for line in lines] == [
        (name, size) for name in spec.OPERATIONS for size in (8, 256, 8192)
    ]
    factors = {"all_reduce": 1.0, "all_gather": 0.5, "reduce_scatter": 0.5, "all_to_all": 0.5, "broadcast": 1.0}
    for line in lines:
        assert 0 < line["low_s"] <= line["time_s"] <= line["high_s"] and line["error"] == 0
        assert line["algbw_bytes_per_s"] == pytest.approx(line["size_bytes"] / line["time_s"])
        assert line["busbw_bytes_per_s"] == pytest.approx(line["algbw_bytes_per_s"] * factors[line["operation"]])
        assert line["in_place"] == (line["operation"] in ("all_reduce", "broadcast"))
        assert (line["ranks"], line["transport"], line["device"]) == (2, "gloo", "cpu")
        assert line["device_time_s"] is None
    assert command(["simulate", "--against", str(mine), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["points"]
    assert len(found) == 2 * len(lines) and all(point["predicted"] > 0 for point in found)
    by_id = {point["id"]: point for point in found}
    assert by_id["all_to_all-2-8192-time"]["value"] == pytest.approx(1e6 * lines[11]["time_s"], rel=1e-5)


class Group:
    """A group as one of its ranks sees it, NCCL by name. It works out what the others would have sent."""

    ReduceOp = SimpleNamespace(MAX="max", MIN="min")

    def __init__(self, rank: int = 3, ranks: int = RANKS, seed: int = 1) -> None:
        self.rank, self.ranks, self.inputs = rank, ranks, spec.patterns(seed, ranks)
        self.spoil: Callable[[Any], None] = lambda _: None
        self.begun = self.ended = False

    def get_rank(self) -> int:
        return self.rank

    def get_world_size(self) -> int:
        return self.ranks

    def get_backend(self) -> str:
        return "nccl"

    def init_process_group(self, backend: str) -> None:
        assert backend == "nccl"
        self.begun = True

    def destroy_process_group(self) -> None:
        self.ended = True

    def sent(self, source: int, begin: int, count: int) -> Any:
        return torch.from_numpy(np.take(self.inputs[source], range(begin, begin + count), mode="wrap")).float()

    def all_reduce(self, values: Any, op: Any = None) -> None:
        if op is None and values.dtype == torch.float32:
            others = [other for other in range(self.ranks) if other != self.rank]
            values += sum(self.sent(other, values.storage_offset(), len(values)) for other in others)
            self.spoil(values)

    def broadcast(self, values: Any, root: int) -> None:
        values.copy_(self.sent(root, values.storage_offset(), len(values)))
        self.spoil(values)

    def all_gather_into_tensor(self, out: Any, own: Any) -> None:
        parts = [self.sent(source, own.storage_offset(), len(own)) for source in range(self.ranks)]
        self.spoil(out.copy_(torch.cat(parts)))

    def reduce_scatter_tensor(self, out: Any, own: Any) -> None:
        begin = own.storage_offset() + self.rank * len(out)
        self.spoil(out.copy_(sum(self.sent(source, begin, len(out)) for source in range(self.ranks))))

    def all_to_all_single(self, out: Any, own: Any) -> None:
        block = len(out) // self.ranks
        begin = own.storage_offset() + self.rank * block
        self.spoil(out.copy_(torch.cat([self.sent(source, begin, block) for source in range(self.ranks)])))


def work(group: Group, operation: str, count: int = 20000, capacity: int = 70000) -> Collective:
    return Collective(group, operation, count, Buffers(capacity, group.inputs, group.rank, "cpu"))


@pytest.mark.parametrize("operation", spec.OPERATIONS)
def test_what_is_right_has_no_error_wherever_it_lies(operation: str) -> None:
    found = work(Group(), operation)
    assert found.places == 3 and [found.error(position) for position in (0, 2, 4)] == [0, 0, 0]


SPOILERS: dict[str, Callable[[Any], None]] = {
    "one value of 20,000": lambda values: values[len(values) // 2].mul_(1 + 2**-20),
    "the last value": lambda values: values[-1].zero_(),
    "moved by one": lambda values: values.copy_(values.roll(1)),
    "not a number": lambda values: values[7].fill_(torch.nan),
    "nothing done": lambda values: values.fill_(torch.nan),
    "a rank twice": lambda values: values.view(RANKS // 2, -1)[0].copy_(values.view(RANKS // 2, -1)[1]),
}


@pytest.mark.parametrize("name", SPOILERS)
@pytest.mark.parametrize("operation", spec.OPERATIONS)
def test_what_is_wrong_has_one(operation: str, name: str) -> None:
    group = Group()
    group.spoil = SPOILERS[name]
    assert not work(group, operation).error(1) <= 0


@given(
    ranks=st.integers(2, 9), block=st.integers(1, 3000), begin=st.integers(0, 20000), rank=st.integers(0, 8),
    operation=st.sampled_from(spec.OPERATIONS),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_answers_are_what_the_operations_mean(ranks: int, block: int, begin: int, rank: int, operation: str) -> None:
    """The definitions, on whole buffers of all ranks."""
    inputs, rank, count = spec.patterns(3, ranks), rank % ranks, block * ranks
    own = block if operation == "all_gather" else count
    sent = np.array([np.take(inputs[source], range(begin, begin + own), mode="wrap") for source in range(ranks)])
    meant = {
        "all_reduce": lambda: sent.sum(0),
        "broadcast": lambda: sent[0],
        "all_gather": lambda: sent.reshape(-1),
        "reduce_scatter": lambda: sent.sum(0).reshape(ranks, block)[rank],
        "all_to_all": lambda: sent.reshape(ranks, ranks, block)[:, rank].reshape(-1),
    }[operation]()
    pieces = spec.answer(operation, rank, count, begin, inputs)
    found = [np.take(piece.period, range(piece.offset, piece.offset + piece.count), mode="wrap") for piece in pieces]
    np.testing.assert_array_equal(np.concatenate(found), meant)


@given(ranks=st.integers(2, 2**15))
def test_a_buffer_is_filled_anew_before_float32_overflows_and_sums_are_exact(ranks: int) -> None:
    uses = spec.most_uses("all_reduce", ranks)
    assert uses is not None and uses >= 13
    assert np.isfinite(np.float32(2.0**-110 * 512 * float(ranks) ** uses * ranks))
    assert 512 * ranks <= 2**24


def ranks_are_on(monkeypatch: pytest.MonkeyPatch, group: Any, rank: int = 0) -> None:
    """Rank 0 of eight GPUs, as far as everything but torch's kernels is asked; settings that real ranks of other tests
    left in this process are not theirs."""
    for name in [name for name in os.environ if name.startswith(collectives._SETTINGS)]:
        monkeypatch.delenv(name)
    for name, value in (("WORLD_SIZE", RANKS), ("LOCAL_WORLD_SIZE", RANKS), ("RANK", rank), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: RANKS)
    monkeypatch.setattr(collectives, "dist", group)
    monkeypatch.setattr(torchrun, "dist", group)


class Queue:
    """A GPU whose work is done ``late_s`` after it was given, waited for or not."""

    def __init__(self, late_s: float) -> None:
        self.late_s, self.waits = late_s, 0

    def synchronize(self) -> None:
        self.waits += 1

    def event(self) -> None:
        assert self.waits, "the queue is empty at the window's beginning"

    def elapsed_s(self, _first: Any, _last: Any) -> float:
        return self.late_s


def run_on_gpus(monkeypatch: pytest.MonkeyPatch, group: Group, late_s: float, *words: str) -> int:
    ranks_are_on(monkeypatch, group)
    joined = torchrun.join
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "nccl", SimpleNamespace(version=lambda: (2, 27, 3)))
    monkeypatch.setattr(torchrun, "join", lambda device: joined(device).replace("cuda:0", "cpu"))
    monkeypatch.setattr(torchrun, "device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(devices, "of", lambda _: Queue(late_s))
    return collectives.main([*SMALL, *words])


def test_over_nccl_the_device_is_waited_for_and_its_time_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    group, mine = Group(rank=0), tmp_path / "mine.csv"
    assert run_on_gpus(monkeypatch, group, 1e-9, "--json", "--points", str(mine)) == 0
    assert group.begun and group.ended
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["size_bytes"] for line in lines if line["operation"] == "all_to_all"] == [256, 8192]
    assert all(0 < line["device_time_s"] <= 1e-9 for line in lines)
    assert lines[0]["settings"] == {"NCCL_ALGO": "Ring"} and lines[0]["transport"] == "nccl 2.27.3"
    points, faults = read(mine)
    assert faults == [] and {point.system for point in points} == {"8x NVIDIA H100 80GB HBM3"}
    assert all(found.predicted for found in predict(points))


def test_a_window_that_ends_before_the_device_is_done_is_no_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_on_gpus(monkeypatch, Group(rank=0), 60.0) == 1
    said = capsys.readouterr()
    assert "rank 0 was lost: the device computed for" in said.err and said.out == ""


def test_a_wrong_result_is_no_timing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    group = Group(rank=0)
    group.spoil = SPOILERS["the last value"]
    assert run_on_gpus(monkeypatch, group, 1e-9) == 1
    said = capsys.readouterr()
    assert said.out == "" and "all_reduce of 8 bytes: wrong answer: error" in said.err


def test_a_table_says_what_was_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_on_gpus(monkeypatch, Group(rank=0), 1e-9, "--operations", "all_gather") == 0
    head, columns, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("8 ranks (8 a machine), NVIDIA H100 80GB HBM3, nccl 2.27.3, float32; measured")
    assert columns.split()[-2:] == ["algbw", "busbw"] and len(rows) == 2 and " no " in rows[0]


def test_a_rank_joins_nccl_on_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    group, chosen = Group(), []
    ranks_are_on(monkeypatch, group, rank=5)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert torchrun.join("cuda") == "cuda:5" and chosen == ["cuda:5"] and group.begun


def test_an_xpu_s_ranks_meet_over_its_own_library_and_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("event")

        def synchronize(self) -> None:
            done.append("wait")

        def elapsed_time(self, _: Any) -> float:
            return 3.0

    done: list[str] = []
    xpu = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, set_device=done.append, Event=Event,
        get_device_name=lambda _: "Intel Data Center GPU Max", mem_get_info=lambda _: (5, 9),
        synchronize=lambda: done.append("synchronize"),
    )  # fmt: skip
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch, "xpu", xpu)
    monkeypatch.setattr(torchrun, "dist", SimpleNamespace(init_process_group=done.append))
    assert torchrun.device_for("", "here") == "xpu" and torchrun.join("xpu") == "xpu:1"
    assert done == ["xpu:1", "xccl"] and torchrun.free_bytes("xpu:1") == 5
    assert torchrun.device_name("xpu:1") == "Intel Data Center GPU Max"
    place = devices.of("xpu:1")
    assert place is not None and place.elapsed_s(place.event(), place.event()) == pytest.approx(0.003)
    place.synchronize()
    assert done[2:] == ["event", "event", "wait", "synchronize"]
    assert place.captured(done.append, 4) == (done.append, "eager: recording is not tried on an XPU")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--operations", "gather"], "unknown operation 'gather'; known: all_reduce"),
        (["--begin", "2"], "needs 4 bytes <= --begin <= --end"),
        (["--begin", "1MiB", "--end", "1KiB"], "needs 4 bytes <= --begin <= --end"),
        (["--end", "much"], "needs 4 bytes <= --begin <= --end"),
        (["--factor", "1"], "--factor 2 or more"),
        (["--rounds", "0"], "--rounds and --window-s must be positive"),
        (["--points", "/nowhere/at/all.csv"], "no such folder"),
        (["--device", "tpu"], "no device 'tpu' here"),
        (["--what"], "unrecognized arguments: --what; --help lists the options"),
    ],
)
def test_what_cannot_be_is_one_line_before_the_ranks_meet(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert collectives.main(words) == 2
    said = capsys.readouterr()
    assert message in said.err and len(said.err.splitlines()) == 1 and said.out == ""


@pytest.mark.parametrize(
    ("ranks", "gpus", "message"),
    [(2, 1, "2 ranks on a machine need a GPU each; this one has 1"), (1, 1, "one rank has nobody to exchange with")],
)
def test_ranks_that_have_no_place_or_no_other_are_refused(
    ranks: int, gpus: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(ranks))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert collectives.main([]) == 2
    assert message in capsys.readouterr().err


def test_sizes_that_memory_has_no_room_for_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torchrun, "free_bytes", lambda _: 8 * 1000)
    assert run_on_gpus(monkeypatch, Group(rank=0), 1e-9, "--json") == 0
    said = capsys.readouterr()
    assert "sizes above 256 B are left out: memory has no room for them" in said.err
    assert max(json.loads(line)["size_bytes"] for line in said.out.splitlines()) == 256
    monkeypatch.setattr(torchrun, "free_bytes", lambda _: 8)
    with pytest.raises(FrugalbenchError, match="8 bytes are more than the 1 that"):
        collectives._measured({"operations": ["broadcast"], "seed": 1}, [8], "cpu")
