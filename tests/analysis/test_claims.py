"""Every claim can swing: synthetic records past its threshold decide it, records at the threshold do not."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from factory import COST, PEAKS, make_case, make_fact, make_reading, make_record, make_replicates
from frugalbench.analysis.claims import evaluate, load_claims
from frugalbench.analysis.judge import Evidence
from frugalbench.analysis.paired import _beside
from frugalbench.schema import (
    Claim,
    Coverage,
    ExactRatio,
    Modelled,
    NotTested,
    Outcome,
    PairedRatio,
    Record,
    Status,
    Tier,
    Verdict,
)

CLAIMS = {claim.id: claim for claim in load_claims()}
PAIRED = [claim for claim in CLAIMS.values() if isinstance(claim.rule, PairedRatio)]
EXACT = [claim for claim in CLAIMS.values() if isinstance(claim.rule, ExactRatio)]
COVERAGE = [claim for claim in CLAIMS.values() if isinstance(claim.rule, Coverage)]
MODELLED = [claim for claim in CLAIMS.values() if isinstance(claim.rule, Modelled)]
BASE_COST = msgspec.structs.replace(COST, flop=4e9)
OUR_COST = msgspec.structs.replace(COST, flop=1e9)
INTEGER_COST = msgspec.structs.replace(COST, flop=0.0, op=2e9)
by_id = {"ids": lambda item: item.id if isinstance(item, Claim) else str(item)}


def judged(claim: Claim, records: Sequence[Record], **fields: Any) -> list[Verdict]:
    peaks = {("cpu", name): rate for name, rate in PEAKS.items()}
    return list(evaluate(Evidence(records=tuple(records), machine="test", **{"peaks": peaks, **fields}), [claim]))


def outcomes(rows: Sequence[Verdict]) -> set[Outcome]:
    return {row.verdict for row in rows}


# Synthetic evidence for paired claims: times (or joules) that make the estimand what the test wants


def side(claim: Claim, baseline: bool) -> dict[str, Any]:
    """Case fields that differ between a baseline and a candidate: FLOP, and whose peak bounds it."""
    scale = claim.rule.scale
    if scale == "peak_share" and not baseline:
        return {"cost": INTEGER_COST, "peaks": ("int8_op_per_s", "read_bytes_per_s")}
    return {"cost": BASE_COST if baseline else OUR_COST}


def factor(claim: Claim) -> float:
    """What the estimand multiplies the plain ratio by, for the cases of :func:`side`."""
    shares = {"none": 1.0, "flop": 1e9 / 4e9}
    peak_share = (2e9 / PEAKS["int8_op_per_s"]) / (4e9 / PEAKS["fp32_flop_per_s"])
    return shares.get(claim.rule.scale, peak_share)


def arm(
    claim: Claim, name: str, cost: float, *, regime: str, pilot: float | None = None, noise: float = 0.02,
    count: int = 4, seed: int = 0, rounds: int = 5, **fields: Any,
) -> list[Record]:  # fmt: skip
    """Pilot and replicates of one variant whose seconds (or joules) per call are about ``cost``."""
    energy = claim.rule.metric == "energy"
    rng = np.random.default_rng(zlib.crc32(f"{name}/{regime}/{seed}".encode()))
    made = []
    for replicate, draw in enumerate(rng.standard_normal(count + 1)):
        value = (pilot or cost) if replicate == 0 else cost * float(np.exp(noise * draw))
        readings = tuple(make_reading(10 * value, calls=10, round=i, start_s=float(i)) for i in range(3))
        made.append(
            make_record(
                name, regime, claim.rule.workload, replicate=replicate, noise=0.0, rounds=rounds,
                time_s=0.01 if energy else value, readings=readings if energy else (),
                case_fields=side(claim, name in claim.rule.baselines), **fields,
            )
        )  # fmt: skip
    return made


def evidence_at(claim: Claim, value: float, regimes: Sequence[str] = (), **fields: Any) -> list[Record]:
    """All arms of ``claim`` with the estimand at ``value`` against every baseline."""
    rule = claim.rule
    ours = 0.01 * (1 - value if rule.scale == "tax" else factor(claim) / value)
    records = []
    for regime in regimes or claim.regimes:
        for name in rule.baselines:
            records += arm(claim, name, 0.01, regime=regime, **fields)
        for name in dict.fromkeys([*rule.as_shipped, *rule.best]):
            records += arm(claim, name, ours, regime=regime, **fields)
    return records


def beyond(claim: Claim, supported: bool, by: float = 1.5, threshold: float | None = None) -> float:
    limit = claim.threshold if threshold is None else threshold
    by = (
        by**3 if getattr(claim.rule, "scale", "") == "tax" else by
    )  # a tax is a difference from one, so its noise is larger
    return limit * by if (claim.direction == "at_least") == supported else limit / by


EITHER = pytest.mark.parametrize(("supported", "expected"), [(True, Outcome.SUPPORTED), (False, Outcome.REFUTED)])


@EITHER
@pytest.mark.parametrize("claim", PAIRED, **by_id)
def test_a_paired_claim_can_swing(claim: Claim, supported: bool, expected: Outcome) -> None:
    rows = judged(claim, evidence_at(claim, beyond(claim, supported)))
    assert outcomes(rows) == {expected}
    assert {row.regime for row in rows} == set(claim.regimes)
    best = {"best"} if claim.rule.best else set()
    assert {row.arm for row in rows} == {"as_shipped"} | best
    assert len(rows) == len(claim.regimes) * (len(claim.rule.as_shipped) + len(best))
    assert all(row.ratio == pytest.approx(beyond(claim, supported), rel=0.05, abs=0.03) for row in rows)
    assert all(row.reason and row.source and row.tier is Tier.MEASURED and row.replicates == 4 for row in rows)


BESIDE = [claim for claim in PAIRED if claim.rule.beside]


def view(claim: Claim) -> Claim:
    """The claim as if the workload that stands beside its own were its own."""
    arms = claim.rule.beside[0]
    return msgspec.structs.replace(claim, rule=_beside(claim.rule, arms))


@EITHER
@pytest.mark.parametrize("claim", BESIDE, **by_id)
def test_a_workload_beside_swings_by_itself_and_names_its_shape(
    claim: Claim, supported: bool, expected: Outcome
) -> None:
    own = evidence_at(claim, beyond(claim, not supported))
    whole = [
        msgspec.structs.replace(record, case=msgspec.structs.replace(record.case, shape="whole"))
        for record in evidence_at(view(claim), beyond(claim, supported))
    ]
    rows = judged(claim, own + whole)
    beside = [row for row in rows if row.candidate and row.candidate.endswith(" @ whole")]
    assert outcomes(beside) == {expected}
    arms = view(claim).rule
    assert len(beside) == len(claim.regimes) * (len(arms.as_shipped) + bool(arms.best))
    assert [row for row in rows if row not in beside] == judged(claim, own)
    assert any(row.arm == "best" for row in beside) == bool(arms.best)


@pytest.mark.parametrize("claim", BESIDE, **by_id)
def test_without_the_workload_beside_no_row_says_so_and_without_any_only_the_own_does(claim: Claim) -> None:
    assert len(judged(claim, [])) == len(claim.regimes)
    assert {row.reason.split(" case")[0] for row in judged(claim, [])} == {f"this run has no {claim.rule.workload}"}
    alone = judged(claim, evidence_at(view(claim), beyond(claim, True)))
    assert outcomes(alone) == {Outcome.SUPPORTED}


@pytest.mark.parametrize("claim", PAIRED, **by_id)
def test_at_the_threshold_nothing_is_decided(claim: Claim) -> None:
    assert outcomes(judged(claim, evidence_at(claim, claim.threshold))) == {Outcome.INCONCLUSIVE}


@pytest.mark.parametrize("claim", PAIRED, **by_id)
def test_an_effect_past_the_threshold_comes_out_decided(claim: Claim) -> None:
    wrong, count = 0, 0
    for seed in range(12):
        supported = bool(seed % 2)
        records = evidence_at(claim, beyond(claim, supported), claim.regimes[:1], seed=seed)
        rows = [row for row in judged(claim, records) if row.regime == claim.regimes[0]]
        wrong += sum(row.verdict is not (Outcome.SUPPORTED if supported else Outcome.REFUTED) for row in rows)
        count += len(rows)
    assert wrong / count <= 0.01


@pytest.mark.parametrize("claim", PAIRED, **by_id)
def test_one_replicate_decides_nothing(claim: Claim) -> None:
    rows = judged(claim, evidence_at(claim, beyond(claim, True), count=1))
    assert outcomes(rows) == {Outcome.INCONCLUSIVE}
    assert all(row.low is None and row.high is None and "one replicate" in row.reason for row in rows)


@pytest.mark.parametrize("claim", PAIRED, **by_id)
def test_the_pilot_alone_decides_nothing(claim: Claim) -> None:
    assert outcomes(judged(claim, evidence_at(claim, beyond(claim, True), count=0))) == {Outcome.NOT_TESTED}


@pytest.mark.parametrize("claim", PAIRED, **by_id)
def test_interrupted_replicates_do_not_count(claim: Claim) -> None:
    kept = evidence_at(claim, beyond(claim, True))
    cut = [
        msgspec.structs.replace(r, interrupted=True, replicate=r.replicate + 10)
        for r in evidence_at(claim, beyond(claim, False))
    ]
    assert judged(claim, [*kept, *cut]) == judged(claim, kept)


@pytest.mark.parametrize("claim", CLAIMS.values(), **by_id)
def test_an_empty_run_tests_nothing_and_says_why(claim: Claim) -> None:
    rows = judged(claim, [])
    assert rows and outcomes(rows) == {Outcome.NOT_TESTED}
    for row in rows:
        assert row.reason and row.source
        numbers = (row.ratio, row.low, row.high, row.confidence, row.tier, row.baseline, row.candidate)
        assert numbers == (None,) * 7 and row.replicates == 0


def test_a_claim_without_a_workload_gives_its_reason() -> None:
    for claim in CLAIMS.values():
        if isinstance(claim.rule, NotTested):
            rows = judged(claim, [])
            assert [row.regime for row in rows] == list(claim.regimes)
            assert {row.reason for row in rows} == {claim.rule.reason} and len(claim.rule.reason) > 20


# Several baselines and candidates


DECODE, OVERHEAD = CLAIMS["quant.decode"], CLAIMS["moe.overhead"]


def quantised(times: dict[str, float], pilots: dict[str, float] | None = None, **fields: Any) -> list[Record]:
    pilots = pilots or {}
    return [
        record
        for name, time_s in times.items()
        for record in arm(DECODE, name, time_s, regime="decode", pilot=pilots.get(name), **fields)
    ]


def shipped(rows: Sequence[Verdict], candidate: str) -> Verdict:
    (row,) = [row for row in rows if row.arm == "as_shipped" and row.candidate == candidate]
    return row


def test_supported_needs_every_baseline() -> None:
    times = {"torch-fp32": 0.010, "ort-fp32": 0.010, "torch-bf16": 0.004, "ort-int8": 0.005}
    pilots = {"torch-fp32": 0.009, "torch-bf16": 0.020}
    row = shipped(judged(DECODE, quantised(times, pilots)), "ort-int8")
    assert row.baseline == "torch-fp32" and row.low is not None and row.low > 1
    assert row.verdict is Outcome.INCONCLUSIVE
    times["torch-bf16"] = 0.010
    assert shipped(judged(DECODE, quantised(times, pilots)), "ort-int8").verdict is Outcome.SUPPORTED


def test_a_weaker_baseline_does_not_save_a_claim_from_refutation() -> None:
    times = {"torch-fp32": 0.004, "ort-fp32": 0.020, "torch-bf16": 0.030, "ort-int8": 0.010}
    row = shipped(judged(DECODE, quantised(times)), "ort-int8")
    assert (row.verdict, row.baseline) == (Outcome.REFUTED, "torch-fp32")
    assert row.ratio == pytest.approx(0.4, rel=0.05)


def test_the_strongest_baseline_is_the_pilots() -> None:
    times = {"torch-fp32": 0.002, "ort-fp32": 0.010, "ort-int8": 0.005}
    row = shipped(judged(DECODE, quantised(times, {"torch-fp32": 0.020})), "ort-int8")
    assert row.baseline == "ort-fp32"
    assert row.verdict is Outcome.INCONCLUSIVE


def test_the_best_arm_is_chosen_in_the_pilot() -> None:
    records = [
        *arm(OVERHEAD, "dense-equal-active", 0.010, regime="decode"),
        *arm(OVERHEAD, "moe-transformers", 0.020, regime="decode", pilot=0.005),
        *arm(OVERHEAD, "moe-sorted", 0.005, regime="decode", pilot=0.020),
    ]
    (best,) = [row for row in judged(OVERHEAD, records) if row.regime == "decode" and row.arm == "best"]
    assert (best.candidate, best.verdict) == ("moe-transformers", Outcome.REFUTED)
    assert best.ratio == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("loser", [0.5, 0.05])
def test_more_candidates_are_paid_for(loser: float) -> None:
    times = {"torch-fp32": 0.01, "ort-int8": 0.0075} | dict.fromkeys(DECODE.rule.as_shipped[:3], 0.01 / loser)
    rows = judged(DECODE, quantised(times))
    confidences = sorted(row.confidence for row in rows if row.arm == "as_shipped" and row.confidence)
    assert confidences == pytest.approx([0.95, 1 - 0.05 / 2, 1 - 0.05 / 3, 1 - 0.05 / 4])
    (best,) = [row for row in rows if row.arm == "best"]
    assert (best.candidate, best.confidence) == ("ort-int8", pytest.approx(0.95))


def test_a_failed_baseline_is_named_in_the_reason() -> None:
    failed = make_record(
        "torch-bf16", "decode", "quantized_linear", status=Status.FAILED, reason="no bf16 kernel", replicate=1
    )
    row = shipped(judged(DECODE, [*quantised({"torch-fp32": 0.01, "ort-int8": 0.005}), failed]), "ort-int8")
    assert row.verdict is Outcome.SUPPORTED
    assert "torch-bf16 left out (no bf16 kernel)" in row.reason


def test_a_failed_candidate_is_not_tested_with_its_reason() -> None:
    failed = make_record("bnb-nf4", "decode", "quantized_linear", status=Status.FAILED, reason="out of memory")
    rows = judged(DECODE, [*quantised({"torch-fp32": 0.01, "ort-int8": 0.005}), failed])
    assert any(row.verdict is Outcome.NOT_TESTED and "bnb-nf4: out of memory" in row.reason for row in rows)


def test_without_any_baseline_nothing_is_tested() -> None:
    rows = judged(DECODE, quantised({"ort-int8": 0.005}))
    assert outcomes(rows) == {Outcome.NOT_TESTED} and "baseline" in rows[0].reason


def test_a_single_replicate_over_one_baseline_supports_nothing() -> None:
    records = quantised({"torch-fp32": 0.010, "ort-int8": 0.005}, {"torch-fp32": 0.001})
    records += arm(DECODE, "ort-fp32", 0.001, regime="decode", pilot=0.02, count=1)
    assert shipped(judged(DECODE, records), "ort-int8").verdict is not Outcome.SUPPORTED


@EITHER
def test_a_capped_arm_with_one_round_a_replicate_is_decided(supported: bool, expected: Outcome) -> None:
    slow = beyond(DECODE, supported)
    records = quantised({"torch-fp32": 0.01})
    records += arm(DECODE, "bnb-nf4", 0.01 / slow, regime="decode", rounds=1, status=Status.CAPPED)
    row = shipped(judged(DECODE, records), "bnb-nf4")
    assert row.verdict is expected and "capped" in row.reason


def test_shapes_are_judged_apart() -> None:
    records = []
    for shape, time_s in (("small", 0.005), ("large", 0.020)):
        for name, value in (("torch-fp32", 0.01), ("ort-int8", time_s)):
            records += make_replicates(
                name, value, workload="quantized_linear", regime="decode", case_fields={"shape": shape}
            )
    rows = judged(DECODE, records)
    assert shipped(rows, "ort-int8 @ small").verdict is Outcome.SUPPORTED
    assert shipped(rows, "ort-int8 @ large").verdict is Outcome.REFUTED


def test_one_shape_at_several_numbers_of_tokens_is_judged_apart_and_named() -> None:
    records = []
    for tokens, time_s in ((1, 0.005), (4, 0.020)):
        fields = {"shape": "s", "cost": msgspec.structs.replace(COST, token=tokens)}
        for name, value in (("torch-fp32", 0.01), ("ort-int8", time_s)):
            records += make_replicates(
                name, value, workload="quantized_linear", regime="decode", comparison=f"c{tokens}",
                case_fields=fields | {"id": f"{name}-{tokens}"},
            )  # fmt: skip
    rows = judged(DECODE, records)
    assert shipped(rows, "ort-int8 @ s x 1").verdict is Outcome.SUPPORTED
    assert shipped(rows, "ort-int8 @ s x 4").verdict is Outcome.REFUTED


def test_looks_cost_confidence() -> None:
    records = quantised({"torch-fp32": 0.01, "ort-int8": 0.005})
    one, four = (shipped(judged(DECODE, records, alpha=a), "ort-int8") for a in (0.05, 0.0125))
    assert (one.confidence, four.confidence) == (pytest.approx(0.95), pytest.approx(0.9875))
    assert four.low < one.low and four.high > one.high


def test_the_machines_floor_widens_the_verdict() -> None:
    records = quantised({"torch-fp32": 0.01, "ort-int8": 0.0085}, noise=0.005)
    assert shipped(judged(DECODE, records, floor=0.0), "ort-int8").verdict is Outcome.SUPPORTED
    assert shipped(judged(DECODE, records, floor=0.25), "ort-int8").verdict is Outcome.INCONCLUSIVE


# Energy and peaks


ENERGY = [claim for claim in PAIRED if claim.rule.metric == "energy"]


@pytest.mark.parametrize("claim", ENERGY, **by_id)
def test_energy_without_joules_is_not_tested(claim: Claim) -> None:
    bare = [msgspec.structs.replace(r, readings=()) for r in evidence_at(claim, beyond(claim, True))]
    rows = judged(claim, bare)
    assert outcomes(rows) == {Outcome.NOT_TESTED} and all("joules" in row.reason for row in rows)


@pytest.mark.parametrize("claim", ENERGY, **by_id)
def test_modelled_joules_never_decide(claim: Claim) -> None:
    records = [
        msgspec.structs.replace(r, readings=tuple(msgspec.structs.replace(x, tier=Tier.MODELLED) for x in r.readings))
        for r in evidence_at(claim, beyond(claim, True))
    ]
    rows = judged(claim, records)
    assert outcomes(rows) == {Outcome.NOT_TESTED} and all("modelled" in row.reason for row in rows)


@pytest.mark.parametrize("claim", ENERGY, **by_id)
def test_windows_that_all_failed_decide_nothing(claim: Claim) -> None:
    records = [
        msgspec.structs.replace(
            r, readings=tuple(msgspec.structs.replace(x, joule=None, error="wrapped") for x in r.readings)
        )
        for r in evidence_at(claim, beyond(claim, True))
    ]
    assert outcomes(judged(claim, records)) == {Outcome.NOT_TESTED}


def test_the_pilots_joules_choose_the_strongest_baseline_of_an_energy_claim() -> None:
    claim = CLAIMS["quant.per_watt"]
    records = []
    for name, joule in (("torch-fp32", 1.0), ("ort-fp32", 3.0), ("ort-int8", 0.5)):
        made = arm(claim, name, joule, regime="decode")
        quick = 0.001 if name == "ort-fp32" else 0.1
        records += [
            msgspec.structs.replace(r, samples=make_record(time_s=quick, rounds=9).samples, readings=r.readings)
            for r in made
        ]
    rows = [row for row in judged(claim, records) if row.verdict is not Outcome.NOT_TESTED]
    assert {row.baseline for row in rows} == {"torch-fp32"}


def test_a_missing_peak_is_not_tested() -> None:
    claim = CLAIMS["quant.per_flop"]
    records = evidence_at(claim, beyond(claim, True))
    float_only = {("cpu", "fp32_flop_per_s"): 1e11}
    for peaks in ({}, float_only):
        rows = judged(claim, records, peaks=peaks)
        assert rows and outcomes(rows) == {Outcome.NOT_TESTED} and all(row.reason for row in rows)


def test_another_devices_peak_is_no_peak() -> None:
    claim = CLAIMS["quant.per_flop"]
    peaks = {("cuda", name): rate for name, rate in PEAKS.items()}
    assert outcomes(judged(claim, evidence_at(claim, beyond(claim, True)), peaks=peaks)) == {Outcome.NOT_TESTED}


# Exact ratios


def exact_records(claim: Claim, value_of: Callable[[float], float]) -> list[Record]:
    rule = claim.rule
    return [
        make_record(
            name, "decode", group.workload or rule.workload,
            facts={
                rule.numerator: make_fact(1e6 * value_of(group.threshold), "bytes"),
                rule.denominator: make_fact(1e6, "bytes"),
            },
        )
        for group in rule.groups
        for name in group.variants
    ]  # fmt: skip


@EITHER
@pytest.mark.parametrize("claim", EXACT, **by_id)
def test_an_exact_claim_can_swing_at_each_groups_threshold(claim: Claim, supported: bool, expected: Outcome) -> None:
    rows = judged(claim, exact_records(claim, lambda limit: beyond(claim, supported, 1.01, limit)))
    assert outcomes(rows) == {expected}
    limits = {(group.regime, name): group.threshold for group in claim.rule.groups for name in group.variants}
    assert {(row.regime, row.candidate.removesuffix(" @ small")): row.threshold for row in rows} == limits
    assert all(row.low == row.ratio == row.high and row.confidence is None for row in rows)


@pytest.mark.parametrize("claim", EXACT, **by_id)
def test_bytes_of_a_failed_record_are_not_used(claim: Claim) -> None:
    records = [
        msgspec.structs.replace(r, status=Status.FAILED, reason="wrong answer")
        for r in exact_records(claim, lambda limit: limit / 2)
    ]
    rows = judged(claim, records)
    assert outcomes(rows) == {Outcome.NOT_TESTED} and {row.reason for row in rows} == {"wrong answer"}


def test_memory_thresholds_are_per_width() -> None:
    rows = judged(CLAIMS["quant.memory"], exact_records(CLAIMS["quant.memory"], lambda _: 0.4))
    assert {row.verdict for row in rows if row.regime == "8-bit"} == {Outcome.SUPPORTED}
    assert {row.verdict for row in rows if row.regime == "4-bit"} == {Outcome.REFUTED}


def test_a_model_whose_tables_stay_wide_says_what_they_cost() -> None:
    sizes = {"weight_bytes": 58e6, "bf16_bytes": 45e6, "quantised_share": 0.5, "unquantised_bytes": 46e6}
    facts = {name: make_fact(value) for name, value in sizes.items()}
    record = make_record("rtn-int8", "task", "quantized_model", case_fields={"shape": "small"}, facts=facts)
    (row,) = (row for row in judged(CLAIMS["quant.memory"], [record]) if (row.candidate or "").startswith("rtn-int8"))
    assert row.verdict == Outcome.REFUTED and row.ratio == pytest.approx(58 / 45)
    assert "50% of the parameters" in row.reason and "43.9 MiB as held" in row.reason
    assert "ratio 0.767" in row.reason  # (58 - 46 + 22.5) / 45


# Coverage


ANY_RUNTIME = "openvino"


def covered(claim: Claim, holds: Sequence[float | None] = (1, 1, 1), **fields: Any) -> list[Record]:
    """One case per entry: the fact's value, or ``None`` for a record without it."""
    rule = claim.rule
    return [
        make_record(
            ANY_RUNTIME, "batch-1", rule.workload, case_fields={"shape": f"model{number}"},
            facts={} if value is None else {rule.fact: make_fact(float(value))}, **fields,
        )
        for number, value in enumerate(holds)
    ]  # fmt: skip


