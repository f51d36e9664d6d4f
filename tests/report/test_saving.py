"""What a mixture pays out, from made-up times: ratios, shares, break-even, the chart."""

from pathlib import Path

import msgspec
import pytest

from factory import COST, make_fact, make_record, make_run
from frugalbench.analysis.load import load_run
from frugalbench.analysis.saving import break_even, savings, skew
from frugalbench.report import charts
from frugalbench.report.render import render
from frugalbench.report.saving import saving_tables

TOTAL, ACTIVE, OWN, MOE = "dense-equal-total", "dense-equal-active", "dense-equal-active-native", "moe-native"
TIMES = {  # seconds per call: by tokens, then by arm
    1: {TOTAL: 0.08, ACTIVE: 0.010, OWN: 0.008, MOE: 0.010},
    16: {TOTAL: 0.08, ACTIVE: 0.010, OWN: 0.012, MOE: 0.005},
}


@pytest.fixture
def run(tmp_path: Path):
    rows = []
    for tokens, arms in TIMES.items():
        for variant, time_s in arms.items():
            flop = 2e9 * (8 if "total" in variant else 1)
            fields = {
                "id": f"moe_ffn/small/{variant}/{tokens}", "params": {"tokens": tokens, "routing": "router"},
                "cost": msgspec.structs.replace(COST, token=tokens, flop=flop),
            }  # fmt: skip
            regime = "decode" if tokens == 1 else "batch"
            rows += [
                make_record(
                    variant,
                    regime,
                    time_s=time_s,
                    noise=1e-4,
                    replicate=number,
                    comparison=f"c{tokens}",
                    case_fields=fields,
                )
                for number in range(1, 5)
            ]
    return load_run(make_run(tmp_path / "run", rows))


def test_each_arm_stands_against_the_fastest_dense_twin(run):
    one, sixteen = savings(run)
    assert one.over_active.ratio == pytest.approx(0.8, rel=0.01)
    assert sixteen.over_active.ratio == pytest.approx(2.0, rel=0.01)
    assert one.flop_ratio == pytest.approx(8.0)
    assert one.realised == pytest.approx(1.0, rel=0.01)
    assert sixteen.realised == pytest.approx(2.0, rel=0.01)


def test_break_even_names_the_tokens_where_it_pays(run):
    assert "at 16 of 1, 16 tokens" in break_even(savings(run))
    assert "at none of 1 tokens" in break_even(savings(run)[:1])
    assert break_even([]) == ""


def test_the_table_fits_80_columns_and_is_in_every_readable_format(run):
    (table,) = saving_tables([run])
    assert [cell.text for cell in table.rows[0]][:2] == ["1", "native"]
    text = render([run], [])
    assert "Mixture of experts small" in text
    assert max(map(len, text.splitlines())) <= 80
    for fmt in ("md", "html"):
        assert "Mixture of experts small" in render([run], [], fmt)


def test_the_chart_draws_arms_that_were_measured_at_several_points(run):
    pytest.importorskip("altair")
    (svg,) = charts.saving_svgs(savings(run))
    assert "moe-native" in svg and "tokens" in svg
    assert charts.saving_svgs(savings(run)[:1]) == []


LAYERS = (("layer", "router", 0.002), ("layer-one", "one", 0.003), ("other", "router", 0.1))


def test_skew_stands_beside_even_routing(tmp_path: Path):
    rows = [
        make_record(
            MOE, "batch", time_s=time_s, noise=0.0, comparison=shape,
            case_fields={"shape": shape, "params": {"tokens": 16, "routing": routing}},
        )
        for shape, routing, time_s in LAYERS
    ]  # fmt: skip
    run = load_run(make_run(tmp_path / "run", rows))
    assert skew(savings(run)) == {("layer", 16): {MOE: {"router": pytest.approx(0.002), "one": pytest.approx(0.003)}}}
    table = saving_tables([run])[-1]
    assert [cell.text for cell in table.rows[0]] == ["layer", "16", "native", "2.00 ms", "3.00 ms"]


def test_dropped_copies_are_shown_where_experts_have_a_capacity(run, tmp_path: Path):
    (plain,) = saving_tables([run])
    assert not any("dropped" in name for name, _ in plain.columns)
    assert not any("attention" in note for note in plain.notes)
    rows = [
        make_record(
            variant, regime, time_s=time_s, noise=1e-4, replicate=number, comparison="c",
            facts={"dropped_share": make_fact(0.25, "1")} if variant == MOE else {},
            case_fields={
                "id": f"moe_ffn/{variant}/{regime}", "shape": "small-block-cap1",
                "params": {"tokens": tokens, "view": "block"},
                "cost": msgspec.structs.replace(COST, token=tokens, flop=flop),
            },
        )
        for variant, time_s, flops in ((TOTAL, 0.08, (1.6e10, 1.6e10)), (MOE, 0.01, (2e9, 4e9)))
        for regime, tokens, flop in (("decode", 4, flops[0]), ("batch", 16, flops[1]))
        for number in range(1, 5)
    ]  # fmt: skip
    capped = load_run(make_run(tmp_path / "capped", rows))
    assert [item.dropped_share for item in savings(capped)] == [0.25, 0.25]
    (table,) = saving_tables([capped])
    assert table.columns[-1] == ("dropped", True)
    assert [line[-1].text for line in table.rows] == ["25%", "25%"]
    assert any("4.00 to 8.00 times fewer FLOP" in note for note in table.notes)
    assert any("attention" in note for note in table.notes)
    assert max(map(len, render([capped], []).splitlines())) <= 80


def test_runs_without_mixtures_have_no_table(tmp_path: Path):
    assert saving_tables([load_run(make_run(tmp_path / "run", [make_record("x", workload="onnx_model")]))]) == []
