"""``simulate --against``: published rows in, predictions with intervals out, bad rows named."""

import csv
import io
from pathlib import Path

import pytest

from frugalbench import paths
from frugalbench.cli.main import main
from frugalbench.cluster.published import validation
from frugalbench.cluster.published.constants import shipped
from frugalbench.cluster.published.points import published, read
from frugalbench.cluster.published.predict import Prediction, predict

HEADER = "id,system,collective_or_workload,n_devices,message_bytes_or_model,metric,value,unit,source,note"


@pytest.fixture(scope="module")
def found() -> dict[str, Prediction]:
    """Predictions of the shipped rows."""
    return {p.id: p for p in predict(published())}


def one(tmp_path: Path, *lines: str) -> list[Prediction]:
    """Predictions of some rows."""
    path = tmp_path / "points.csv"
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    points, faults = read(path)
    assert faults == []
    return predict(points)


def row(system: str, work: str, devices: object, size: object, metric: str, value: object, unit: str) -> str:
    """A line of such a file."""
    out = io.StringIO()
    csv.writer(out).writerow(["X1", system, work, devices, size, metric, value, unit, "", ""])
    return out.getvalue().strip()


def test_collectives_meet_their_goals(found: dict[str, Prediction]) -> None:
    points = published()
    scores = {s.name: s for s in validation.overall(points, list(found.values()))}
    every, large = scores["test rows of collectives"], scores["… of at least 64 MiB"]
    assert every.predicted >= 90 and every.median is not None and every.median <= 0.10
    assert every.p95 is not None and every.p95 <= 0.20
    assert large.median is not None and large.median <= 0.05


def test_intervals_hold_what_they_say(found: dict[str, Prediction]) -> None:
    test = validation.score("test", [p for p in found.values() if not p.fitted_on])
    assert test.held_80 is not None and 0.70 <= test.held_80 <= 0.90
    assert test.held_95 is not None and test.held_95 >= 0.90


def test_training_steps_and_scaling(found: dict[str, Prediction]) -> None:
    times = [found[i].error for i in ("P0451", "P0452", "P0454", "P0455", "P0457", "P0458")]
    assert sum(abs(e) for e in times if e is not None) / 6 <= 0.035
    assert max(abs(e) for e in times if e is not None) <= 0.08
    for base, other in (("P0443", "P0445"), ("P0501", "P0503"), ("P0501", "P0505"), ("P0506", "P0509")):
        published_ratio = found[other].value / found[base].value
        assert (found[other].predicted or 0) / (found[base].predicted or 1) == pytest.approx(published_ratio, abs=0.05)


def test_wide_area_rows(found: dict[str, Prediction]) -> None:
    grid = [p for p in found.values() if p.metric.startswith("bandwidth for")]
    near = [p for p in grid if p.predicted and 1 / 1.25 < p.predicted / p.value < 1.25]
    assert len(grid) == 50 and len(near) / len(grid) >= 0.96
    for name in ("P0605", "P0608"):
        assert found[name].predicted == pytest.approx(found[name].value, abs=0.5)


def test_at_most_half_of_a_table_is_fitted_on_and_every_fitted_row_exists(found: dict[str, Prediction]) -> None:
    used = shipped().fitted_on()
    assert used <= found.keys()
    tables: dict[tuple[str, str, str], list[bool]] = {}
    for p in found.values():
        if "table seen" in p.reason:
            tables.setdefault((p.system, p.work, p.metric), []).append(p.id in used)
    assert tables and all(sum(rows) <= len(rows) / 2 for rows in tables.values())


def test_every_row_has_an_answer_or_a_reason(found: dict[str, Prediction]) -> None:
    for p in found.values():
        assert p.reason and (p.predicted is None) == (p.low_80 is None) == (p.high_95 is None)
        if p.predicted is not None and None not in (p.low_80, p.high_80, p.low_95, p.high_95):
            assert p.low_95 <= p.low_80 <= p.high_80 <= p.high_95  # type: ignore[operator]
    large = validation.misses(found.values())
    assert [m.prediction.id for m in large if m.why == validation.UNEXPLAINED] == []


