"""The page in headless Chromium; skipped where Playwright (extra ``browser``) or Chromium is missing."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory import make_case, make_record, make_replicates, make_run, plausible_records
from frugalbench.analysis.claims import evaluate, load_claims
from frugalbench.analysis.history import history
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import load_run
from frugalbench.report.history_page import history_page
from frugalbench.report.render import render
from frugalbench.report.whatif import whatif_page
from frugalbench.schema import Sweep, Tier

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
AXE = os.environ.get("AXE_PATH", "")
"""``axe.min.js`` of the npm package axe-core."""
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run")  # fmt: skip
pytestmark = [pytest.mark.real, pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")]


CURVE = Sweep(
    figure="marginal throughput", unit="token/s per added device", line="uniform", tier=Tier.MODELLED,
    over={"devices": (8.0, 16.0, 32.0)}, value=(10.0, 9.0, 2.0), low=(9.0, 8.0, -1.0), high=(11.0, 10.0, 4.0),
)  # fmt: skip
MAP = Sweep(
    figure="kept", unit="1", line="no overlap", tier=Tier.MODELLED, least=0.95, value=(0.9, 0.96, 0.94, 0.99),
    over={"between_sites_bit_per_s": (1e9, 1e9, 1e10, 1e10), "steps_between_exchanges": (1.0, 64.0, 1.0, 64.0)},
    low=(0.8, 0.94, 0.9, 0.98), high=(0.91, 0.97, 0.96, 1.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, records = tmp_path_factory.mktemp("page"), plausible_records()
    for variant, time_s in (("dense-equal-total", 0.01), ("dense-equal-active", 0.004), ("moe-transformers", 0.006)):
        records += make_replicates(variant, time_s, 6, regime="decode", rounds=20)
    case = make_case("net.decay", "weak", "cluster_model", cost=None, peaks=())
    records.append(make_record(case=case, time_s=None, tier=Tier.MODELLED, sweeps=(CURVE, MAP)))
    run = load_run(make_run(folder / "run", records))
    render([run], evaluate(evidence_of(run), load_claims()), "html", folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of ``history`` and of ``simulate``."""
    folder = tmp_path_factory.mktemp("others")
    for number, level in enumerate([1.0] * 4 + [1.3] * 4):
        records = make_replicates("dense", 0.01 * level, 3, seed=number)
        make_run(folder / "runs" / f"r{number}", records, started=f"2026-01-0{number + 1}T00:00:00Z")
    pages = {
        "history": history_page(history(folder / "runs", "time_s"), "runs", "*"),
        "what-if": whatif_page("what-if", [(CURVE,), (MAP,)], [], {"uniform": ["a: 1"]}, "frugalbench simulate"),
    }
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    """Opened, with everything it complained of and asked for; both are checked at the end."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, bypass_csp=bool(AXE))
    found, complaints, asked = context.new_page(), [], []
    found.on("console", lambda message: complaints.append(message.text))
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("request", lambda request: asked.append(request.url))
    found.goto(file.as_uri())
    found.wait_for_selector("html[data-ready]", state="attached")
    yield found
    assert complaints == [] and asked == [file.as_uri()]
    context.close()


def outcomes(page: Any) -> set[str]:
    return set(page.locator("#verdicts > tbody > tr > td:nth-child(4)").all_text_contents())


def test_the_policy_lets_its_own_script_run(browser: Any, file: Path) -> None:
    page = browser.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached", timeout=5000)
    page.close()


def test_filters_keep_what_they_name(page: Any) -> None:
    assert "not tested" not in outcomes(page)
    page.select_option("select[data-facet='3']", "not tested")
    assert outcomes(page) == {"not tested"}
    page.click("text=Reset filters")
    page.fill("input[type=search]", "moe.overhead")
    rows = page.locator("#verdicts > tbody > tr > th").all_text_contents()
    assert rows and set(rows) == {"moe.overhead"}
    assert page.text_content("#count").startswith(f"{len(rows)} of ")


def test_a_header_sorts_and_says_so(page: Any) -> None:
    head = page.locator("#verdicts thead th").nth(4)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    texts = page.locator("#verdicts > tbody > tr > td:nth-child(5)").all_text_contents()
    values = [float(text.split(" ")[0]) for text in texts if text != "–"]
    assert values == sorted(values) and len(values) > 1


def test_a_row_opens_by_keyboard_to_its_evidence(page: Any) -> None:
    page.fill("input[type=search]", "moe.overhead")
    button = page.locator("#verdicts button.open").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    evidence = page.locator(".evidence")
    for words in ("estimand", "Student's t", "Against each baseline", "FLOP per call", "frugalbench run", "candidate"):
        assert words in evidence.inner_text(), words
    assert evidence.locator("svg[role=img]").count() >= 2
    page.keyboard.press("Enter")
    assert evidence.count() == 0


def test_an_address_opens_its_row(browser: Any, file: Path, page: Any) -> None:
    name = page.locator("#verdicts > tbody > tr").last.get_attribute("id")
    other = browser.new_page()
    other.goto(f"{file.as_uri()}#{name}")
    other.wait_for_selector(".evidence")
    assert other.locator("#verdicts > tbody > tr").first.get_attribute("id") == name
    other.close()


def test_a_dash_tells_its_reason_on_focus(page: Any) -> None:
    dash = page.locator("section:not(#s-verdicts) .dash").first
    dash.scroll_into_view_if_needed()
    dash.focus()
    assert page.inner_text("#tip") == dash.get_attribute("title")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(browser: Any, file: Path, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.goto(file.as_uri())
    page.locator("#verdicts button.open").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


@pytest.mark.skipif(not Path(AXE).is_file(), reason="AXE_PATH names no axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.locator("#verdicts button.open").first.click()
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run()")["violations"]
    assert [item["id"] for item in found if item["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("name", ["history", "what-if"])
def test_the_other_pages_fit_a_phone_and_ask_for_nothing(browser: Any, others: dict[str, Path], name: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, bypass_csp=bool(AXE))
    found, complaints, asked = context.new_page(), [], []
    found.on("console", lambda message: complaints.append(message.text))
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("request", lambda request: asked.append(request.url))
    found.goto(others[name].as_uri())
    found.wait_for_selector("html[data-ready]", state="attached")
    assert found.evaluate("document.documentElement.scrollWidth") <= 390
    found.locator(".curve summary").first.click()
    found.locator(".curve thead button").first.click()
    assert found.locator("[aria-sort=ascending]").count() == 1
    assert complaints == [] and asked == [others[name].as_uri()]
    if Path(AXE).is_file():
        found.add_script_tag(path=AXE)
        serious = [v for v in found.evaluate("axe.run()")["violations"] if v["impact"] in ("serious", "critical")]
        assert [item["id"] for item in serious] == []
    context.close()
