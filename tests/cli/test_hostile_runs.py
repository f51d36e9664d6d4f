"""Every command that reads runs, on runs that somebody made to harm, break or fill: a useful page or a clear line."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory import make_fact, make_reading, make_record, make_replicates, make_run, plausible_records
from frugalbench.analysis.load import load_run
from frugalbench.analysis.plausible import MOST_NAME
from frugalbench.schema import Record, Status

ATTACK = (
    '<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\x1b]0;x\x07\x9b31m\u202e"q",\r\n|x|`y`'
    "[a](javascript:x)\\input{/etc/passwd}\u2028"
)
FORMULA = "=cmd|'/C calc'!A0"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e\u2066-\u2069]")
MANY = "A" * 10_000_000

Command = tuple[str, ...]


def readers(*runs: str) -> Iterator[Command]:
    """Commands that take several runs; FILE and FOLDER stand for places to write to."""
    for fmt in ("terminal", "md", "csv", "json", "latex"):
        yield ("report", *runs, "--format", fmt)
    yield ("report", *runs, "--format", "parquet", "--output", "FILE")
    for fmt in ("csv", "json", "parquet"):
        yield ("report", *runs, "--format", fmt, "--output", "FOLDER/")
    for options in ((), ("--json",), ("--format", "md"), ("--brief",)):
        yield ("verdicts", *runs, *options)
    for fmt in ("terminal", "csv", "json"):
        yield ("query", *runs, "SELECT * FROM records", "--format", fmt)
    yield ("query", *runs, "SELECT * FROM metrics ORDER BY ALL", "--json")


def single(run: str, other: str) -> Iterator[Command]:
    """Commands that take one run, or a pair."""
    yield ("explain", run, "net.decay")
    yield from (("explain", run, "moe.overhead", *options) for options in ((), ("--json",), ("--samples",)))
    for base, new in ((run, run), (other, run)):
        yield ("compare", base, new, "--fail-above", "5")
        yield from (
            ("compare", base, new, *options) for options in (("--json",), ("--format", "md", "--junit", "FILE"))
        )
    yield from (("history", run, "--metric", "time_s", *options) for options in ((), ("--json",)))


def hostile_records() -> list[Record]:
    """The attack wherever a record holds text, and a formula where a cell begins."""
    fields = {
        "id": ATTACK,
        "shape": ATTACK,
        "backend": ATTACK,
        "dtype": FORMULA,
        "params": {ATTACK: ATTACK, "baseline": ATTACK},
    }
    details = {
        ATTACK: [ATTACK, {ATTACK: ATTACK}],
        "placement": ATTACK,
        "curve": ATTACK,
        "items": ATTACK,
        "note": ATTACK,
    }
    facts = {ATTACK: make_fact(1.0, unit=ATTACK, source=ATTACK)}
    readings = (make_reading(round=1, scope=ATTACK, note=ATTACK), make_reading(None, error=ATTACK))
    arms = ("dense-equal-active", "moe-sorted", FORMULA)
    made = [
        make_replicates(
            name, 0.01, 3, case_fields={**fields, "id": name + ATTACK}, details=details, facts=facts, readings=readings
        )
        for name in arms
    ]  # fmt: skip
    modelled = make_record(
        "net.decay", ATTACK, "cluster_model", time_s=None, case_fields=fields,
        facts={"ratio": make_fact(0.5, source=ATTACK)},
    )  # fmt: skip
    odd = [
        make_record(ATTACK, ATTACK, ATTACK),
        make_record("moe-sorted", "prefill", status=Status.FAILED, reason=ATTACK),
    ]
    return [*(record for arm in made for record in arm), *odd, modelled]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs by name."""
    folder = tmp_path_factory.mktemp("hostile")
    make_run(
        folder / "attack", hostile_records(), name=ATTACK, run_id=ATTACK, revision=ATTACK, state=ATTACK, started=ATTACK,
        ended=ATTACK, notes=(ATTACK, FORMULA), claims_hash=ATTACK, versions={ATTACK: ATTACK},
    )  # fmt: skip
    make_run(folder / "good", plausible_records(2), run_id="good")
    make_run(folder / "empty", [])
    make_run(folder / "nothing", [])
    (folder / "nothing" / "records.jsonl").unlink()
    arms = ("dense-equal-active", "moe-sorted")
    make_run(folder / "failed", [make_record(name, status=Status.FAILED, reason="died") for name in arms])
    older(make_run(folder / "older", plausible_records(2), run_id="older"))
    large = [
        make_record("moe-sorted", "batch", status=Status.FAILED, reason=MANY),
        make_record("dense", details={"note": MANY}, case_fields={"shape": "s"}),
        make_record("dense", facts={"f": make_fact(1.0, source=MANY)}, case_fields={"shape": "t"}),
    ]
    make_run(folder / "large", [*plausible_records(2), *large], run_id="large")
    return folder


def older(run: Path) -> None:
    """As written before the fields that have a default were known."""
    manifest = json.loads((run / "manifest.json").read_text())
    for name in ("machine_after", "ended", "harness", "decisions", "notes", "floor"):
        manifest.pop(name, None)
    (run / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 0}))
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    for record in lines:
        for name in ("readings", "details", "tier", "interrupted", "steady_load", "warmup"):
            record.pop(name, None)
    (run / "records.jsonl").write_text("".join(f"{json.dumps(record | {'schema_version': 0})}\n" for record in lines))


