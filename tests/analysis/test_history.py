"""A metric over many runs: order, series, change points, and what cannot be read."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

from factory import make_record, make_replicates, make_run
from frugalbench.analysis.history import Point, history, steps
from frugalbench.cli.main import main
from frugalbench.report import charts
from frugalbench.report.history import bars
from frugalbench.schema import FrugalbenchError


def folder(tmp_path: Path, levels: list[float]) -> Path:
    """A run per level, written in another order than they were started in."""
    for number, level in sorted(enumerate(levels), key=lambda item: -item[0]):
        records = make_replicates("dense", 0.01 * level, 3, 0.003, seed=number)
        started = f"2026-01-{number + 1:02}T00:00:00Z"
        make_run(tmp_path / f"r{9 - number}", records, started=started, run_id=f"run{number}", revision=f"rev{number}")
    return tmp_path


def points(values: list[float]) -> list[Point]:
    return [Point(run=f"run{at}", path="", started="", revision=None, value=value) for at, value in enumerate(values)]


def test_a_series_in_the_order_of_time(tmp_path: Path) -> None:
    (series,) = history(folder(tmp_path, [1, 2, 4]), "time_s").series
    assert [point.run for point in series.points] == ["run0", "run1", "run2"]
    assert [point.value for point in series.points] == pytest.approx([0.01, 0.02, 0.04], rel=0.05)
    assert series.steps is None, "three runs have no change points"


def test_a_change_is_found_where_it_is(tmp_path: Path) -> None:
    pytest.importorskip("ruptures")
    (series,) = history(folder(tmp_path, [1] * 5 + [1.2] * 4), "token_per_s").series
    assert series.steps is not None
    (step,) = series.steps
    assert (step.run, step.revision, step.at) == ("run5", "rev5", 5) and step.ratio == pytest.approx(1 / 1.2, rel=0.02)


def test_noise_has_few_changes_and_a_shift_of_4_sigma_is_found() -> None:
    pytest.importorskip("ruptures")
    rng = np.random.default_rng(4)
    quiet = [steps(points(list(np.exp(0.01 * rng.standard_normal(20))))) for _ in range(100)]
    assert sum(bool(item) for item in quiet) <= 15
    moved = [
        steps(points(list(np.exp(0.01 * rng.standard_normal(20) + 0.04 * (np.arange(20) >= 12))))) for _ in range(100)
    ]
    assert sum(any(abs(step.at - 12) <= 1 for step in item or ()) for item in moved) >= 85


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = folder(tmp_path, [1, 1, 1, 2])
    (runs / "broken").mkdir()
    (runs / "broken" / "manifest.json").write_text("{")
    assert main(["history", str(runs), "--metric", "time_s", "--case", "*dense*"]) == 0
    out = capsys.readouterr().out
    assert "time_s over 4 runs" in out and "▁▁▁█" in out and "left out" in out
    assert main(["history", str(runs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == 4 and found["series"][0]["metric"] == "token_per_s"


@pytest.mark.parametrize(
    ("metric", "case", "says"),
    [("speed", "*", "choose from"), ("token_per_joule", "*", "no case"), ("mfu", "x", "no case")],
)
def test_what_cannot_be_shown(tmp_path: Path, metric: str, case: str, says: str) -> None:
    with pytest.raises(FrugalbenchError, match=says):
        history(folder(tmp_path, [1]), metric, case)
    with pytest.raises(FrugalbenchError, match="holds no run"):
        history(tmp_path / "nowhere", "time_s")


def test_a_failed_run_adds_no_point(tmp_path: Path) -> None:
    runs = folder(tmp_path, [1, 1])
    from frugalbench.schema import Status

    make_run(tmp_path / "bad", [make_record("dense", status=Status.FAILED, reason="x")], started="2026-02-01T00:00:00Z")
    found = history(runs, "time_s")
    assert found.runs == 3 and len(found.series[0].points) == 2


def test_bars() -> None:
    assert bars([1.0]) == "▄" and bars([1.0, 2.0]) == "▁█" and len(bars([1.0] * 99)) == 30


def test_points_have_the_interval_of_their_times(tmp_path: Path) -> None:
    runs = folder(tmp_path, [1, 1, 2])
    (times,), (rates,) = (history(runs, metric).series for metric in ("time_s", "token_per_s"))
    for time, rate in zip(times.points, rates.points, strict=True):
        assert None not in (time.low, time.high) and time.low < time.high
        assert (rate.low / rate.value, rate.high / rate.value) == pytest.approx(
            (time.value / time.high, time.value / time.low)
        )
    (memory,) = history(runs, "pss_bytes").series
    assert memory.points[0].low is None and times.machine_name == "Test CPU"


def test_levels_lie_between_changes(tmp_path: Path) -> None:
    pytest.importorskip("ruptures")
    (series,) = history(folder(tmp_path, [1] * 4 + [1.5] * 4), "time_s").series
    levels = series.levels()
    assert [(level.first, level.last) for level in levels] == [(0, 3), (4, 7)]
    assert levels[1].value / levels[0].value == pytest.approx(series.steps[0].ratio)


def test_a_page_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, file = folder(tmp_path / "runs", [1] * 4 + [1.5] * 4), tmp_path / "page.html"
    assert main(["history", str(runs), "--metric", "time_s", "--output", str(file)]) == 0
    page = file.read_text()
    assert (
        f"wrote {file}" in capsys.readouterr().out
        and "default-src 'none'" in page
        and not re.search(r"https?://(?!www\.w3\.org/)", page)
    )
    for words in ("Test CPU (0123456789abcdef)", "rev4", "run7", "--format html --output", "1 change of level"):
        assert words in page, words
    if charts.available() and importlib.util.find_spec("ruptures"):
        (said,) = re.findall(r'<svg role="img" aria-label="Chart: ([^"]+)"', page)
        assert "then" in said and "1 change of level" in said and "×1.5" in page


def test_a_page_needs_a_file_and_any_other_is_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = folder(tmp_path / "runs", [1, 1])
    assert main(["history", str(runs), "--format", "html"]) == 2
    assert "--output" in capsys.readouterr().err
    assert main(["history", str(runs), "--json", "--output", str(tmp_path / "a.txt")]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["runs"] == 2 and "wrote" in shown.err
    assert "token_per_s over 2 runs" in (tmp_path / "a.txt").read_text()
