"""One line per claim: nothing is lost, nothing untested is counted, and it stays true to the long table."""

from factory import make_verdict
from frugalbench.analysis.claims import load_claims
from frugalbench.report.brief import brief_table
from frugalbench.report.markdown import brief_markdown
from frugalbench.report.terminal import table_terminal
from frugalbench.schema import Outcome


def rows(*verdicts):
    return [[cell.text for cell in row] for row in brief_table(verdicts).rows]


def test_counts_and_span_of_each_claim():
    made = [
        make_verdict(claim="quant.memory", verdict=Outcome.SUPPORTED, ratio=0.3, threshold=0.32),
        make_verdict(claim="quant.memory", verdict=Outcome.REFUTED, ratio=0.3203, threshold=0.32),
        make_verdict(claim="quant.memory", verdict=Outcome.NOT_TESTED, ratio=None),
        make_verdict(claim="moe.compute", verdict=Outcome.NOT_TESTED, ratio=None),
    ]
    (row,) = rows(*made)
    assert row[0] == "quant.memory"
    assert row[2:6] == ["1", "1", "–", "0.300 to 0.3203"]


def test_the_wide_form_says_what_the_claim_says():
    text = brief_markdown([make_verdict(claim="quant.memory", verdict=Outcome.SUPPORTED, ratio=0.3, threshold=0.32)])
    assert "cut the memory" in text and "1 supported" in text


def test_a_terminal_shows_whole_names_of_claims_in_80_columns() -> None:
    found = [make_verdict(claim=claim.id, verdict=Outcome.REFUTED, ratio=0.000551) for claim in load_claims()]
    found += [make_verdict(claim=claim.id, verdict=Outcome.SUPPORTED, ratio=15.6) for claim in load_claims()]
    text = table_terminal(brief_table(found), width=80)
    assert all(any(line.startswith(f"{claim.id} ") for line in text.splitlines()) for claim in load_claims())
    assert "yes: supported, no: refuted, open: inconclusive" in text and max(map(len, text.splitlines())) <= 80
