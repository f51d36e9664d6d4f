"""Trade-offs: what is on the front, what is never joined, and the chart."""

import base64
from pathlib import Path

import numpy as np
import pytest

from factory import make_case, make_record, make_run
from frugalbench.analysis.load import load_run
from frugalbench.report import charts
from frugalbench.report.pareto import pareto_tables, run_points
from frugalbench.report.render import render
from frugalbench.schema import Cost, Quantity, Tier

ITEMS = 400


def packed(right):
    return base64.b64encode(np.packbits(np.arange(ITEMS) < right * ITEMS).tobytes()).decode()


def record(scheme, workload, regime, time_s, size, right=None, shape="model", number=1):
    cost = Cost(token=100, flop=1e9, weight_bytes=size, traffic_bytes=size)
    case = make_case(scheme, regime, workload, shape=shape, cost=cost)
    details = {}
    if right is not None:
        details = {"task": {"digest": "d"}, "model_digest": "m", "items": ITEMS,
                   "correct": packed(right), "starts": packed(1.0)}  # fmt: skip
    facts = {"weight_bytes": Quantity(value=size, unit="byte", tier=Tier.MEASURED)}
    return make_record(case=case, time_s=time_s, noise=0.0, replicate=number, details=details, facts=facts)


ANSWERED = [
    record("torch-fp32", "quantized_model", "task", 0.02, 4e8, 0.80),
    record("torch-int8-dynamic", "quantized_model", "task", 0.01, 1e8, 0.79),
    record("ort-int4", "quantized_model", "task", 0.015, 6e7, 0.70),
    record("bnb-int8", "quantized_model", "task", 0.05, 1.2e8, 0.79),
]
DECODED = [
    record(scheme, "model_decode", regime, time_s, size, shape="model")
    for scheme, size, times in (("native-fp32", 4e8, (0.04, 0.2)), ("native-w4a8", 6e7, (0.01, 0.3)))
    for regime, time_s in zip(("decode", "prefill"), times, strict=True)
]


def loaded(path: Path, records):
    return load_run(make_run(path / "run", records))


def fronts(table):
    return {row[0].text for row in table.rows if row[-1].text == "yes"}


def test_a_scheme_beaten_in_everything_is_not_on_the_front(tmp_path):
    (table,) = pareto_tables([loaded(tmp_path, ANSWERED)])
    assert table.title == "Trade-offs of model on task, prefill (smoke)"
    assert [row[0].text for row in table.rows] == ["torch-int8-dynamic", "ort-int4", "torch-fp32", "bnb-int8"]
    assert fronts(table) == {"torch-int8-dynamic", "ort-int4", "torch-fp32"}
    assert table.rows[0][1].text.startswith("79.0 [")
    assert [row[4].text for row in table.rows] == ["–"] * 4


def test_regimes_are_apart_and_models_are_never_joined(tmp_path):
    run = loaded(tmp_path, [*ANSWERED, *DECODED])
    tables = {table.title: table for table in pareto_tables([run])}
    assert list(tables) == [
        "Trade-offs of model on task, prefill (smoke)",
        "Trade-offs of model, decode (smoke)",
        "Trade-offs of model, prefill (smoke)",
    ]
    assert fronts(tables["Trade-offs of model, decode (smoke)"]) == {"native-w4a8"}
    assert fronts(tables["Trade-offs of model, prefill (smoke)"]) == {"native-fp32", "native-w4a8"}
    assert all(point.accuracy is None for point in run_points(run) if point.scheme.startswith("native"))


def test_one_scheme_alone_is_no_trade_off(tmp_path):
    assert pareto_tables([loaded(tmp_path, ANSWERED[:1])]) == []
    assert pareto_tables([loaded(tmp_path, [])]) == []


def test_the_tables_fit_and_the_page_has_a_chart(tmp_path):
    run = loaded(tmp_path, [*ANSWERED, *DECODED])
    text = render([run], [])
    assert "Trade-offs of model on task" in text and max(map(len, text.splitlines())) <= 80
    page = render([run], [], "html")
    assert "Trade-offs of model, decode" in page
    if charts.available():
        assert page.count("on the front") >= 3


@pytest.mark.skipif(not charts.available(), reason="altair or vl-convert is not installed")
def test_a_chart_per_group_names_its_schemes(tmp_path):
    (svg,) = charts.pareto_svgs(run_points(loaded(tmp_path, ANSWERED)))
    assert "<svg" in svg and "torch-int8-dynamic" in svg and "right answers" in svg
    assert charts.pareto_svgs([]) == []
