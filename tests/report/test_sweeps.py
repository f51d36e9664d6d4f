"""Curves, maps and break-even points: drawn from what records hold, with the table of their points."""

import itertools
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from factory import make_case, make_fact, make_record, make_replicates, make_run
from frugalbench.analysis.claims import evaluate, load_claims
from frugalbench.analysis.electricity import break_evens
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import Run, load_run
from frugalbench.analysis.sweeps import grouped, stored, two_sites
from frugalbench.report import charts, charts_sweep
from frugalbench.report.charts_price import break_even_svg, break_even_table
from frugalbench.report.html import html
from frugalbench.report.sweeps import points_table
from frugalbench.schema import FrugalbenchError, Record, Sweep, Tier

ROOT = Path(__file__).parents[2]
needs_charts = pytest.mark.skipif(not charts.available(), reason="altair and vl-convert are not installed")


def curve(line: str = "uniform", **fields: Any) -> Sweep:
    given: dict[str, Any] = {
        "figure": "marginal throughput",
        "unit": "token/s per added device",
        "tier": Tier.MODELLED,
        "over": {"devices": (16.0, 32.0, 64.0)},
        "value": (10.0, 8.0, -1.0),
        "low": (9.0, 7.0, -2.0),
        "high": (11.0, 9.0, 0.5),
        "source": f"about {line}",
    }
    return Sweep(line=line, **{**given, **fields})


def region(**fields: Any) -> Sweep:
    """Four cells: sure, undecided by its bounds, refused, and one without a value."""
    given: dict[str, Any] = {
        "figure": "efficiency over 1,500 km",
        "unit": "1",
        "over": {"between_sites_bit_per_s": (1e9, 1e9, 4e11, 4e11), "steps_between_exchanges": (1.0, 100.0) * 2},
        "value": (0.2, 0.96, None, 0.99),
        "low": (0.1, 0.94, None, 0.98),
        "high": (0.3, 0.97, None, 1.0),
        "least": 0.95,
    }
    return curve("plain", **{**given, **fields})


def modelled(*sweeps: Sweep, regime: str = "weak", **fields: Any) -> Record:
    case = make_case("net.decay", regime, "cluster_model", cost=None, peaks=())
    return make_record(case=case, time_s=None, tier=Tier.MODELLED, sweeps=sweeps, **fields)


def run_of(path: Path, *records: Record) -> Run:
    return load_run(make_run(path, records))


def test_a_sweep_in_several_records_is_one_line(tmp_path: Path) -> None:
    run = run_of(tmp_path, modelled(curve(), curve("islands")), modelled(curve(), curve("split"), regime="strong"))
    (group,) = grouped(stored([run], ["cluster_model"]))
    assert [sweep.line for sweep in group] == ["uniform", "islands", "split"]
    assert stored([run], ["allreduce"]) == []


def test_unlike_curves_of_one_name_are_told_apart() -> None:
    (group,) = grouped([curve(), curve(value=(1.0, 2.0, 3.0)), curve("empty", value=(None, None, None))])
    assert [sweep.line for sweep in group] == ["uniform", "uniform (2)"]


def test_the_table_holds_every_point_with_its_bounds() -> None:
    table = points_table((curve(), curve("islands", low=(), high=())))
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts[0] == ["uniform", "16", "10.0", "9.00", "11.0", "modelled"] and len(texts) == 6
    assert texts[5][2:5] == ["-1.00", "–", "–"] and table.rows[5][3].hint
    assert [name for name, _ in table.columns] == ["line", "devices", "token/s per added device", "low", "high", "tier"]
    assert "about uniform" in table.notes and "about islands" in table.notes


@needs_charts
def test_curves_differ_in_more_than_colour_and_say_their_ends() -> None:
    (svg,) = charts_sweep.sweep_svgs((curve(), curve("islands")))
    assert "modelled" in svg and "token/s per added device" in svg and "devices" in svg
    assert re.search(r'aria-label="Chart: [^"]*uniform: 10.0 at 16, -1.00 at 64 devices; islands', svg)
    assert len(set(re.findall(r'stroke-dasharray="([^"]+)"', svg))) >= 2


@needs_charts
def test_a_map_marks_what_keeps_it_also_at_its_bounds() -> None:
    (svg,) = charts_sweep.sweep_svgs((region(),))
    for words in ("20 ✗", "96 ?", "99 ✓", "400 Gbit/s", "1.00 Gbit/s", "steps between exchanges", "at least 0.95"):
        assert words in svg, words
    assert "keeps it: 1 of 3 cells, depends on the inputs: 1 of 3" in svg


