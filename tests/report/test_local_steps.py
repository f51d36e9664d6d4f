"""What fewer exchanges cost: ratios whose answer is known, replicates that do not pair, and strange records."""

from pathlib import Path
from typing import Any

import pytest

from factory import make_fact, make_record, make_run
from frugalbench.analysis.load import load_run
from frugalbench.analysis.local_steps import trainings
from frugalbench.report.local_steps import local_steps_tables
from frugalbench.schema import Record, Tier

STEPS = range(8, 65, 8)


def curve(factor: float = 1.0, offset: float = 1.0, steps: range = STEPS) -> list[dict[str, float]]:
    """Loss = offset + factor / step: ``factor`` times as many tokens for the same loss."""
    return [{"step": n, "token": 10 * n, "flop": 1e9 * n, "time_s": n, "loss": offset + factor / n} for n in steps]


def record(variant: str, local_steps: Any, replicate: int = 1, **details: Any) -> Record:
    fields = {"shape": "d8x1-r2", "params": {"local_steps": local_steps}, "cost": None, "peaks": ()}
    facts = {"exchanged_bytes": make_fact(64e6 / local_steps, "byte", Tier.MODELLED)} if local_steps == 4 else {}
    return make_record(
        variant, "training", "local_steps", replicate=replicate, case_fields=fields, details=details, facts=facts
    )


def network(variant: str, regime: str, time_s: float, replicate: int) -> Record:
    fields = {"shape": "remote-r4", "cost": None, "peaks": (), "params": {}}
    return make_record(
        variant, regime, "emulated_network", time_s=[time_s] * 3, replicate=replicate, case_fields=fields,
        tier=Tier.EMULATED, comparison="emulated_network/remote",
    )  # fmt: skip


def records(factors: tuple[float, ...] = (2.0, 2.1, 1.9)) -> list[Record]:
    return [
        item
        for number, factor in enumerate(factors, 1)
        for item in (
            record("every-step", 1, number, curve=curve()),
            record("diloco-h4", 4, number, curve=curve(factor)),
        )
    ]


def test_a_known_law_gives_back_the_price_in_loss_and_in_tokens(tmp_path: Path) -> None:
    base, rare = trainings(load_run(make_run(tmp_path / "run", records())))
    assert (base.variant, base.local_steps, base.over_every_step) == ("every-step", 1, None)
    assert rare.over_every_step is not None
    loss, token = rare.over_every_step.loss, rare.over_every_step.token
    assert loss.ratio == pytest.approx((1 + 2 / 64) / (1 + 1 / 64), rel=1e-3)
    assert loss.low is not None
    assert loss.low < loss.ratio < (loss.high or 0)
    assert token is not None
    assert token.ratio == pytest.approx(2.0, rel=0.05)
    assert (loss.replicates, rare.sent_bytes) == (3, 16e6)


def test_only_pairs_with_equal_seeds_and_equal_tokens_count(tmp_path: Path) -> None:
    more = [record("diloco-h4", 4, 9, curve=curve(5.0)), record("every-step", 1, 8, curve=curve(5.0))]
    short = [
        record("every-step", 1, 7, curve=curve(steps=range(8, 33, 8))),
        record("diloco-h4", 4, 7, curve=curve(3.0)),
    ]
    _, rare = trainings(load_run(make_run(tmp_path / "run", [*records(), *more, *short])))
    assert rare.over_every_step is not None
    assert rare.over_every_step.loss.replicates == 3


def test_a_curve_that_begins_below_the_equal_loss_is_left_out_and_said(tmp_path: Path) -> None:
    flat = [record("every-step", 1, 4, curve=curve()), record("diloco-h4", 4, 4, curve=curve(1.0, 3.0))]
    run = load_run(make_run(tmp_path / "run", [*records(), *flat]))
    over = trainings(run)[1].over_every_step
    assert over is not None
    assert (over.loss.replicates, over.unread) == (4, 1)
    (table,) = local_steps_tables([run])
    assert any("before its first point" in note for note in table.notes)


def test_the_emulated_speed_stands_beside_the_same_number_of_steps(tmp_path: Path) -> None:
    plain = [
        network(variant, "every 4 steps", time_s, number)
        for number in (1, 2, 3)
        for variant, time_s in (("one-site", 0.05), ("two-sites", 0.1))
    ]
    others = [network("uniform", "all-reduce", 1.0, 1), network("two-sites", "every 16 steps", 1.0, 1)]
    runs = [
        load_run(make_run(tmp_path / "local", records())),
        load_run(make_run(tmp_path / "emulated", [*plain, *others], name="emulate")),
    ]
    (table,) = local_steps_tables(runs)
    (base, rare) = table.rows
    names = [name for name, _ in table.columns]
    assert base[names.index("emulated speed")].text == "–"
    cell = rare[names.index("emulated speed")]
    assert (cell.text[:5], cell.mark) == ("0.500", "emulated")
    assert rare[names.index("overlapped")].text == "–"
    (alone,) = local_steps_tables(runs[:1])
    assert "emulated speed" not in [name for name, _ in alone.columns]
    assert "no emulated_network case" in alone.notes[-1]


@pytest.mark.parametrize(
    "odd",
    [
        {"curve": None},
        {"curve": [{"flop": 1.0}]},
        {"curve": [{"step": 1, "flop": 1.0, "time_s": 1.0, "loss": "x"}] * 2},
        {"curve": [{"step": 1, "flop": 1.0, "time_s": 1.0, "loss": -1.0}] * 2},
        {},
    ],
)
def test_records_without_a_usable_curve_are_left_out(tmp_path: Path, odd: dict[str, Any]) -> None:
    run = load_run(make_run(tmp_path / "run", [record("every-step", 1, **odd), record("diloco-h4", 4, **odd)]))
    assert local_steps_tables([run]) == []
