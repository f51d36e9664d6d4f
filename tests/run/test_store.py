"""A run directory never loses or overwrites what is in it, and says what is wrong with it."""

import contextlib
import errno
import json
import os
import subprocess
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory import make_manifest, make_record
from frugalbench.analysis.load import load_run
from frugalbench.run import store as module
from frugalbench.run.store import Store, read_manifest
from frugalbench.schema import SCHEMA_VERSION, FrugalbenchError, Plan, Status, decode_record
from run.helpers import make_arm, make_comparison


def record(replicate):
    return make_record(replicate=replicate)


def stored(path):
    return [decode_record(line).replicate for line in (path / "records.jsonl").read_bytes().splitlines()]


@pytest.fixture
def run(tmp_path):
    """A run with a manifest and two records."""
    opened = Store.create(tmp_path / "run")
    opened.write_manifest(make_manifest())
    opened.append([record(1), record(2)])
    opened.close()
    return tmp_path / "run"


def test_each_record_is_fsynced_before_the_next(tmp_path, monkeypatch):
    path, seen = tmp_path / "run", []
    opened = Store.create(path)
    monkeypatch.setattr(module.os, "fsync", lambda fd: seen.append((os.fstat(fd).st_ino, stored(path))))
    opened.append([record(1), record(2), record(3)])
    file = (path / "records.jsonl").stat().st_ino
    assert seen == [(file, [1]), (file, [1, 2]), (file, [1, 2, 3])]
    opened.close()


def test_records_and_manifest_come_back_and_go_on(run):
    opened, manifest, records = Store.reopen(run)
    assert [r.replicate for r in records] == [1, 2]
    assert manifest == make_manifest()
    opened.append([record(3)])
    opened.close()
    assert stored(run) == [1, 2, 3]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_power_loss_at_any_byte_keeps_every_line_before_it(tmp_path_factory, data):
    """Cut anywhere, what was acknowledged before the cut comes back; the torn rest is named and cut off."""
    path = tmp_path_factory.mktemp("power") / "run"
    opened = Store.create(path)
    opened.write_manifest(make_manifest())
    opened.append([record(number) for number in (1, 2, 3)])
    opened.close()
    file, whole = path / "records.jsonl", (path / "records.jsonl").read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    zeros = data.draw(st.sampled_from([b"", b"\0" * 9, b"\0" * 9 + b"\n"]))
    file.write_bytes(whole[:cut] + zeros)
    kept = whole[:cut].count(b"\n")
    assert [r.replicate for r in load_run(path).records][:kept] == [1, 2, 3][:kept]
    opened, _, records = Store.reopen(path)
    opened.append([record(9)])
    opened.close()
    assert [r.replicate for r in records] == [1, 2, 3][:kept]
    assert stored(path) == [*[1, 2, 3][:kept], 9]
    torn = whole[:cut][whole.rfind(b"\n", 0, cut) + 1 :] + zeros
    assert [line for line in opened.dropped if "half-written last line" in line] == (
        [f"{file}:{kept + 1}: half-written last line dropped ({len(torn)} bytes)"] if torn else []
    )


def test_two_runs_cannot_write_into_one_directory(run):
    opened, _, _ = Store.reopen(run)
    before = (run / "records.jsonl").read_bytes()
    for attempt in (Store.reopen, Store.create):
        with pytest.raises(FrugalbenchError, match="another run is writing there; wait until it has ended"):
            attempt(run)
    opened.append([record(3)])
    opened.close()
    assert (run / "records.jsonl").read_bytes().startswith(before)
    Store.reopen(run)[0].close()


def test_two_runs_that_begin_at_once_do_not_share_a_directory(tmp_path):
    first = Store.create(tmp_path / "run")
    with pytest.raises(FrugalbenchError, match="another run is writing there"):
        Store.create(tmp_path / "run")
    first.close()


def test_a_run_that_died_before_its_manifest_holds_nothing(tmp_path):
    Store.create(tmp_path / "run").close()
    Store.create(tmp_path / "run").close()


