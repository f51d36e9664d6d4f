"""Every format, from the same synthetic run."""

import csv
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from factory import make_fact, make_record, make_replicates, make_run, make_verdict, plausible_records
from frugalbench.analysis.load import Run, load_run
from frugalbench.analysis.metrics import rows
from frugalbench.report import charts
from frugalbench.report.collectives import collectives_tables
from frugalbench.report.export import flat, to_csv
from frugalbench.report.markdown import verdicts_markdown
from frugalbench.report.noise import noise_lines, noise_tables
from frugalbench.report.render import FORMATS, render
from frugalbench.report.tables import (
    absent_table,
    cases_tables,
    counts_text,
    family_of,
    machine_table,
    ratio_text,
)
from frugalbench.report.terminal import verdicts_terminal
from frugalbench.schema import FrugalbenchError, Outcome, Tier, Verdict, Warmup

NASTY = "<script>alert('x')</script> & | *pipes*"
UNTESTED = make_verdict(
    "quality.moe", Outcome.NOT_TESTED, ratio=None, low=None, high=None, tier=None, replicates=0, reason=NASTY
)
VERDICTS = (
    make_verdict(),
    make_verdict("moe.compute", Outcome.REFUTED, ratio=0.513, low=0.498, high=0.531, threshold=0.8, arm="best"),
    make_verdict("net.supernode_power", ratio=2.3, low=1.9, high=2.9, threshold=1.5, tier=Tier.MODELLED, arm=None),
    UNTESTED,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    ratio = make_fact(1.66, tier=Tier.MODELLED, low=1.5, high=1.8, source="a formula")
    modelled = make_record("supernode", "peak", "cluster", time_s=None, tier=Tier.MODELLED, facts={"ratio": ratio})
    records = [*plausible_records(), modelled]
    return load_run(make_run(tmp_path_factory.mktemp("run"), records, notes=("self-test: not run here",)))


def page(run: Run, verdicts: tuple[Verdict, ...] = VERDICTS) -> str:
    text = render([run], verdicts, "html")
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_is_written_to_output(run: Run, fmt: str, tmp_path: Path) -> None:
    output = tmp_path / f"report.{fmt}"
    content = render([run], VERDICTS, fmt, output)
    assert output.read_bytes() == (content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize("fmt", ["terminal", "md", "html"])
def test_every_readable_format_shows_verdicts_tiers_failures_and_harness(run: Run, fmt: str) -> None:
    text = str(render([run], VERDICTS, fmt))
    for word in ("refuted", "0.513 [0.498, 0.531]", "modelled", "moe-transformers", "100 times slower than fp32"):
        assert word in text, word
    for word in ("no CUDA device", "on another", "harness CPU", "self-test: not run here", "1.66"):
        assert word in text, word


def test_terminal_fits_80_columns_without_colour(run: Run) -> None:
    text = str(render([run], VERDICTS, "terminal"))
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "…" not in text


def test_terminal_colours_only_when_asked() -> None:
    assert "\x1b[" in verdicts_terminal(VERDICTS, 80, colour=True)
    assert "\x1b[" not in verdicts_terminal(VERDICTS, 80, colour=False)


def test_terminal_keeps_whole_claim_and_reason() -> None:
    text = verdicts_terminal(VERDICTS, 80, colour=False)
    assert "net.supernode_power" in text and "over dense" in text
    assert NASTY in " ".join(text.split())


def test_markdown_rows_keep_their_columns() -> None:
    tables = [part.splitlines() for part in verdicts_markdown(VERDICTS).split("\n\n") if part.startswith("|")]
    untested = sum(v.verdict is Outcome.NOT_TESTED for v in VERDICTS)
    assert [len(table) for table in tables] == [2 + len(VERDICTS) - untested, 2 + untested]
    for table, columns in zip(tables, (11, 3), strict=True):
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {columns}
        assert "<script>" not in "".join(table)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_html_is_self_contained_and_escaped(run: Run) -> None:
    parser = _Page()
    text = page(run)
    parser.feed(text)
    assert parser.tags.count("script") == 2 and "link" not in parser.tags
    assert not [link for link in parser.links if not link.startswith("#")]
    assert "url(http" not in text and "@import" not in text
    assert text.index("<h2>Verdicts") < text.index("<h2>Mixture of experts")


def test_html_has_charts_in_the_page_ink(run: Run) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    text = page(run)
    assert text.count("<svg") >= 4
    assert "currentColor" in text and charts.INK not in text


def test_html_without_charts_says_how_to_get_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "available", lambda: False)
    text = page(run)
    assert "<svg" not in text
    assert "pip install &#x27;frugalbench[report]&#x27;" in text


def test_csv_reads_back(run: Run) -> None:
    lines = list(csv.DictReader(io.StringIO(str(render([run], VERDICTS, "csv")))))
    expected = rows(run)
    assert [line["case"] for line in lines] == [row.case for row in expected]
    for line, row in zip(lines, expected, strict=True):
        assert line["time_s"] == ("" if row.time_s is None else repr(row.time_s))
    verdict = next(csv.DictReader(io.StringIO(to_csv(VERDICTS, Verdict))))
    assert (verdict["claim"], float(verdict["ratio"])) == ("moe.overhead", 1.2)


def test_json_has_nulls_not_zeros(run: Run) -> None:
    document = json.loads(render([run], VERDICTS, "json"))
    assert document["verdicts"][-1]["ratio"] is None
    assert {case["token_per_joule"] for case in document["cases"]} == {None}
    assert document["runs"][0]["run_id"] == run.manifest.run_id


def test_parquet_reads_back_typed(run: Run, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    render([run], VERDICTS, "parquet", tmp_path / "cases.parquet")
    table = pq.read_table(tmp_path / "cases.parquet")
    assert str(table.schema.field("time_s").type) == "double"
    assert str(table.schema.field("replicates").type) == "int64"
    assert table.to_pylist() == [flat(row) for row in rows(run)]


def test_missing_pyarrow_names_the_remedy(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FrugalbenchError, match=r"frugalbench\[report\]"):
        render([run], VERDICTS, "parquet", tmp_path / "x.parquet")


def test_wrong_requests_are_errors_of_at_most_two_lines(run: Run, tmp_path: Path) -> None:
    requests = [("pdf", None), ("parquet", None), ("csv", tmp_path / "missing" / "x.csv"), ("md", tmp_path)]
    for fmt, output in requests:
        with pytest.raises(FrugalbenchError) as caught:
            render([run], VERDICTS, fmt, output)
        assert len(str(caught.value).splitlines()) <= 2


def test_columns_without_data_are_left_out_and_shared_words_noted(run: Run) -> None:
    table = cases_tables(rows(run))["moe_ffn"]
    titles = [title for title, _ in table.columns]
    assert "token/J" not in titles and "op/s" not in titles and "backend" not in titles
    assert any("backend torch" in note for note in table.notes)
    assert any("not zero" in note for note in table.notes)
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_failures_come_first(run: Run) -> None:
    assert [row[0].text for row in absent_table(rows(run)).rows] == ["failed", "capped", "skipped"]


def test_machine_table_names_a_changed_fingerprint(tmp_path: Path) -> None:
    changed = load_run(make_run(tmp_path, [], machine_after={"fingerprint": "other"}))
    assert any("changed" in cell.text for row in machine_table([changed], ()).rows for cell in row)


def test_small_texts() -> None:
    assert ratio_text(make_verdict(low=None, high=None)) == "1.20"
    assert ratio_text(UNTESTED) == "–"
    assert ratio_text(make_verdict(low=4e-9, high=188756.0)) == "1.20 [<0.001, >1000]"
    assert counts_text(VERDICTS) == "2 supported, 1 refuted, 0 inconclusive, 1 not tested"
    names = ("moe_ffn", "moe.compute", "allreduce", "net.decay", "quantized_linear")
    assert [family_of(n) for n in names] == ["moe", "moe", "net", "net", "quant"]


def test_collectives_are_predicted_from_the_other_half(run: Run) -> None:
    (table,) = collectives_tables([run])
    held_out = [row for row in table.rows if row[-1].text == "held out"]
    assert len(held_out) == 3 and len(table.rows) == 7
    assert all(abs(float(row[-2].text.rstrip("%"))) < 10 for row in held_out)
    assert all(row[-2].text == "–" for row in table.rows if row[-1].text == "fit")


def test_one_collective_size_is_shown_unpredicted(tmp_path: Path) -> None:
    fields = {"params": {"size_bytes": 1024, "ranks": 2}}
    records = make_replicates("gloo", 1e-4, workload="allreduce", regime="collective", case_fields=fields)
    (table,) = collectives_tables([load_run(make_run(tmp_path, records))])
    assert table.rows[0][-1].text == "too few sizes"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Void rounds that were repeated, a steady load, warm-ups without a steady state, and two modes."""
    restless = Warmup(calls=3, time_s=1.0, steady=False)
    two_modes = [0.01, 0.0101, 0.0099, 0.0121, 0.012, 0.0122] * 2
    records = [
        *(make_record(replicate=n, comparison="quiet", void=(0,), rounds=10) for n in (1, 2)),
        *(make_record("moe", replicate=n, comparison="loaded", void=range(5), steady_load=True) for n in (1, 2)),
        *(make_record("odd", replicate=n, comparison="odd", time_s=two_modes, warmup=restless) for n in (1, 2)),
    ]
    return load_run(make_run(tmp_path_factory.mktemp("noisy"), records))


@pytest.mark.parametrize("fmt", ["terminal", "md", "html", "json"])
def test_noise_is_in_every_readable_format(noisy: Run, fmt: str) -> None:
    text = " ".join(str(render([noisy], VERDICTS, fmt)).split())
    for words in ("steady load in 2 of 2 replicates", "no steady state in 2 of 2 warm-ups"):
        assert words in text, words
    assert "two modes, 1.21x apart, 50% slow" in text
    if fmt != "json":
        assert "Noise: 22% of 54 rounds void, 10 kept under a steady load, the others repeated" in text


def test_noise_tables_fit_and_end_with_the_share_of_the_run(noisy: Run) -> None:
    comparisons, cases = noise_tables([noisy], rows(noisy))
    assert [[cell.text for cell in row[:3]] for row in comparisons.rows] == [
        ["quiet", "20", "10%"],
        ["loaded", "10", "100%"],
        ["odd", "24", "0%"],
    ]
    assert comparisons.notes == noise_lines([noisy])
    assert [row[0].text for row in cases.rows] == [row.case for row in rows(noisy) if row.flags]
    text = str(render([noisy], VERDICTS, "terminal"))
    assert max(map(len, text.splitlines())) <= 80


def test_json_has_noise_per_comparison_and_over_the_run(noisy: Run) -> None:
    document = json.loads(render([noisy], VERDICTS, "json"))
    shares = {part["comparison"]: part["void_share"] for part in document["noise"]}
    assert shares == {"quiet": 0.1, "loaded": 1.0, "odd": 0.0, "": pytest.approx(12 / 54)}
    assert {case["unsteady"] for case in document["cases"]} == {0, 2}
