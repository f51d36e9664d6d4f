"""Rows of kinds and systems that the shipped tables do not have: laws, units, and no figure that cannot be."""

import csv
import itertools
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from frugalbench.cluster.published.constants import shipped
from frugalbench.cluster.published.names import place
from frugalbench.cluster.published.points import Point, read
from frugalbench.cluster.published.predict import Prediction, predict

SYSTEMS = (
    "8x A100-SXM 40GB", "DGX H100 NDR400 SuperPOD", "GB200 NVL72", "GB300 NVL72", "8x MI300X", "MI355X", "Gaudi2 HLS",
    "A100 PCIe 80GB", "H100 PCIe", "H100 NVL pair", "p3dn.24xlarge V100", "p4d.24xlarge", "Perlmutter A100",
    "L40S PCIe4", "Summit V100 EDR", "Frontier MI250X", "16x H100 2 nodes TCP 100GbE", "Ascend 910B", "CloudMatrix 384",
    "RTX 4090",
)  # fmt: skip
OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "alltoall", "broadcast", "reduce", "sendrecv")


def point(system: str, work: str, devices: int | None, size: str, metric: str, unit: str, value: float = 1.0) -> Point:
    return Point(
        id="X", system=system, work=work, devices=devices, size=size, metric=metric, value=value, unit=unit,
        printed="1.00",
    )  # fmt: skip


def one(*what: object, **more: float) -> Prediction:
    return predict([point(*what, **more)])[0]  # type: ignore[arg-type]


def known(found: Prediction) -> bool:
    """Cards on a host's bus have no network of their own: more than one node of them has no prediction."""
    return not found.reason.startswith("no rate of the network between nodes")


DEVICES = (2, 4, 8, 12, 16, 24, 72, 1024)
scenes = given(st.sampled_from(SYSTEMS), st.sampled_from(OPERATIONS), st.sampled_from(DEVICES))


@settings(max_examples=60, deadline=None)
@scenes
def test_a_larger_message_never_takes_less_time(system: str, operation: str, devices: int) -> None:
    found = predict([point(system, operation, devices, str(2**n), "time", "us") for n in range(3, 37)])
    times = [p.predicted for p in found]
    assume(known(found[0]))
    assert all(times), found[0].reason
    assert times == sorted(times)  # type: ignore[type-var]


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_bus_bandwidth_beyond_the_link(system: str) -> None:
    """A switch that adds up saves half of the way; nothing else beats the wire of the node's cards or its links."""
    for operation, devices in itertools.product(OPERATIONS, DEVICES):
        row = point(system, operation, devices, str(2**34), "busbw", "GB/s")
        where, (found,) = place(row), predict([row])
        if not known(found):
            continue
        assert found.predicted is not None and where.scaleup_bytes_per_s is not None
        most = where.scaleup_bytes_per_s * (2 if "switch" in found.reason else 1) / 1e9
        assert found.predicted <= most, (operation, devices)
        if where.nodes > 1 and where.scaleout_bytes_per_s and operation != "alltoall":
            assert found.predicted <= where.scaleout_bytes_per_s * where.node / 1e9, (operation, devices)


@settings(max_examples=60, deadline=None)
@scenes
def test_an_unseen_system_is_never_surer_than_a_fitted_one(system: str, operation: str, devices: int) -> None:
    found = one(system, operation, devices, str(2**30), "busbw", "GB/s")
    assume(known(found))
    assert found.predicted and found.low_80 and found.high_80 and found.low_95 and found.high_95
    seen = shipped().spread["table seen, bytes"]
    assert found.high_80 / found.predicted > 1 + seen.width_80 < found.predicted / found.low_80
    assert found.high_95 / found.predicted > 1 + seen.width_95 < found.predicted / found.low_95


def test_what_rests_on_farther_tables_is_never_narrower() -> None:
    spread = shipped().spread
    for part in ("bytes", "start-up"):
        rows = [spread[f"{near}, {part}"] for near in ("table seen", "device seen", "family only")]
        for width in ("width_80", "width_95"):
            sizes = [getattr(row, width) for row in rows]
            assert sizes == sorted(sizes)


words = st.text(max_size=30)


