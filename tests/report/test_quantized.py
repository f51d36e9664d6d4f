"""The table of the quantised linear layer, from made-up times: ratios, limits, bytes, kernels, width."""

from pathlib import Path

import pytest

from factory import make_record, make_run, scaled
from frugalbench.analysis.break_even import break_evens
from frugalbench.analysis.load import load_run
from frugalbench.analysis.quantized import products
from frugalbench.report.quantized import quantized_tables
from frugalbench.report.render import render
from frugalbench.schema import Cost, Quantity, Status, Tier

WEIGHTS = 4096 * 4096
ARMS = {  # bits, bytes per weight, seconds by regime
    "torch-fp32": (32, 4.0, {"decode": 0.004, "batch": 0.02, "prefill": 0.06}),
    "ort-fp32": (32, 4.0, {"decode": 0.002, "batch": 0.03, "prefill": 0.08}),
    "ort-int8-dynamic": (8, 1.0, {"decode": 0.001, "batch": 0.01, "prefill": 0.03}),
    "torchao-int8-dynamic": (8, 1.25, {"decode": 0.1, "batch": 0.08, "prefill": 0.09}),
}
TOKENS = {"decode": 1, "batch": 32, "prefill": 256}
PEAKS = {"fp32_flop_per_s": 4e11, "int8_op_per_s": 8e11, "read_bytes_per_s": 4e10}


def peak(name, per_s):
    cost = Cost(token=0, flop=0.0, weight_bytes=0, traffic_bytes=0.0)
    kind = "traffic_bytes" if name.startswith("read") else "op" if name.startswith("int8") else "flop"
    fields = {
        "cost": Cost(**{**{f: getattr(cost, f) for f in cost.__struct_fields__}, kind: per_s * 0.01}),
        "shape": "t2",
    }
    return make_record(name, "peak", "machine_peaks", time_s=0.01, noise=0.0, case_fields=fields)


def record(variant, regime, number, comparison="c", tokens=None, shape="4096x4096", **more):
    bits, bytes_each, times = ARMS[variant]
    tokens = tokens or TOKENS[regime]
    stored, work = bytes_each * WEIGHTS, 2.0 * tokens * WEIGHTS
    cost = Cost(
        token=tokens, flop=work if bits == 32 else 0.0, op=0.0 if bits == 32 else work, weight_bytes=stored,
        traffic_bytes=stored, parameters=WEIGHTS,
    )  # fmt: skip
    fields = {
        "id": f"quantized_linear/{variant}/{shape}/{regime}-{tokens}", "cost": cost, "shape": shape,
        "params": {"bits": bits, "m": tokens}, "dtype": "float32",
        "peaks": ("fp32_flop_per_s" if bits == 32 else "int8_op_per_s", "read_bytes_per_s"),
    }  # fmt: skip
    facts = {"weight_bytes": Quantity(value=stored, unit="byte", tier=Tier.MEASURED)}
    if bits == 8:
        facts["output_error"] = Quantity(value=0.0143, unit="1", tier=Tier.MEASURED)
    return make_record(
        variant, regime, "quantized_linear", time_s=times[regime], noise=1e-4, replicate=number, comparison=comparison,
        case_fields=fields, facts=facts, details={"kernel": f"kernel of {variant}"}, **more,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path):
    rows = [peak(*item) for item in PEAKS.items()]
    rows += [record(variant, regime, number) for variant in ARMS for regime in TOKENS for number in range(1, 5)]
    return load_run(make_run(tmp_path / "run", rows))


def test_each_arm_stands_against_the_fastest_unquantised_one_of_its_regime(run):
    found = {(item.regime, item.row.variant): item for item in products(run)}
    assert found["decode", "ort-int8-dynamic"].over_unquantised.ratio == pytest.approx(2.0, rel=0.01)
    assert found["decode", "torch-fp32"].over_unquantised.ratio == pytest.approx(0.5, rel=0.01)
    assert found["decode", "ort-fp32"].is_baseline
    assert found["decode", "ort-fp32"].over_unquantised is None
    assert found["prefill", "torch-fp32"].is_baseline
    assert found["prefill", "ort-int8-dynamic"].over_unquantised.ratio == pytest.approx(2.0, rel=0.01)


def test_the_limit_is_reading_in_decode_and_arithmetic_in_prefill(run):
    found = {(item.regime, item.row.variant): item for item in products(run)}
    read, name = found["decode", "ort-int8-dynamic"].limit
    assert (name, read) == ("read", pytest.approx(WEIGHTS / 0.001 / 4e10, rel=0.01))
    share, name = found["prefill", "ort-int8-dynamic"].limit
    assert (name, share) == ("peak", pytest.approx(2 * 256 * WEIGHTS / 0.03 / 8e11, rel=0.01))
    assert found["batch", "ort-fp32"].limit[1] == "peak"
    assert found["batch", "torchao-int8-dynamic"].limit[1] == "peak"


def test_a_limit_that_was_not_measured_is_missing(tmp_path):
    rows = [record("torch-fp32", "decode", number) for number in range(1, 5)]
    (item,) = products(load_run(make_run(tmp_path / "run", rows)))
    assert item.limit is None
    assert item.is_baseline


def test_without_an_unquantised_arm_there_is_no_ratio(tmp_path):
    rows = [record("ort-int8-dynamic", "decode", number) for number in range(1, 5)]
    run = load_run(make_run(tmp_path / "run", rows))
    (item,) = products(run)
    assert item.over_unquantised is None
    assert [cell.text for cell in quantized_tables([run])[0].rows[0]][2] == "–"