def test_folders_are_synced_when_something_was_created_or_renamed_in_them(tmp_path, monkeypatch):
    seen, real = [], module.os.fsync
    name = lambda fd: str(Path(f"/proc/self/fd/{fd}").readlink())  # noqa: E731
    monkeypatch.setattr(module.os, "fsync", lambda fd: (seen.append(name(fd)), real(fd)))
    opened = Store.create(tmp_path / "new" / "run")
    assert seen == [str(tmp_path / "new"), str(tmp_path), str(tmp_path / "new" / "run")]
    seen.clear()
    opened.write_manifest(make_manifest())
    assert seen == [str(tmp_path / "new" / "run" / ".manifest.json.partial"), str(tmp_path / "new" / "run")]
    opened.close()


def test_half_measured_replicates_are_named():
    arms = [make_arm(name) for name in "abc"]
    plan = Plan(seed=1, comparisons=(make_comparison(*arms, name="one"),))
    sampled = make_record().samples

    def measured(replicate, names, **fields):
        kept = {"samples": sampled, "status": Status.OK, "reason": "", **fields}
        cases = {arm.id: arm.cases[0] for arm in arms}
        return [make_record(comparison="one", arm=n, case=cases[n], replicate=replicate, **kept) for n in names]

    pilot = [*measured(0, "ab"), *measured(0, "c", status=Status.FAILED)]
    whole = [*pilot, *measured(1, "ab")]
    assert module.half_measured(plan, []) == module.half_measured(plan, whole) == []
    rest = "kept, not counted, measured again"
    assert module.half_measured(plan, pilot[:2]) == [f"one: replicate 0 is half-written; {rest}"]
    assert module.half_measured(plan, [*whole, *measured(2, "a")]) == [f"one: replicate 2 is half-written; {rest}"]
    cut = measured(2, "ab", interrupted=True)
    assert module.half_measured(plan, [*whole, *cut]) == [f"one: replicate 2 was interrupted; {rest}"]
    assert module.half_measured(plan, [*whole, *cut, *measured(2, "ab")]) == []


def test_scratch_folders_of_killed_runs_are_removed_others_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(module.tempfile, "mkdtemp", lambda prefix: str(_made(tmp_path / f"{prefix}newfolde")))
    stale, young, other = (_made(tmp_path / name) for name in ("frugalbench-abcdefgh", "frugalbench-bcdefghi", "other"))
    for folder in (stale, other):
        os.utime(folder, (0, 0))
    opened = Store.create(tmp_path / "run")
    os.utime(opened.scratch, (0, 0))
    module._remove_stale(tmp_path)
    assert (stale.exists(), young.exists(), other.exists(), opened.scratch.exists()) == (False, True, True, True)
    opened.close()


def _made(folder):
    folder.mkdir()
    return folder


# A disk without room, a directory without permission: on file systems of their own


