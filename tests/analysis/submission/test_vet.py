"""Good submissions are taken, forged and damaged ones refused with the reason that fits."""

from pathlib import Path

import pytest

import forgery
from frugalbench.analysis.submission.vet import vet
from frugalbench.cli.replay import checks, page_of

GOOD = dict(forgery.good())


@pytest.mark.parametrize("name", GOOD)
def test_good_ones_are_accepted(name: str, tmp_path: Path) -> None:
    parts, file = GOOD[name](), tmp_path / "good.zip"
    file.write_bytes(parts.packed())
    report, files = vet(file, checks(), page_of)
    assert report.refusals == () and report.accepted
    assert files.keys() >= {"manifest.json", "records.jsonl"} and report.contents["records"] == len(parts.records)


def test_forged_ones_are_refused_with_the_right_reason(tmp_path: Path) -> None:
    tried, misses = 0, []
    for name, content, expected in forgery.forged():
        tried += 1
        file = tmp_path / "forged.zip"
        file.write_bytes(content)
        report, _ = vet(file, checks(), page_of)
        found = {refusal.check for refusal in report.refusals}
        if not found & expected:
            misses.append((name, expected, report.refusals))
        assert all(refusal.reason and len(refusal.reason) < 500 for refusal in report.refusals)
    assert tried >= 170 and len(GOOD) == 20
    assert len(misses) <= 0.05 * tried, misses
