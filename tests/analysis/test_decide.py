"""The stopping rule is pure and replayable, stops early only when all is settled, and pays for every look."""

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats

from factory import PEAKS, make_record, make_replicates, make_run
from frugalbench.analysis.claims import load_claims
from frugalbench.analysis.decide import decide
from frugalbench.analysis.load import load_run
from frugalbench.schema import Decision, Record

CLAIMS = load_claims()
LOOKS = (4, 8, 16)
FLOOR = 0.03


def arms(overhead: float, count: int = 4, noise: float = 0.01, **fields: Any) -> list[Record]:
    """Arms of the MoE family; ``overhead`` is the speed of the MoE over the dense FFN of equal active size."""
    times = {"dense-equal-active": 0.01, "moe-transformers": 0.01 / overhead, "moe-sorted": 0.01 / overhead}
    return [r for name, time_s in times.items() for r in make_replicates(name, time_s, count, noise, **fields)]


def asked(records: list[Record], replicates: int = 4, looks: tuple[int, ...] = LOOKS, **fields: Any) -> Decision:
    return decide(records, replicates, looks, **{"claims": CLAIMS, "alpha": 0.05, "floor": FLOOR, **fields})


@pytest.mark.parametrize("overhead", [0.9 * 1.5, 0.9 / 1.5])
def test_stops_early_when_every_claim_is_settled(overhead: float) -> None:
    found = asked(arms(overhead))
    assert (found.stop, found.look) == (True, 1) and "settled" in found.reason


def test_goes_on_while_a_claim_is_open_and_names_it() -> None:
    found = asked(arms(0.9))
    assert (found.stop, found.look) == (False, 1)
    assert "moe.overhead decode" in found.reason


def test_one_open_regime_keeps_the_comparison_going() -> None:
    settled, still_open = arms(1.5, regime="decode"), arms(0.9, regime="prefill")
    assert asked(settled).stop
    found = asked([*settled, *still_open])
    assert not found.stop and "moe.overhead prefill" in found.reason and "decode" not in found.reason


@pytest.mark.parametrize(("replicates", "look"), [(4, 1), (8, 2), (16, 3), (17, 3)])
def test_the_look_is_counted(replicates: int, look: int) -> None:
    assert asked(arms(0.9, replicates), replicates).look == look


def test_the_last_planned_look_ends_it_whatever_was_found() -> None:
    found = asked(arms(0.9, 16), 16)
    assert found.stop and "last planned look" in found.reason
    assert asked([], 16).stop


def test_same_records_same_decision(tmp_path: Path) -> None:
    records = arms(0.95, noise=0.05)
    before = [msgspec.json.encode(r) for r in records]
    first = asked(records)
    stored = load_run(make_run(tmp_path / "run", records)).records
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(len(records))]
    assert first == asked(records) == asked(list(stored)) == asked(shuffled)
    assert [msgspec.json.encode(r) for r in records] == before


def exact_arms(mean: float, spread: float) -> list[Record]:
    """Four replicates whose log-ratios have exactly this mean and standard deviation."""
    shape = np.array([-1.0, -1.0, 1.0, 1.0])
    logs = mean + spread * shape / np.std(shape, ddof=1)
    times = {"dense-equal-active": np.full(5, 0.01), "moe-transformers": 0.01 / np.exp([mean, *logs])}
    return [
        make_record(name, time_s=[float(t)] * 3, replicate=i)
        for name, values in times.items()
        for i, t in enumerate(values)
    ]


def test_an_early_look_may_spend_only_its_share_of_alpha() -> None:
    """Four of eight replicates: 0.05 * (4 / 8) ** 1.5; a case that passes at that level and not at the one for 16."""
    spread = 0.02
    half = {n: stats.t.ppf(1 - 0.05 * (4 / n) ** 1.5 / 2, 3) * spread / 2 + math.log1p(FLOOR) for n in (8, 16)}
    records = exact_arms(math.log(0.9) + (half[8] + half[16]) / 2, spread)
    overhead = [claim for claim in CLAIMS if claim.id == "moe.overhead"]
    assert asked(records, looks=(4, 8), claims=overhead).stop
    assert not asked(records, looks=(4, 16), claims=overhead).stop


def test_a_later_look_gets_what_the_earlier_ones_left() -> None:
    """At 4 of 8 replicates after a look at 2, alpha is 0.05 * ((4 / 8) ** 1.5 - (2 / 8) ** 1.5)."""
    spread = 0.02
    levels = {"alone": 0.05 * 0.5**1.5, "second": 0.05 * (0.5**1.5 - 0.25**1.5)}
    half = {name: stats.t.ppf(1 - level / 2, 3) * spread / 2 + math.log1p(FLOOR) for name, level in levels.items()}
    records = exact_arms(math.log(0.9) + sum(half.values()) / 2, spread)
    overhead = [claim for claim in CLAIMS if claim.id == "moe.overhead"]
    assert asked(records, looks=(4, 8), claims=overhead).stop
    assert not asked(records, looks=(2, 4, 8), claims=overhead).stop


def test_what_does_not_rest_on_paired_time_holds_nothing_up() -> None:
    held_up_by_energy_or_peaks = [
        c for c in CLAIMS if c.id in ("moe.per_watt", "quant.per_flop", "net.decay", "onnx.models")
    ]
    records = make_replicates("torch-fp32", 0.01, workload="quantized_linear")
    records += make_replicates("ort-int8", 0.01 / 0.8, workload="quantized_linear")
    assert PEAKS and asked(records, claims=held_up_by_energy_or_peaks).stop
    assert asked(arms(0.9), claims=held_up_by_energy_or_peaks).stop


def test_other_workloads_hold_nothing_up() -> None:
    assert asked(make_replicates("gloo", 0.01, workload="allreduce", regime="collective")).stop


def test_the_pilot_does_not_settle_anything() -> None:
    only_pilot_differs = [r for r in arms(0.9) if r.replicate > 0]
    only_pilot_differs += [r for r in arms(3.0) if r.replicate == 0]
    assert not asked(only_pilot_differs).stop
