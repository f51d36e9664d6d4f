"""Whole models in low precision: bytes and right answers in one row, beside the unquantised model."""

from collections.abc import Sequence

from frugalbench.analysis.claims import load_claims
from frugalbench.analysis.judge import decide_outcome
from frugalbench.analysis.load import Run
from frugalbench.analysis.matched import Bounds
from frugalbench.analysis.noninferiority import Finding, changed, fact, findings
from frugalbench.analysis.statistics import latest
from frugalbench.report.tables import Cell, Table
from frugalbench.schema import NonInferiority, Outcome
from frugalbench.units import DASH, byte_size, significant

_WORDS = {Outcome.SUPPORTED: "yes", Outcome.REFUTED: "no", Outcome.INCONCLUSIVE: "open"}


def accuracy_tables(runs: Sequence[Run]) -> list[Table]:
    """Per run, model and task a table of right answers, and for language models one of distributions."""
    tables = []
    for run in runs:
        rule, gate = _rule()
        for rows in grouped(findings(latest(run.records), rule.workload, rule.baseline)):
            tables.append(_answers(run, rows, rule, gate))
            if any(fact(item.case, "perplexity") is not None for item in rows):
                tables.append(_distributions(run, rows, rule.baseline))
    return tables


def accuracy_gates() -> tuple[float, float]:
    """What the accuracy claims need of relative accuracy, and the stricter gate beside it."""
    rule, gate = _rule()
    return gate, rule.strict


def _rule() -> tuple[NonInferiority, float]:
    """The rule of the accuracy claims, which share workload, baseline and gates."""
    return next((item.rule, item.threshold) for item in load_claims() if isinstance(item.rule, NonInferiority))


def grouped(found: Sequence[Finding]) -> list[list[Finding]]:
    """By model, task and device."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for item in found:
        case = item.case.case
        groups.setdefault((case.shape, case.regime, case.device), []).append(item)
    return list(groups.values())


def _title(run: Run, rows: Sequence[Finding], what: str) -> str:
    case = rows[0].case.case
    return f"{what} of {case.shape} on {case.regime} ({run.manifest.name})"


def _answers(run: Run, rows: Sequence[Finding], rule: NonInferiority, gate: float) -> Table:
    titles = ("scheme", "stored", "÷bf16", "right %", "relative", _short(gate), _short(rule.strict))
    lines = tuple(_answers_line(item, (gate, rule.strict)) for item in rows)
    notes = (
        items_note(rows),
        "relative: right answers over those of the unquantised model on the same items, with its 95% interval",
        "yes: the whole interval clears the gate; no: none of it does; open: it takes more items",
        "stored: every weight and table as held, what stays unquantised included",
        *_remarks(run, rows),
    )
    columns = tuple((title, title != "scheme") for title in titles)
    return Table(_title(run, rows, "Accuracy"), columns, lines, tuple(note for note in notes if note), "quant")


def _answers_line(item: Finding, gates: tuple[float, float]) -> tuple[Cell, ...]:
    record = item.case
    stored, wide = fact(record, "weight_bytes"), fact(record, "bf16_bytes")
    missing = item.reason if item.relative is None else ""
    return (
        Cell(record.case.variant, hint=record.case.id),
        Cell(byte_size(stored)),
        Cell(significant(stored / wide) if stored and wide else DASH),
        Cell(percent_text(item.accuracy), hint=missing),
        Cell(ratio_text(item.relative), hint=missing),
        *(gate_cell(item.relative, gate) for gate in gates),
    )


def percent_text(found: Bounds | None) -> str:
    """A share in percent with its interval."""
    return DASH if found is None else f"{100 * found.value:.1f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _short(gate: float) -> str:
    return f"≥{gate:g}".replace("0.", ".")


def ratio_text(found: Bounds | None) -> str:
    """A ratio with its interval."""
    return DASH if found is None else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def gate_cell(found: Bounds | None, gate: float) -> Cell:
    """Whether the interval clears the gate."""
    if found is None:
        return Cell(DASH)
    outcome = decide_outcome("at_least", gate, found.low, found.high)
    return Cell(_WORDS[outcome], mark=outcome.value)


def items_note(rows: Sequence[Finding]) -> str:
    """What was asked, from the first row that was answered."""
    for item in rows:
        task = item.case.details.get("task")
        if item.accuracy is not None and isinstance(task, dict):
            where = f"{task.get('source')} ({task.get('licence')})"
            return f"{item.case.details.get('items')} items, {where}, hash {task.get('digest')}"
    return ""


def _remarks(run: Run, rows: Sequence[Finding]) -> list[str]:
    """What to know of the model, and answers that did not repeat themselves."""
    notes = dict.fromkeys(str(item.case.details["note"]) for item in rows if item.case.details.get("note"))
    unlike = [f"{item.case.case.variant}: {text}" for item in rows for text in changed(run.records, item.case)]
    return [*notes, *unlike]


def _distributions(run: Run, rows: Sequence[Finding], baseline: str) -> Table:
    titles = ("scheme", "perplexity", "ratio", "KL nat/token", "agreement", "KV B/token")
    base = next((fact(item.case, "perplexity") for item in rows if item.case.case.variant == baseline), None)
    lines = tuple(_distributions_line(item, base) for item in rows)
    notes = (
        "ratio: perplexity over that of the unquantised model, on the same tokens",
        "KL: mean divergence of the scheme's distribution from the unquantised model's",
        "agreement: share of tokens for which both have the same first choice",
    )
    columns = tuple((title, title != "scheme") for title in titles)
    return Table(_title(run, rows, "Distributions"), columns, lines, notes, "quant")


def _distributions_line(item: Finding, base: float | None) -> tuple[Cell, ...]:
    record = item.case
    perplexity, divergence, agreement = (fact(record, name) for name in ("perplexity", "divergence", "agreement"))
    return (
        Cell(record.case.variant, hint=record.case.id),
        Cell(significant(perplexity, 4)),
        Cell(f"{perplexity / base:.4f}" if perplexity and base else DASH),
        Cell(DASH if divergence is None else f"{divergence:.2e}"),
        Cell(DASH if agreement is None else f"{100 * agreement:.2f}%"),
        Cell(significant(fact(record, "kv_bytes"), 4)),
    )
