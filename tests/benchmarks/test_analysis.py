"""Opening and judging a run grows no faster than the run: gated on ratios taken turn by turn, never on seconds."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from factory import make_peaks, make_replicates, make_run
from frugalbench.analysis.claims import evaluate, load_claims
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import load_run
from frugalbench.analysis.metrics import rows
from frugalbench.report.export import to_csv
from frugalbench.schema import Record, Verdict

CLAIMS = load_claims()
MOE = ("dense-equal-total", "dense-equal-active", "moe-transformers", "moe-sorted")
QUANT = ("torch-fp32", "ort-fp32", "torch-bf16", "torch-int8-dynamic", "ort-int8", "ort-int4")


def block(shape: str, count: int) -> list[Record]:
    """Two families at one shape: 20 cases times ``count`` replicates and the pilot."""
    fields = {"case_fields": {"shape": shape}, "rounds": 9}
    moe = [make_replicates(n, 0.01, count, regime=r, **fields) for n in MOE for r in ("decode", "prefill")]
    quant = [
        make_replicates(n, 0.01, count, workload="quantized_linear", regime=r, **fields)
        for n in QUANT
        for r in ("decode", "prefill")
    ]
    return [record for arm in (*moe, *quant) for record in arm]


def written(folder: Path, shapes: int, count: int) -> Path:
    return make_run(folder, [*make_peaks(), *(r for i in range(shapes) for r in block(f"shape{i}", count))])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """About a thousand records, twice as many shapes, and twice as many replicates."""
    folder = tmp_path_factory.mktemp("runs")
    sizes = {"once": (4, 11), "shapes": (8, 11), "replicates": (4, 23)}
    return {name: written(folder / name, *size) for name, size in sizes.items()}


def judged(path: Path) -> tuple[Verdict, ...]:
    return evaluate(evidence_of(load_run(path)), CLAIMS)


def ratio(slow: Callable[[], object], fast: Callable[[], object], rounds: int = 5) -> float:
    """Median over rounds of CPU seconds of ``slow`` over those of ``fast``, one after the other."""
    return statistics.median(cpu_s(slow) / cpu_s(fast) for _ in range(rounds))


def cpu_s(call: Callable[[], object]) -> float:
    start_s = time.process_time()
    call()
    return time.process_time() - start_s


def test_load_and_evaluate(benchmark, runs) -> None:
    verdicts = benchmark.pedantic(judged, args=(runs["shapes"],), rounds=3, warmup_rounds=1)
    assert len({v.candidate for v in verdicts if v.candidate}) > 8 * 3


def test_load(benchmark, runs) -> None:
    assert len(benchmark.pedantic(load_run, args=(runs["shapes"],), rounds=3, warmup_rounds=1).records) > 1900


@pytest.mark.parametrize("more", ["shapes", "replicates"])
def test_twice_the_records_take_at_most_three_times_as_long(runs, more) -> None:
    judged(runs["once"])
    records = {name: len(load_run(runs[name]).records) for name in ("once", more)}
    assert 1.8 < records[more] / records["once"] < 2.2
    assert ratio(lambda: judged(runs[more]), lambda: judged(runs["once"])) <= 3.0


def test_tables_grow_with_the_records(runs) -> None:
    once, twice = load_run(runs["once"]), load_run(runs["shapes"])
    assert ratio(lambda: to_csv(rows(twice)), lambda: to_csv(rows(once))) <= 3.0


def test_judging_costs_no_more_than_a_few_times_reading(runs) -> None:
    run = load_run(runs["shapes"])
    evidence = evidence_of(run)
    assert ratio(lambda: evaluate(evidence, CLAIMS), lambda: load_run(runs["shapes"])) <= 30
