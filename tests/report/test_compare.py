"""Flags, intervals and regressions of two runs, against an independent Welch test."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from factory import make_replicates, make_run, scaled
from frugalbench.analysis.load import Run, load_run
from frugalbench.report.compare import Change, Compared, compare, compared_table, welch
from frugalbench.schema import Record, Status


def two_runs(tmp_path: Path, base: list[Record], new: list[Record], **manifest: object) -> tuple[Run, Run]:
    return load_run(make_run(tmp_path / "base", base)), load_run(make_run(tmp_path / "new", new, **manifest))


def compare_scaled(tmp_path: Path, factor: float, between: float = 0.01, limit: float | None = 5.0) -> Compared:
    base = make_replicates("dense", 0.01, 6, between, seed=1)
    new = [scaled(r, factor) for r in make_replicates("dense", 0.01, 6, between, seed=2)]
    return compare(*two_runs(tmp_path, base, new), limit)


def only(compared: Compared) -> Change:
    (change,) = compared.changes
    return change


def test_welch_agrees_with_scipy() -> None:
    rng = np.random.default_rng(3)
    base, new = rng.normal(0, 1, 5), rng.normal(0.5, 3, 8)
    low, high, p_value = welch(list(base), list(new), shift=0.0)
    expected = stats.ttest_ind(new, base, equal_var=False)
    bounds = expected.confidence_interval(0.95)
    assert (low, high) == pytest.approx((bounds.low, bounds.high))
    greater = stats.ttest_ind(new, base, equal_var=False, alternative="greater")
    assert p_value == pytest.approx(greater.pvalue)


def test_a_clear_slowdown_is_a_regression(tmp_path: Path) -> None:
    compared = compare_scaled(tmp_path, 1.2)
    change = only(compared)
    assert change.flag == "slower" and compared.regressions == (change.case,)
    assert change.low is not None and change.high is not None
    assert change.low < 1.2 < change.high


def test_a_slowdown_within_the_limit_is_none(tmp_path: Path) -> None:
    assert compare_scaled(tmp_path, 1.2, limit=30).regressions == ()


def test_without_a_limit_nothing_regresses_by_time(tmp_path: Path) -> None:
    compared = compare_scaled(tmp_path, 1.2, limit=None)
    assert only(compared).flag == "slower" and compared.regressions == ()


def test_faster_same_and_cannot_tell(tmp_path: Path) -> None:
    assert only(compare_scaled(tmp_path / "a", 0.8)).flag == "faster"
    assert only(compare_scaled(tmp_path / "b", 1.0, between=0.002)).flag == "same"
    noisy = compare_scaled(tmp_path / "c", 1.0, between=0.3)
    assert only(noisy).flag == "cannot tell" and noisy.regressions == ()


def test_one_replicate_cannot_tell(tmp_path: Path) -> None:
    runs = two_runs(tmp_path, make_replicates("dense", 0.01, 1), make_replicates("dense", 0.1, 1))
    change = only(compare(*runs, 5.0))
    assert change.flag == "cannot tell" and change.low is None
    assert change.ratio is not None and change.ratio > 5


def test_holm_is_stricter_over_many_cases(tmp_path: Path) -> None:
    base, new = [], []
    for i in range(30):
        fields = {"id": f"case{i}"}
        factor = 1.08 if i == 0 else 1.0
        base += make_replicates("dense", 0.01, 4, 0.02, seed=2 * i, case_fields=fields)
        new += [scaled(r, factor) for r in make_replicates("dense", 0.01, 4, 0.02, seed=2 * i + 1, case_fields=fields)]
    compared = compare(*two_runs(tmp_path, base, new), 0.0)
    naive = {c.case for c in compared.changes if c.p_beyond is not None and c.p_beyond < 0.05}
    assert len(compared.regressions) < len(naive)


def test_new_failures_regress_even_without_a_limit(tmp_path: Path) -> None:
    from factory import make_record

    base = make_replicates("dense", 0.01)
    new = [make_record("dense", status=Status.FAILED, reason="wrong answer")]
    compared = compare(*two_runs(tmp_path, base, new))
    assert only(compared).flag == "failed" and len(compared.regressions) == 1
    assert only(compare(load_run(tmp_path / "new"), load_run(tmp_path / "base"))).flag == "mended"


def test_cases_of_one_run_only_are_named(tmp_path: Path) -> None:
    compared = compare(*two_runs(tmp_path, make_replicates("a", 0.01), make_replicates("b", 0.01)))
    assert [c.flag for c in compared.changes] == ["only in base", "only in new"]
    assert compared.regressions == ()


def test_other_machine_and_config_are_warned_about(tmp_path: Path) -> None:
    records = make_replicates("dense", 0.01)
    runs = two_runs(tmp_path, records, records, machine_before={"fingerprint": "other"}, config={"a": 1})
    table = compared_table(compare(*runs))
    assert any("different machines" in note for note in table.notes)
    assert any("different configs" in note for note in table.notes)
    assert math.isclose(only(compare(*runs)).ratio or 0, 1.0)
