"""The clock and the costs of a run that is gone on with."""

import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from frugalbench.analysis.load import decode_run
from frugalbench.cli.session import _elapsed_s, _together
from frugalbench.schema import Harness

FIXTURE = Path(__file__).parents[1] / "fixtures/submission/small-selftest.zip"


def test_its_clock_goes_on_after_all_that_it_holds() -> None:
    with zipfile.ZipFile(FIXTURE) as found:
        run = decode_run(FIXTURE, found.read("manifest.json"), found.read("records.jsonl"))
    last_s = max(sample.start_s + sample.environment.wall_s for record in run.records for sample in record.samples)
    now = datetime.now(UTC)
    begun = msgspec.structs.replace(run.manifest, started=f"{now:%Y-%m-%dT%H:%M:%SZ}")
    assert _elapsed_s(begun, ()) == 0 and _elapsed_s(begun, run.records) > last_s
    earlier = msgspec.structs.replace(run.manifest, started=f"{now - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}")
    assert _elapsed_s(earlier, run.records) == pytest.approx(3600, abs=30)


def test_its_costs_add_up() -> None:
    one = Harness(wall_s=10.0, parent_cpu_s=1.0, measuring_s=8.0, prepared_s=2.0, peak_pss_bytes=5e6)
    two = Harness(wall_s=4.0, parent_cpu_s=0.5, measuring_s=4.0)
    assert _together(None, two) == two
    assert _together(one, two) == Harness(
        wall_s=14.0, parent_cpu_s=1.5, measuring_s=12.0, prepared_s=2.0, peak_pss_bytes=5e6
    )
