"""Text from strangers stays text: in a terminal, a page, a spreadsheet and on a forge."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory import make_record, make_replicates, make_run, make_verdict
from frugalbench.analysis.load import Run, load_run
from frugalbench.analysis.metrics import rows
from frugalbench.report import safe
from frugalbench.report.export import to_csv
from frugalbench.report.render import render
from frugalbench.report.tables import Cell, Table
from frugalbench.report.terminal import table_terminal
from frugalbench.schema import Record, Status

ATTACKS = (
    "\x1b[2J\x1b]0;title\x07", "\x9b31mred", "\u202eelif", "[/red] [bold]x", "<img src=x onerror=alert(1)>",
    "</style><script>alert(1)</script>", '" onmouseover="alert(1)', "[click](javascript:alert(1))", "![](http://x/y.png)",
    "[a]: http://x", "=cmd|'/c calc'!A1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "a|b", "`x`", "\ue000",
    "<!-- END frugalbench verdicts -->", "line\nbreak",
)  # fmt: skip
COLUMNS = (("name", False), ("number", True))


def page(attack: str) -> list[Record]:
    """Records in which the attack stands wherever they can hold text."""
    fields = {"case_fields": {"shape": attack, "id": f"id {attack}", "backend": attack, "dtype": attack}}
    return [
        *make_replicates(f"variant {attack}", 0.01, 3, regime=attack, **fields),
        make_record(attack, status=Status.FAILED, reason=attack, case_fields={"id": attack}),
        make_record("dense", workload=attack, status=Status.SKIPPED, reason=attack),
    ]


@pytest.fixture(params=ATTACKS, ids=ascii)
def attacked(request, tmp_path) -> tuple[str, Run]:
    attack = request.param
    records = page(attack)
    machine = {"fingerprint": attack, "name": attack, attack: attack}
    made = make_run(
        tmp_path / "run", records, name=attack, run_id=attack, notes=(attack,), revision=attack, state=attack,
        versions={attack: attack}, started=attack,
    )  # fmt: skip
    run = load_run(made)
    return attack, Run(run.path, msgspec.structs.replace(run.manifest, machine_before=machine), run.records, (attack,))


def rendered(run: Run, attack: str, fmt: str) -> str:
    verdict = make_verdict(attack, reason=attack, candidate=attack, baseline=attack, source=attack, regime=attack)
    content = render([run], [verdict], fmt)
    assert isinstance(content, str)
    return content


def test_a_terminal_gets_no_control_character(attacked) -> None:
    attack, run = attacked
    text = rendered(run, attack, "terminal")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_page_gets_no_tag_attribute_or_address(attacked) -> None:
    attack, run = attacked
    parser = Tags()
    text = rendered(run, attack, "html")
    parser.feed(text)
    tags = [tag for tag, _ in parser.found]
    assert not {"img", "iframe", "object", "link", "base", "form"} & set(tags) and tags.count("script") == 2
    for _, attributes in parser.found:
        assert not any(name.startswith("on") or name == "src" for name in attributes), attributes
        assert (attributes.get("href") or "#").startswith("#")
    policies = [a["content"] for tag, a in parser.found if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1 and policies[0] is not None and "default-src 'none'" in policies[0]
    assert "\x1b" not in text and "\x9b" not in text and "\u202e" not in text


def test_a_spreadsheet_computes_nothing(attacked) -> None:
    attack, run = attacked
    for line in list(csv.reader(io.StringIO(rendered(run, attack, "csv"))))[1:]:
        for value in line:
            assert not value.startswith(("=", "+", "@", "\t", "\r")), value
            assert not value.startswith("-") or re.fullmatch(r"-\d.*", value)


def test_a_forge_renders_text(attacked) -> None:
    attack, run = attacked
    text = rendered(run, attack, "md")
    assert "<img" not in text and "<script" not in text and "<!--" not in text
    assert not re.search(r"(?<!\\)\]\(", text) and not re.search(r"(?<!\\)\]:", text)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    heads = [width for line, width in zip(tables, widths, strict=True) if set(line) <= set("|-:")]
    assert set(widths) == set(heads)


def test_json_says_the_same_and_holds_no_control_character(attacked) -> None:
    attack, run = attacked
    text = rendered(run, attack, "json")
    assert not re.search("[\x7f-\x9f\u202a-\u202e]", text)
    assert json.loads(text)["runs"][0]["name"] == attack


@given(st.text())
def test_json_text_changes_no_meaning(text) -> None:
    document = json.dumps({"a": text}, ensure_ascii=False)
    assert json.loads(safe.json_text(document)) == {"a": text}


@given(st.text())
def test_no_text_becomes_a_formula(text) -> None:
    assert str(safe.csv_value(text))[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n")


@given(st.one_of(st.integers(), st.floats(), st.booleans(), st.none()))
def test_numbers_stay_numbers(value) -> None:
    assert safe.csv_value(value) is value


def test_negative_numbers_reach_the_csv_as_numbers(tmp_path) -> None:
    run = load_run(make_run(tmp_path / "run", make_replicates("a", 0.01, 2)))
    row = msgspec.structs.replace(rows(run)[0], time_s=-1.5, reason="-1.5")
    line = next(csv.DictReader(io.StringIO(to_csv([row]))))
    assert (line["time_s"], line["reason"]) == ("-1.5", "'-1.5")


@given(st.text())
def test_a_cell_is_one_line_in_terminal_and_markdown(text) -> None:
    assert len(safe.terminal(text).splitlines()) <= 1
    assert len(safe.markdown(text).splitlines()) <= 1


@given(st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), min_size=1).map(str.strip).filter(bool))
def test_rich_markup_is_not_interpreted(text) -> None:
    table = Table(text, ((text, False), ("n", True)), ((Cell(text), Cell("1")),), (text,))
    assert text.split()[0] in table_terminal(table, width=500, colour=False)
