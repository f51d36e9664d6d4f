"""results/README.md against the types of the tables, and the files against their schema.

`python tests/test_columns.py` rewrites the list of columns.
"""

import ast
import csv
import inspect
import json
from pathlib import Path

import msgspec
import pytest

from factory import make_fact, make_reading, make_record, make_run, plausible_records
from frugalbench import schema
from frugalbench.analysis import metrics
from frugalbench.analysis.load import load_run
from frugalbench.cli.main import main
from frugalbench.report import columns
from frugalbench.report.columns import EXPORTS, GLOSSARY, Export, unit_of
from frugalbench.schema import Status, Sweep, Tier

PAGE = Path(__file__).parents[1] / "results" / "README.md"
BEGIN, END = "<!-- columns: python tests/test_columns.py -->", "<!-- end of columns -->"
KINDS = {float: "number", int: "integer", bool: "flag", str: "text"}
FIRST_COLUMNS = {
    "runs": "run,name,path,state,started,ended,seed,revision,schema_version,machine,fingerprint,memory_bytes,alpha",
    "verdicts": "run,claim,regime,machine,scope,arm,verdict,metric,baseline,candidate,ratio,low,high,confidence",
    "cases": "run,machine,revision,comparison,arm,case,workload,variant,shape,regime,backend,device,dtype,status",
    "records": "run,record,comparison,arm,replicate,status,reason,interrupted,steady_load,tier,case,workload,variant",
    "samples": "run,record,round,turn,calls,time_s,start_s,void,wall_s,cpu_s,run_delay_s,steal_s,foreign_cpu_s",
    "readings": "run,record,round,role,scope,method,tier,joule,low_joule,high_joule,window_s,calls,start_s",
    "facts": "run,record,fact,value,unit,low,high,tier,source",
    "sweeps": "run,record,figure,line,input_1,at_1,input_2,at_2,value,unit,low,high,least,tier,source",
}
"""As first published: others may follow, these may not move."""

SWEEP = Sweep(
    figure="=f", unit="token/s", line="l", tier=Tier.MODELLED, over={"devices": (1.0, 2.0)}, value=(None, 2.0),
    low=(None, 1.0), high=(None, 3.0), least=0.9,
)  # fmt: skip


def meanings(line: type) -> dict[str, str]:
    """Field to the docstring below it."""
    module = next(m for m in (columns, metrics, schema) if hasattr(m, line.__name__) and line.__module__ == m.__name__)
    tree = ast.parse(inspect.getsource(module))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == line.__name__)
    found = {}
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = " ".join(after.value.value.replace("``", "`").split()) if said else ""
            found[field.target.id] = text
    return found


def table(item: Export) -> list[str]:
    known = meanings(item.line)
    head = ["", f"### {item.name}", "", "| column | holds | unit | meaning |", "|---|---|---|---|"]
    pairs = zip(item.columns(), item.kinds(), strict=True)
    return head + [
        f"| `{name}` | {KINDS[kind]} | {unit_of(name)} | {known.get(name) or GLOSSARY.get(name, '')} |"
        for name, kind in pairs
    ]


def spliced(page: str) -> str:
    head, rest = page.split(BEGIN)
    lines = "\n".join(line for item in EXPORTS for line in table(item))
    return f"{head}{BEGIN}\n{lines}\n\n{END}{rest.split(END)[1]}"


def test_page_matches_the_types() -> None:
    page = PAGE.read_text("utf-8")
    assert page == spliced(page), "results/README.md is stale: run python tests/test_columns.py"


def test_every_column_has_a_meaning_and_every_number_a_unit_or_none_to_have() -> None:
    plain = {"ratio", "low", "high", "threshold", "value", "verification_error", "output_error", "tolerance"}
    plain |= {"at_1", "at_2", "least"}
    for item in EXPORTS:
        known = meanings(item.line)
        for name, kind in zip(item.columns(), item.kinds(), strict=True):
            assert known.get(name) or GLOSSARY.get(name), f"{item.name}.{name} has no meaning"
            assert kind is not float or unit_of(name) or name in plain, f"{item.name}.{name} has no unit"


def test_columns_keep_their_places() -> None:
    found = {item.name: ",".join(item.columns()) for item in EXPORTS}
    for name, start in FIRST_COLUMNS.items():
        assert found[name].startswith(start), name


