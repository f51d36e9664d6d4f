"""Whatever is asked wrongly: one to three lines that name the place and the remedy, the right exit code, no loss."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from factory import make_run, plausible_records
from frugalbench import schema
from frugalbench.analysis import load
from frugalbench.analysis.claims import claims_hash
from frugalbench.config import load_config
from frugalbench.machine import Machine
from frugalbench.plan import make_plan
from frugalbench.run.store import Store

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


# Run directories that somebody laid as a trap

EVERY_READER = (
    ("verdicts",), ("verdicts", "--json"), ("verdicts", "--format", "md"), ("report",), ("report", "--json"),
    ("report", "--format", "md"), ("report", "--format", "csv"), ("report", "--format", "html"),
)  # fmt: skip


def refused_by_all(call, run: Path, says: str) -> None:
    for reader in EVERY_READER:
        assert says in call(*reader, run).is_problem().err
    assert says in call("compare", run, run).is_problem().err


def replaced(file: Path, make) -> None:
    file.unlink()
    make(file)


@pytest.mark.parametrize("name", ["manifest.json", "records.jsonl"])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "not a regular file"),
        (lambda file: file.symlink_to("/dev/zero"), "not a regular file"),
        (Path.mkdir, "Is a directory"),
        (lambda file: file.symlink_to("."), "Is a directory"),
        (lambda file: file.symlink_to("/proc/self/mem"), "json"),
    ],
    ids=["pipe", "device", "folder", "link to a folder", "memory"],
)
def test_what_is_no_file_is_refused_and_not_waited_for(call, stored, name, make, says) -> None:
    replaced(stored / name, make)
    refused_by_all(call, stored, says)


def test_a_link_to_nowhere(call, stored) -> None:
    replaced(stored / "records.jsonl", lambda file: file.symlink_to("/nowhere"))
    assert "records.jsonl: missing" in call("verdicts", stored).err
    replaced(stored / "manifest.json", lambda file: file.symlink_to("/nowhere"))
    refused_by_all(call, stored, "not a run directory")


@pytest.mark.parametrize(
    ("name", "size"), [("manifest.json", load.MOST_MANIFEST_BYTES), ("records.jsonl", load.MOST_RECORDS_BYTES)]
)
def test_a_file_of_endless_zeros(call, stored, name, size) -> None:
    with (stored / name).open("r+b") as stream:
        stream.truncate(size + 1)
    refused_by_all(call, stored, str(size))


def test_an_endless_line(call, stored) -> None:
    lines = (stored / "records.jsonl").read_bytes().splitlines()
    long = lines[2][:-1] + b" " * load.MOST_LINE_BYTES + b"}"
    (stored / "records.jsonl").write_bytes(b"\n".join([*lines[:2], long, *lines[3:]]) + b"\n")
    refused_by_all(call, stored, "records.jsonl:3")


@pytest.mark.parametrize("depth", [100, 5_000, 500_000])
@pytest.mark.parametrize("name", ["machine_before", "config", "machine_after"])
def test_brackets_in_brackets_in_the_manifest(call, stored, depth, name) -> None:
    manifest = json.loads((stored / "manifest.json").read_bytes())
    text = json.dumps(manifest | {name: "HERE"}).replace('"HERE"', '{"a":' + "[" * depth + "]" * depth + "}")
    (stored / "manifest.json").write_text(text)
    refused_by_all(call, stored, "manifest.json")


@pytest.mark.parametrize("depth", [100, 5_000])
def test_brackets_in_brackets_in_a_record(call, stored, depth) -> None:
    lines = (stored / "records.jsonl").read_text().splitlines()
    record = json.loads(lines[5]) | {"details": "HERE"}
    lines[5] = json.dumps(record).replace('"HERE"', '{"a":' + "[" * depth + "]" * depth + "}")
    (stored / "records.jsonl").write_text("\n".join(lines) + "\n")
    for reader in EVERY_READER:
        answer = call(*reader, stored)
        assert answer.code == (2 if depth > 1000 else 0) and "Traceback" not in answer.err


def with_number(stored: Path, place: tuple, text: str) -> None:
    """Put a number, as JSON text, into a sample, the cost or the record."""
    lines = (stored / "records.jsonl").read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if json.loads(line)["samples"] and json.loads(line)["replicate"])
    record = json.loads(lines[number])
    holder = record
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = "HERE"
    lines[number] = json.dumps(record).replace('"HERE"', text)
    (stored / "records.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("text", ["1e999", "NaN", "-1", "1e300", "1e-320", "9" * 5000, "9" * 300, '"x"', "null"])
@pytest.mark.parametrize(
    "place",
    [
        ("samples", 0, "time_s"),
        ("samples", 1, "calls"),
        ("case", "cost", "flop"),
        ("replicate",),
        ("samples", 0, "round"),
    ],
    ids=lambda place: place[-1],
)
def test_numbers_that_no_measurement_gives(call, stored, place, text) -> None:
    with_number(stored, place, text)
    assert "records.jsonl:" in call("verdicts", stored).is_problem().err


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "1e308", '"x"', "[]", "null", "true", "9" * 300])
@pytest.mark.parametrize("name", ["ranks", "size_bytes"])
def test_parameters_that_make_no_sense_are_left_out_of_the_fit(call, stored, name, text) -> None:
    lines = (stored / "records.jsonl").read_text().splitlines()
    for number, line in enumerate(lines):
        record = json.loads(line)
        if record["case"]["workload"] == "allreduce":
            record["case"]["params"][name] = "HERE"
            lines[number] = json.dumps(record).replace('"HERE"', text)
    (stored / "records.jsonl").write_text("\n".join(lines) + "\n")
    for reader in (("report",), ("report", "--format", "md")):
        assert call(*reader, stored).code == 0


@pytest.mark.parametrize("text", ["-1", "1e300", '"x"', "2"])
def test_a_floor_that_is_none(call, stored, text) -> None:
    manifest = json.loads((stored / "manifest.json").read_bytes())
    (stored / "manifest.json").write_text(json.dumps(manifest | {"floor": "HERE"}).replace('"HERE"', text))
    assert "manifest.json" in call("verdicts", stored).is_problem().err


def test_what_a_run_says_does_not_reach_the_terminal_as_it_is(call, tmp_path) -> None:
    attack = "\x1b[2J\x9b31m\u202e[/red]"
    run = make_run(tmp_path / "run", plausible_records(), name=attack, state=attack, notes=(attack,), revision=attack)
    for reader in EVERY_READER:
        answer = call(*reader, run)
        assert answer.code == 0
        assert not set("\x1b\x9b\u202e") & set(answer.out + answer.err)
    (run / "records.jsonl").write_bytes(b'{"\x1b[2J": 1}\n')
    assert "\x1b" not in call("verdicts", run).is_problem().err


@pytest.mark.parametrize("limit", ["-200", "nan", "inf", "1e300"])
def test_a_limit_that_is_none(call, stored, limit) -> None:
    assert "--fail-above" in call("compare", stored, stored, f"--fail-above={limit}").is_problem().err


# Code that a config names

PLUGIN = Path(__file__).parents[1] / "fixtures" / "plugin" / "doubling.toml"


def test_code_needs_permission(call, verb) -> None:
    answer = call(verb, PLUGIN).is_problem()
    assert "--allow-code" in answer.err and "doubling.py" in answer.err and str(PLUGIN) in answer.err
    assert not Path("runs").exists()


def test_nothing_of_the_code_runs_without_permission(call, verb, config, tmp_path) -> None:
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for name in ("own.py:Kernel", f"{tmp_path}/own.py:Kernel", "../own.py:Kernel", "this:Kernel"):
        call(verb, config(f"[[workload]]\nname = '{name}'\n")).is_problem()
    assert not (tmp_path / "ran").exists()
    call(verb, tmp_path / "mine.toml", "--set", "workload.this:Kernel.name='own.py:Kernel'").is_problem()
    assert not (tmp_path / "ran").exists()
    call(verb, tmp_path / "mine.toml", "--set", "workload=[{name='own.py:Kernel'}]", "--allow-code").is_problem()
    assert (tmp_path / "ran").exists()


@pytest.mark.real
def test_a_workload_of_ones_own_is_measured_and_judged(child, call, tmp_path) -> None:
    out = tmp_path / "run"
    answer = child("run", str(PLUGIN), "--allow-code", "--out", str(out))
    assert answer.code == 0, answer.err
    records = load.load_run(out).records
    assert {r.case.workload for r in records} == {"doubling.py:Doubling"}
    assert {(r.case.variant, r.replicate, r.status.value) for r in records} >= {("product", 1, "ok"), ("sum", 2, "ok")}
    assert all(r.verification is not None and r.verification.passed for r in records)
    assert "sum" in call("report", out).out
    assert "--allow-code" in child("run", str(PLUGIN), "--resume", "--out", str(out)).is_problem().err
    assert child("run", str(PLUGIN), "--resume", "--allow-code", "--out", str(out)).code == 0


@pytest.mark.real
def test_a_module_lying_about_is_not_imported(tmp_path) -> None:
    """Workers start beside whatever the user's folder holds; a numpy.py of a stranger is not for them."""
    (tmp_path / "work" / "numpy.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit\n")
    program = [sys.executable, "-P", "-m", "frugalbench.cli.main"]  # like the console script, it does not look here
    arguments = ["run", str(PLUGIN), "--allow-code", "--out", str(tmp_path / "run")]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


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


