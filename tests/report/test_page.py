"""The structure of the page, without a browser."""

import base64
import hashlib
import json
import re
from pathlib import Path

import msgspec
import pytest

from factory import make_record, make_replicates, make_run, plausible_records
from frugalbench.analysis.claims import evaluate, load_claims
from frugalbench.analysis.grounds import grounds
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import Run, load_run
from frugalbench.report import charts, safe, series
from frugalbench.report.render import render
from frugalbench.schema import Tier

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    records = plausible_records()
    for variant, time_s in (("dense-equal-total", 0.01), ("dense-equal-active", 0.004), ("moe-transformers", 0.006)):
        records += make_replicates(variant, time_s, 6, regime="decode", rounds=20)
    return load_run(make_run(tmp_path_factory.mktemp("page"), records))


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "available", lambda: False)
        return str(render([run], evaluate(evidence_of(run), load_claims()), "html"))


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def told(data: dict, claim: str) -> dict:
    return next(v for v in data["verdicts"] if data["texts"][v["claim"]] == claim and "span" in v)


def test_the_only_script_is_allowed_by_its_hash(page: str) -> None:
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page and "default-src 'none'" in page
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", script[0])


def test_verdicts_come_first_and_every_section_is_linked(page: str) -> None:
    sections = re.findall(r'<section id="([^"]+)"', page)
    assert sections[0] == "s-verdicts" and sections[-1] == "s-recompute"
    assert {"s-machine-and-harness", "s-self-test", "s-noise"} <= set(sections)
    assert set(re.findall(r'<li><a href="#([^"]+)"', page)) == set(sections)


def test_every_dash_tells_its_reason_on_focus(page: str) -> None:
    body = page[: page.index('id="data"')]
    dashes = re.findall(r"<span class=\"dash\"[^>]*>", body)
    assert dashes and all('tabindex="0"' in dash and re.search(r'aria-label="no value: [^"]', dash) for dash in dashes)
    assert not re.search(r"<td[^>]*>–</td>", body)


def test_a_row_opens_to_replicates_that_give_its_ratio(page: str) -> None:
    verdict = told(data := data_of(page), "moe.overhead")
    logs = [value for value in verdict["data"] if value is not None]
    mean = msgspec.json.decode(msgspec.json.encode(verdict["span"][0]))
    product = 1.0
    for value in logs:
        product *= value
    assert product ** (1 / len(logs)) == pytest.approx(mean, rel=1e-3)
    roles = [data["texts"][role] for role, _ in verdict["cases"]]
    assert roles[:2] == ["candidate", "baseline"]
    assert "Student's t" in data["texts"][verdict["how"]]


def test_grounds_belong_to_every_verdict(run: Run) -> None:
    verdicts = evaluate(evidence_of(run), load_claims())
    found = list(grounds([run], verdicts))
    assert len(found) == len(verdicts) and None not in found
    assert all(item.cases for item, v in zip(found, verdicts, strict=True) if item and v.tier is Tier.MEASURED)


def test_the_reference_run_has_grounds_for_every_verdict() -> None:
    run = load_run(ROOT / "results" / "cpu-reference")
    verdicts = evaluate(evidence_of(run), load_claims())
    for verdict, found in zip(verdicts, grounds([run], verdicts), strict=True):
        assert found is not None, verdict
        assert found.cases or verdict.ratio is None, verdict


def test_a_figure_and_the_reason_for_none_are_never_mixed(page: str) -> None:
    data = data_of(page)
    texts = data["texts"]
    for case in data["cases"]:
        for name, text, hint, _ in ([texts[part] for part in line] for line in case["lines"]):
            assert hint or text != "–", name
            if name == "tokens per second":
                assert (hint == "a call of this workload has no tokens") == (text == "–")


def test_long_series_become_quantiles_of_bins() -> None:
    few = make_record(time_s=[0.01] * 10)
    many = make_record(time_s=[0.01 + 0.0001 * place for place in range(240)])
    assert len(series.series([few], 0.01)["raw"]) == 10
    found = series.series([many], 0.01)
    assert len(found["bins"]) == series.BINS and all(sorted(item) == item for item in found["bins"])
    assert found["bins"][0][0] == 0 and found["bins"][-1][-1] == pytest.approx(series.UNIT * 2.39, rel=1e-3)
    assert found["samples"] == 240


def test_void_samples_are_counted_and_left_out() -> None:
    found = series.series([make_record(time_s=[0.01] * 10, void=(2, 3))], 0.01)
    assert found["samples"] == 8 and found["replicates"] == [[1, 0, 10, 2]]


def test_a_long_table_keeps_its_later_rows_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "available", lambda: False)
    records = [make_record(case_fields={"shape": f"s{number}"}, rounds=1) for number in range(90)]
    page = str(render([load_run(make_run(tmp_path / "run", records))], (), "html"))
    assert any(len(rows) == 90 for rows in data_of(page)["tables"])
    assert page[: page.index('id="data"')].count("s89") == 0


def test_no_text_ends_the_data() -> None:
    text = safe.script(json.dumps({"a": "</script><!--<script>&\u2028"}))
    assert "<" not in text and ">" not in text and json.loads(text)["a"] == "</script><!--<script>&\u2028"


def test_empty_and_failed_runs_have_a_page(tmp_path: Path) -> None:
    empty = load_run(make_run(tmp_path / "empty", []))
    assert "s-verdicts" in str(render([empty], evaluate(evidence_of(empty), load_claims()), "html"))
    assert "s-verdicts" in str(render([empty], (), "html"))
