"""What opens below a verdict, as data for the page: each case once, however many verdicts rest on it.

Texts are numbers into one list, because most of them repeat. Everything is text by the time it is here; the page only
lays it out.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from frugalbench.analysis.claims import load_claims
from frugalbench.analysis.energy import why_no_joules
from frugalbench.analysis.formulas import formula_of
from frugalbench.analysis.grounds import Grounds
from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row
from frugalbench.analysis.statistics import counted, latest
from frugalbench.report.series import series, surroundings
from frugalbench.report.tables import Cell, tier_text, why_absent
from frugalbench.schema import Claim, Quantity, Record, Tier
from frugalbench.units import DASH, byte_size, interval, seconds, share, si, significant
from frugalbench.untrusted import shown

MOST_TEXT = 2000
MOST_FACTS = 24
_PLACED = ("placement", "kernel", "kernels", "implementation", "runtime", "transport", "provider", "providers")
"""Details of a record that say what really ran."""
Line = tuple[str, str, str, str]
"""Name, text, how it was obtained (or why it is missing), tier."""


class Texts:
    """Every text once; a text is its number."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: object) -> int:
        return self.known.setdefault(shown(text, MOST_TEXT), len(self.known))

    def cell(self, cell: Cell) -> int | list[int]:
        """One number, or text, mark and hint."""
        if not cell.mark and not cell.hint:
            return self(cell.text)
        return [self(cell.text), self(cell.mark), self(cell.hint)]


class Cases:
    """The cases that evidence names, told once each."""

    def __init__(self, runs: Sequence[Run], rows: Sequence[Row], texts: Texts) -> None:
        self.texts, self.runs = texts, runs
        self.rows = {(row.run, row.case): row for row in rows}
        self.records: dict[tuple[int, str], list[Record]] = {}
        for number, run in enumerate(runs):
            for record in latest(run.records):
                self.records.setdefault((number, record.case.id), []).append(record)
        self.places: dict[tuple[int, str], int] = {}
        self.told: list[dict[str, Any]] = []

    def place(self, run: int, case: str) -> int | None:
        """Where the case stands in :attr:`told`; ``None`` where it has no row."""
        row = self.rows.get((self.runs[run].manifest.run_id, case))
        if row is None:
            return None
        if (run, case) not in self.places:
            self.places[run, case] = len(self.told)
            self.told.append(self._case(row, self.records.get((run, case), [])))
        return self.places[run, case]

    def _case(self, row: Row, records: Sequence[Record]) -> dict[str, Any]:
        valid = [record for record in records if counted(record)]
        lines = [[self.texts(part) for part in line] for line in case_lines(row, valid or records)]
        found: dict[str, Any] = {"name": self.texts(row.case), "lines": lines}
        return found | (series(valid, row.time_s) if row.time_s else {})


def case_lines(row: Row, records: Sequence[Record]) -> Iterator[Line]:
    """Everything about one case; nothing is left out silently."""
    tier = tier_text(row.tier)
    yield _line("status", row.status.value, row.reason, "")
    if row.time_s is not None:
        span = f" [{seconds(row.time_low_s)}, {seconds(row.time_high_s)}]" if row.time_low_s else ""
        yield _line("time per call", seconds(row.time_s) + span, f"{row.source}; 95% interval", tier)
        yield _line("tokens per second", si(row.token_per_s, "token/s"), why_absent("token/s", row), tier)
        yield from _work(row, records)
        yield from _energy(row, records)
    yield from _placed(records)
    yield from _process(row, records)
    for name, text in surroundings(records):
        yield _line(f"around it: {name}", text, "" if text else "this machine does not tell", "")
    yield from (_fact(name, fact) for name, fact in sorted(row.facts.items())[:MOST_FACTS])


def _line(name: str, text: str, hint: str, tier: str) -> Line:
    return name, text or DASH, hint, tier if text and text != DASH else ""


def _work(row: Row, records: Sequence[Record]) -> Iterator[Line]:
    case = records[0].case if records else None
    cost = case.cost if case else None
    if case is None or cost is None:
        yield _line("FLOP per call", DASH, "the case has no cost by formula", "")
        return
    for name, value, unit in (
        ("FLOP per call", cost.flop, "FLOP"),
        ("integer operations per call", cost.op, "op"),
    ):
        formula = formula_of(case, "flop") or "by formula from its shape"
        yield _line(name, si(value, unit) if value else DASH, formula if value else "there are none", "")
    moved = formula_of(case, "traffic_bytes") or "least traffic, by formula from its shape"
    yield _line("bytes moved per call", byte_size(cost.traffic_bytes or None), moved, "")
    yield _line("stored weights", byte_size(row.weight_bytes), why_absent("weights", row), "")
    rates = [si(row.flop_per_s, "FLOP/s"), si(row.op_per_s, "op/s"), si(row.bytes_per_s, "B/s")]
    yield _line("rates", ", ".join(text for text in rates if text != DASH), "no rate is known", tier_text(row.tier))
    yield _line("share of peak arithmetic", share(row.mfu), why_absent("MFU", row), tier_text(row.tier))
    yield _line("share of peak bandwidth", share(row.mbu), why_absent("MBU", row), tier_text(row.tier))


