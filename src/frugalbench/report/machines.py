"""Tables that set one machine's verdicts beside others: those of other runs, and what was published."""

from collections.abc import Sequence

from frugalbench.analysis.judge import machine_label
from frugalbench.analysis.load import Run
from frugalbench.analysis.published import Published, published
from frugalbench.report.tables import Cell, Table, ratio_text, threshold_text
from frugalbench.schema import Outcome, Verdict
from frugalbench.units import DASH, significant


def machines_table(verdicts: Sequence[Verdict], runs: Sequence[Run] = ()) -> Table:
    """Claim and regime against machine; no row below two machines.

    A cell with several verdicts counts them. Machines are told apart by name; a note says where several share one.
    """
    names = list(dict.fromkeys(verdict.machine for verdict in verdicts))
    cells: dict[tuple[str, str], dict[str, list[Verdict]]] = {}
    for verdict in verdicts:
        cells.setdefault((verdict.claim, verdict.regime), {}).setdefault(verdict.machine, []).append(verdict)
    rows = tuple(
        (Cell(claim), Cell(regime), *(_cell(found.get(name, ())) for name in names))
        for (claim, regime), found in cells.items()
        if any(item.verdict is not Outcome.NOT_TESTED for group in found.values() for item in group)
    )
    columns = (("claim", False), ("regime", False), *((name, False) for name in names))
    return Table("Which claims hold on which machine", columns, rows if len(names) > 1 else (), _shared(runs))


def _cell(found: Sequence[Verdict]) -> Cell:
    tested = [item for item in found if item.verdict is not Outcome.NOT_TESTED]
    if not tested:
        return Cell(DASH, hint="; ".join(dict.fromkeys(item.reason for item in found)))
    outcomes = [outcome for outcome in Outcome if any(item.verdict is outcome for item in tested)]
    hint = "; ".join(f"{item.arm or ''} {item.verdict.value} {ratio_text(item)}".strip() for item in tested)
    mark = outcomes[0].value if len(outcomes) == 1 else ""
    tiers = dict.fromkeys(item.tier.value for item in tested if item.tier is not None and item.tier.value != "measured")
    text = outcomes[0].value if len(tested) == 1 else ", ".join(f"{_count(tested, o)} {o.value}" for o in outcomes)
    return Cell(f"{text} ({', '.join(tiers)})" if tiers else text, mark=mark, hint=hint)


def _count(found: Sequence[Verdict], outcome: Outcome) -> int:
    return sum(item.verdict is outcome for item in found)


def _shared(runs: Sequence[Run]) -> tuple[str, ...]:
    """Names that stand for more than one machine."""
    prints: dict[str, set[str]] = {}
    for run in runs:
        machine = run.manifest.machine_before
        prints.setdefault(machine_label(machine), set()).add(str(machine.get("fingerprint")))
    return tuple(f"{len(found)} machines are called {name}" for name, found in prints.items() if len(found) > 1)


def published_table(verdicts: Sequence[Verdict], brief: bool = False) -> Table:
    """What others published for the claims that were tested here; they decide none. ``brief`` fits 80 columns."""
    tested = [item for item in verdicts if item.verdict is not Outcome.NOT_TESTED and item.ratio is not None]
    claims = {item.claim for item in tested}
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        _published_row(item, tested) for item in published() if item.claim in claims
    )
    columns: tuple[str, ...] = ("claim", "regime", "device", "ratio", "needs", "here", "of", "tier", "source")
    if brief:
        keep = [columns.index(name) for name in ("claim", "device", "ratio", "here", "of")]
        columns = tuple(columns[i] for i in keep)
        rows = tuple(tuple(row[i] for i in keep) for row in rows)
    notes = ("tier published: other people's devices, models and baselines: shown beside the verdicts, part of none",)
    return Table("What others published", tuple((c, c in ("ratio", "needs")) for c in columns), rows, notes)


def _published_row(item: Published, tested: Sequence[Verdict]) -> tuple[Cell, ...]:
    mine = [v for v in tested if (v.claim, v.regime) == (item.claim, item.regime)]
    ratios = sorted(v.ratio for v in mine if v.ratio is not None)
    here = DASH if not ratios else significant(ratios[0])
    here = f"{here} to {significant(ratios[-1])}" if len(ratios) > 1 else here
    tier = item.tier.value if item.provenance == "read" else f"{item.tier.value}, {item.provenance}"
    return (
        Cell(item.claim),
        Cell(item.regime),
        Cell(item.device),
        Cell(significant(item.ratio), hint=" / ".join(f"{figure:g}" for figure in item.figures)),
        Cell(threshold_text(mine[0]) if mine else DASH),
        Cell(here),
        Cell(item.pair, hint=item.note),
        Cell(tier, mark=item.tier.value),
        Cell(f"{item.source}; {item.note}" if item.note else item.source),
    )
