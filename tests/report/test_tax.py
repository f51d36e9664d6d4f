"""The table of the adaptation tax, from made-up times."""

import pytest

from factory import make_fact, make_record, make_run
from frugalbench.analysis.load import load_run
from frugalbench.report.tax import tax_tables
from frugalbench.units import DASH

TIMES = {"hand-tuned": 0.010, "onnxruntime": 0.020, "torch-eager": 0.008}


@pytest.fixture
def run(tmp_path):
    rows = [
        make_record(
            name, "decode", "kernel_tax", time_s=time_s, noise=1e-4, replicate=number, comparison="c",
            case_fields={"id": f"kernel_tax/{name}"}, facts={"code_lines": make_fact(30.0)},
            details={"implementation": f"as {name}"},
        )
        for name, time_s in TIMES.items()
        for number in range(1, 5)
    ]  # fmt: skip
    return load_run(make_run(tmp_path / "run", rows))


def test_tax_is_what_the_portable_way_lacks(run):
    (table,) = tax_tables([run])
    cells = {line[0].text: [cell.text for cell in line[1:]] for line in table.rows}
    assert list(cells) == ["torch-eager", "hand-tuned", "onnxruntime"]
    assert cells["onnxruntime"][1].startswith("0.5") and cells["torch-eager"][1].startswith("-0.25")
    assert cells["hand-tuned"][1] == DASH
    assert {line[2] for line in cells.values()} == {"30.0"} and cells["onnxruntime"][3] == "as onnxruntime"


def test_a_run_without_the_kernel_has_no_table(tmp_path):
    assert tax_tables([load_run(make_run(tmp_path / "run", [make_record()]))]) == []