@pytest.mark.parametrize("claim", COVERAGE, **by_id)
def test_coverage_can_swing(claim: Claim) -> None:
    (all_hold,) = judged(claim, covered(claim))
    assert (all_hold.verdict, all_hold.ratio) == (Outcome.SUPPORTED, 1.0)
    for bad in (0,) if claim.rule.only_known else (0, None):
        (one_fails,) = judged(claim, covered(claim, (1, 1, bad)))
        assert (one_fails.verdict, one_fails.ratio) == (Outcome.REFUTED, pytest.approx(2 / 3))
        assert "model2" in one_fails.reason and "model1" not in one_fails.reason


@pytest.mark.parametrize("claim", COVERAGE, **by_id)
def test_a_failed_case_does_not_hold_and_is_named(claim: Claim) -> None:
    case = make_case(ANY_RUNTIME, "batch-8", claim.rule.workload, shape="broken")
    facts = {claim.rule.fact: make_fact(1.0)}
    failed = make_record(case=case, status=Status.FAILED, reason="another provider took a node", facts=facts)
    (row,) = judged(claim, [*covered(claim), failed])
    assert (row.verdict, row.ratio) == (Outcome.REFUTED, 0.75)
    assert case.id in row.reason and "3 of 4" in row.reason


@pytest.mark.parametrize("claim", COVERAGE, **by_id)
def test_one_failed_worker_of_a_case_is_enough(claim: Claim) -> None:
    again = [msgspec.structs.replace(r, replicate=2) for r in covered(claim)]
    again[0] = msgspec.structs.replace(again[0], facts={claim.rule.fact: make_fact(0.0)})
    (row,) = judged(claim, [*covered(claim), *again])
    assert (row.verdict, row.ratio) == (Outcome.REFUTED, pytest.approx(2 / 3))


