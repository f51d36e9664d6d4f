"""Compute to equal loss: read off curves whose answer is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.analysis import curves
from frugalbench.analysis.claims import load_claims
from frugalbench.analysis.judge import Evidence
from frugalbench.schema import SCHEMA_VERSION, Case, Outcome, Record, Status

CLAIM = next(claim for claim in load_claims() if claim.id == "quality.moe")


def law(factor, offset=1.0, points=20, flop=1e9):
    """Loss = offset + 1/spent, where ``factor`` times as much must be spent for the same."""
    return [{"step": n, "flop": n * flop, "time_s": 0.1 * n, "loss": offset + factor / n} for n in range(1, points + 1)]


@given(st.floats(0.3, 3.0))
def test_the_ratio_of_a_known_law_is_found(factor):
    assert math.exp(curves.log_ratio(law(factor), law(1.0), "flop")) == pytest.approx(factor, rel=0.02)


@given(st.floats(0.3, 3.0))
def test_exchanging_the_two_inverts_the_ratio(factor):
    forth, back = curves.log_ratio(law(factor), law(1.0), "flop"), curves.log_ratio(law(1.0), law(factor), "flop")
    assert forth == pytest.approx(-back, abs=1e-12)


def test_a_curve_that_rises_again_counts_where_it_first_fell():
    curve = law(1.0)
    bumpy = [*curve[:10], {**curve[9], "flop": 10.5e9, "loss": 3.0}, *curve[10:]]
    assert curves.log_spent(bumpy, 1.06, "flop") == pytest.approx(curves.log_spent(curve, 1.06, "flop"), rel=1e-3)


def test_what_is_never_reached_or_was_reached_before_the_first_point_is_unknown():
    assert curves.log_spent(law(1.0), 0.5, "flop") is None
    assert curves.log_spent(law(1.0), 5.0, "flop") is None


def record(variant, replicate, curve):
    case = Case(
        id=f"q/{variant}", workload="lm_quality", variant=variant, shape="s", regime="training", backend="torch",
        device="cpu", dtype="float32",
    )  # fmt: skip
    return Record(
        schema_version=SCHEMA_VERSION, comparison="q", arm=variant, case=case, replicate=replicate, status=Status.OK,
        details={"curve": curve},
    )  # fmt: skip


def verdict(factors, *more):
    rows = [
        item
        for number, factor in enumerate(factors, 1)
        for item in (record("dense", number, law(1.0)), record("moe", number, law(factor)))
    ]
    (found,) = curves.verdicts(CLAIM, Evidence(records=(*rows, *more), machine="m"))
    return found


@pytest.mark.parametrize(
    ("factors", "outcome"),
    [
        ((0.5, 0.52, 0.49, 0.51), Outcome.SUPPORTED),
        ((0.95, 0.97, 0.96, 0.94), Outcome.REFUTED),
        ((0.5, 1.2, 0.7, 0.9), Outcome.INCONCLUSIVE),
        ((0.5,), Outcome.INCONCLUSIVE),
        ((), Outcome.NOT_TESTED),
    ],
)
def test_the_verdict_follows_the_interval(factors, outcome):
    found = verdict(factors)
    assert found.verdict is outcome
    assert found.replicates == len(factors)


def test_the_seconds_and_the_losses_stand_beside_the_ratio():
    reason = verdict((0.5, 0.52, 0.49)).reason
    assert "final loss 1.03 against 1.05 nat/byte" in reason
    assert "seconds to equal loss 0.5" in reason


@pytest.mark.parametrize("curve", [None, [], "x", [{"flop": 1}], [{"flop": 0, "time_s": 1, "loss": 1}] * 3,
                                   [{"flop": 1, "time_s": 1, "loss": float("nan")}] * 3])  # fmt: skip
def test_curves_that_hold_no_numbers_are_left_out(curve):
    assert verdict((0.5, 0.51), record("moe", 3, curve), record("dense", 3, law(1.0))).replicates == 2