@pytest.fixture
def small_disk(tmp_path):
    """64 KiB of disk, where we may mount."""
    disk = _made(tmp_path / "disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode:
        pytest.skip("may not mount here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_disk_that_fills_up_loses_nothing_and_goes_on_when_there_is_room(small_disk):
    path, written = small_disk / "run", 0
    opened = Store.create(path)
    opened.write_manifest(make_manifest())
    with pytest.raises(FrugalbenchError, match=r"No space left on device; what was measured so far is kept; make room"):
        for number in range(1, 999):
            opened.append([record(number)])
            written = number
    with pytest.raises(FrugalbenchError, match=r"manifest\.json: No space left .*; the records so far are kept"):
        opened.write_manifest(make_manifest(notes=tuple("x" * 999 for _ in range(64))))
    opened.close()
    assert written > 3
    assert stored(path) == list(range(1, written + 1))
    assert not (path / ".manifest.json.partial").exists()
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    opened, manifest, records = Store.reopen(path)
    opened.append([record(written + 1)])
    opened.close()
    assert manifest == make_manifest()
    assert (len(records), opened.dropped) == (written, ())
    assert stored(path) == list(range(1, written + 2))


def test_a_read_only_directory_is_refused_and_unchanged(small_disk):
    opened = Store.create(small_disk / "run")
    opened.write_manifest(make_manifest())
    opened.append([record(1)])
    opened.close()
    with (small_disk / "run" / "records.jsonl").open("ab") as stream:
        stream.write(b'{"half')
    before = (small_disk / "run" / "records.jsonl").read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(FrugalbenchError, match=r"cannot write there \(Read-only file system\)"):
        Store.reopen(small_disk / "run")
    with pytest.raises(FrugalbenchError, match=r"cannot write the run there \(Read-only file system\); choose another"):
        Store.create(small_disk / "other")
    assert (small_disk / "run" / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize("keep", [1, 0.5, -1])
def test_a_half_written_last_line_is_cut_off(run, keep):
    file = run / "records.jsonl"
    line = file.read_bytes().splitlines()[0]
    half = line[: int(keep * len(line))] if isinstance(keep, float) else line[:keep]
    with file.open("ab") as stream:
        stream.write(half)
    opened, _, records = Store.reopen(run)
    opened.append([record(3)])
    opened.close()
    assert [r.replicate for r in records] == [1, 2]
    assert stored(run) == [1, 2, 3]


def test_a_damaged_line_in_the_middle_is_named_and_left_alone(run):
    file = run / "records.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    damaged = first + b'{"not a record"\n' + second
    file.write_bytes(damaged)
    with pytest.raises(FrugalbenchError, match=r"records\.jsonl:2: damaged: .*\nDelete that line, or restore"):
        Store.reopen(run)
    assert file.read_bytes() == damaged


def test_an_existing_run_is_not_overwritten(run):
    before = (run / "records.jsonl").read_bytes(), (run / "manifest.json").read_bytes()
    with pytest.raises(FrugalbenchError, match="already holds a run; add --resume"):
        Store.create(run)
    assert before == ((run / "records.jsonl").read_bytes(), (run / "manifest.json").read_bytes())


def test_records_without_a_manifest_are_not_overwritten_either(run):
    (run / "manifest.json").unlink()
    before = (run / "records.jsonl").read_bytes()
    with contextlib.suppress(FrugalbenchError):
        Store.create(run).close()
    assert (run / "records.jsonl").read_bytes().startswith(before)


def test_a_newer_schema_is_refused(run):
    file = run / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(FrugalbenchError, match=f"newer frugalbench .schema {SCHEMA_VERSION + 1}"):
        read_manifest(run)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"schema_version": 1}', b"\xff\xfe"])
def test_a_damaged_manifest_is_one_plain_error(run, text):
    (run / "manifest.json").write_bytes(text)
    with pytest.raises(FrugalbenchError, match=r"manifest\.json: damaged"):
        read_manifest(run)


def test_no_run_directory_at_all(tmp_path):
    with pytest.raises(FrugalbenchError, match="not a run directory"):
        Store.reopen(tmp_path)


@pytest.mark.parametrize("place", ["/proc/frugalbench/run", "a-file/run"])
def test_an_unwritable_place_is_named(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("in the way")
    with pytest.raises(FrugalbenchError, match=r"cannot write the run there .*; choose another --out"):
        Store.create(Path(place))


def test_a_file_in_the_place_of_the_run_directory(tmp_path):
    (tmp_path / "taken").write_text("in the way")
    with pytest.raises(FrugalbenchError, match="choose another --out"):
        Store.create(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "in the way"


def test_a_full_disk_keeps_what_was_written_and_says_so(run, monkeypatch):
    opened, _, _ = Store.reopen(run)
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", _no_space)
        with pytest.raises(
            FrugalbenchError, match=r"No space left on device; what was measured so far is kept.*--resume"
        ):
            opened.append([record(3)])
    opened.close()
    again, _, records = Store.reopen(run)
    again.close()
    assert [r.replicate for r in records] == [1, 2]


def test_a_device_without_room_gives_the_same_error(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "records.jsonl").symlink_to("/dev/full")
    opened = Store(tmp_path / "run")
    with pytest.raises(FrugalbenchError, match="No space left on device"):
        opened.append([record(1)])
    opened.close()


def test_a_full_disk_leaves_the_old_manifest(run, monkeypatch):
    before = (run / "manifest.json").read_bytes()
    opened, manifest, _ = Store.reopen(run)
    monkeypatch.setattr(module.os, "fsync", _no_space)
    with pytest.raises(FrugalbenchError, match="the records so far are kept"):
        opened.write_manifest(msgspec.structs.replace(manifest, state="complete"))
    opened.close()
    assert (run / "manifest.json").read_bytes() == before


def test_the_scratch_folder_goes_with_the_store(run):
    opened, _, _ = Store.reopen(run)
    (opened.scratch / "reference").mkdir()
    opened.close()
    assert not opened.scratch.exists()


def _no_space(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