@pytest.fixture(scope="module")
def rich_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hostile = "=cmd|' /C calc'!A0\x1b[2J\x9b,\"quoted\"\nnext\u2028line"
    readings = (make_reading(round=1), make_reading(joule=None, error="lost"))
    extra = [
        make_record("a", status=Status.FAILED, reason=hostile, details={hostile: hostile}),
        make_record("b", readings=readings, facts={"=x": make_fact(None)}, case_fields={"cost": None}),
        make_record("d", sweeps=(SWEEP, msgspec.structs.replace(SWEEP, over={"a_s": (1.0, 2.0), "b": (3.0, 4.0)}))),
        make_record("c", replicate=2, worker=None, verification=None, warmup=None),
    ]
    records = [*plausible_records(2), *extra]
    return make_run(tmp_path_factory.mktemp("rich") / "run", records, name=hostile)


@pytest.mark.parametrize("item", EXPORTS, ids=lambda item: item.name)
def test_lines_fit_the_schema(rich_run: Path, item: Export) -> None:
    lines = list(item.lines([load_run(rich_run)]))
    assert lines
    kinds = item.kinds()
    for line in lines:
        assert len(line) == len(kinds)
        for value, kind in zip(line, kinds, strict=True):
            good = (int, float) if kind is float else kind
            assert value is None or isinstance(value, good), (item.name, value, kind)


def test_three_formats_say_the_same(rich_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet as pq

    for fmt in ("csv", "json", "parquet"):
        assert main(["report", str(rich_run), "--format", fmt, "--output", f"{tmp_path}/{fmt}/"]) == 0
    assert "wrote" in capsys.readouterr().out
    for item in EXPORTS:
        objects = json.loads((tmp_path / f"json/{item.name}.json").read_text("utf-8"))
        assert pq.read_table(tmp_path / f"parquet/{item.name}.parquet").to_pylist() == objects
        with (tmp_path / f"csv/{item.name}.csv").open(newline="", encoding="utf-8") as stream:
            lines = list(csv.DictReader(stream))
        assert [list(line) for line in lines[:1]] == [list(item.columns())]
        numbers = [name for name, kind in zip(item.columns(), item.kinds(), strict=True) if kind is float]
        for line, plain in zip(lines, objects, strict=True):
            assert [float(line[n]) if line[n] else None for n in numbers] == [plain[n] for n in numbers]


def test_no_cell_is_a_formula_and_json_cells_stay_json(rich_run: Path, tmp_path: Path) -> None:
    assert main(["report", str(rich_run), "--format", "csv", "--output", f"{tmp_path}/"]) == 0
    for item in EXPORTS:
        text = (tmp_path / f"{item.name}.csv").read_text("utf-8")
        assert not set(text) & {"\x1b", "\x9b", "\u2028"}
        for line in csv.DictReader(text.splitlines(keepends=True)):
            texts = [line[n] for n, kind in zip(item.columns(), item.kinds(), strict=True) if kind is str]
            assert not any(cell.startswith(("=", "+", "-", "@")) for cell in texts)
            for name in {"details", "params", "facts", "decisions", "rule"} & line.keys():
                assert isinstance(json.loads(line[name]), dict)


def test_empty_and_all_failed_runs(tmp_path: Path) -> None:
    empty = make_run(tmp_path / "empty", [])
    failed = make_run(tmp_path / "failed", [make_record(status=Status.FAILED, reason="died")])
    for fmt in ("csv", "json", "parquet"):
        assert main(["report", str(empty), str(failed), "--format", fmt, "--output", f"{tmp_path}/{fmt}/"]) == 0
    assert (tmp_path / "csv/samples.csv").read_text().count("\n") == 1
    assert json.loads((tmp_path / "json/samples.json").read_text()) == []
    assert len(json.loads((tmp_path / "json/records.json").read_text())) == 1


def test_a_folder_takes_tables_only(rich_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(rich_run), "--format", "md", "--output", str(tmp_path)]) == 2
    assert "a folder" in capsys.readouterr().err
    assert main(["report", str(rich_run), "--json", "--output", f"{tmp_path}/t/"]) == 0
    assert len(json.loads(capsys.readouterr().out)["written"]) == len(EXPORTS)


def test_types_of_the_wide_lines_follow_the_stored_ones() -> None:
    """A field that a reading or an environment gains must be exported too."""
    assert set(columns.ReadingLine.__struct_fields__[2:]) == set(schema.Reading.__struct_fields__)
    stored = {*schema.Sample.__struct_fields__, *schema.Environment.__struct_fields__} - {"environment"}
    assert set(columns.SampleLine.__struct_fields__[2:]) == stored
    assert columns.SampleLine.__struct_fields__[8:-1] == schema.Environment.__struct_fields__, "taken as they stand"


if __name__ == "__main__":
    PAGE.write_text(spliced(PAGE.read_text("utf-8")), "utf-8")
