"""The tables of whole models, from made-up times: rates, bytes, shares, speeds of each regime, width."""

from pathlib import Path

import pytest

from factory import make_record, make_run
from frugalbench.analysis.load import load_run
from frugalbench.analysis.whole_model import model_arms
from frugalbench.report.render import render
from frugalbench.report.whole_model import whole_model_tables
from frugalbench.schema import Cost, Quantity, Status, Tier

WEIGHTS = 600_000_000
ARMS = {  # bits, bytes loaded per weight, seconds by regime
    "transformers-fp32": (32, 4.0, {"decode": 0.12, "prefill": 0.9}),
    "llama-f16": (16, 2.0, {"decode": 0.06, "prefill": 1.2}),
    "transformers-int8-dynamic": (8, 2.05, {"decode": 0.05, "prefill": 0.5}),
    "native-w4a8": (4, 0.57, {"decode": 0.015, "prefill": 0.6}),
}
TOKENS = {"decode": 1, "prefill": 128}
READ = 4e10


def read_peak():
    cost = Cost(token=0, flop=0.0, weight_bytes=0, traffic_bytes=READ * 0.01)
    fields = {"cost": cost, "shape": "t2"}
    return make_record("read_bytes_per_s", "peak", "machine_peaks", time_s=0.01, noise=0.0, case_fields=fields)


def record(variant, regime, number, shape="qwen3-0.6b", **more):
    bits, bytes_each, times = ARMS[variant]
    cost = Cost(
        token=TOKENS[regime], flop=1e9, weight_bytes=bits / 8 * WEIGHTS, traffic_bytes=bits / 8 * WEIGHTS,
        parameters=WEIGHTS,
    )  # fmt: skip
    fields = {
        "id": f"model_decode/{variant}/{shape}/{regime}", "cost": cost, "shape": shape,
        "params": {"bits": bits, "context": 256, "prompt_tokens": 128},
        "peaks": ("fp32_flop_per_s", "read_bytes_per_s"),
    }  # fmt: skip
    facts = {"weight_bytes": Quantity(value=bytes_each * WEIGHTS, unit="byte", tier=Tier.MEASURED)}
    if bits < 32:
        facts["output_error"] = Quantity(value=0.05 if regime == "decode" else 0.06, unit="1", tier=Tier.MEASURED)
    return make_record(
        variant, regime, "model_decode", time_s=times[regime], noise=1e-4, replicate=number, case_fields=fields,
        facts=facts, details={"kernel": f"kernel of {variant}"}, comparison=shape, **more,
    )  # fmt: skip


def rows(**more):
    return [record(name, regime, number, **more) for name in ARMS for regime in TOKENS for number in range(1, 5)]


@pytest.fixture
def run(tmp_path: Path):
    return load_run(make_run(tmp_path / "run", [read_peak(), *rows()]))


def texts(table):
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def test_an_arm_has_both_regimes_and_each_its_own_baseline(run):
    arms = {arm.variant: arm for arm in model_arms(run)}
    assert list(arms) == ["native-w4a8", "transformers-int8-dynamic", "llama-f16", "transformers-fp32"]
    assert arms["llama-f16"].decode.is_baseline
    assert arms["transformers-fp32"].prefill.is_baseline
    assert arms["native-w4a8"].decode.over_unquantised.ratio == pytest.approx(4.0, rel=0.01)
    assert arms["native-w4a8"].prefill.over_unquantised.ratio == pytest.approx(1.5, rel=0.01)
    assert arms["native-w4a8"].context == 256


def test_what_a_row_shows(run):
    rates, speeds = whole_model_tables([run])
    assert rates.title == "Whole model qwen3-0.6b (smoke)"
    found = texts(rates)
    assert found["native-w4a8"] == ["342", "4.56", "213", "66.7", "50%", "6.0e-02"]
    assert found["transformers-fp32"] == ["2400", "32.0", "142", "8.33", "50%", "1.0e-06"]
    assert found["transformers-int8-dynamic"][1] == "16.4"
    assert "prompt of 128; token/s: generated, one at a time, behind 256; measured" in rates.notes[0]
    found = texts(speeds)
    assert found["llama-f16"][0] == "1"
    assert found["llama-f16"][1].startswith("0.750 [")
    assert found["transformers-fp32"][1] == "1"
    assert found["transformers-fp32"][0].startswith("0.500 [")


def test_models_have_tables_of_their_own(tmp_path):
    run = load_run(make_run(tmp_path / "run", [*rows(), *rows(shape="qwen3-4b-2of36layers")]))
    assert [table.title.split(" (")[0] for table in whole_model_tables([run])] == [
        "Whole model qwen3-0.6b",
        "Whole model qwen3-0.6b, speed over the fastest unquantised arm",
        "Whole model qwen3-4b-2of36layers",
        "Whole model qwen3-4b-2of36layers, speed over the fastest unquantised arm",
    ]


def test_a_regime_that_is_missing_is_a_dash(tmp_path):
    only = [record("native-w4a8", "prefill", number) for number in (1, 2)]
    rates, speeds = whole_model_tables([load_run(make_run(tmp_path / "run", only))])
    assert texts(rates)["native-w4a8"] == ["342", "4.56", "213", "–", "–", "6.0e-02"]
    assert texts(speeds)["native-w4a8"] == ["–", "–"]


def test_a_capped_arm_is_named(tmp_path):
    slow = [record("transformers-fp32", "prefill", n, status=Status.CAPPED, reason="slow") for n in (1, 2)]
    rates, _ = whole_model_tables([load_run(make_run(tmp_path / "run", slow))])
    assert "capped, one round a replicate: transformers-fp32" in rates.notes


def test_the_tables_fit_80_columns_and_are_in_every_readable_format(run):
    text = render([run], [])
    assert max(map(len, text.splitlines())) <= 80
    part = text.split("Whole model qwen3-0.6b (smoke)")[1]
    assert "\ntransformers-int8-dynamic" in part
    assert all(column in part for column in ("MB", "bits", "prompt/s", "token/s", "of read", "error"))
    for fmt in ("md", "html"):
        assert "Whole model qwen3-0.6b" in render([run], [], fmt)


def test_records_without_bytes_or_sane_parameters_still_show(tmp_path):
    odd = [
        make_record("odd", "decode", "model_decode", replicate=n, case_fields={"params": {"bits": "x", "context": "y"}})
        for n in (1, 2)
    ]
    rates, _ = whole_model_tables([load_run(make_run(tmp_path / "run", odd))])
    assert texts(rates)["odd"][:2] == ["–", "–"]


def test_runs_without_whole_models_have_no_table(tmp_path):
    run = load_run(make_run(tmp_path / "run", [make_record("x", workload="quantized_linear")]))
    assert whole_model_tables([run]) == []