@pytest.mark.parametrize("claim", COVERAGE, **by_id)
def test_skipped_cases_are_counted_apart(claim: Claim) -> None:
    case = make_case(ANY_RUNTIME, "batch-1", claim.rule.workload)
    skipped = make_record(case=case, status=Status.SKIPPED, reason="openvino is not installed")
    (row,) = judged(claim, [*covered(claim), skipped])
    assert row.verdict is Outcome.SUPPORTED and "1 skipped" in row.reason
    (alone,) = judged(claim, [skipped])
    assert (alone.verdict, alone.reason) == (Outcome.NOT_TESTED, "openvino is not installed")


@pytest.mark.parametrize("claim", COVERAGE, **by_id)
def test_other_variants_do_not_enter(claim: Claim) -> None:
    native = make_record("torch-eager", "batch-1", claim.rule.workload, facts={claim.rule.fact: make_fact(0.0)})
    (row,) = judged(claim, [*covered(claim), native])
    assert row.verdict is Outcome.SUPPORTED


@pytest.mark.parametrize("claim", COVERAGE, **by_id)
def test_a_case_that_was_only_interrupted_was_not_tried(claim: Claim) -> None:
    cut = make_record(
        ANY_RUNTIME, "batch-1", claim.rule.workload, interrupted=True, time_s=None, replicate=0,
        case_fields={"shape": "cut"},
    )  # fmt: skip
    (row,) = judged(claim, [*covered(claim), cut])
    assert row.verdict is not Outcome.REFUTED
    assert outcomes(judged(claim, [cut])) == {Outcome.NOT_TESTED}