def harmless(call, folder: Path, tmp_path: Path, command: Command) -> str:
    """What the command printed, after the looks that all share."""
    places = {"FILE": tmp_path / "file", "FOLDER/": f"{tmp_path}/tables/"}
    words = [places.get(word, folder / word if (folder / word).is_dir() else word) for word in command]
    answer = call(*words)
    assert answer.code in (0, 1, 2), (command, answer.err[-2000:])
    assert "Traceback" not in answer.err + answer.out
    assert not CONTROL.search(answer.out) and not CONTROL.search(answer.err), command
    assert len(answer.err) < 20_000
    if answer.code == 2:
        answer.is_problem()
    elif "--json" in command:
        assert answer.json is not None
    return answer.out


def test_an_attack_stays_text(call, folder: Path, tmp_path: Path) -> None:
    together = [
        ("verdicts", "good", "attack"),
        *(("report", "good", "attack", "--format", f) for f in ("terminal", "md")),
    ]
    for command in (*readers("attack"), *single("attack", "good"), *together):
        printed = harmless(call, folder, tmp_path, command)
        if "latex" in command:
            assert "\\input{" not in printed
        if "csv" in command:
            assert not re.search(r'(?m)(^|,)"?=', printed)


@pytest.mark.parametrize("run", ["empty", "nothing", "failed", "older"])
def test_a_page_or_a_clear_line(call, folder: Path, tmp_path: Path, run: str) -> None:
    several = [("report",), ("report", "--format", "md"), ("verdicts", "--json")]
    several += [("report", "--format", fmt, "--output", "FOLDER/") for fmt in ("csv", "parquet")]
    alone = [("explain", run, "moe.overhead"), ("compare", "good", run), ("compare", run, run), ("history", run)]
    both = [(verb, *runs, *rest) for verb, *rest in several for runs in ((run,), ("good", run))]
    for command in (*both, *alone, ("query", "good", run, "SELECT * FROM records")):
        harmless(call, folder, tmp_path, command)


def test_the_page_of_an_attack_runs_nothing(call, folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("frugalbench.report.charts.available", lambda: False)
    page = harmless(call, folder, tmp_path, ("report", "attack", "good", "empty", "--format", "html"))
    assert "<script>alert" not in page and "<img src=x" not in page and "alert(1)" in page


def test_fields_of_ten_megabytes(call, folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Shown cut; whole in the files made for programs, once for each time that they are stored."""
    monkeypatch.setattr("frugalbench.report.charts.available", lambda: False)
    shown = [("report", "large", "--format", fmt) for fmt in ("terminal", "md", "html")]
    shown += [("verdicts", "large", "--json"), ("explain", "large", "moe.overhead"), ("compare", "good", "large")]
    for command in shown:
        assert 0 < len(harmless(call, folder, tmp_path, command)) < 2_000_000, command
    harmless(call, folder, tmp_path, ("report", "large", "--format", "csv", "--output", "FOLDER/"))
    assert sum(file.stat().st_size for file in (tmp_path / "tables").iterdir()) < 8 * len(MANY)


@pytest.mark.parametrize("name", ["run_id", "revision", "name"])
def test_a_name_that_tables_would_repeat_in_every_line(call, tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", plausible_records(2), **{name: "A" * (MOST_NAME + 1)})
    assert f"{name}: a text of {MOST_NAME + 1}" in call("report", run).is_problem().err
    make_run(tmp_path / "run", plausible_records(2), **{name: "A" * MOST_NAME})
    assert call("report", run).code == 0


HIDE = """
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in {hidden}
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
from frugalbench.cli.main import main
codes = []
for command in {commands}:
    try:
        codes.append(main(command))
    except SystemExit as ending:
        codes.append(ending.code)
print("codes", codes, file=sys.stderr)
"""


def test_without_any_optional_package(folder: Path, tmp_path: Path) -> None:
    """A page without charts, tables without parquet, a history without marks; and what to install for the rest."""
    hidden = {"altair", "vl_convert", "pyarrow", "duckdb", "ruptures", "fsspec", "pandas", "polars", "torch"}
    run = str(folder / "good")
    works = [
        ["report", run, "--format", "html", "--output", f"{tmp_path}/page.html"], ["report", run],
        ["report", run, "--format", "csv", "--output", f"{tmp_path}/t/"], ["verdicts", run], ["compare", run, run],
        ["explain", run, "moe.overhead"], ["history", run, "--metric", "time_s"],
    ]  # fmt: skip
    refuses = [
        ["report", run, "--format", "parquet", "--output", f"{tmp_path}/x.parquet"], ["query", run, "SELECT 1"],
        ["report", run, "--format", "parquet", "--output", f"{tmp_path}/t/"], ["report", "s3://bucket/run"],
    ]  # fmt: skip
    program = HIDE.replace("{hidden}", repr(hidden)).replace("{commands}", repr(works + refuses))
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert made.stderr.splitlines()[-1] == f"codes {[0] * len(works) + [2] * len(refuses)}", made.stderr
    assert made.stderr.count("pip install") == len(refuses) and "Traceback" not in made.stderr
    assert "pip install" in (tmp_path / "page.html").read_text() and "ruptures" in made.stdout
    assert load_run(run).metrics("list")
