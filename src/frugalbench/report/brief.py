"""Verdicts in a few lines: one for each claim, with how often it held and between which ratios."""

from collections.abc import Sequence

from frugalbench.analysis.claims import load_claims
from frugalbench.report.tables import Cell, Table, threshold_text, tier_text
from frugalbench.schema import Outcome, Verdict
from frugalbench.units import DASH, against

_SHORT = {Outcome.SUPPORTED: "yes", Outcome.REFUTED: "no", Outcome.INCONCLUSIVE: "open"}
"""Heads of a table that has to leave room for whole names of claims in 80 columns."""
_COUNTED = tuple(_SHORT)


def brief_table(verdicts: Sequence[Verdict], wide: bool = False) -> Table:
    """One row per claim that was tested: counts over regimes, shapes and arms, lowest and highest ratio, tiers; where
    there is room (``wide``) also what it says."""
    counted = [outcome.value if wide else short for outcome, short in _SHORT.items()]
    names = ("claim", *(["what it says"] if wide else []), "needs", *counted, "ratios", "tier")
    columns = tuple((name, name not in ("claim", "what it says", "tier")) for name in names)
    says = {claim.id: claim.says for claim in load_claims()} if wide else {}
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.verdict is not Outcome.NOT_TESTED:
            groups.setdefault(verdict.claim, []).append(verdict)
    notes = () if wide else (", ".join(f"{short}: {outcome.value}" for outcome, short in _SHORT.items()),)
    return Table("Claims", columns, tuple(_line(says.get(claim), rows) for claim, rows in groups.items()), notes)


def _line(says: str | None, rows: Sequence[Verdict]) -> tuple[Cell, ...]:
    counts = [sum(row.verdict is outcome for row in rows) for outcome in _COUNTED]
    needs = dict.fromkeys(threshold_text(row) for row in rows)
    tiers = dict.fromkeys(tier_text(row.tier) for row in rows)
    return (
        Cell(rows[0].claim),
        *([Cell(says)] if says else []),
        Cell(", ".join(needs)),
        *(Cell(str(count) if count else DASH) for count in counts),
        Cell(_span(rows)),
        Cell(", ".join(tiers)),
    )


def _span(rows: Sequence[Verdict]) -> str:
    known = sorted((row.ratio, row.threshold) for row in rows if row.ratio is not None)
    if not known:
        return DASH
    first, last = against(*known[0]), against(*known[-1])
    return first if first == last else f"{first} to {last}"