@pytest.mark.parametrize("claim", COVERAGE, **by_id)
def test_further_workloads_count_and_what_never_ran_counts_where_the_claim_says_so(claim: Claim) -> None:
    beside = make_record(
        ANY_RUNTIME, "batch-1", claim.rule.beside[0], status=Status.FAILED, reason="LoadError: no such operator"
    )
    (row,) = judged(claim, [*covered(claim), beside])
    assert row.verdict is (Outcome.SUPPORTED if claim.rule.only_known else Outcome.REFUTED)
    facts = {claim.rule.fact: make_fact(0.0)}
    wrong = make_record(ANY_RUNTIME, "batch-1", claim.rule.beside[0], status=Status.FAILED, reason="w", facts=facts)
    assert outcomes(judged(claim, [*covered(claim), wrong])) == {Outcome.REFUTED}


def test_a_long_list_of_cases_that_do_not_hold_is_cut() -> None:
    (row,) = judged(CLAIMS["onnx.models"], covered(CLAIMS["onnx.models"], (1, *[0] * 30)))
    assert "and 26 more" in row.reason and len(row.reason) < 400


# Modelled


def modelled(claim: Claim, value: float | None, spread: float = 1.1, **fields: Any) -> Record:
    rule = claim.rule
    bounds = {} if value is None else {"low": value / spread, "high": value * spread}
    fact = make_fact(value, tier=Tier.MODELLED, source="model", **bounds)
    return make_record(
        rule.variant, "a-metric", rule.workload, time_s=None, tier=Tier.MODELLED, replicate=0,
        facts={rule.fact: fact}, **fields,
    )  # fmt: skip


