"""Marked regions are replaced, everything else stays to the byte."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.report.splice import commands, splice, splice_text
from frugalbench.schema import FrugalbenchError

BEGIN = "<!-- BEGIN frugalbench verdicts results/cpu --format md -->"
END = "<!-- END frugalbench verdicts -->"
PLAIN = st.text(st.characters(exclude_characters="<\r", exclude_categories=["Cs"]), max_size=40)


@given(before=PLAIN, old=PLAIN, new=PLAIN, after=PLAIN)
def test_only_the_region_changes_and_a_second_time_changes_nothing(before: str, old: str, new: str, after: str) -> None:
    text = f"{before}{BEGIN}\n{old}\n{END}{after}"
    once = splice_text(text, lambda _: new)
    assert once == f"{before}{BEGIN}\n{new.strip(chr(10))}\n{END}{after}"
    assert splice_text(once, lambda _: new) == once


def test_each_command_gets_its_own_text(tmp_path: Path) -> None:
    other = BEGIN.replace("results/cpu", "results/gpu")
    file = tmp_path / "README.md"
    file.write_text(f"a\n{BEGIN}\n{END}\nb\n{other}\nold\n{END}\nc\n")
    assert commands(file.read_text()) == (
        "frugalbench verdicts results/cpu --format md",
        "frugalbench verdicts results/gpu --format md",
    )
    assert splice(file, lambda command: command.split()[2])
    assert file.read_text() == f"a\n{BEGIN}\nresults/cpu\n{END}\nb\n{other}\nresults/gpu\n{END}\nc\n"
    assert not splice(file, lambda command: command.split()[2])


@pytest.mark.parametrize("text", ["no marker", f"{BEGIN}\nno end", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_bad_markers_are_errors_and_leave_the_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(FrugalbenchError, match=r"README\.md"):
        splice(file, lambda _: "new")
    assert file.read_text() == text


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FrugalbenchError, match="cannot be spliced"):
        splice(tmp_path / "none.md", lambda _: "")
