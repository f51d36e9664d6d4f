"""How large a model fits and generates fast enough: either side of the threshold, what is missing, strange records."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory import make_case, make_record, make_replicates, make_run
from frugalbench.analysis import reach
from frugalbench.analysis.claims import evaluate, load_claims
from frugalbench.analysis.judge import Evidence
from frugalbench.analysis.load import load_run
from frugalbench.report.reach import reach_tables
from frugalbench.report.render import render
from frugalbench.schema import Cost, Outcome, Quantity, Status, Tier
from frugalbench.specs import model_decode

(CLAIM,) = [claim for claim in load_claims() if claim.id == "quant.reach"]
PARAMETERS, MEMORY = 600_000_000, 24e9
BITS = {"native-fp32": 32, "transformers-bf16": 16, "llama-f16": 16, "native-w4a8": 4.5, "llama-q4_0": 4.5}


def arm(variant, bytes_per_s, count=4, **more):
    size = BITS[variant] / 8 * PARAMETERS
    cost = Cost(token=1, flop=1e9, weight_bytes=size, traffic_bytes=size, parameters=PARAMETERS)
    fields = {"cost": cost, "shape": "qwen3-0.6b", "params": {"bits": int(BITS[variant]), "context": 256}}
    facts = {"weight_bytes": Quantity(value=size, unit="byte", tier=Tier.MEASURED)}
    return make_replicates(
        variant, size / bytes_per_s, count, workload="model_decode", case_fields=fields, facts=facts,
        comparison="model_decode/qwen3-0.6b", **{"between": 1e-3, **more},
    )  # fmt: skip


def shapes(**details):
    made = model_decode.model(make_case("published-shapes", "shapes", "model_decode"))
    return make_record(case=made.case, time_s=None, comparison="plan", details={**made.details, **details})


def evidence(*arms, listed=True, memory=MEMORY):
    records = [record for found in arms for record in found] + ([shapes()] if listed else [])
    return Evidence(records=tuple(records), machine="m", memory_bytes=memory, peaks={("cpu", "read_bytes_per_s"): 4e10})


def verdict(*arms, **fields):
    (found,) = evaluate(evidence(*arms, **fields), [CLAIM])
    return found


def test_four_bits_that_stream_as_well_reach_a_larger_model():
    found = verdict(arm("llama-f16", 3.2e10), arm("native-w4a8", 3e10))
    assert (found.verdict, found.tier, found.replicates) == (Outcome.SUPPORTED, Tier.MODELLED, 4)
    assert found.low <= found.ratio <= found.high
    assert (found.candidate, found.baseline) == ("native-w4a8", "llama-f16")
    assert "native-w4a8: qwen3.5-35b-a3b" in found.reason
    assert "at 75% of the read bandwidth" in found.reason
    assert "22.4 GiB of memory, 256 tokens of context" in found.reason


def test_four_bits_that_unpack_slowly_do_not():
    found = verdict(arm("llama-f16", 3.2e10), arm("native-w4a8", 6e9))
    assert found.verdict is Outcome.REFUTED
    assert found.high < 2


def test_replicates_that_differ_leave_it_open():
    found = verdict(arm("llama-f16", 3.2e10, between=1.0), arm("native-w4a8", 9e9, between=1.0))
    assert found.verdict in (Outcome.INCONCLUSIVE, Outcome.NOT_TESTED)


def test_without_an_arm_in_bf16_the_unquantised_one_lends_its_share():
    found = verdict(arm("native-fp32", 3.2e10), arm("native-w4a8", 3e10))
    same = verdict(arm("llama-f16", 3.2e10), arm("native-w4a8", 3e10))
    assert found.baseline == "bf16 as native-fp32"
    assert found.ratio == same.ratio


def test_the_best_arm_is_that_of_the_pilot():
    slow, fast = arm("native-w4a8", 2e10), arm("llama-q4_0", 3e10)
    assert verdict(arm("llama-f16", 3.2e10), slow, fast).candidate == "llama-q4_0"


@pytest.mark.parametrize(
    ("fields", "arms", "why"),
    [
        ({"listed": False}, ("llama-f16", "native-w4a8"), "lists no published models"),
        ({"memory": None}, ("llama-f16", "native-w4a8"), "how much memory"),
        ({}, ("llama-f16",), "no arm of native-w4a8"),
        ({}, ("native-w4a8",), "no arm of transformers-bf16"),
        ({"memory": 5e6}, ("llama-f16", "native-w4a8"), "no published model fits"),
        ({}, (), "no model_decode case in regime decode"),
    ],
)
def test_what_is_missing_is_said(fields, arms, why):
    found = verdict(*(arm(name, 3e10) for name in arms), **fields)
    assert found.verdict is Outcome.NOT_TESTED
    assert why in found.reason


def test_a_model_too_large_for_memory_or_from_memory_is_not_chosen():
    known = reach.published([shapes()], "model_decode", "published-shapes")
    assert "llama3.1-8b" in known and "llama2-7b" not in known
    pace = reach.Pace("x", 2.0, reach.Span(1e13, 1e13, 1e13), None, 256, 4)
    best = reach.reached(pace, known, 20e9, 5.0)
    fits = [s for s in known.values() if 2 * s.parameters + 256 * s.kv_bytes_per_token <= 20e9]
    assert best.parameters == max(shape.parameters for shape in fits)
    assert best.memory_bytes <= 20e9


def test_only_active_parameters_are_read():
    sparse = reach.Published(30e9, 3e9, 1000.0, recalled=False)
    pace = reach.Pace("x", 0.5, reach.Span(2e10, 1e10, 4e10), None, 100, 4)
    found = reach.reached(pace, {"sparse": sparse}, 16e9, 5.0)
    assert found.token_per_s.value == pytest.approx(2e10 / (1.5e9 + 1e5))
    assert found.memory_bytes == pytest.approx(15e9 + 1e5)
    assert reach.reached(pace, {"dense": reach.Published(30e9, 30e9, 1000.0, recalled=False)}, 16e9, 5.0) is None


@given(st.floats(1e9, 1e12), st.floats(1.0, 10.0), st.floats(0.3, 4.0))
def test_a_faster_arm_never_reaches_less(rate, factor, bytes_each):
    known = reach.published([shapes()], "model_decode", "published-shapes")
    slow, fast = (
        reach.reached(reach.Pace("x", bytes_each, reach.Span(r, r, r), None, 256, 4), known, MEMORY, 5.0)
        for r in (rate, rate * factor)
    )
    assert slow is None or fast.parameters >= slow.parameters


@pytest.mark.parametrize("wrong", [None, [], {"a": 1}, {"a": {"parameters": -1}}, {"a": {"parameters": "x"}}])
def test_a_list_of_strangers_is_not_believed(wrong):
    assert reach.published([shapes(shapes=wrong)], "model_decode", "published-shapes") in (None, {})


def test_a_failed_arm_says_why():
    where = {"workload": "model_decode", "comparison": "model_decode/qwen3-0.6b"}
    failed = [make_record("native-w4a8", status=Status.FAILED, reason="wrong answer", **where)]
    found = verdict(arm("llama-f16", 3e10), failed)
    assert (found.verdict, found.reason) == (Outcome.NOT_TESTED, "native-w4a8: wrong answer")


def test_the_report_shows_every_arm(tmp_path: Path):
    records = [*arm("native-fp32", 3.2e10), *arm("native-w4a8", 3e10), shapes()]
    machine = {"fingerprint": "f", "memory_bytes": 32e9, "memory_limit_bytes": MEMORY}
    run = load_run(make_run(tmp_path / "run", records, machine_before=machine))
    (table,) = reach_tables([run])
    assert table.title == "Reach from qwen3-0.6b (smoke)"
    assert [row[0].text for row in table.rows] == ["native-w4a8", "bf16 as native-fp32", "native-fp32"]
    assert table.rows[0][1].text == "qwen3.5-35b-a3b"
    assert "22.4 GiB with the cache of 256 tokens" in table.notes[1]
    text = render([run], [])
    assert "Reach from qwen3-0.6b" in text and max(map(len, text.splitlines())) <= 80
    assert reach_tables([load_run(make_run(tmp_path / "none", records[:-1], machine_before=machine))]) == []