def test_resume_of_a_plan_that_somebody_edited_imports_nothing(call, mine) -> None:
    manifest = json.loads((mine / "manifest.json").read_text())
    plan = json.loads(schema.encode(make_plan(load_config("smoke"), Machine.detect(), "*machine_peaks*")))
    manifest["plan"] = plan
    plan["comparisons"][0]["arms"][0]["imports"] = ["this"]
    (mine / "manifest.json").write_text(json.dumps(manifest))
    refuses_to_resume(call, mine, "its plan is not what its config expands to")


def test_resume_of_a_config_that_runs_code(call, mine) -> None:
    manifest = json.loads((mine / "manifest.json").read_text())
    manifest["config"]["workloads"] = [{"name": "this:Kernel"}]
    (mine / "manifest.json").write_text(json.dumps(manifest))
    refuses_to_resume(call, mine, "--allow-code")


def test_resume_writes_through_no_link(call, mine, tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("")
    records = (mine / "records.jsonl").read_bytes()
    (mine / "records.jsonl").unlink()
    (mine / "records.jsonl").symlink_to(precious)
    assert "is a link" in call("run", "smoke", "--resume", "--out", mine, "--only", "cluster_model").is_problem().err
    (mine / "records.jsonl").unlink()
    (mine / "records.jsonl").write_bytes(records)
    (mine / ".manifest.json.partial").symlink_to(precious)
    opened, manifest, _ = Store.reopen(mine)
    opened.write_manifest(manifest)
    opened.close()
    assert precious.read_text() == ""


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
