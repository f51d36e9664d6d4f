"""What opens below a verdict, as data for the page: each case once, however many verdicts rest on it.

Texts are numbers into one list, because most of them repeat. Everything is text by the time it is here; the page only
lays it out.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from frugalbench.analysis.claims import load_claims
from frugalbench.analysis.energy import why_no_joules
from frugalbench.analysis.first_start import started
from frugalbench.analysis.formulas import formula_of
from frugalbench.analysis.grounds import Grounds
from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row
from frugalbench.analysis.placed import placed
from frugalbench.analysis.statistics import counted, latest
from frugalbench.report.first_start import start_lines
from frugalbench.report.series import series, surroundings
from frugalbench.report.tables import Cell, tier_text, why_absent
from frugalbench.schema import Claim, Quantity, Record, Tier
from frugalbench.units import DASH, byte_size, interval, seconds, share, si, significant
from frugalbench.untrusted import shown

MOST_TEXT = 2000
MOST_FACTS = 24
_PLACED = ("placement", "kernel", "kernels", "implementation", "runtime", "transport", "provider", "providers")
"""Details of a record that say what really ran."""
_NODES = "placement"
"""The one of them that is told node by node, where it holds nodes."""
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
        self.names: dict[tuple[tuple[int, int], ...], int] = {}
        """Names and units of data, which most verdicts share."""

    def named(self, names: tuple[tuple[int, int], ...]) -> int:
        """The place of a list of names."""
        return self.names.setdefault(names, len(self.names))

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
        told = [*case_lines(row, valid or records), *_first_start(records)]
        lines = [[self.texts(part) for part in line] for line in told]
        found: dict[str, Any] = {"name": self.texts(row.case), "lines": lines}
        return found | (series(valid, row.time_s) if row.time_s else {})


def case_lines(row: Row, records: Sequence[Record]) -> Iterator[Line]:
    """Everything about one case; nothing is left out silently."""
    tier = tier_text(row.tier)
    yield _line("status", row.status.value, row.reason)
    if row.time_s is not None:
        span = f" [{seconds(row.time_low_s)}, {seconds(row.time_high_s)}]" if row.time_low_s else ""
        yield _line("time per call", seconds(row.time_s) + span, f"{row.source}; 95% interval", tier)
        how, why = "tokens of a call over its time", why_absent("token/s", row)
        yield _line("tokens per second", si(row.token_per_s, "token/s") if row.token_per_s else "", how, tier, why)
        yield from _work(row, records)
        yield from _energy(row, records)
    yield from _placed(records)
    yield from _process(row, records)
    for name, text in surroundings(records):
        yield _line(f"around it: {name}", text, "over all samples", "", "this machine does not tell")
    yield from (_fact(name, fact) for name, fact in sorted(row.facts.items())[:MOST_FACTS])


def _line(name: str, text: str, how: str, tier: str = "", why: str = "") -> Line:
    """``how`` a figure was obtained, or ``why`` there is none."""
    known = bool(text) and text != DASH
    return name, text if known else DASH, how if known else why or how, tier if known else ""


def _work(row: Row, records: Sequence[Record]) -> Iterator[Line]:
    case = records[0].case if records else None
    cost = case.cost if case else None
    if case is None or cost is None:
        yield _line("FLOP per call", "", "", "", "the case has no cost by formula")
        return
    formula = formula_of(case, "flop") or "by formula from its shape"
    moved = formula_of(case, "traffic_bytes") or "the least, by formula from its shape"
    tier, peak = tier_text(row.tier), "over the peak that this run measured"
    rates = [(row.flop_per_s, "FLOP/s"), (row.op_per_s, "op/s"), (row.bytes_per_s, "B/s")]
    yield _line("FLOP per call", si(cost.flop, "FLOP") if cost.flop else "", formula, "", "it has none")
    yield _line("integer operations per call", si(cost.op, "op") if cost.op else "", formula, "", "it has none")
    yield _line("bytes moved per call", byte_size(cost.traffic_bytes or None), moved, "", why_absent("B/s", row))
    yield _line("stored weights", byte_size(row.weight_bytes), "scales included", "", why_absent("weights", row))
    yield _line("rates", ", ".join(si(v, unit) for v, unit in rates if v), "work of a call over its time", tier)
    yield _line("share of peak arithmetic", share(row.mfu), peak, tier, why_absent("MFU", row))
    yield _line("share of peak bandwidth", share(row.mbu), peak, tier, why_absent("MBU", row))


def _energy(row: Row, records: Sequence[Record]) -> Iterator[Line]:
    why = why_no_joules(records) or why_absent("token/J", row)
    measured = f"{significant(row.token_per_joule)} token/J" if row.token_per_joule else ""
    yield _line("tokens per joule", measured, row.energy_scope, Tier.MEASURED.value, why)
    span = interval(row.token_per_joule_low, row.token_per_joule_high)
    model = next((r.method for record in records for r in record.readings if r.tier is Tier.MODELLED), "")
    text, why = f"{span} token/J" if span != DASH else "", why_absent("token/J modelled", row)
    yield _line("tokens per joule, modelled", text, model, Tier.MODELLED.value, why)


def _placed(records: Sequence[Record]) -> Iterator[Line]:
    details = records[-1].details if records else {}
    nodes = placed(records[-1]) if records else None
    names = [name for name in _PLACED if details.get(name) and not (nodes and name == _NODES)]
    known = [f"{name}: {_flat(details[name])}" for name in names]
    text = "; ".join([nodes.full, *known] if nodes else known)
    yield _line("what ran where", text, "as recorded", "", "the record does not name its nodes or kernels")


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in list(value.items())[:20])
    return ", ".join(map(_flat, value[:20])) if isinstance(value, list) else str(value)


def _process(row: Row, records: Sequence[Record]) -> Iterator[Line]:
    checked = next((record.verification for record in records if record.verification), None)
    allowed = ""
    if checked is not None and row.verification_error is not None:
        allowed = f"{row.verification_error:.1e} of {checked.tolerance:.1e} allowed"
    how, why = f"{checked.what}; largest of the replicates" if checked else "", "its output was not checked by number"
    yield _line("error of the output", allowed, how, "", why)
    yield _line("memory", byte_size(row.pss_bytes), "proportional set size", "", "not recorded")
    yield _line("time to load", seconds(row.load_s), "median of the replicates", "", "not recorded")
    yield _line("time to build", seconds(row.build_s), "export and compilation", "", why_absent("build", row))
    void = "" if row.void_share is None else f"{share(row.void_share)} of samples"
    yield _line("spoilt by the environment", void, _causes(records), "", why_absent("void", row))
    threads = "" if row.threads is None else str(row.threads)
    yield _line("threads", threads, "effective compute threads", "", "not recorded")
    if row.unsteady:
        yield _line("no steady state", f"{row.unsteady} of {row.replicates} replicates", "warm-up was cut short")
    if row.flags:
        yield _line("seen in the times", row.flags, "")


def _first_start(records: Sequence[Record]) -> Iterator[Line]:
    start = started(records)
    for name, text, how in start_lines(start) if start else ():
        yield _line(name, text, how, Tier.MEASURED.value)


def _causes(records: Sequence[Record]) -> str:
    counts: dict[str, int] = {}
    for record in records:
        for sample in record.samples:
            if sample.void is not None:
                cause = re.split(r"\s\d", sample.void)[0]
                counts[cause] = counts.get(cause, 0) + 1
    return ", ".join(f"{count} × {cause}" for cause, count in counts.items())


def _fact(name: str, fact: Quantity) -> Line:
    bounds = interval(fact.low, fact.high)
    unit = "" if fact.unit == "1" else f" {fact.unit}"
    text = "" if fact.value is None else significant(fact.value, 4) + ("" if bounds == DASH else f" {bounds}") + unit
    return _line(name, text, fact.source or "no source recorded", fact.tier.value)


def grounds_data(found: Grounds | None, cases: Cases, texts: Texts) -> dict[str, Any]:
    """What opens below one verdict."""
    if found is None:
        return {}
    places = [(texts(role), cases.place(found.run, case)) for role, case in found.cases]
    named = tuple((texts(name), texts(unit)) for name, _, unit in found.data)
    parts: dict[str, Any] = {
        "cases": [[role, place] for role, place in places if place is not None],
        "data": [None if value is None else float(f"{value:.4g}") for _, value, _ in found.data],
        "names": cases.named(named) if named else None,
        "how": texts(found.how) if found.how else None,
        "against": [texts(text) for text in found.against],
        "flips": [texts(text) for text in found.flips],
        "repeat": texts(found.repeat),
        "clipped": found.clipped,
    }
    return {name: value for name, value in parts.items() if value not in (None, [], 0) or (name == "names" and named)}


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
