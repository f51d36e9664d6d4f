"""Neutral tables: what every output format shows, before it looks like anything.

A :class:`Table` holds text cells; a cell may carry a ``mark`` (an outcome, status or tier, for colour) and a ``hint``
(how the number was obtained, for a hover title or footnote).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from frugalbench.analysis.claims import load_claims
from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import PEAKS_WORKLOAD, Row
from frugalbench.analysis.statistics import Interval
from frugalbench.schema import Outcome, Status, Tier, Verdict
from frugalbench.units import DASH, against, byte_size, interval, seconds, share, si, significant

FAMILIES = {
    "moe": "Mixture of experts",
    "quant": "Quantisation",
    "onnx": "Portability through ONNX",
    "adaptation": "Adapting to other silicon",
    "net": "Clusters and networks",
    "machine": "Measured peaks of this machine",
}
LEAST_BOUND, MOST_BOUND = 0.001, 1000.0
_OTHER_NAMES = {
    "quality": "moe", "lm_quality": "moe", "allreduce": "net", "expert_parallel": "net", "cluster": "net",
    "emulated_network": "net", "local_steps": "net", "simulate": "net", "model_decode": "quant",
    "foreign_device": "adaptation", "kernel_tax": "adaptation",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One cell."""

    text: str
    mark: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """Columns are ``(title, is a number)``; every row has one cell per column."""

    title: str
    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    family: str = ""
    """Where a table of one workload belongs: a key of :data:`FAMILIES`."""


def family_of(name: str) -> str:
    """The family of a workload or claim: ``moe_ffn`` and ``moe.compute`` are both ``moe``."""
    for prefix, family in _OTHER_NAMES.items():
        if name.startswith(prefix):
            return family
    return next((f for f in FAMILIES if name.startswith(f)), name.split(".")[0])


def ratio_text(verdict: Verdict) -> str:
    """``ratio [low, high]``; the ratio alone where it is exact; a dash where it is missing."""
    if verdict.ratio is None:
        return DASH
    limit = verdict.threshold
    text = against(verdict.ratio, limit)
    if (verdict.low is None and verdict.high is None) or verdict.low == verdict.high:
        return text
    return f"{text} [{', '.join(_bounded(bound, against(bound, limit)) for bound in (verdict.low, verdict.high))}]"


def interval_text(found: Interval | None, digits: int = 3) -> str:
    """``ratio [low, high]`` with so many significant digits; the ratio alone for one replicate; a dash for none."""
    if found is None:
        return DASH
    ratio = significant(found.ratio, digits)
    if found.low is None:
        return ratio
    return f"{ratio} [{', '.join(_bounded(bound, significant(bound, digits)) for bound in (found.low, found.high))}]"


def _bounded(value: float | None, text: str) -> str:
    """``text`` of a ratio's bound; where few replicates allow anything, its digits would only widen a table."""
    if value is not None and 0 < value < LEAST_BOUND:
        return f"<{LEAST_BOUND:g}"
    return f">{MOST_BOUND:g}" if value is not None and value > MOST_BOUND else text


@lru_cache(maxsize=1)
def _signs() -> dict[str, str]:
    return {claim.id: "≥" if claim.direction == "at_least" else "≤" for claim in load_claims()}


def threshold_text(verdict: Verdict) -> str:
    """The threshold with the direction that the claim needs."""
    return f"{_signs().get(verdict.claim, '')}{significant(verdict.threshold)}"


def pair_text(verdict: Verdict) -> str:
    """``candidate over baseline``, as far as both are known."""
    if verdict.candidate and verdict.baseline:
        return f"{verdict.candidate} over {verdict.baseline}"
    return verdict.candidate or verdict.baseline or DASH


def arm_text(arm: str | None) -> str:
    """``as shipped``, ``best``, or a dash where arms do not compete."""
    return arm.replace("_", " ") if arm else DASH


def tier_text(tier: Tier | None) -> str:
    """The tier's word; a dash where nothing was obtained."""
    return tier.value if tier else DASH


def untested_groups(verdicts: Sequence[Verdict]) -> dict[str, list[str]]:
    """Reason to the claims that it leaves untested, so that a long list of claims stays short."""
    groups: dict[str, dict[str, None]] = {}
    for verdict in verdicts:
        if verdict.verdict is Outcome.NOT_TESTED:
            groups.setdefault(verdict.reason, {})[verdict.claim] = None
    return {reason: list(claims) for reason, claims in groups.items()}


def untested_table(verdicts: Sequence[Verdict]) -> Table:
    """What was not tested, one row per reason."""
    rows = tuple((Cell(", ".join(claims)), Cell(reason)) for reason, claims in untested_groups(verdicts).items())
    return Table("Not tested", (("claims", False), ("why", False)), rows)


