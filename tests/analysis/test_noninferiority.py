"""Accuracy verdicts from bits in records: either side of the gate, what cannot be judged, records of strangers."""

import base64

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import make_case, make_record
from frugalbench.analysis import noninferiority
from frugalbench.analysis.claims import load_claims
from frugalbench.analysis.judge import Evidence
from frugalbench.schema import Outcome, Status

CLAIMS = {claim.id: claim for claim in load_claims()}
CLAIM = CLAIMS["quant.accuracy_8bit"]
RULE = CLAIM.rule
ITEMS = 20_000


def packed(bits):
    return base64.b64encode(np.packbits(np.asarray(bits, bool)).tobytes()).decode()


def bits(right=0.8, lost=0.0, won=0.0, items=ITEMS):
    """Right answers of a base, with shares of all items lost and won in fixed places."""
    found = np.zeros(items, bool)
    found[: int(right * items)] = True
    found[: int(lost * items)] = False
    found[items - int(won * items) :] = True
    return found


def record(variant, correct, *, starts=None, scope="literal", replicate=1, shape="model", digest="d", **fields):
    case = make_case(variant, "task", "quantized_model", shape=shape, params={"scope": scope})
    details = {
        "task": {"name": "task", "kind": "classify", "digest": digest},
        "model_digest": "m",
        "items": len(correct),
        "correct": packed(correct),
        "starts": packed(np.ones(len(correct), bool) if starts is None else starts),
        **fields.pop("details", {}),
    }
    return make_record(case=case, time_s=None, replicate=replicate, details=details, **fields)


def verdicts(*records, claim=CLAIM):
    return noninferiority.verdicts(claim, Evidence(records=records, machine="m"))


def verdict(ours, base=None, **fields):
    (found,) = verdicts(record("torch-fp32", bits() if base is None else base), record("rtn-int8", ours, **fields))
    return found


@pytest.mark.parametrize(
    ("ours", "outcome", "strict"),
    [
        (bits(lost=0.0001, won=0.0001), Outcome.SUPPORTED, "strict gate 0.999: supported"),
        (bits(lost=0.004, won=0.003), Outcome.SUPPORTED, "strict gate 0.999: inconclusive"),
        (bits(lost=0.05, won=0.01), Outcome.REFUTED, "strict gate 0.999: refuted"),
        (bits(lost=0.02, won=0.0115), Outcome.INCONCLUSIVE, "strict gate 0.999: refuted"),
    ],
)
def test_the_verdict_follows_the_interval(ours, outcome, strict):
    found = verdict(ours)
    assert found.verdict is outcome
    assert strict in found.reason
    assert found.low < found.ratio < found.high
    assert found.ratio == pytest.approx(ours.sum() / bits().sum())
    assert (found.metric, found.baseline, found.candidate) == ("relative accuracy", "torch-fp32", "rtn-int8")
    assert ("items would settle it" in found.reason) == (outcome is Outcome.INCONCLUSIVE)


@pytest.mark.parametrize("claim", [CLAIMS["quant.accuracy_8bit"], CLAIMS["quant.accuracy_4bit"]], ids=lambda c: c.id)
def test_each_claim_swings_for_each_of_its_schemes(claim):
    base = record("torch-fp32", bits())
    for lost, expected in ((0.0, Outcome.SUPPORTED), (0.1, Outcome.REFUTED)):
        rows = verdicts(base, *(record(name, bits(lost=lost)) for name in claim.rule.candidates), claim=claim)
        assert {row.candidate for row in rows} == set(claim.rule.candidates)
        assert {row.verdict for row in rows} == {expected}
        assert {row.regime for row in rows} == {"task"}


def test_too_few_items_are_inconclusive_and_say_how_many_it_takes():
    found = verdict(bits(items=200), bits(items=200))
    assert found.verdict is Outcome.INCONCLUSIVE
    assert "at the ratio and discordance seen, about 980 items would settle it" in found.reason