def test_a_capped_unquantised_arm_is_no_baseline_where_there_is_another(tmp_path):
    rows = [record("torch-fp32", "decode", number) for number in range(1, 5)]
    rows += [record("ort-fp32", "decode", number, status=Status.CAPPED, reason="slow") for number in range(1, 5)]
    run = load_run(make_run(tmp_path / "run", rows))
    assert [item.row.variant for item in products(run) if item.is_baseline] == ["torch-fp32"]
    assert "capped, one round a replicate: ort-fp32" in quantized_tables([run])[0].notes


def test_rows_show_rate_bytes_and_error(run):
    decode, *_ = quantized_tables([run])
    assert decode.title == "Quantised linear 4096x4096, 1 token, decode (smoke)"
    texts = {row[0].text: [cell.text for cell in row[1:]] for row in decode.rows}
    assert list(texts) == ["ort-int8-dynamic", "ort-fp32", "torch-fp32", "torchao-int8-dynamic"]
    assert texts["ort-int8-dynamic"][0] == "1.00 ms"
    assert texts["ort-int8-dynamic"][1].startswith("2.00 [")
    assert texts["ort-int8-dynamic"][2:] == ["42% read", "33.6", "1.00", "1.4e-02"]
    assert texts["ort-fp32"][1] == "1"
    assert texts["ort-fp32"][4:] == ["4.00", "1.0e-06"]


def test_shapes_and_numbers_of_tokens_have_tables_of_their_own_and_the_columns_are_explained_once(tmp_path):
    rows = [record("torch-fp32", "decode", number, "a") for number in (1, 2)]
    rows += [record("torch-fp32", "decode", number, "b", tokens=4) for number in (1, 2)]
    rows += [record("torch-fp32", "decode", number, "c", shape="64x64") for number in (1, 2)]
    *tables, kernels = quantized_tables([load_run(make_run(tmp_path / "run", rows))])
    assert [table.title.split(" (")[0] for table in tables] == [
        "Quantised linear 4096x4096, 1 token, decode",
        "Quantised linear 4096x4096, 4 tokens, decode",
        "Quantised linear 64x64, 1 token, decode",
    ]
    assert [bool(table.notes) for table in tables] == [True, False, False]
    assert [[cell.text for cell in row] for row in kernels.rows] == [["torch-fp32", "kernel of torch-fp32"]]


def test_the_tables_fit_80_columns_and_are_in_every_readable_format(run):
    text = render([run], [])
    assert "Quantised linear 4096x4096, 256 tokens, prefill" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "\ntorchao-int8-dynamic" in text.split("Quantised linear")[1]
    for fmt in ("md", "html"):
        assert "Kernels of the quantised linear layer" in render([run], [], fmt)


def test_records_without_kernel_bytes_or_sane_parameters_still_show(tmp_path):
    rows = [
        make_record("odd", workload="quantized_linear", replicate=n, case_fields={"params": {"bits": "x"}})
        for n in (1, 2)
    ]
    (table,) = quantized_tables([load_run(make_run(tmp_path / "run", rows))])
    assert table.rows[0][0].text == "odd"


def test_runs_without_the_layer_have_no_table(tmp_path):
    assert quantized_tables([load_run(make_run(tmp_path / "run", [make_record("x", workload="onnx_model")]))]) == []


def over(tmp_path, ratios, monkeypatch):
    """A format whose speed over the unquantised arm is ``ratios`` (tokens to ratio)."""
    monkeypatch.setitem(ARMS, "ort-fp32", (32, 4.0, {"x": 0.01}))
    rows = [
        timed(record(variant, "x", number, comparison=f"c{tokens}", tokens=tokens), time_s)
        for tokens, ratio in ratios.items()
        for variant, time_s in (("ort-fp32", 0.01), ("ort-int8-dynamic", 0.01 / ratio))
        for number in range(1, 5)
    ]
    return load_run(make_run(tmp_path / "over", rows))


def timed(made, time_s):
    return scaled(made, time_s / made.samples[0].time_s)


@pytest.mark.parametrize(
    ("ratios", "tokens", "text"),
    [
        ({1: 4.0, 4: 2.0, 32: 2.0, 256: 0.5}, 32 * 8**0.5, "91 [32, 256]"),
        ({1: 4.0, 256: 0.25}, 16.0, "16 [1, 256]"),
        ({1: 4.0, 4: 1.001, 32: 0.5}, 1 * 32 ** (2 / 3), "10 [1, 32]"),
        ({1: 4.0, 256: 2.0}, None, "> 256"),
        ({1: 0.4, 256: 0.2}, None, "< 1"),
        ({1: 0.4, 256: 2.0}, None, "not in order"),
        ({1: 1.001, 256: 1.001}, None, "open"),
    ],
)
def test_where_a_format_stops_paying(ratios, tokens, text, tmp_path, monkeypatch):
    monkeypatch.setitem(ARMS, "ort-int8-dynamic", (8, 1.0, {"x": 0.01}))
    run = over(tmp_path, ratios, monkeypatch)
    (found,) = break_evens(products(run))
    assert found.tokens == (None if tokens is None else pytest.approx(tokens, rel=1e-2))
    (table,) = [table for table in quantized_tables([run]) if "Break-even" in table.title]
    assert [cell.text for cell in table.rows[0]][:2] == ["ort-int8-dynamic", text]


def test_one_number_of_tokens_has_no_break_even(tmp_path, monkeypatch):
    monkeypatch.setitem(ARMS, "ort-int8-dynamic", (8, 1.0, {"x": 0.01}))
    assert break_evens(products(over(tmp_path, {1: 3.0}, monkeypatch))) == []
