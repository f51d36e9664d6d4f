"""A run directory never loses or overwrites what is in it, and says what is wrong with it."""

import contextlib
import errno
import json
import os
from pathlib import Path

import msgspec
import pytest

from factory import make_manifest, make_record
from frugalbench.run import store as module
from frugalbench.run.store import Store, read_manifest
from frugalbench.schema import SCHEMA_VERSION, FrugalbenchError, decode_record


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
    damaged = b'{"not a record"\n' + file.read_bytes()
    file.write_bytes(damaged)
    with pytest.raises(FrugalbenchError, match=r"records\.jsonl.*damaged"):
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
