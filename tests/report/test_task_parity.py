"""Answers through each runtime beside float64, from made-up records."""

import base64

import numpy as np
import pytest

from factory import make_case, make_record, make_run
from frugalbench.analysis.load import load_run
from frugalbench.report.task_parity import task_parity_tables
from frugalbench.schema import Status
from frugalbench.units import DASH

ITEMS = 400


def packed(bits):
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def record(variant, lost=0, won=0, digest="abc", **fields):
    """Float64 has the first 300 of 400 items right; this one loses and wins some."""
    correct = np.arange(ITEMS) < 300
    correct[:lost] = False
    correct[300 : 300 + won] = True
    details = {"task": {"source": "a book", "licence": "CC0", "digest": digest}, "items": ITEMS,
               "correct": packed(correct), "starts": packed(np.ones(ITEMS, bool))}  # fmt: skip
    case = make_case(variant, "task", "onnx_task", shape="encoder")
    return make_record(case=case, time_s=None, **{"details": details, **fields})


def table(tmp_path, *records):
    (found,) = task_parity_tables([load_run(make_run(tmp_path / "run", [record("torch-float64"), *records]))])
    titles = [title for title, _ in found.columns]
    return {row[0].text: dict(zip(titles, (cell.text for cell in row), strict=True)) for row in found.rows}


def test_items_are_paired_and_too_few_say_how_many_it_takes(tmp_path):
    rows = table(tmp_path, record("same"), record("swapped", 9, 9), record("broken", 60))
    assert (rows["same"]["lost"], rows["same"]["won"]) == ("0", "0")
    assert rows["same"]["relative"].startswith("1.000 [0.9")
    assert rows["same"]["≥.99"].startswith("open: ")
    assert int(rows["same"]["≥.99"].partition(": ")[2]) > ITEMS
    assert (rows["swapped"]["right %"], rows["swapped"]["lost"]) == (rows["same"]["right %"], "9")
    assert rows["broken"]["≥.99"] == "no"


def test_a_runtime_that_failed_or_answered_other_items_has_no_ratio(tmp_path):
    failed = record("dead", status=Status.FAILED, reason="LoadError: no", details={})
    rows = table(tmp_path, failed, record("other", digest="xyz"))
    assert (rows["dead"]["right %"], rows["dead"]["relative"]) == (DASH, DASH)
    assert rows["other"]["right %"] != DASH
    assert (rows["other"]["relative"], rows["other"]["lost"]) == (DASH, DASH)


@pytest.mark.parametrize("records", [[], [make_record()]])
def test_runs_that_did_not_ask_have_no_table(tmp_path, records):
    assert task_parity_tables([load_run(make_run(tmp_path / "run", records))]) == []