VERDICT_COLUMNS = tuple(
    (name, name in ("ratio [low, high]", "needs", "n"))
    for name in ("claim", "regime", "arm", "verdict", "ratio [low, high]", "needs", "of", "tier", "n", "why")
)


def verdicts_table(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts that rest on something, one row each, in the order given."""
    rows = tuple(verdict_row(v) for v in verdicts if v.verdict is not Outcome.NOT_TESTED)
    return Table("Verdicts", VERDICT_COLUMNS, rows)


def verdict_row(verdict: Verdict) -> tuple[Cell, ...]:
    """One verdict as cells of :data:`VERDICT_COLUMNS`."""
    return (
        Cell(verdict.claim, hint=f"{verdict.source} ({verdict.scope})"),
        Cell(verdict.regime),
        Cell(arm_text(verdict.arm)),
        Cell(verdict.verdict.value, mark=verdict.verdict.value, hint=verdict.reason),
        Cell(ratio_text(verdict), hint=how_text(verdict)),
        Cell(threshold_text(verdict)),
        Cell(pair_text(verdict)),
        Cell(tier_text(verdict.tier), mark=tier_text(verdict.tier)),
        Cell(str(verdict.replicates) if verdict.replicates else DASH),
        Cell(verdict.reason, hint=verdict.source),
    )


def how_text(verdict: Verdict) -> str:
    """How the ratio was obtained: metric, tier, replicates, confidence, scope and source."""
    parts = [verdict.metric, tier_text(verdict.tier), verdict.scope]
    parts += [f"{verdict.replicates} replicates"] if verdict.replicates else []
    parts += [f"{100 * verdict.confidence:g}% interval"] if verdict.confidence else []
    return ", ".join(p for p in [*parts, verdict.source] if p and p != DASH)


def counts_text(verdicts: Sequence[Verdict]) -> str:
    """``3 supported, 1 refuted, 2 inconclusive, 4 not tested``."""
    return ", ".join(f"{sum(v.verdict is o for v in verdicts)} {o.value}" for o in Outcome)


Show = Callable[[Row], Cell]


def _number(name: str, show: Callable[[float | None], str]) -> Show:
    return lambda row: Cell(show(getattr(row, name)), hint=row.source)


def _time(row: Row) -> Cell:
    return Cell(seconds(row.time_s), hint=f"{row.source}; 95% interval {_span(row)}" if row.time_low_s else row.source)


def _span(row: Row) -> str:
    return f"{seconds(row.time_low_s)} to {seconds(row.time_high_s)}" if row.time_low_s else DASH


def _modelled_energy(row: Row) -> Cell:
    low, high = row.token_per_joule_low, row.token_per_joule_high
    text = DASH if low is None and high is None else f"{interval(low, high)} modelled"
    return Cell(text, mark="" if text == DASH else Tier.MODELLED.value, hint="declared model of the machine's power")


def _measured_energy(row: Row) -> Cell:
    poisoned = f"; {row.poisoned_windows} windows poisoned by a failed reading" if row.poisoned_windows else ""
    return Cell(significant(row.token_per_joule), hint=f"measured: {row.energy_scope}{poisoned}")


def _net_energy(row: Row) -> Cell:
    idle = "" if row.idle_w is None else f"above {row.idle_w:.3g} W with all arms loaded and none computing"
    return Cell(significant(row.token_per_net_joule), hint=idle)


def _case_tier(row: Row) -> Cell:
    return Cell(tier_text(row.tier), mark=tier_text(row.tier), hint=row.source)


def _status(row: Row) -> Cell:
    return Cell(row.status.value, mark=row.status.value, hint=row.reason)


CASE_COLUMNS: dict[str, Show] = {
    "variant": lambda r: Cell(r.variant, hint=r.case),
    "shape": lambda r: Cell(r.shape),
    "regime": lambda r: Cell(r.regime),
    "backend": lambda r: Cell(r.backend if r.device == "cpu" else f"{r.backend} on {r.device}"),
    "dtype": lambda r: Cell(r.dtype),
    "time": _time,
    "95% interval": lambda r: Cell(_span(r), hint=r.source),
    "token/s": _number("token_per_s", lambda v: si(v, "")),
    "FLOP/s": _number("flop_per_s", lambda v: si(v, "")),
    "op/s": _number("op_per_s", lambda v: si(v, "")),
    "B/s": _number("bytes_per_s", lambda v: si(v, "")),
    "MFU": _number("mfu", share),
    "MBU": _number("mbu", share),
    "token/MFLOP": _number("token_per_flop", lambda v: significant(v * 1e6) if v else DASH),
    "token/J": _measured_energy,
    "token/J net": _net_energy,
    "token/J modelled": _modelled_energy,
    "weights": _number("weight_bytes", byte_size),
    "error": _number("verification_error", lambda v: DASH if v is None else f"{v:.1e}"),
    "output error": _number("output_error", lambda v: DASH if v is None else f"{v:.1e}"),
    "PSS": _number("pss_bytes", byte_size),
    "load": _number("load_s", seconds),
    "build": _number("build_s", seconds),
    "void": _number("void_share", lambda v: DASH if v is None else f"{100 * v:.0f}%"),
    "no steady state": lambda r: Cell(f"{r.unsteady} of {r.replicates}" if r.unsteady else DASH),
    "n": lambda r: Cell(str(r.replicates) if r.replicates else DASH),
    "tier": _case_tier,
    "status": _status,
}
"""Everything that a table of cases can show; the number columns are those after ``dtype``."""

_WHY_ABSENT = {
    "95% interval": "one replicate gives no interval",
    "token/s": "a call of this workload has no tokens",
    "FLOP/s": "a call executes no floating-point arithmetic that is counted",
    "op/s": "a call executes no integer arithmetic that is counted",
    "B/s": "the least traffic of a call is not known",
    "MFU": "no measured peak of its arithmetic bounds this case in this run",
    "MBU": "no measured bandwidth bounds this case in this run",
    "token/MFLOP": "no tokens, or no floating-point arithmetic that is counted",
    "token/J": "no joules were measured on this machine",
    "token/J net": "no joules were measured, or no idle baseline",
    "token/J modelled": "no model of the machine's power was declared",
    "weights": "it holds no weights",
    "error": "no error was recorded for the check of its output",
    "output error": "no distance to an unquantised answer was recorded",
    "build": "nothing was exported or compiled",
    "void": "no sample was taken",
    "no steady state": "every warm-up found a steady state",
    "n": "no replicate counted",
}

_WORDS = ("variant", "shape", "regime", "backend", "dtype", "tier", "status")
_BRIEF = ("variant", "shape", "regime", "backend", "time", "token/s", "MFU", "MBU", "token/J", "tier")
_BRIEF_TOKENLESS = ("variant", "shape", "time", "FLOP/s", "op/s", "B/s", "tier")


def cases_tables(rows: Sequence[Row], brief: bool = False) -> dict[str, Table]:
    """One table per workload, of the cases that ran; ``brief`` keeps what fits 80 columns.

    A column in which nothing is known is left out, and words that all rows share move to a note.
    """
    ran = [r for r in rows if r.time_s is not None]
    names = dict.fromkeys(r.workload for r in ran)
    return {name: _cases_table(name, [r for r in ran if r.workload == name], brief) for name in names}


def _cases_table(workload: str, rows: Sequence[Row], brief: bool) -> Table:
    short = _BRIEF if any(r.token_per_s for r in rows) else _BRIEF_TOKENLESS
    columns = short if brief else tuple(CASE_COLUMNS)
    cells = {name: [_case_cell(name, row) for row in rows] for name in columns}
    common = {n: cells[n][0].text for n in columns if n in _WORDS[1:5] and len({c.text for c in cells[n]}) == 1}
    shown = [n for n in columns if n not in common and any(c.text not in (DASH, "") for c in cells[n])]
    body = tuple(tuple(cells[name][i] for name in shown) for i in range(len(rows)))
    notes = (", ".join(f"{name} {text}" for name, text in common.items() if text), *_case_notes(workload, rows))
    return Table(workload, tuple((n, n not in _WORDS) for n in shown), body, tuple(n for n in notes if n))


def _case_cell(name: str, row: Row) -> Cell:
    """The cell; a dash says why it is one."""
    cell = CASE_COLUMNS[name](row)
    return cell if cell.text != DASH else Cell(DASH, hint=why_absent(name, row))


def why_absent(name: str, row: Row) -> str:
    """Why a column has nothing for a case."""
    if row.time_s is None and name != "n":
        return row.reason or "it was not timed"
    if name == "token/J" and (row.poisoned_windows or row.disagreement):
        return row.disagreement or f"{row.poisoned_windows} energy windows poisoned by a failed reading"
    return _WHY_ABSENT.get(name, "not recorded in this run")


def _case_notes(workload: str, rows: Sequence[Row]) -> Iterable[str]:
    if any(r.time_s for r in rows):
        yield "times are per call"
    if workload == "quantized_model":
        yield "one arm after the other, not turn by turn, and a small batch: for orientation only"
    if workload == PEAKS_WORKLOAD:
        yield "the best replicate of each is the limit for the shares in the other tables"
    if any(r.roofline_share for r in rows):
        yield "MFU and MBU are shares of the peaks that this run measured"
    if any((r.roofline_share or 0) > 1.05 for r in rows):
        yield "a share above 100% means that data came from a cache, or that the measured peak is too low"
    if any(r.token_per_s for r in rows) and not any(r.token_per_joule for r in rows):
        yield "no measured joules: token/J is missing, not zero"
    yield from dict.fromkeys(f"{r.case}: two energy methods disagree: {r.disagreement}" for r in rows if r.disagreement)


def facts_table(rows: Sequence[Row]) -> Table:
    """Whatever else was found out, one fact per line, with its own tier and source."""
    names = ("workload", "variant", "regime", "fact", "value", "unit", "tier")
    columns = tuple((name, name == "value") for name in names)
    return Table("Facts", columns, tuple(line for row in rows for line in _fact_lines(row)))


def _fact_lines(row: Row) -> Iterable[tuple[Cell, ...]]:
    for name, fact in sorted(row.facts.items()):
        bounds = interval(fact.low, fact.high)
        value = significant(fact.value, 4) + ("" if bounds == DASH else f" {bounds}")
        start = (Cell(row.workload), Cell(row.variant), Cell(row.regime or row.shape), Cell(name))
        tier = Cell(tier_text(fact.tier), mark=fact.tier.value, hint=fact.source)
        yield (*start, Cell(value, hint=fact.source), Cell(fact.unit), tier)


def absent_table(rows: Sequence[Row]) -> Table:
    """Failed, capped and skipped cases, with their reasons."""
    bad = [r for r in rows if r.status is not Status.OK]
    order = (Status.FAILED, Status.CAPPED, Status.SKIPPED)
    bad.sort(key=lambda r: order.index(r.status))
    lines = tuple((_status(r), Cell(r.case), Cell(r.reason or "no reason recorded")) for r in bad)
    return Table("Failed, capped and skipped cases", (("status", False), ("case", False), ("reason", False)), lines)


def machine_table(runs: Sequence[Run], rows: Sequence[Row]) -> Table:
    """One column per run: machine, versions, what the harness cost, how much was void."""
    facts = [_run_facts(run, [r for r in rows if r.run == run.manifest.run_id]) for run in runs]
    names = dict.fromkeys(name for fact in facts for name in fact)
    lines = tuple((Cell(name), *(Cell(fact.get(name, DASH)) for fact in facts)) for name in names)
    columns = (("", False), *((run.manifest.name, False) for run in runs))
    notes = tuple(dict.fromkeys(n for run in runs for n in (*run.problems, *run.manifest.notes)))
    return Table("Machine and harness", columns, lines, notes)


def _run_facts(run: Run, rows: Sequence[Row]) -> dict[str, str]:
    manifest = run.manifest
    facts = {"run": manifest.run_id, "state": manifest.state, "started": manifest.started}
    facts |= {"seed": str(manifest.seed), "revision": manifest.revision or DASH}
    facts |= {k.replace("_", " "): str(v) for k, v in manifest.machine_before.items() if _plain(v)}
    facts |= {"versions": ", ".join(f"{k} {v}" for k, v in manifest.versions.items())}
    after = (manifest.machine_after or {}).get("fingerprint")
    if after and after != manifest.machine_before.get("fingerprint"):
        facts["fingerprint after"] = f"{after} (the machine changed during the run)"
    return facts | _harness_facts(run) | _void_facts(rows)


def _plain(value: object) -> bool:
    return isinstance(value, (str, int, float, bool)) and len(str(value)) < 60


def _harness_facts(run: Run) -> dict[str, str]:
    harness = run.manifest.harness
    if harness is None:
        return {}
    overhead = harness.parent_cpu_s / harness.wall_s if harness.wall_s else None
    return {
        "wall time": f"{seconds(harness.wall_s)}, of which measuring {seconds(harness.measuring_s)}",
        "harness CPU": f"{seconds(harness.parent_cpu_s)}, {share(overhead)} of the wall time",
        **({"CPU of modelled cases": seconds(harness.modelling_cpu_s)} if harness.modelling_cpu_s else {}),
        "peak PSS": byte_size(harness.peak_pss_bytes),
    }


def _void_facts(rows: Sequence[Row]) -> dict[str, str]:
    shares = [r.void_share for r in rows if r.void_share is not None]
    steady = sum(r.steady_load for r in rows)
    facts = {"void samples": f"{share(sum(shares) / len(shares))} on average per case"} if shares else {}
    return facts | ({"steady load": f"{steady} cases kept all samples"} if steady else {})
