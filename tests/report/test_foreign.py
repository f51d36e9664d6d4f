"""The tables of an out-of-tree device, from made-up records: outcomes per model, lacks, strangers' details."""

import pytest

from factory import make_fact, make_record, make_run
from frugalbench.analysis.foreign import censuses, lacks
from frugalbench.analysis.load import load_run
from frugalbench.report.foreign import foreign_tables
from frugalbench.schema import Status


def counted(model, native, fallback=(), missing=(), variant="stand-in-core", **more):
    facts = {"operators_used": native + len(fallback) + len(missing), "operators_native": native}
    facts |= {"operators_fallback": len(fallback), "operators_missing": len(missing), "operators_decomposition": 0}
    if fallback:
        facts |= {"fallback_calls": 3 * len(fallback), "fallback_bytes": 1024.0 * len(fallback)}
    details = {
        "operators": {"native": {}, "fallback": dict.fromkeys(fallback, 3), "missing": dict.fromkeys(missing, 1)},
        "fallbacks": {name: {"calls": 3, "copied_bytes": 1024} for name in fallback},
    }
    fields = {"shape": model, "id": f"foreign_device/{model}/{variant}"}
    return make_record(
        variant, "inference", "foreign_device", case_fields=fields, details=details,
        facts={name: make_fact(float(value)) for name, value in facts.items()}, **more,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    rows = [
        counted("block", 5, ["aten::silu.out"]),
        counted("moe", 4, ["aten::silu.out", "aten::floor_divide"], ["aten::histc"], status=Status.CAPPED, reason="no"),
        counted("block", 5, ["aten::silu.out"], replicate=2),
    ]
    return load_run(make_run(tmp_path / "run", rows))


def test_each_model_is_counted_once(run):
    found = {item.model: item for item in censuses(run)}
    assert set(found) == {"block", "moe"} and len(censuses(run)) == 2
    assert (found["moe"].used, found["moe"].by_outcome["fallback"], found["moe"].by_outcome["missing"]) == (7, 2, 1)
    assert (found["moe"].fails, found["block"].fails, found["block"].fallback_calls) == ("no", "", 3)


def test_lacks_name_operator_models_calls_and_bytes(run):
    first, *rest = lacks(run)
    assert (first.operator, first.models, first.calls) == ("aten::silu.out", ("block", "moe"), 6)
    assert first.copied_bytes == 2048
    assert {item.operator: item.refused for item in rest} == {"aten::floor_divide": False, "aten::histc": True}


def test_tables_say_what_happens(run):
    census, missing = foreign_tables([run])
    assert [len(line) == len(census.columns) for line in census.rows] == [True, True]
    by_name = {line[1].text: line[-1].text for line in missing.rows}
    assert by_name["aten::histc"].startswith("refused") and "host" in by_name["aten::silu.out"]


@pytest.mark.parametrize("odd", [None, [], "text", {"aten::x": 3}, {"aten::x": {"calls": "many"}}])
def test_strange_details_do_not_break_the_report(tmp_path, odd):
    record = make_record(
        "stand-in-core", "inference", "foreign_device", details={"fallbacks": odd, "operators": odd}, facts={}
    )
    assert foreign_tables([load_run(make_run(tmp_path / "run", [record]))])


def test_a_run_without_such_a_device_has_no_table(tmp_path):
    record = make_record("torch-fp32", "decode", "quantized_linear")
    assert foreign_tables([load_run(make_run(tmp_path / "run", [record]))]) == []
