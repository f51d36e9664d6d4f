"""Whatever is asked wrongly: one to three lines that name the place and the remedy, the right exit code, no loss."""

import json
from pathlib import Path

import msgspec
import pytest

from factory import make_run, plausible_records
from frugalbench import schema
from frugalbench.analysis.claims import claims_hash
from frugalbench.config import load_config
from frugalbench.machine import Machine

READERS = (("verdicts",), ("report",), ("report", "--format", "csv"), ("verdicts", "--json"))


@pytest.fixture
def config(tmp_path):
    """Writes a config file and returns its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "mine.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture(params=["plan", "run"])
def verb(request):
    """Both commands that read a config refuse it alike."""
    return request.param


# Configs


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("smok",), "'smoke'"),
        (("no/such.toml",), "no such config file"),
        (("smoke", "--set", "rounds"), "KEY=VALUE"),
        (("smoke", "--set", "measure.round=1"), "'rounds'"),
        (("smoke", "--set", "workload.moe_ffn.scal=1"), "'scale'"),
        (("smoke", "--set", "workload.moe_ffn.shape=qwen3"), "'qwen3"),
        (("smoke", "--set", "workload.moe_ffn.variants=['moe-sort']"), "'moe-sorted'"),
        (("smoke", "--set", "workload.quantized_linear.shape=4096"), "shape"),
        (("smoke", "--device", "gpu"), "unknown device 'gpu'"),
        (("smoke", "--only", "zzz"), "--only zzz"),
    ],
)
def test_a_request_that_is_wrong(call, verb, arguments, says) -> None:
    assert says in call(verb, *arguments).is_problem().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed = \n", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        ("sed = 1\n", "'seed'"),
        ("[measure]\nround = 1\n", "'rounds'"),
        ("[energy]\nmeters = 'none'\n", "'meter'"),
        ("[[workload]]\nname = 'moe_ffn'\nscal = 1.0\n", "'scale'"),
        ("[measure]\nrounds = 'x'\n", "'rounds'"),
        ("[[workload]]\nname = 'moe_ffn'\nscale = 'x'\n", "'scale'"),
        ("[[workload]]\nname = 'moe'\n", "'moe_ffn'"),
        ("[[workload]]\nname = 'allreduce'\nranks = 'x'\n", "'ranks'"),
    ],
)
def test_a_config_that_is_wrong(call, verb, config, text, says) -> None:
    path = config(text)
    answer = call(verb, path).is_problem()
    assert says in answer.err and str(path) in answer.err


def test_looks_that_are_empty(call, config) -> None:
    call("plan", config("[measure]\nlooks = []\n[[workload]]\nname = 'cluster_model'\n")).is_problem()


def test_cuda_without_cuda(call, verb) -> None:
    if list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has an NVIDIA device")
    assert "NVIDIA" in call(verb, "smoke", "--device", "cuda").is_problem(3).err


def test_nothing_to_run(call, verb, config) -> None:
    call(verb, config("seed = 1\n")).is_problem(3)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("plan",),
        ("plan", "smoke", "--nonsense"),
        ("report", "x", "--format", "pdf"),
        ("compare", "x"),
    ],
)
def test_flags_that_are_wrong(call, arguments) -> None:
    answer = call(*arguments)
    assert answer.code == 2 and answer.out == "" and "error:" in answer.err and "Traceback" not in answer.err


def test_unknown_cluster(call) -> None:
    assert "'uniform'" in call("simulate", "unifrom").is_problem().err
    call("simulate", "no/such.toml").is_problem()


# Run directories that are not what they should be


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["nothing-there", "empty", "a-file"])
def test_not_a_run_directory(call, tmp_path, reader, name) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a-file").write_text("no run")
    assert name in call(*reader, tmp_path / name).is_problem().err


@pytest.mark.parametrize("reader", READERS)
def test_a_half_written_last_line_is_dropped_with_a_note(call, stored, reader) -> None:
    lines = (stored / "records.jsonl").read_bytes().splitlines(keepends=True)
    (stored / "records.jsonl").write_bytes(b"".join(lines[:-1]))
    whole = call(*reader, stored)
    (stored / "records.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    half = call(*reader, stored)
    assert half.code == 0 and "Traceback" not in half.err
    assert "half-written" in half.err + half.out
    if "half-written" not in half.out:
        assert half.out == whole.out


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_last_line_cut_anywhere_is_dropped(call, stored, cut) -> None:
    file = stored / "records.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + '{"schema_version":1,"comparison":"µµµµµµµµµµ","arm":"a"'.encode()[:cut])
    assert call("verdicts", stored).code == 0


@pytest.mark.parametrize("damage", [b"{not json}\n", b'{"schema_version":1}\n', b"[]\n", b"\x00\x01\n"])
def test_a_corrupt_middle_line_is_named(call, stored, damage) -> None:
    file = stored / "records.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:3], damage, *lines[4:]]))
    for reader in READERS:
        assert f"{file}:4" in call(*reader, stored).is_problem().err


def test_a_line_that_is_not_text_is_named(call, stored) -> None:
    file = stored / "records.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"t0", b"\xff\xfe")
    file.write_bytes(b"".join(lines))
    assert f"{file}:4" in call("verdicts", stored).is_problem().err


def newer(line: bytes) -> bytes:
    return json.dumps({**json.loads(line), "schema_version": schema.SCHEMA_VERSION + 1}).encode()


@pytest.mark.parametrize("reader", READERS)
def test_a_newer_schema(call, stored, reader) -> None:
    file = stored / "records.jsonl"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([newer(lines[0]), *lines[1:]]) + b"\n")
    assert "pgrade" in call(*reader, stored).is_problem().err
    file.write_bytes(b"\n".join(lines) + b"\n")
    manifest = stored / "manifest.json"
    manifest.write_bytes(newer(manifest.read_bytes()))
    assert "pgrade" in call(*reader, stored).is_problem().err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": "one"}', '{"schema_version": 1}'])
def test_a_damaged_manifest(call, stored, text) -> None:
    (stored / "manifest.json").write_text(text)
    assert "manifest.json" in call("verdicts", stored).is_problem().err


def test_an_unfinished_run_is_read_with_a_note(call, tmp_path) -> None:
    run = make_run(
        tmp_path / "cut",
        plausible_records(),
        state="interrupted",
        ended=None,
        machine_after=None,
        claims_hash=claims_hash(),
    )
    answer = call("verdicts", run, "--json")
    assert answer.code == 0 and answer.json and "not complete" in answer.err


def test_a_run_without_records(call, stored) -> None:
    (stored / "records.jsonl").unlink()
    answer = call("verdicts", stored, "--json")
    assert answer.code == 0 and "records.jsonl" in answer.err
    assert {row["verdict"] for row in answer.json} == {"not tested"}


def test_compare_names_the_run_that_is_none(call, stored, tmp_path) -> None:
    assert "nowhere" in call("compare", stored, tmp_path / "nowhere").is_problem().err


# Nothing is overwritten


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_out_that_holds_a_run(call, stored) -> None:
    before = content(stored)
    assert "--resume" in call("run", "smoke", "--out", stored).is_problem().err
    assert content(stored) == before


def test_out_below_a_file(call, tmp_path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    for out in (file, file / "run"):
        assert str(out) in call("run", "smoke", "--out", out).is_problem().err
    assert file.read_text() == "precious"


def test_out_with_records_and_no_manifest_is_not_appended_to(call, stored) -> None:
    (stored / "manifest.json").unlink()
    before = content(stored)
    call("run", "smoke", "--only", "cluster_model", "--out", stored).is_problem()
    assert content(stored) == before


def test_resume_needs_its_run_and_its_machine(call, stored, tmp_path) -> None:
    assert "--out" in call("run", "smoke", "--resume").is_problem().err
    assert "nowhere" in call("run", "smoke", "--resume", "--out", tmp_path / "nowhere").is_problem().err
    before = content(stored)
    assert "another machine" in call("run", "smoke", "--resume", "--out", stored).is_problem().err
    assert content(stored) == before


@pytest.fixture
def mine(tmp_path):
    """A run of this very machine, so that nothing but its content speaks against going on with it."""
    machine = {"fingerprint": Machine.detect().fingerprint}
    config = msgspec.to_builtins(load_config("smoke"))
    return make_run(tmp_path / "mine", plausible_records(), machine_before=machine, config=config, state="interrupted")


def refuses_to_resume(call, run: Path, says: str) -> None:
    before = content(run)
    assert says in call("run", "smoke", "--resume", "--out", run).is_problem().err
    assert content(run) == before


def test_resume_of_a_damaged_run_changes_nothing(call, mine) -> None:
    file = mine / "records.jsonl"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([*lines[:2], b"{", *lines[3:]]) + b"\n")
    refuses_to_resume(call, mine, "records.jsonl")


def test_resume_of_a_newer_run_changes_nothing(call, mine) -> None:
    (mine / "manifest.json").write_bytes(newer((mine / "manifest.json").read_bytes()))
    refuses_to_resume(call, mine, "newer")


def test_resume_of_newer_records_changes_nothing(call, mine) -> None:
    file = mine / "records.jsonl"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([*lines[:2], newer(lines[2]), *lines[3:]]) + b"\n")
    refuses_to_resume(call, mine, "newer")


def test_resume_of_a_run_whose_config_cannot_be_read(call, mine) -> None:
    manifest = json.loads((mine / "manifest.json").read_text())
    manifest["config"] = {"measure": {"rounds": "many"}}
    (mine / "manifest.json").write_text(json.dumps(manifest))
    refuses_to_resume(call, mine, "manifest.json")


# In a process of its own


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [("claims",), ("claims", "--json")])
def test_stdout_on_a_full_disk(child, arguments) -> None:
    with Path("/dev/full").open("w") as full:
        answer = child(*arguments, stdout=full)
    assert answer.code not in (0, 120) and "Traceback" not in answer.err


def test_a_closed_pipe_is_silent(child) -> None:
    import os

    reading, writing = os.pipe()
    os.close(reading)
    try:
        answer = child("claims", stdout=writing)
    finally:
        os.close(writing)
    assert answer.err == ""


@pytest.mark.parametrize("arguments", [("verdicts", "nowhere"), ("plan", "smok"), ("simulate", "nope")])
def test_the_process_fails_as_the_function_does(child, arguments) -> None:
    child(*arguments).is_problem()