@pytest.mark.parametrize(
    ("line", "low", "high"),
    [
        (row("16 nodes x 8 H100, InfiniBand NDR 400Gb/s", "all_reduce", 128, 2**33, "busbw", 370, "GB/s"), 300, 400),
        (row("8x H100 SXM NVLink4", "all_reduce nccl-tests", 8, "8 GiB", "algbw", 270, "GB/s"), 200, 320),
        (row("8x V100 NVLink2", "all_reduce", 8, 2**30, "busbw", 130, "GB/s"), 95, 150),
        (row("DGX A100 x 4, HDR", "all_gather", 32, 2**32, "busbw", 180, "GB/s"), 150, 200),
        (row("2 nodes x 8 MI300X 400G RoCE", "reduce_scatter", 16, 2**30, "time", 4, "ms"), 1.5, 6),
        (row("4x L40S PCIe4", "all_reduce", 4, 2**28, "time", 20, "ms"), 8, 40),
        (row("32x A100 HDR", "alltoall", 32, 2**30, "busbw", 25, "GB/s"), 15, 40),
        (row("GB200 NVL72", "broadcast", 72, 2**30, "bus bandwidth", 600, "GB/s"), 300, 900),
        (row("8x H200 NVLink4", "all_reduce", 8, 2**34, "busbw / peak", 1.06, "fraction"), 0.5, 1.2),
        (row("A100 80GB", "Megatron TP8 PP8 training seq 2048 batch 64", 64, "175B", "MFU", 50, "%"), 30, 70),
        (row("B200 SXM", "GEMM bf16", 1, "", "achieved", 1.7, "PFLOP/s"), 1.3, 2.1),
    ],
)  # fmt: skip
def test_systems_never_seen(tmp_path: Path, line: str, low: float, high: float) -> None:
    (p,) = one(tmp_path, line)
    assert p.predicted is not None, p.reason
    assert low <= p.predicted <= high and not p.fitted_on
    assert p.low_95 is not None and p.high_95 is not None and p.high_95 / p.low_95 > 1.3


@pytest.mark.parametrize(
    ("work", "devices", "words"),
    [
        ("TP16 PP1 batch 64", 64, "scale-up domain of 8"),
        ("TP8 PP3 batch 64", 64, "do not divide"),
        ("TP1 PP1", 1, "GB of"),
    ],
)
def test_impossible_layouts_say_why(tmp_path: Path, work: str, devices: int, words: str) -> None:
    (p,) = one(tmp_path, row("H100", f"training {work}", devices, "175B", "MFU", 40, "%"))
    assert p.predicted is None and words in p.reason


@pytest.mark.parametrize(
    "line",
    [
        row("H100", "training TP0 PP0", 64, "175B", "MFU", 40, "%"),
        row("H100", "training TP8 CP0 seq 0", 64, "175B", "MFU", 40, "%"),
        row("two sites (0 layers, 0 s step)", "DiLoCo", "", "1B", "bandwidth for 90% compute utilisation", 1, "Gbit/s"),
        row("0x H100 NVL0", "all_reduce 0 nodes", 0, 0, "busbw", 0, "GB/s"),
        row("a box", "all_reduce", 8, 2**20, "busbw", 1, "GB/s"),
        row("8x H100", "all_reduce", 8, "", "time", 1, "us"),
        row("8x H100", "all_reduce", 1, 8, "time", 1, "us"),
        row("8x H100", "all_reduce", 8, 8, "colour", 1, "us"),
    ],
)
def test_rows_without_an_answer_say_why(tmp_path: Path, line: str) -> None:
    path = tmp_path / "points.csv"
    path.write_text(f"{HEADER}\n{line}\n")
    points, faults = read(path)
    assert [f.reason for f in faults] == ["no devices"] or [p.predicted for p in predict(points)] == [None]
    assert all(p.reason for p in predict(points))