@needs_charts
def test_a_map_without_a_threshold_and_a_huge_one() -> None:
    assert "20" in charts_sweep.sweep_svgs((region(least=None),))[0]
    many = tuple(float(number) for number in range(1, charts_sweep.MOST_CELLS + 2))
    columns = {"value": many, "low": (), "high": (), "over": {"a_s": many, "b_bytes": many}}
    assert charts_sweep.sweep_svgs((region(**columns),)) == []


@pytest.mark.parametrize(
    "broken",
    [
        {"value": (1.0, 2.0)},
        {"high": (1.0,)},
        {"over": {}},
        {"over": {"a": (1.0,) * 3, "b": (1.0,) * 3, "c": (1.0,) * 3}},
        {"value": (1e300, 1.0, 1.0)},
        {"over": {"devices": (1e300, 1.0, 1.0)}},
    ],
)
def test_a_sweep_that_cannot_be_is_refused(tmp_path: Path, broken: dict[str, Any]) -> None:
    with pytest.raises(FrugalbenchError, match="the sweep of 'marginal throughput'"):
        run_of(tmp_path, modelled(curve(**broken)))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>\x1b[31m"
    run = run_of(tmp_path, modelled(curve(evil, figure=evil, unit=evil, source=evil)))
    page = html([run], (), ())
    assert "<img src=x" not in page and "\x1b" not in page


def plane(**changed: Any) -> dict[str, Any]:
    """Two ways to exchange and two widths over 3 bandwidths x 3 numbers of steps."""
    rows = list(itertools.product(("plain", "overlapped"), (16, 4), (1e9, 1e10, 1e11), (1, 10, 100)))
    names = ("overlap", "bits", "wan_bit_per_s", "local_steps")
    columns: dict[str, list[Any]] = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    columns |= {"kept": [0.9] * 36, "kept_low": [0.8] * 36, "kept_high": [None, *[0.96] * 35]}
    return {"columns": columns, "units": {"kept": "1", "bits": "bit"}, "value": "kept", "threshold": 0.95, **changed}


def test_a_table_among_the_details_is_a_map_for_each_way(tmp_path: Path) -> None:
    run = run_of(tmp_path, modelled(details={"grid": plane(), "basis": {"cut": "x"}}))
    (group,) = grouped(stored([run], ["cluster_model"]))
    ways = [f"{way}, {bits} bit" for way in ("plain", "overlapped") for bits in (16, 4)]
    assert [sweep.line for sweep in group] == ways
    first = group[0]
    assert list(first.over) == ["wan_bit_per_s", "local_steps"]
    assert len(first.value) == 9 and first.high[:2] == (None, 0.96) and (first.least, first.unit) == (0.95, "1")


def test_a_table_over_one_number_is_curves(tmp_path: Path) -> None:
    columns = {"local_steps": [1, 4, 16] * 2, "bits": [16] * 3 + [4] * 3}
    columns["least_bit_per_s"] = [9e9, 5e9, None, 2e9, 1e9, 1.0]
    run = run_of(tmp_path, modelled(details={"f": {"columns": columns, "value": "least_bit_per_s", "units": {}}}))
    (group,) = grouped(stored([run], ["cluster_model"]))
    assert [sweep.over for sweep in group] == [{"local_steps": (1.0, 4.0, 16.0)}] * 2 and group[0].value[2] is None


@pytest.mark.parametrize(
    "broken",
    [
        {"value": "speed"},
        {"columns": {"kept": [1.0, 2.0], "a": [1.0]}},
        {"columns": {"kept": [1.0] * 3}},
        {"columns": {"kept": [1e300] * 3, "a": [1.0, 2.0, 3.0]}},
        {"columns": {"kept": [[]] * 3}},
        {"columns": {}},
        {"columns": 3},
    ],
)
def test_a_table_that_is_none_is_left_out(tmp_path: Path, broken: dict[str, Any]) -> None:
    run = run_of(tmp_path, modelled(details={"grid": plane(**broken)}))
    assert stored([run], ["cluster_model"]) == []


PRICES = {"a": (0.5, 0.4, 0.6), "b": (1.0, 0.9, 1.1)}
JOULE = (2.0, 1.5, 3.0)


def priced(name: str, **changed: Any) -> Record:
    price, low, high = PRICES[name]
    facts = {
        "price_ratio": (price, low, high),
        "ratio": (price * 2, low * 1.5, high * 3),
        "joule_per_token_ratio": JOULE,
        "break_even_price_ratio": (1 / 2, 1 / 3, 1 / 1.5),
        **changed,
    }
    known = {k: make_fact(v[0], tier=Tier.MODELLED, low=v[1], high=v[2]) for k, v in facts.items()}
    case = make_case("net.cheap_power", name, "cluster_model", shape="x / y", cost=None, peaks=())
    return make_record(case=case, time_s=None, tier=Tier.MODELLED, facts=known)


def test_break_even_takes_the_recorded_facts(tmp_path: Path) -> None:
    (found,) = break_evens([run_of(tmp_path, priced("a"), priced("b"))])
    assert (found.price.low, found.price.value, found.price.high) == (1 / 3, 1 / 2, 1 / 1.5)
    rows = {row[0].text: [cell.text for cell in row[1:7]] for row in break_even_table(found).rows}
    assert rows["a"] == ["0.500", "0.400", "0.600", "1.00", "0.600", "1.80"]
    assert rows["break-even"][:4] == ["0.500", "0.333", "0.667", "1.00"]


@pytest.mark.parametrize("missing", [(None, None, None), (2.0, 0.0, 3.0), (2.0, None, 3.0)])
def test_no_line_without_bounds(tmp_path: Path, missing: tuple[float | None, ...]) -> None:
    assert break_evens([run_of(tmp_path, priced("a", joule_per_token_ratio=missing))]) == []


@needs_charts
def test_the_break_even_chart_says_where(tmp_path: Path) -> None:
    (found,) = break_evens([run_of(tmp_path, priced("a"), priced("b"))])
    svg = break_even_svg(found)
    assert "breaks even at a price ratio of 0.500 [0.333, 0.667]" in svg and "modelled" in svg


NETWORK = {
    "ports": [{"rate_bytes_per_s": 1.25e7}, {"rate_bytes_per_s": 1.25e7, "site": 1}],
    "wan": {"rate_bytes_per_s": 6.25e6, "delay_s": 0.0075},
}


def sites(bytes_per_s: float = 6.25e6) -> list[Record]:
    records = []
    for steps in (1, 4):
        for overlap in (False, True):
            regime = f"every {steps} steps{', overlapped' if overlap else ''}"
            work = {"kind": "step", "elements": 1000, "steps": steps, "overlap": overlap}
            network = {**NETWORK, "wan": {**NETWORK["wan"], "rate_bytes_per_s": bytes_per_s}}
            for variant, time_s in (("one-site", 0.1), ("two-sites", 0.1 + 0.1 / steps)):
                fields = {"params": {"network": network, "work": work}, "shape": "remote"}
                options = {"workload": "emulated_network", "regime": regime, "comparison": "emulated_network/remote"}
                options |= {"case_fields": fields, "tier": Tier.EMULATED}
                records += make_replicates(variant, time_s, 4, **options)[1:]
    return records


def test_two_sites_are_the_verdicts_own_points(tmp_path: Path) -> None:
    run = run_of(tmp_path, *sites())
    verdicts = [v for v in evaluate(evidence_of(run), load_claims()) if v.claim == "net.cross_region" and v.ratio]
    found = two_sites([run], verdicts)
    assert [sweep.line for sweep in found] == ["not overlapped", "overlapped"]
    plain = found[0]
    assert plain.over == {"steps_between_exchanges": (1.0, 4.0)} and plain.tier is Tier.EMULATED
    assert "50 Mbit/s, 7.5 ms one way" in plain.figure and plain.least == 0.95
    told = {(v.ratio, v.low, v.high) for v in verdicts if "overlapped" not in v.regime}
    assert set(zip(plain.value, plain.low, plain.high, strict=True)) == told


def test_two_bandwidths_make_a_map(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / str(rate), *sites(rate)) for rate in (6.25e6, 1.25e8)]
    for number, run in enumerate(runs):
        manifest = msgspec.structs.replace(run.manifest, machine_before={"name": f"m{number}"})
        runs[number] = Run(run.path, manifest, run.records, run.problems)
    verdicts = [v for run in runs for v in evaluate(evidence_of(run), load_claims()) if v.claim == "net.cross_region"]
    plain, _ = two_sites(runs, verdicts)
    assert list(plain.over) == ["between_sites_bit_per_s", "steps_between_exchanges"]
    assert plain.over["between_sites_bit_per_s"] == (5e7, 5e7, 1e9, 1e9) and "50 Mbit/s" not in plain.figure


def test_two_sites_of_nonsense_are_left_out(tmp_path: Path) -> None:
    broken = [msgspec.structs.replace(r, case=msgspec.structs.replace(r.case, params={})) for r in sites()]
    run = run_of(tmp_path, *broken)
    assert two_sites([run], evaluate(evidence_of(run), load_claims())) == []


@needs_charts
def test_the_page_has_the_charts_with_their_points(tmp_path: Path) -> None:
    run = run_of(tmp_path, modelled(curve(), region()), priced("a"), *sites())
    verdicts = evaluate(evidence_of(run), load_claims())
    page = html([run], verdicts, ())
    for words in ("Marginal throughput", "Efficiency over 1,500 km", "Cost of electricity", "Speed of two sites"):
        assert f"<summary>Points: {words}" in page, words
        assert re.search(rf'<svg role="img" aria-label="Chart: {words}', page), words
