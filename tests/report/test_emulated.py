"""Emulated networks in the report: the fit finds the constants that made the times; strange parameters are left out."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from factory import make_record, make_run
from frugalbench.analysis.emulated import emulated
from frugalbench.analysis.load import load_run
from frugalbench.gloo import Costs, Network, Port, all_reduce_s
from frugalbench.report.emulated import emulated_tables
from frugalbench.schema import Record, Tier

COSTS = Costs(message_s=5e-4, payload=0.97)
KIB = 1024


def network(ranks: int) -> Network:
    return Network(ports=(Port(rate_bytes_per_s=12.5e6),) * ranks)


def record(ranks: int, size_kib: int, slower: float = 1.0, **params: Any) -> Record:
    found = {
        "network": msgspec.to_builtins(network(ranks)),
        "work": {"kind": "all_reduce", "elements": size_kib * KIB // 4},
        "calibration": ranks == 2 and size_kib in (256, 4096),
        **params,
    }
    time_s = slower * all_reduce_s(network(ranks), size_kib * KIB, COSTS)
    case = {"shape": f"r{ranks}-{size_kib}", "peaks": (), "cost": None, "params": found}
    return make_record(
        "uniform", "all-reduce", "emulated_network", time_s=[time_s] * 3, case_fields=case, tier=Tier.EMULATED
    )


def test_two_calibration_cases_give_back_the_constants_and_predict_the_rest(tmp_path: Path) -> None:
    records = [record(ranks, size) for ranks in (2, 4) for size in (256, 1024, 4096)]
    found = emulated(load_run(make_run(tmp_path / "run", records)))
    assert found.costs is not None
    assert found.costs.message_s == pytest.approx(COSTS.message_s, rel=1e-3)
    assert found.costs.payload == pytest.approx(COSTS.payload, rel=1e-3)
    assert len(found.misses) == 4
    assert max(found.misses) < 1e-3


def test_a_miss_is_shown_and_what_was_fitted_is_marked(tmp_path: Path) -> None:
    records = [record(2, 256), record(2, 4096), record(4, 1024, slower=1.25)]
    (table,) = emulated_tables([load_run(make_run(tmp_path / "run", records))])
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [row[-1] for row in rows] == ["fit", "fit", "held out"]
    assert rows[2][-2] == "-20.0%"
    assert "20% at most" in table.notes[-1]


def test_without_calibration_nothing_is_predicted(tmp_path: Path) -> None:
    (table,) = emulated_tables([load_run(make_run(tmp_path / "run", [record(4, 1024)]))])
    assert [cell.text for cell in table.rows[0]][-3:] == ["–", "–", "–"]
    assert "nothing is predicted" in table.notes[1]


@pytest.mark.parametrize(
    "params",
    [
        {"network": None},
        {"network": {"ports": [{"rate_bytes_per_s": 0.0}] * 2}},
        {"network": {"ports": [{"rate_bytes_per_s": 1.0}] * 1000}},
        {"work": {"kind": "all_reduce", "elements": 10**15}},
        {"work": {"kind": "all_to_all", "elements": 4, "blocks": [[1, 2], [3]]}},
    ],
)
def test_records_that_describe_no_network_are_left_out(tmp_path: Path, params: dict[str, Any]) -> None:
    run = load_run(make_run(tmp_path / "run", [record(2, 256, **params)]))
    assert emulated(run).points == ()
    assert emulated_tables([run]) == []