def test_serving_is_predicted_per_device_at_a_stated_wait(tmp_path: Path) -> None:
    def served(system: str, metric: str) -> Prediction:
        return one(tmp_path, row(system, "DeepSeek-V3 serving", "", "671B MoE", metric, 2000, "tok/s"))[0]

    for system in ("CloudMatrix384", "GB200 NVL72"):
        slow, fast = (served(system, f"decode throughput per device TPOT {ms} ms") for ms in (100, 25))
        assert slow.predicted and fast.predicted and slow.predicted > fast.predicted and not slow.fitted_on
        assert slow.low_95 and slow.high_95 and slow.high_95 / slow.low_95 > 2
    for metric in ("decode throughput TPOT 50 ms", "decode throughput per NPU", "decode throughput per NPU TPOT 0 ms"):
        found = served("CloudMatrix384", metric)
        assert found.predicted is None and "decode throughput per NPU" in found.reason
    found = served("CloudMatrix384", "decode throughput per NPU TPOT 0.1 ms")
    assert found.predicted is None and "no sequence gets a token" in found.reason


def test_a_schedule_is_no_degree_of_parallelism(tmp_path: Path) -> None:
    """``PP 1F1B`` has as many stages as the published layout, and chunks only shorten its bubble."""
    work = "torchtitan Llama-3.1 405B FSDP+TP+PP {}"
    lines = [
        row("H100 96GB 500W", work.format(name), 512, "405B", "throughput", 100, "tok/s/GPU")
        for name in ("1F1B", "Interleaved 1F1B", "4D CP 2 seq 64k", "4D CP seq 64k")
    ]
    plain, chunks, stated, implied = (one(tmp_path, line)[0].predicted or 0 for line in lines)
    assert plain < chunks < 1.6 * plain
    assert stated == implied < plain


def test_more_nodes_than_fitted_widen_the_interval(tmp_path: Path) -> None:
    system, work = "Alibaba cluster (SimAI ratio table)", "collective over NIC (ring)"
    lines = [row(system, work, n, 2**30, "busbw / peak", 0.9, "fraction").replace("X1", f"X{n}") for n in (128, 1024)]
    near, far = one(tmp_path, *lines)
    assert near.low_80 and near.high_80 and far.low_80 and far.high_80
    assert far.high_80 / far.low_80 > near.high_80 / near.low_80


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (row("8x A100", "all_reduce", 8, 1024, "busbw", -3, "GB/s"), "negative"),
        (row("8x A100", "all_reduce", 8, 1024, "busbw", 3, "GB/sec"), "unknown unit 'GB/sec'; did you mean"),
        (row("8x A100", "all_reduce", 8, 1024, "busbw", "fast", "GB/s"), "not a number"),
        (row("8x A100", "all_reduce", 8, 1024, "busbw", "nan", "GB/s"), "not a number"),
        (row("8x A100", "all_reduce", -8, 1024, "busbw", 3, "GB/s"), "negative number"),
        (row("8x A100", "all_reduce", 8, 1024, "", 3, "GB/s"), "no metric"),
        ("X1,8x A100,all_reduce", "3 columns where 10"),
    ],
)
def test_bad_rows_are_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    good = row("8x A100", "all_reduce", 8, 2**20, "time", 90, "us").replace("X1", "X2", 1)
    path = tmp_path / "points.csv"
    path.write_text("\n".join([HEADER, line, good]) + "\n")
    assert main(["simulate", "--against", str(path), "--json"]) == 1
    said = capsys.readouterr()
    assert "line 2" in said.err and words in said.err and said.err.count("\n") == 1
    assert '"X2"' in said.out and "Traceback" not in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate"], "either a CLUSTER or --against"),
        (["simulate", "uniform", "--against", "shipped"], "either a CLUSTER or --against"),
        (["simulate", "--against", "no/such.csv"], "cannot be read"),
    ],
)
def test_requests_that_are_wrong(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_missing_column_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "points.csv"
    path.write_text(HEADER.replace("metric", "metrik") + "\n")
    assert main(["simulate", "--against", str(path)]) == 2
    assert "no column 'metric'; did you mean 'metrik'" in capsys.readouterr().err


def test_the_document_is_what_the_command_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--against", "shipped", "--format", "md"]) == 0
    document = Path(__file__).parents[3] / "docs" / "validation.md"
    assert capsys.readouterr().out == document.read_text()
    assert paths.data("network", "points.csv").is_file()