@EITHER
@pytest.mark.parametrize("claim", MODELLED, **by_id)
def test_a_modelled_claim_can_swing(claim: Claim, supported: bool, expected: Outcome) -> None:
    (row,) = judged(claim, [modelled(claim, beyond(claim, supported))])
    assert (row.verdict, row.tier, row.regime) == (expected, Tier.MODELLED, "a-metric")


@pytest.mark.parametrize("claim", MODELLED, **by_id)
def test_a_modelled_interval_across_the_threshold_is_inconclusive(claim: Claim) -> None:
    (row,) = judged(claim, [modelled(claim, claim.threshold)])
    assert row.verdict is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("claim", MODELLED, **by_id)
def test_a_modelled_value_that_is_missing_is_not_tested(claim: Claim) -> None:
    (why,) = judged(claim, [modelled(claim, None, reason="power unpublished")])
    assert (why.verdict, why.ratio, why.reason) == (Outcome.NOT_TESTED, None, "power unpublished")
    (silent,) = judged(claim, [modelled(claim, None)])
    assert silent.verdict is Outcome.NOT_TESTED and silent.reason


def test_verdicts_follow_the_claims_order_and_do_not_depend_on_the_records_order() -> None:
    claim = CLAIMS["moe.overhead"]
    records = evidence_at(claim, beyond(claim, True))
    shuffled = [records[i] for i in np.random.default_rng(1).permutation(len(records))]
    assert judged(claim, shuffled) == judged(claim, records)
    everything = evaluate(Evidence(records=tuple(records), machine="test"), list(CLAIMS.values()))
    assert list(dict.fromkeys(row.claim for row in everything)) == list(CLAIMS)
