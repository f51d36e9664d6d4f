"""``frugalbench explain``: what it prints must lead to the verdict by arithmetic alone."""

import dataclasses
import json
import math
import re
import statistics
from pathlib import Path

import pytest
from msgspec.structs import replace
from scipy import stats

from factory import make_fact, make_record, make_replicates, make_run, plausible_records, scaled
from frugalbench.analysis.chain import Explanation
from frugalbench.analysis.claims import evaluate, load_claims
from frugalbench.analysis.explain import explain
from frugalbench.analysis.flips import more_replicates
from frugalbench.analysis.formulas import evaluate as value_of
from frugalbench.analysis.formulas import formula_of
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import load_run
from frugalbench.analysis.statistics import interval
from frugalbench.cli.main import main
from frugalbench.report.explain import explanation_text
from frugalbench.schema import Claim, Outcome, Status, Tier

REFERENCE = Path(__file__).parents[2] / "results" / "cpu-reference"
CLAIMS = load_claims()
PAIRED = [claim.id for claim in CLAIMS if claim.rule.__struct_config__.tag == "paired_ratio"]


@pytest.fixture(scope="module")
def reference():
    return load_run(REFERENCE)


@pytest.fixture
def stored(tmp_path: Path):
    return load_run(make_run(tmp_path / "run", plausible_records(6), config={"measure": {"alpha": 0.05, "looks": [6]}}))


def printed_logs(text: str) -> list[float]:
    """Of the replicates that count."""
    return [float(found) for found in re.findall(r"^ +\d+ +counts .*? (-?\d+\.\d{9})", text, re.MULTILINE)]


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, re.sub(r"\s+", " ", text))
    assert found, pattern
    return float(found[1])


def recomputed(text: str) -> tuple[float, float, float]:
    """Ratio and interval from the replicates, alpha, floor and scale that were printed, and nothing else."""
    logs, flat = printed_logs(text), re.sub(r"\s+", " ", text)
    alphas = re.findall(r"([\d.e-]+) (?:for this look|after Holm)", flat)
    floor = number(r"floor ([\d.]+)% on each side", text) / 100
    scaled_by = re.search(r" scale ([\d.e+-]+):", flat.split(" Interval ")[1])
    scale = float(scaled_by[1]) if scaled_by else 1.0
    t = stats.t.ppf(1 - float(alphas[-1]) / 2, len(logs) - 1)
    half = t * statistics.stdev(logs) / len(logs) ** 0.5 + math.log1p(floor)
    centre = statistics.fmean(logs) + math.log(scale)
    return math.exp(centre), math.exp(centre - half), math.exp(centre + half)


def alone(found: Explanation, place: int) -> str:
    return explanation_text(replace(found, chains=(found.chains[place],)))


@pytest.mark.parametrize("claim", PAIRED)
def test_printed_replicates_give_the_verdicts_numbers(reference, claim) -> None:
    found = explain(reference, claim)
    tested = [n for n, item in enumerate(found.chains) if item.working is not None]
    paired = [item.verdict for item in found.chains if item.verdict.tier is not Tier.MODELLED]
    assert len(tested) == sum(verdict.ratio is not None for verdict in paired)
    for place in tested:
        verdict = found.chains[place].verdict
        numbers = recomputed(alone(found, place))
        if found.chains[place].working.scale == "tax":
            numbers = tuple(1 - 1 / item for item in numbers)
        assert numbers == pytest.approx((verdict.ratio, verdict.low, verdict.high), rel=2e-5)


def test_every_claim_is_explained_in_eighty_columns(reference, stored) -> None:
    for run in (reference, stored):
        for claim in CLAIMS:
            found = explain(run, claim.id)
            verdicts = evaluate(evidence_of(run), [claim])
            assert tuple(item.verdict for item in found.chains) == verdicts
            text = explanation_text(found, samples=True)
            assert max(map(len, text.splitlines())) <= 80
            assert all(item.repeat.startswith("frugalbench run ") for item in found.chains)
            assert all(item.data for item in found.chains if item.verdict.verdict is not Outcome.NOT_TESTED), claim.id


def test_pilot_void_and_cut_short_are_told_apart(tmp_path: Path) -> None:
    records = make_replicates("dense-equal-total", 0.02, 4, void=[2])
    records += make_replicates("moe-transformers", 0.03, 4)
    records.append(make_record("moe-transformers", replicate=5, interrupted=True))
    records.append(make_record("moe-transformers", replicate=6, status=Status.FAILED, reason="died"))
    run = load_run(make_run(tmp_path / "run", records))
    rows = {item.replicate: item for item in explain(run, "moe.compute", "decode", "as_shipped").chains[0].data}
    assert rows[0].use == "pilot" and rows[5].use == rows[6].use == "left out"
    assert (rows[5].note, "died" in rows[6].note) == ("cut short", True)
    assert all((rows[n].use, rows[n].rounds, rows[n].void) == ("counts", 4, 1) for n in range(1, 5))
    spoilt = rows[1].samples[2]
    assert (spoilt.used, spoilt.void) == (False, "foreign CPU time")
    assert rows[1].records == (7, 2)  # lines of records.jsonl: five of the baseline, then the candidate's


