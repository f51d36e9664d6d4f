"""docs/gpu.md against results/h100-sxm: every time, share and token per joule of its two tables is a record's."""

import re
from pathlib import Path

import pytest

from frugalbench.analysis.load import load_run
from frugalbench.analysis.metrics import rows

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "gpu.md").read_text()
ARMS = {
    "dense, equal total": "dense-equal-total", "dense, equal active": "dense-equal-active",
    "transformers": "moe-transformers", "torch `grouped_mm`": "moe-grouped", "own Triton kernels": "moe-triton",
    "torch bf16": "torch-bf16", "torch fp16": "torch-fp16", "bitsandbytes LLM.int8 (waits for the host)": "bnb-int8",
    "bitsandbytes NF4": "bnb-nf4", "torchao int4 (`_weight_int4pack_mm`)": "torchao-int4",
    "torchao float8, rows": "torchao-fp8", "torch `_scaled_mm` float8, own rounding": "torch-fp8",
    "own W4A16": "triton-w4a16",
}  # fmt: skip
REGIMES = {3: ("decode", "batch", "prefill"), 2: ("decode", "prefill")}
"""Of a table's columns, by their number."""
CELL = re.compile(r"([\d.,]+?),? (\[?)(\d+)%\]?, ([\d.,]+)")


def lines() -> dict[str, list[str]]:
    """Variant to the cells of its line."""
    split = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")
    ]
    named = [(cell, cells[at + 1 :]) for cells in split for at, cell in enumerate(cells[:2]) if cell in ARMS]
    return {ARMS[name]: cells for name, cells in named}


def shown(number: float, like: str) -> float:
    """Rounded to as many digits as ``like`` shows; zeros that only hold a place are none."""
    plain = like.replace(",", "")
    digits = plain.replace(".", "").lstrip("0") if "." in plain else plain.rstrip("0")
    return float(f"{number:.{max(len(digits), 1)}g}")


@pytest.fixture(scope="module")
def measured():
    found = rows(load_run(ROOT / "results" / "h100-sxm"))
    return {(row.variant, row.regime): row for row in found if row.time_s is not None}


def test_every_arm_has_its_line() -> None:
    assert set(lines()) == set(ARMS.values())


@pytest.mark.parametrize("variant", ARMS.values())
def test_figures_are_those_of_the_run(measured, variant) -> None:
    cells = lines()[variant]
    for regime, cell in zip(REGIMES[len(cells)], cells, strict=True):
        time_us, bracket, percent, per_joule = CELL.fullmatch(cell).groups()
        row = measured[variant, regime]
        assert float(time_us.replace(",", "")) == shown(1e6 * row.time_s, time_us), cell
        assert int(percent) == round(100 * (row.mfu if bracket else row.mbu)), cell
        assert float(per_joule.replace(",", "")) == shown(row.token_per_joule, per_joule), cell
