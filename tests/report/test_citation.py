"""Tables for papers: what they rest on stands with them, and no text from a file is a command."""

import re
from pathlib import Path

import pytest

from factory import make_manifest, make_record, make_run, plausible_records
from frugalbench.analysis.command import command_of
from frugalbench.analysis.load import load_run
from frugalbench.cli.main import main
from frugalbench.report.citation import citation
from frugalbench.schema import Status


@pytest.fixture
def run(tmp_path: Path):
    hostile = r"\input{/etc/passwd} $x$ 100% _a_ ^ ~ #1 & {b} ≥ | \\ \end{longtable}" + "\nnext \x1b[2J"
    bad = make_record("x", status=Status.FAILED, reason=hostile, case_fields={"shape": hostile})
    records = [*plausible_records(), make_record("evil", case_fields={"shape": hostile, "id": "e"}), bad]
    return load_run(
        make_run(tmp_path / "run", records, config={"path": "configs/cpu.toml", "measure": {"time_budget_s": 505.0}})
    )


def test_citation_names_command_revision_machine_and_date(run) -> None:
    text = citation(run)
    for part in (
        "`frugalbench run cpu --seed 1 --time-budget 505`",
        "revision abc1234",
        "0123456789abcdef",
        "2026-01-01",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("fields", "command"),
    [
        ({"config": {"path": "mine/cpu.toml"}}, "frugalbench run mine/cpu.toml --seed 1"),
        ({"config": {"path": "configs/mine.toml"}}, "frugalbench run configs/mine.toml --seed 1"),
        ({"config": {"path": "command line"}, "name": "versus"}, "frugalbench versus …"),
        ({"versions": {"pytest-benchmark": "5.2"}, "name": "pytest-benchmark"}, ""),
    ],
)
def test_a_command_is_one_that_can_be_given(fields, command) -> None:
    assert command_of(make_manifest(**fields)) == command
    assert command_of(make_manifest(**fields), "one*") == command.replace(" --seed", " --only 'one*' --seed")


def test_latex(run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.path), "--format", "latex"]) == 0
    text = capsys.readouterr().out
    commands = set(re.findall(r"\\[a-zA-Z]+", text))
    assert not commands & {r"\input", r"\write", r"\csname"} and "\x1b" not in text
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") > 2
    for block in re.findall(r"\\begin{longtable}.*?\n\\end{longtable}", text, re.DOTALL):
        columns = len(re.search(r"{@{}([rl]+)@{}}", block)[1])
        lines = [line for line in block.splitlines() if line.endswith(r"\\") and not line.startswith((r"\c", r"\m"))]
        assert all(len(re.findall(r"(?<!\\)&", line)) == columns - 1 for line in lines)
        assert "revision abc1234" in block
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_markdown_ends_with_its_source(run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.path), "--format", "md"]) == 0
    assert "revision abc1234" in capsys.readouterr().out.partition("## Cite as")[2]
