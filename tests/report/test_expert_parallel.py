"""What splitting experts costs, from made-up times: shares, the prediction and its miss, every format."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from factory import COST, make_fact, make_record, make_run, scaled
from frugalbench.analysis.expert_parallel import splits
from frugalbench.analysis.load import Run, load_run
from frugalbench.report.expert_parallel import expert_parallel_tables
from frugalbench.report.render import render

ALPHA_S, BETA_S = 2e-4, 1e-9
MOVED = {16: 1e5, 512: 4e6}
SHAPE = "own-r2"


def exchange_s(tokens: int) -> float:
    """Half as long again as the model says."""
    return 1.5 * (3 * ALPHA_S + MOVED[tokens] * BETA_S)


def record(variant: str, regime: str, time_s: float, number: int, name: str, **fields: Any) -> Any:
    case = {"id": f"expert_parallel/{name}", "shape": SHAPE, "peaks": (), **fields.pop("case")}
    return make_record(
        variant, regime, "expert_parallel", time_s=[time_s] * 3, replicate=number, comparison="ep",
        arm="single" if variant == "single" else "ranks", case_fields=case, **fields,
    )  # fmt: skip


def calibration(number: int) -> list[Any]:
    found = []
    for size_bytes in (1024, 65536, 2**20, 2**22):
        case = {"shape": f"r2-{size_bytes}", "params": {"ranks": 2, "size_bytes": size_bytes}, "cost": None}
        time_s = ALPHA_S + size_bytes / 2 * BETA_S
        found.append(record("alltoall", "collective", time_s, number, f"alltoall/{size_bytes}", case=case))
    return found


def layer(number: int, facts: dict[str, Any] | None = None) -> list[Any]:
    found = []
    for regime, tokens in (("decode", 16), ("prefill", 512)):
        spent = {
            "ep-step": 4 * exchange_s(tokens),
            "ep-exchange": exchange_s(tokens),
            "ep-compute": 2e-3,
            "single": 3e-3,
        }
        known = {
            "exchange_steps": make_fact(3.0), "exchange_bytes": make_fact(MOVED[tokens], "byte"),
            "rank_imbalance": make_fact(1.25),
        } | (facts or {})  # fmt: skip
        for variant, time_s in spent.items():
            cost = msgspec.structs.replace(COST, token=tokens)
            case = {"params": {"tokens": tokens, "ranks": 2}, "cost": cost}
            mine = {} if variant == "single" else known
            found.append(record(variant, regime, time_s, number, f"{variant}/{tokens}", case=case, facts=mine))
    return found


def stored(path: Path, records: list[Any]) -> Run:
    return load_run(make_run(path / "run", records))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return stored(tmp_path, [item for number in range(1, 5) for item in (*calibration(number), *layer(number))])


def test_shares_ratios_and_the_prediction(run: Run) -> None:
    decode, prefill = splits(run)
    assert (decode.tokens, prefill.tokens) == (16, 512)
    for item in (decode, prefill):
        assert item.exchange_share.ratio == pytest.approx(0.25)
        assert item.exchange_share.low < 0.25 < item.exchange_share.high
        assert item.over_single.ratio == pytest.approx(3e-3 / (4 * exchange_s(item.tokens)))
        assert item.predicted_s == pytest.approx(exchange_s(item.tokens) / 1.5)
        assert item.miss == pytest.approx(1 / 1.5 - 1)
        assert item.predicted_share == pytest.approx(item.predicted_s / (item.predicted_s + 2e-3))
        assert item.imbalance == 1.25
        assert item.link.miss < 1e-6


def test_the_prediction_rests_on_the_calibration_alone(tmp_path: Path) -> None:
    slower = [item for number in range(1, 5) for item in layer(number)]
    slower = [scaled(item, 9.0) for item in slower]
    run = stored(tmp_path, [*slower, *(item for number in range(1, 5) for item in calibration(number))])
    assert [item.predicted_s for item in splits(run)] == pytest.approx([exchange_s(t) / 1.5 for t in (16, 512)])


def test_every_format_has_the_table_and_the_terminal_fits(run: Run) -> None:
    text = str(render([run], (), "terminal"))
    assert max(map(len, text.splitlines())) <= 80
    for found in (text, str(render([run], (), "md")), str(render([run], (), "html"))):
        assert "Expert parallelism own-r2 (smoke)" in found
        assert "25%" in found and "-33%" in found and "4 sizes of equal blocks alone" in found
    first, second = expert_parallel_tables([run])
    assert {len(row) for row in first.rows} == {len(first.columns)}
    assert {len(row) for row in second.rows} == {len(second.columns)}
    assert [cell.mark for cell in second.rows[0]].count("modelled") == 2


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    bare = [item for item in layer(1) if item.case.variant == "ep-step"]
    run = stored(tmp_path, bare)
    (item, _) = splits(run)
    assert item.exchange_share is item.over_single is item.predicted_s is item.miss is item.predicted_share is None
    first, second = expert_parallel_tables([run])
    assert [cell.text for cell in first.rows[0]] == ["16", "4.20 ms", *"–––––", "1.25"]
    assert [cell.text for cell in second.rows[0]][2:] == ["–"] * 5
    assert "missing" in second.notes[1]


def test_what_two_unlike_replicates_allow_does_not_widen_the_table(tmp_path: Path) -> None:
    def factor(item: Any) -> float:
        return 90.0 if item.replicate == 2 and item.case.variant == "ep-step" else 1.0

    unlike = [scaled(item, factor(item)) for number in (1, 2) for item in layer(number)]
    table, _ = expert_parallel_tables([stored(tmp_path, unlike)])
    assert table.rows[0][3].text.endswith("[0, >100]")
    assert table.rows[0][6].text.endswith("[<0.001, >1000]")


@pytest.mark.parametrize("value", [None, -1.0, 1e25])
def test_facts_of_a_strange_file_predict_nothing(tmp_path: Path, value: float | None) -> None:
    strange = {"exchange_bytes": make_fact(value, "byte")}
    run = stored(tmp_path, [item for number in (1, 2) for item in (*calibration(number), *layer(number, strange))])
    assert [item.predicted_s for item in splits(run)] == [None, None]
    assert render([run], (), "terminal")


def test_a_run_without_it_has_no_table(tmp_path: Path) -> None:
    assert expert_parallel_tables([stored(tmp_path, [make_record()])]) == []
