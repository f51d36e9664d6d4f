"""Verdicts of several machines side by side, and published ratios beside them, each held to its figures."""

import csv

import pytest

from factory import make_run, make_verdict, plausible_records
from frugalbench.analysis.claims import load_claims
from frugalbench.analysis.load import load_run
from frugalbench.analysis.published import published
from frugalbench.cli.judging import judge
from frugalbench.paths import data
from frugalbench.report.machines import machines_table, published_table
from frugalbench.schema import Outcome, Tier
from frugalbench.units import DASH


def test_a_matrix_of_claims_and_machines() -> None:
    verdicts = [
        make_verdict(machine="one"),
        make_verdict(machine="two", verdict=Outcome.REFUTED),
        make_verdict(machine="two", verdict=Outcome.SUPPORTED, arm="best"),
        make_verdict("moe.compute", machine="two", tier=Tier.MODELLED),
        make_verdict("moe.per_watt", Outcome.NOT_TESTED, machine="one", ratio=None),
    ]
    table = machines_table(verdicts)
    assert [title for title, _ in table.columns] == ["claim", "regime", "one", "two"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["moe.overhead", "decode", "supported", "1 supported, 1 refuted"],
        ["moe.compute", "decode", DASH, "supported (modelled)"],
    ]
    assert machines_table(verdicts[:1]).rows == ()


def test_published_rows_stand_apart_and_decide_nothing() -> None:
    mine = make_verdict("quant.decode", regime="decode", ratio=1.5)
    table = published_table([mine])
    titles = [title for title, _ in table.columns]
    rows = [dict(zip(titles, (cell.text for cell in row), strict=True)) for row in table.rows]
    assert {row["claim"] for row in rows} == {"quant.decode"} and {row["here"] for row in rows} == {"1.50"}
    assert all(row["tier"].startswith("published") and row["source"] for row in rows)
    assert len([row for row in rows if row["device"] == "RTX 4090"]) == 2, "conflicting figures are both kept"
    assert published_table([make_verdict("quant.decode", Outcome.NOT_TESTED, ratio=None)]).rows == ()


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


@pytest.mark.parametrize("row", published(), ids=lambda row: f"{row.claim} {row.device} {row.pair}"[:80])
def test_every_published_ratio_is_in_the_figures(row) -> None:
    with data("published_figures.csv").open(newline="", encoding="utf-8") as file:
        known = list(csv.DictReader(file))
    mine = [figure for figure in known if row.claim in figure["claims"].split() and figure["source"] == row.source]
    cells = {tuple(map(float, cell)) for figure in mine if all(map(_is_number, cell := figure["value"].split(" / ")))}
    assert row.figures in cells or all((figure,) in cells for figure in row.figures)
    assert row.ratio == pytest.approx(row.figures[0] / (row.figures[1] if len(row.figures) > 1 else 1))
    assert row.provenance == "read" and row.claim in {claim.id for claim in load_claims()}


def test_ratios_that_the_claims_themselves_quote() -> None:
    found = {(row.claim, row.pair): round(row.ratio, 2) for row in published()}
    assert found["quant.decode", "Llama-3.1-8B Q4_K_M over Llama-3.1-8B F16"] == 2.47
    assert found["quant.prefill", "Llama-3.1-8B Q4_K_M over Llama-3.1-8B F16"] == 0.89


def test_machines_that_are_alike_are_told_apart_by_their_hosts(tmp_path) -> None:
    alike = {"name": "Test CPU, 2 cores", "fingerprint": "0123456789abcdef"}
    runs = [
        load_run(make_run(tmp_path / host, plausible_records(), machine_before={**alike, "host": host}))
        for host in ("n1", "n2")
    ]
    table = machines_table(judge(runs), runs)
    assert [title for title, _ in table.columns[2:]] == ["n1: Test CPU, 2 cores", "n2: Test CPU, 2 cores"]
    assert table.rows and table.notes == ()
