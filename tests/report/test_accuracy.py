"""The accuracy tables of synthetic runs."""

import base64

import numpy as np

from factory import make_case, make_fact, make_record, make_run
from frugalbench.analysis.load import load_run
from frugalbench.report.accuracy import accuracy_tables
from frugalbench.report.markdown import table_markdown
from frugalbench.report.terminal import table_terminal
from frugalbench.schema import Status


def packed(bits):
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def record(variant, lost, *, perplexity=None, status=Status.OK, stored=1e6, **fields):
    correct = np.ones(8000, bool)
    correct[:lost] = False
    correct[6000:] = False
    case = make_case(variant, "task", "quantized_model", shape="model", params={"scope": "analogue"})
    facts = {"weight_bytes": make_fact(stored, "byte"), "bf16_bytes": make_fact(2e6, "byte")}
    if perplexity is not None:
        facts |= {"perplexity": make_fact(perplexity), "kv_bytes": make_fact(4096.0, "byte/token")}
        facts |= {"divergence": make_fact(1.5e-3), "agreement": make_fact(0.995)} if lost else {}
    details = {
        "task": {"kind": "classify", "digest": "abc", "source": "a book", "licence": "CC0"},
        "items": 8000, "correct": packed(correct), "starts": packed(np.ones(8000, bool)), "note": "tiny",
    }  # fmt: skip
    return make_record(case=case, time_s=None, status=status, facts=facts, details=details, **fields)


def tables(tmp_path, *records):
    return accuracy_tables([load_run(make_run(tmp_path / "run", records))])


def cells(table):
    names = [name for name, _ in table.columns]
    return [dict(zip(names, (cell.text for cell in row), strict=True)) for row in table.rows]


def test_a_row_holds_bytes_accuracy_and_gates(tmp_path):
    (table,) = tables(
        tmp_path, record("torch-fp32", 0, stored=4e6), record("rtn-int8", 6), record("rtn-int4", 300),
        record("bnb-nf4", 0, status=Status.CAPPED, reason="would take 900 s"),
    )  # fmt: skip
    base, good, bad, capped = cells(table)
    assert (base["÷bf16"], base["relative"], base["≥.99"]) == ("2.00", "–", "–")
    assert (good["÷bf16"], good["≥.99"], good["≥.999"]) == ("0.500", "yes", "open")
    assert good["relative"].startswith("0.999 [0.99")
    assert good["right %"].startswith("74.9 [")
    assert (bad["≥.99"], bad["≥.999"]) == ("no", "no")
    assert (capped["right %"], capped["relative"], capped["≥.99"]) == ("–", "–", "–")
    assert table.family == "quant"
    assert table.notes[0] == "8000 items, a book (CC0), hash abc"
    assert "tiny" in table.notes


def test_language_models_get_their_distributions(tmp_path):
    answers, distributions = tables(
        tmp_path, record("torch-fp32", 0, perplexity=10.0), record("rtn-int8", 6, perplexity=10.1)
    )
    assert answers.title == "Accuracy of model on task (smoke)"
    base, ours = cells(distributions)
    assert (base["ratio"], base["KL nat/token"], base["agreement"]) == ("1.0000", "–", "–")
    assert (ours["ratio"], ours["KL nat/token"], ours["agreement"]) == ("1.0100", "1.50e-03", "99.50%")
    assert ours["KV B/token"] == "4096"


def test_runs_without_whole_models_have_none(tmp_path):
    assert tables(tmp_path, make_record()) == []


def test_the_table_fits_a_terminal_and_markdown(tmp_path):
    (table,) = tables(tmp_path, record("torch-fp32", 0), record("torch-int8-dynamic", 6))
    text = table_terminal(table, width=80, colour=False)
    assert "torch-int8-dynamic" in text and max(map(len, text.splitlines())) <= 80
    assert "| torch-int8-dynamic |" in table_markdown(table)