def test_items_in_clusters_settle_less():
    lost = bits(lost=0.006)
    assert verdict(lost).verdict is Outcome.SUPPORTED
    starts = np.arange(ITEMS) % 400 == 0
    base = record("torch-fp32", bits(), starts=starts)
    (found,) = verdicts(base, record("rtn-int8", lost, starts=starts))
    assert found.verdict is Outcome.INCONCLUSIVE
    assert "design effect" in found.reason


def test_a_model_trained_on_the_spot_is_an_analogue_and_says_so():
    found = verdict(bits(), scope="analogue", details={"note": "no evidence on larger ones"})
    assert found.scope == "analogue"
    assert "no evidence on larger ones" in found.reason
    assert verdict(bits()).scope == "literal"
    assert verdict(bits(), scope="whatever").scope == CLAIM.scope


def test_models_are_told_apart_when_there_are_several():
    rows = verdicts(*(record(name, bits(), shape=shape) for shape in ("a", "b") for name in ("torch-fp32", "rtn-int8")))
    assert {row.candidate for row in rows} == {"rtn-int8 @ a", "rtn-int8 @ b"}


def test_a_capped_scheme_has_no_verdict():
    capped = record("rtn-int8", bits(), status=Status.CAPPED, reason="would take 900 s")
    (found,) = verdicts(record("torch-fp32", bits()), capped)
    assert found.verdict is Outcome.NOT_TESTED
    assert found.reason == "rtn-int8: capped: would take 900 s"
    assert found.ratio is None


def test_a_failed_scheme_says_why():
    failed = record("rtn-int8", bits(), status=Status.FAILED, reason="wrong answer: error 3")
    (found,) = verdicts(record("torch-fp32", bits()), failed)
    assert (found.verdict, found.reason) == (Outcome.NOT_TESTED, "rtn-int8: wrong answer: error 3")


@pytest.mark.parametrize(
    ("base", "why"),
    [
        (None, "the unquantised model gave no answers in this run"),
        (record("torch-fp32", bits(), status=Status.FAILED, reason="it broke"), "in this run: it broke"),
        (record("torch-fp32", bits(), digest="other"), "the unquantised model answered other items"),
        (record("torch-fp32", bits(items=100)), "the unquantised model answered other items"),
        (record("torch-fp32", np.zeros(ITEMS, bool)), "the unquantised model has no item right"),
    ],
)
def test_without_answers_to_the_same_items_there_is_nothing_to_judge(base, why):
    (found,) = verdicts(*([] if base is None else [base]), record("rtn-int8", bits()))
    assert found.verdict is Outcome.NOT_TESTED
    assert why in found.reason


def test_without_any_record_the_claim_says_so():
    (found,) = verdicts()
    assert found.reason == "this run has no quantized_model case"


def test_later_replicates_add_no_items_but_tell_when_answers_changed():
    base = record("torch-fp32", bits())
    again = record("rtn-int8", bits(), replicate=2, details={"items": None, "repeated": 100, "same": 97})
    (found,) = verdicts(base, record("rtn-int8", bits()), again)
    assert "20000 items" in found.reason
    assert "replicate 2 answered 3.0% of 100 otherwise" in found.reason
    assert found.replicates == 2
    same = msgspec.structs.replace(again, details={"repeated": 100, "same": 100})
    (found,) = verdicts(base, record("rtn-int8", bits()), same)
    assert "otherwise" not in found.reason


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bits_are_read_back(correct):
    assert noninferiority.bits(packed(correct), len(correct)) == tuple(map(int, correct))


@pytest.mark.parametrize(
    "details",
    [
        {"items": -1}, {"items": "3"}, {"items": 10**12}, {"items": 7}, {"correct": None}, {"correct": "é"},
        {"correct": "AAAA"}, {"starts": 3}, {"items": 2.5}, {"items": None},
    ],
)  # fmt: skip
def test_answers_that_cannot_be_read_are_not_judged(details):
    found = verdict(bits(), details=details)
    assert found.verdict is Outcome.NOT_TESTED
    assert "the record" in found.reason


@pytest.mark.parametrize("details", [{"task": "x"}, {"task": {"digest": []}}, {"model_digest": {}}])
def test_odd_descriptions_do_not_break_the_rule(details):
    assert verdict(bits(), details=details).verdict in Outcome
