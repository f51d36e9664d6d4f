"""Rows are recomputed here from the numbers that the factory put in."""

import math
import time
from pathlib import Path

import msgspec
import pytest

from factory import (
    COST,
    PEAKS,
    make_case,
    make_fact,
    make_peaks,
    make_reading,
    make_record,
    make_run,
    plausible_records,
)
from frugalbench.analysis.load import load_run
from frugalbench.analysis.metrics import Row, measured_peaks, rows, time_interval
from frugalbench.schema import Arm, Artefact, Comparison, FrugalbenchError, Plan, Record, Skipped, Status, Tier


def only_row(tmp_path: Path, records: list[Record], **manifest: object) -> Row:
    found = [r for r in rows(load_run(make_run(tmp_path / "run", records, **manifest))) if r.workload == "moe_ffn"]
    assert len(found) == 1
    return found[0]


def test_time_is_the_median_of_replicate_medians_without_pilot_void_and_interrupted(tmp_path: Path) -> None:
    row = only_row(
        tmp_path,
        [
            make_record(time_s=[9.0, 9.0], replicate=0),
            make_record(time_s=[1.0, 2.0, 3.0], replicate=1),
            make_record(time_s=[4.0, 4.0, 50.0, 50.0, 50.0], void=(2, 3, 4), replicate=2),
            make_record(time_s=[8.0], replicate=3),
            make_record(time_s=[99.0], replicate=4, interrupted=True),
        ],
    )
    assert row.time_s == 4.0
    assert row.replicates == 3
    assert row.void_share == pytest.approx(3 / 9)


def test_steady_load_keeps_every_sample(tmp_path: Path) -> None:
    record = make_record(time_s=[1.0, 2.0, 3.0], void=(1, 2), steady_load=True)
    assert only_row(tmp_path, [record]).time_s == 2.0


def test_rates_and_shares_follow_from_cost_and_the_runs_own_peaks(tmp_path: Path) -> None:
    row = only_row(tmp_path, [*make_peaks(), make_record(time_s=[0.04] * 3)])
    assert row.token_per_s == pytest.approx(COST.token / 0.04)
    assert row.flop_per_s == pytest.approx(COST.flop / 0.04)
    assert row.op_per_s is None
    assert row.token_per_flop == pytest.approx(COST.token / COST.flop)
    assert row.mfu == pytest.approx(COST.flop / 0.04 / PEAKS["fp32_flop_per_s"])
    assert row.mbu == pytest.approx(COST.traffic_bytes / 0.04 / PEAKS["read_bytes_per_s"])
    assert row.roofline_share == max(row.mfu or 0, row.mbu or 0)


def test_a_peak_is_its_best_replicate(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, make_peaks({"fp32_flop_per_s": 3e9}, count=3)))
    assert measured_peaks(run)["cpu", "fp32_flop_per_s"] == pytest.approx(3e9)


def test_no_peak_no_share(tmp_path: Path) -> None:
    row = only_row(tmp_path, [make_record()])
    assert (row.mfu, row.mbu, row.roofline_share) == (None, None, None)


@pytest.mark.parametrize(
    ("dtype", "peak"), [("bf16", "bf16"), ("bfloat16", "bf16"), ("float16", "fp16"), ("fp16", "fp16")]
)
def test_a_share_of_the_wrong_roof_is_none(tmp_path: Path, dtype: str, peak: str) -> None:
    lower = make_record(time_s=[0.04], case=make_case(dtype=dtype))
    assert only_row(tmp_path, [*make_peaks(), lower]).mfu is not None
    peaks = make_peaks(PEAKS | {f"{peak}_flop_per_s": 2e11})
    assert only_row(tmp_path / "b", [*peaks, lower]).mfu is None


def test_float32_is_held_against_its_own_roof(tmp_path: Path) -> None:
    peaks = make_peaks(PEAKS | {"bf16_flop_per_s": 2e11, "fp16_flop_per_s": 2e11})
    assert only_row(tmp_path, [*peaks, make_record(time_s=[0.04], case=make_case(dtype="float32"))]).mfu is not None


def test_integer_work_is_held_against_the_integer_peak(tmp_path: Path) -> None:
    cost = msgspec.structs.replace(COST, flop=0.0, op=1e9)
    case = make_case(dtype="int8", cost=cost, peaks=("int8_op_per_s", "read_bytes_per_s"))
    row = only_row(tmp_path, [*make_peaks(), make_record(case=case, time_s=[0.01])])
    assert row.mfu == pytest.approx(1e9 / 0.01 / PEAKS["int8_op_per_s"])
    assert row.flop_per_s is None and row.token_per_flop is None


def test_energy_sums_scopes_takes_one_method_and_leaves_out_poisoned_windows(tmp_path: Path) -> None:
    readings = (
        make_reading(2.0, scope="cpu-package", start_s=0.0),
        make_reading(3.0, scope="gpu-board", start_s=0.0),
        make_reading(99.0, scope="gpu-board", method="integrated power", start_s=0.0),
        make_reading(1.0, start_s=1.0),
        make_reading(None, scope="gpu-board", error="read failed", start_s=1.0),
    )
    row = only_row(tmp_path, [make_record(readings=readings)])
    assert row.token_per_joule == pytest.approx(COST.token * 100 / 5.0)
    assert row.poisoned_windows == 1
    assert row.energy_scope == "cpu-package + gpu-board"