def test_the_smallest_change_flips_the_verdict(reference) -> None:
    """Moving all of the candidate's times by the factor told, and a hair, ends the verdict; a hair less does not."""
    arm = {"claim_id": "moe.compute", "regime": "prefill", "arm": "as_shipped"}
    first = explain(reference, **arm).chains[0]
    assert first.verdict.verdict is Outcome.REFUTED
    change = first.flips[0].change
    name, comparison = first.sides[0].variant, first.comparison

    def moved(factor: float) -> Outcome:
        mine = lambda r: (r.case.variant, r.comparison) == (name, comparison) and r.replicate > 0  # noqa: E731
        records = tuple(scaled(r, 1 / factor) if mine(r) else r for r in reference.records)
        chains = explain(dataclasses.replace(reference, records=records), **arm).chains
        return next(c.verdict.verdict for c in chains if c.comparison == comparison)

    assert moved(change * 0.999) is Outcome.REFUTED
    assert moved(change * 1.001) is Outcome.INCONCLUSIVE


def test_more_replicates_settle_what_they_promise() -> None:
    logs = (0.10, 0.22, 0.05, 0.30, 0.11, 0.16)
    told = more_replicates(logs, 1.0, 1.06, 0.05, 0.01)
    needed = int(told.what.split()[0])
    spread, centre = statistics.stdev(logs), statistics.fmean(logs)

    def settled(count: int) -> bool:
        half = stats.t.ppf(0.975, count - 1) * spread / count**0.5 + math.log1p(0.01)
        return math.exp(centre - half) > 1.06

    assert settled(needed) and not settled(needed - 1)
    assert interval(logs, 1.0, 0.05, 0.01).low < 1.06
    assert "within the floor" in more_replicates(logs, 1.0, math.exp(centre), 0.05, 0.01).what


def test_unknown_kind_gives_the_generic_part(stored, monkeypatch) -> None:
    monkeypatch.setattr("frugalbench.analysis.explain._KINDS", {})
    found = explain(stored, "quant.decode")
    assert any(item.data for item in found.chains)
    assert all(item.repeat and item.rule == "paired_ratio" for item in found.chains)
    assert "frugalbench run" in explanation_text(found)


def test_formulas_give_recorded_numbers_only(reference) -> None:
    told = [formula_of(record.case, "flop") for record in reference.records if record.case.workload == "moe_ffn"]
    assert told and all(told)
    for record in reference.records:
        for quantity, recorded in (("flop", record.case.cost and record.case.cost.flop + record.case.cost.op),):
            if text := formula_of(record.case, quantity):
                assert value_of(text.rpartition(" = ")[2], {}) == pytest.approx(recorded)
    case = next(r.case for r in reference.records if r.case.workload == "moe_ffn")
    assert formula_of(replace(case, cost=replace(case.cost, flop=case.cost.flop + 1)), "flop") == ""
    assert formula_of(replace(case, params={"tokens": "many"}), "flop") == ""


def test_command(stored, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(stored.path), "quant.memory", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["claim"] == "quant.memory" and found["chains"][0]["verdict"]["verdict"] == "not tested"
    assert main(["explain", str(stored.path), "quant.memroy"]) == 2
    assert "did you mean 'quant.memory'" in capsys.readouterr().err
    assert main(["explain", str(stored.path), "quant.memory", "--regime", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert "regimes: " in error and len(error.strip().splitlines()) <= 2


def test_hostile_text_stays_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reason = "\x1b[2J<script>" + "x" * 10_000_000
    records = [make_record("int8", "all", "quantized_linear", status=Status.FAILED, reason=reason)]
    run = make_run(tmp_path / "run", records)
    assert main(["explain", str(run), "quant.prefill"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and len(text) < 200_000


def test_exact_facts_and_coverage(tmp_path: Path) -> None:
    claim = next(c for c in CLAIMS if c.id == "quant.memory")
    group = claim.rule.groups[0]
    facts = {claim.rule.numerator: make_fact(3.0, "bytes"), claim.rule.denominator: make_fact(12.0, "bytes")}
    records = [make_record(group.variants[0], workload=claim.rule.workload, facts=facts)]
    records += [make_record(n, "batch1", "onnx_model", facts={"parity": make_fact(v)}) for n, v in (("a", 1), ("b", 0))]
    run = load_run(make_run(tmp_path / "run", records))
    chain = next(c for c in explain(run, claim.id).chains if c.verdict.ratio is not None)
    above, below = (item.value for item in chain.data)
    assert above / below == chain.verdict.ratio == 0.25
    covered = next(c for c in claims_of("coverage") if c.rule.fact == "parity")
    chain = explain(run, covered.id).chains[0]
    counts = [item.value for item in chain.data if item.use == "counts"]
    assert sum(counts) / len(counts) == chain.verdict.ratio == 0.5


def claims_of(kind: str) -> list[Claim]:
    return [claim for claim in CLAIMS if claim.rule.__struct_config__.tag == kind]