@settings(max_examples=200, deadline=None)
@given(words, words, st.integers(1, 10**9) | st.none(), words, words, st.sampled_from(["GB/s", "us", "%", "TFLOP/s"]))
def test_no_text_is_too_odd(system: str, work: str, devices: int | None, size: str, metric: str, unit: str) -> None:
    for kind in (work, f"all_reduce {work}", f"8B training {work}", f"dispatch {work}", f"Streaming DiLoCo {work}"):
        found = one(system, kind, devices, size, metric, unit)
        assert found.reason


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("GB/s", 1), ("GBps", 1), ("Gb/s", 8), ("Gbps", 8), ("Gbit/s", 8), ("GiB/s", 1 / 1.073741824), ("MB/s", 1e3)],
)
def test_units_that_differ_by_a_letter_differ_by_eight(unit: str, factor: float) -> None:
    base = one("8x H100", "all_reduce", 8, "1073741824", "busbw", "GB/s")
    assert base.predicted is not None
    assert one("8x H100", "all_reduce", 8, "1 GiB", "busbw", unit).predicted == pytest.approx(base.predicted * factor)


@pytest.mark.parametrize("size", ["8G", "8192M", "8388608K", "8 GiB", "8589934592"])
@pytest.mark.parametrize("metric", ["busbw", "Bus BW", "bus_bw", "out-of-place busbw (GB/s)"])
def test_sizes_and_metrics_as_the_tools_print_them(size: str, metric: str) -> None:
    base = one("8x H100", "all_reduce", 8, str(2**33), "busbw", "GB/s")
    assert one("8x H100", "all_reduce", 8, size, metric, "GB/s").predicted == base.predicted


@pytest.mark.parametrize(
    ("what", "low", "high"),
    [
        (("A100 PCIe 80GB", "all_reduce", 4, "1 GiB", "busbw", "GB/s"), 10, 31.5),
        (("H100 NVL pair", "all_reduce", 2, "1 GiB", "busbw", "GB/s"), 150, 300),
        (("p3dn.24xlarge", "all_reduce", 16, "1 GiB", "busbw", "GB/s"), 6, 12.5),
        (("16x H100 2 nodes TCP 100GbE", "all_reduce", 16, "1 GiB", "busbw", "GB/s"), 6, 13),
        (("2 nodes x 8 H100, 8x400GbE", "all_gather", 16, "1 GiB", "busbw", "GB/s"), 250, 400),
        (("Perlmutter A100", "all_reduce", 64, "1 GiB", "busbw", "GB/s"), 60, 100),
        (("DGX H100 NDR400 SuperPOD", "all_reduce", 1024, "1 GiB", "busbw", "GB/s"), 200, 400),
        (("A100 SXM4 40GB", "HBM triad", 1, "", "bandwidth", "GB/s"), 1100, 1555),
        (("H100 PCIe", "GEMM bf16", 1, "", "achieved", "TFLOP/s"), 450, 756),
        (("H100 SXM", "fp32 GEMM", 1, "", "achieved", "TFLOP/s"), 40, 67),
        (("H100 SXM", "TF32 gemm", 1, "", "achieved", "TFLOP/s"), 300, 495),
        (("A100", "LLaMA 65B training", 2048, "65B", "throughput", "tok/s/GPU"), 250, 450),
        (("INTELLECT-1 world", "10B int8 ring", 14, "10B", "outer all-reduce median", "s"), 100, 2000),
    ],
)  # fmt: skip
def test_predictions_from_hardware_data_alone(what: tuple[object, ...], low: float, high: float) -> None:
    found = one(*what)
    assert found.predicted is not None, found.reason
    assert low <= found.predicted <= high


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (("TPU v4", "all_reduce", 64, "1 GiB", "busbw", "GB/s"), "no device that is known in 'TPU v4'"),
        (("8x H100", "all_reduce", 8, "1.07e9 B", "busbw", "GB/s"), "message size '1.07e9 B' is not understood"),
        (("H100", "Mixtral 8x7B training", 64, "8x7B", "MFU", "%"), "mixtures of experts"),
        (("H100", "fp64 dgemm", 1, "", "achieved", "TFLOP/s"), "no dense fp64 peak"),
        (("GB200", "pplx dispatch", 64, "", "latency", "us"), "tokens of a rank"),
        (("8x H100", "barrier", 8, "", "time", "us"), "no model for this kind"),
    ],
)
def test_what_cannot_be_predicted_says_why(what: tuple[object, ...], words: str) -> None:
    found = one(*what)
    assert found.predicted is None and words in found.reason


def test_a_product_in_the_column_of_devices_is_multiplied(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["id", "system", "collective_or_workload", "n_devices", "message_bytes_or_model", "metric", "value", "unit"]
        )
        counts = ("8 GPUs x 16 nodes", "16x8", "128 GPUs", "up to 128", "1,28")
        writer.writerows([f"N{i}", "H100", "all_reduce", n, 2**30, "busbw", 1, "GB/s"] for i, n in enumerate(counts))
    assert [p.devices for p in read(path)[0]] == [128] * 5