def test_energy_is_none_without_good_readings_and_modelled_stays_apart(tmp_path: Path) -> None:
    readings = (
        make_reading(None, error="read failed"),
        make_reading(20.0, tier=Tier.MODELLED, low_joule=10.0, high_joule=40.0),
    )
    row = only_row(tmp_path, [make_record(readings=readings)])
    assert row.token_per_joule is None
    assert row.token_per_joule_low == pytest.approx(COST.token * 100 / 40)
    assert row.token_per_joule_high == pytest.approx(COST.token * 100 / 10)


def test_failed_skipped_and_unreached_cases_are_rows_with_reasons(tmp_path: Path) -> None:
    skipped = Skipped(case=make_case("cuda"), reason="no CUDA device")
    late = Comparison(id="c", workload="moe_ffn", arms=(Arm(id="a", cases=(make_case("late"),), imports=()),))
    plan = Plan(seed=1, comparisons=(late,), skipped=(skipped,))
    records = [
        make_record("broken", status=Status.FAILED, reason="wrong answer"),
        make_record("half", replicate=1),
        make_record("half", replicate=2, status=Status.FAILED, reason="killed"),
    ]
    path = make_run(tmp_path, records, plan=plan, state="interrupted")
    by_variant = {r.variant: r for r in rows(load_run(path))}
    assert (by_variant["broken"].status, by_variant["broken"].reason) == (Status.FAILED, "wrong answer")
    assert by_variant["broken"].time_s is None
    assert by_variant["half"].status is Status.FAILED and by_variant["half"].time_s is not None
    assert (by_variant["cuda"].status, by_variant["cuda"].reason) == (Status.SKIPPED, "no CUDA device")
    assert "interrupted" in by_variant["late"].reason and by_variant["late"].tier is None


def test_a_resumed_replicate_replaces_the_one_cut_short(tmp_path: Path) -> None:
    records = [make_record(time_s=[9.0], interrupted=True), make_record(time_s=[1.0])]
    assert only_row(tmp_path, records).time_s == 1.0


def test_process_facts(tmp_path: Path) -> None:
    artefacts = (Artefact(name="a", build_s=1.0, cached=False), Artefact(name="b", build_s=2.0, cached=True))
    facts = {"output_error": make_fact(0.02)}
    row = only_row(tmp_path, [make_record(artefacts=artefacts, facts=facts)])
    assert (row.build_s, row.output_error, row.threads) == (3.0, 0.02, 2)


def test_time_interval_is_student_t_on_logarithms() -> None:
    low, high = time_interval([1.0, math.e])
    half = 12.7062 * math.sqrt(0.5 / 2)  # t(0.975, 1) from a table
    assert low is not None and high is not None
    assert math.log(low) == pytest.approx(0.5 - half, rel=1e-4)
    assert math.log(high) == pytest.approx(0.5 + half, rel=1e-4)
    assert time_interval([1.0]) == (None, None)


def test_half_written_last_line_is_dropped_and_noted(tmp_path: Path) -> None:
    path = make_run(tmp_path, [make_record(), make_record(replicate=2)])
    file = path / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    run = load_run(path)
    assert len(run.records) == 1
    assert "half-written" in run.problems[0] and ":2" in run.problems[0]


def test_whole_last_line_without_newline_counts(tmp_path: Path) -> None:
    path = make_run(tmp_path, [make_record(), make_record(replicate=2)])
    file = path / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-1])
    run = load_run(path)
    assert len(run.records) == 2 and run.problems == ()


def test_bad_run_directories_say_what_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FrugalbenchError, match="not a run directory"):
        load_run(tmp_path)
    corrupt = make_run(tmp_path / "corrupt", [make_record(), make_record(replicate=2)])
    lines = (corrupt / "records.jsonl").read_bytes().splitlines()
    (corrupt / "records.jsonl").write_bytes(lines[0][:50] + b"\n" + lines[1] + b"\n")
    with pytest.raises(FrugalbenchError, match=r"records\.jsonl:1"):
        load_run(corrupt)
    for case in ("newer", "newer_manifest"):
        newer = make_run(tmp_path / case, [make_record()])
        file = newer / ("records.jsonl" if case == "newer" else "manifest.json")
        file.write_bytes(file.read_bytes().replace(b'"schema_version":1', b'"schema_version":99'))
        with pytest.raises(FrugalbenchError, match="schema version 99") as caught:
            load_run(newer)
        assert len(str(caught.value).splitlines()) <= 2


def test_missing_records_are_a_problem_not_an_error(tmp_path: Path) -> None:
    path = make_run(tmp_path, [])
    (path / "records.jsonl").unlink()
    assert load_run(path).problems


def test_thousands_of_records_open_quickly(tmp_path: Path) -> None:
    records = plausible_records()
    path = make_run(tmp_path, records * (4000 // len(records)))
    start = time.process_time()
    assert len(rows(load_run(path))) > 10
    assert time.process_time() - start < 3.0