def _energy(row: Row, records: Sequence[Record]) -> Iterator[Line]:
    why = why_no_joules(records) or why_absent("token/J", row)
    measured = f"{significant(row.token_per_joule)} token/J" if row.token_per_joule else DASH
    yield _line("tokens per joule", measured, row.energy_scope if row.token_per_joule else why, Tier.MEASURED.value)
    span = interval(row.token_per_joule_low, row.token_per_joule_high)
    model = next((r.method for record in records for r in record.readings if r.tier is Tier.MODELLED), "")
    text = f"{span} token/J" if span != DASH else DASH
    yield _line("tokens per joule, modelled", text, model or why_absent("token/J modelled", row), Tier.MODELLED.value)


def _placed(records: Sequence[Record]) -> Iterator[Line]:
    details = records[-1].details if records else {}
    known = [f"{name}: {_flat(details[name])}" for name in _PLACED if details.get(name)]
    yield _line("what ran where", "; ".join(known), "the record does not name its nodes or kernels", "")


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in list(value.items())[:20])
    return ", ".join(map(_flat, value[:20])) if isinstance(value, list) else str(value)


def _process(row: Row, records: Sequence[Record]) -> Iterator[Line]:
    checked = next((record.verification for record in records if record.verification), None)
    if checked is not None:
        error = DASH if row.verification_error is None else f"{row.verification_error:.1e}"
        allowed = f"{error} of {checked.tolerance:.1e} allowed"
        yield _line("error of the output", allowed, f"{checked.what}; largest of the replicates", "")
    yield _line("memory", byte_size(row.pss_bytes), "proportional set size" if row.pss_bytes else "not recorded", "")
    yield _line("load, build", f"{seconds(row.load_s)}, {seconds(row.build_s)}", "build: export and compilation", "")
    void = "" if row.void_share is None else f"{share(row.void_share)} of samples"
    yield _line("spoilt by the environment", void, _causes(records) or "no sample was", "")
    yield _line("threads", "" if row.threads is None else str(row.threads), "effective compute threads", "")
    if row.unsteady:
        yield _line("no steady state", f"{row.unsteady} of {row.replicates} replicates", "warm-up was cut short", "")
    if row.flags:
        yield _line("seen in the times", row.flags, "", "")


def _causes(records: Sequence[Record]) -> str:
    counts: dict[str, int] = {}
    for record in records:
        for sample in record.samples:
            if sample.void is not None:
                counts[sample.void] = counts.get(sample.void, 0) + 1
    return ", ".join(f"{text} {count}" for text, count in counts.items())


def _fact(name: str, fact: Quantity) -> Line:
    bounds = interval(fact.low, fact.high)
    text = f"{significant(fact.value, 4)}{'' if bounds == DASH else f' {bounds}'} {fact.unit}".strip()
    return _line(name, DASH if fact.value is None else text, fact.source or "no source recorded", fact.tier.value)


def grounds_data(found: Grounds | None, cases: Cases, texts: Texts) -> dict[str, Any]:
    """What opens below one verdict."""
    if found is None:
        return {}
    places = [(texts(role), cases.place(found.run, case)) for role, case in found.cases]
    data = [
        [texts(name), None if value is None else float(f"{value:.4g}"), texts(unit)] for name, value, unit in found.data
    ]
    parts: dict[str, Any] = {
        "cases": [[role, place] for role, place in places if place is not None],
        "data": data,
        "how": texts(found.how) if found.how else None,
        "against": [texts(text) for text in found.against],
        "flips": [texts(text) for text in found.flips],
        "repeat": texts(found.repeat),
        "clipped": found.clipped,
    }
    return {name: value for name, value in parts.items() if value}


def claims_data(names: Iterable[str], texts: Texts) -> dict[str, list[list[int]]]:
    """Sentence, estimand and threshold of each claim, as its file fixed them before anything was measured."""
    wanted = set(names)
    return {claim.id: [[texts(a), texts(b)] for a, b in _claim(claim)] for claim in load_claims() if claim.id in wanted}


def _claim(claim: Claim) -> Iterator[tuple[str, str]]:
    need = "at least" if claim.direction == "at_least" else "at most"
    yield "says", claim.says
    yield "from", "; ".join(f"{item.document}, {item.place}" if item.place else item.document for item in claim.sources)
    yield "estimand", claim.estimand
    yield "needs", f"{need} {significant(claim.threshold)}"
    yield "scope", claim.scope
    yield "would flip it", claim.flips
    if claim.note:
        yield "note", claim.note
