"""The tables that a run can be exported as, one line type each: the schema of csv, parquet, json and ``query``.

A table is stable across versions: columns are added at the end, never renamed or given another meaning. ``run`` and
``record`` are its keys: the id of the run, and the line of its ``records.jsonl`` (from 1, blank lines not counted).
Missing numbers are empty or null. What is nested is JSON text.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

import msgspec

from frugalbench.analysis.claims import evaluate, load_claims
from frugalbench.analysis.judge import evidence_of, sources
from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import Row, rows
from frugalbench.report import safe
from frugalbench.schema import Case, Environment, FirstStart, Frozen, Role, Status, Tier, Verdict


class RunLine(Frozen, frozen=True, kw_only=True):
    """One run directory."""

    run: str
    name: str
    """Of the config."""
    path: str
    """Where it was read from."""
    state: str
    """``complete``, ``running``, ``interrupted`` or ``out of time``."""
    started: str
    """ISO 8601, UTC."""
    ended: str | None
    """ISO 8601, UTC."""
    seed: int
    """Of inputs, weights and orders."""
    revision: str | None
    schema_version: int
    """Of the run directory."""
    machine: str
    """Name of the machine, as verdicts give it."""
    fingerprint: str
    """Of the machine before the run, as cases give it."""
    memory_bytes: float | None
    """What the machine lets a process use."""
    alpha: float | None
    """Probability of a false verdict that a comparison may spend; null where the config names none (then 0.05)."""
    looks: str
    """JSON: planned numbers of replicates at which a comparison may stop."""
    floor: float | None
    """A/A floor that widens each interval; null in runs that took the default of 0.03."""
    decisions: str
    """JSON: comparison to ``stop``, ``look`` (0: not a planned one) and ``reason``."""
    claims_hash: str
    """Of the claim files that the run was planned under."""
    versions: str
    """JSON: package to version."""
    notes: str
    """JSON: what a reader should know."""
    records: int
    """Lines of records.jsonl."""


class ClaimLine(Frozen, frozen=True, kw_only=True):
    """One claim, as installed where the table was written."""

    claim: str
    says: str
    """The sentence of the source."""
    estimand: str
    direction: str
    """``at_least`` or ``at_most``: the side of the threshold that supports."""
    threshold: float
    """Where a group of the rule gives none of its own."""
    regimes: str
    """JSON list."""
    scope: str
    """``literal`` or ``analogue``."""
    flips: str
    """What would turn the verdict around."""
    source: str
    rule: str
    """JSON: kind, workload, baselines, candidates, scale; an empty workload of a group is the rule's own."""
    modelled: str
    """JSON: the second rule, for what a model computed; ``null`` where there is none."""


class RecordLine(Frozen, frozen=True, kw_only=True):
    """One worker and case: a line of records.jsonl without its samples and readings."""

    run: str
    record: int
    comparison: str
    arm: str
    replicate: int
    """Number of the fresh start; 0 is the pilot, whose samples do not count."""
    status: Status
    reason: str
    interrupted: bool
    """Cut short: kept, not counted."""
    steady_load: bool
    """Void rounds were not rare, so all were kept."""
    tier: Tier
    case: str
    workload: str
    variant: str
    shape: str
    regime: str
    backend: str
    device: str
    dtype: str
    token: float | None
    """Tokens, or other units of work, of one call."""
    flop: float | None
    """Floating-point operations of one call."""
    op: float | None
    """Integer operations of one call."""
    weight_bytes: float | None
    """Stored for the weights in use."""
    traffic_bytes: float | None
    """Least that one call moves between memory and processor."""
    parameters: int | None
    active_parameters: int | None
    """Multiplied per token."""
    peaks: str
    """JSON list: measured peaks that bound the case."""
    params: str
    """JSON: the case's shape and options."""
    start_method: str | None
    """``fork`` or ``spawn``."""
    threads: int | None
    load_s: float | None
    pss_bytes: float | None
    verification_error: float | None
    tolerance: float | None
    """Largest allowed verification error."""
    warmup_calls: int | None
    warmup_s: float | None
    warmup_steady: bool | None
    """Whether the warm-up found a steady state."""
    facts: str
    """JSON: name to value, unit, tier, low, high, source; one line each in the table of facts."""
    details: str
    """JSON: curves, answers, histograms, node placement."""
    first_load_s: float | None
    """From the file to what the runtime can compile or call, in a fresh process."""
    compile_s: float | None
    """Conversion or compilation, without a cache."""
    first_inference_s: float | None
    """First call after that."""
    compile_cached: bool | None
    """Whether it was taken from a cache on disk; compile_s is then that of the build that filled it."""
    cached_compile_s: float | None
    """What compiling took in this start through that cache."""


class SampleLine(Frozen, frozen=True, kw_only=True):
    """One timed value: the mean time of ``calls`` calls in one window of one turn."""

    run: str
    record: int
    round: int
    """Samples of one comparison, regime, replicate and round are paired."""
    turn: int
    calls: int
    """In the window."""
    time_s: float
    """Per call."""
    start_s: float
    """On the run's monotonic clock."""
    void: str | None
    """Why the environment spoilt it; the whole round is then set aside, except under a steady load."""
    wall_s: float
    """Of the window."""
    cpu_s: float
    """CPU time of the worker in the window."""
    run_delay_s: float | None
    """Time that the worker's threads stood runnable without a core."""
    steal_s: float | None
    """Stolen by the hypervisor, all cores."""
    foreign_cpu_s: float | None
    """CPU time of everyone else, all cores."""
    quiet_wait_s: float
    """How long the turn waited for the previous worker to stand still."""
    quiet: bool
    """Whether it did."""
    clock_hz: float | None
    throttled: bool | None
    """Clock held back because of heat."""
    memory_stall_s: float | None
    """Time in which any task waited for memory."""
    swapped_bytes: float | None
    """To and from swap, whole machine."""
    major_faults: int | None
    """Page faults of the worker that read from disk."""
    preemptions: int | None
    """Involuntary context switches of the worker."""
    temperature_c: float | None
    """Of the processor at the end of the window."""
    gpu_throttle: str | None
    """JSON list: why the GPU held its clocks back."""
    gpu_clock_hz: float | None
    """Of the GPU's multiprocessors, just after the window."""
    gpu_memory_clock_hz: float | None
    """Of the GPU's memory, just after the window."""
    gpu_temperature_c: float | None
    """Of the GPU, just after the window."""
    device_s: float | None
    """Per call by the clock of the device that computed."""


class ReadingLine(Frozen, frozen=True, kw_only=True):
    """One energy observation over one window."""

    run: str
    record: int
    round: int | None
    """Of the energy turns; null where the joules decide nothing."""
    role: Role
    """``gross`` counts; ``part`` overlaps another scope; ``idle``: all arms were loaded and none computed."""
    scope: str
    """What the joules cover."""
    method: str
    tier: Tier
    joule: float | None
    """Null where the reading failed; its window then counts for nothing."""
    low_joule: float | None
    high_joule: float | None
    window_s: float
    calls: int
    """In the window."""
    start_s: float
    """On the run's monotonic clock; readings that share it are of one window."""
    error: str | None
    note: str


class FactLine(Frozen, frozen=True, kw_only=True):
    """One fact of one record: a number with unit, interval and tier."""

    run: str
    record: int
    fact: str
    value: float | None
    """In the unit of the column ``unit``."""
    unit: str
    low: float | None
    """Lower end of its interval, in the same unit."""
    high: float | None
    """Upper end of its interval, in the same unit."""
    tier: Tier
    source: str


class SweepLine(Frozen, frozen=True, kw_only=True):
    """One point of a curve or map that a record keeps."""

    run: str
    record: int
    figure: str
    """What the values are; lines of one figure over the same inputs stand in one chart."""
    line: str
    """Which curve or map of the figure."""
    input_1: str
    """Name of the first input, with its unit."""
    at_1: float
    """Its value."""
    input_2: str | None
    """Of the second input; null for a curve."""
    at_2: float | None
    """The second input's value."""
    value: float | None
    """In the unit of the column ``unit``."""
    unit: str
    low: float | None
    """Lower end of its interval, in the same unit."""
    high: float | None
    """Upper end of its interval, in the same unit."""
    least: float | None
    """What a claim asks for at least."""
    tier: Tier
    source: str


GLOSSARY = {
    "run": "Id of the run.",
    "record": "Line of records.jsonl, from 1.",
    "machine": "Machine that was measured: its name in verdicts, its fingerprint in cases.",
    "revision": "Commit of the source checkout that measured; `+` where it had been changed.",
    "comparison": "Arms that were measured turn by turn.",
    "arm": "In cases and records: the cases that one worker loaded. In verdicts: `as_shipped`, `best`, or empty.",
    "case": "Id of workload, variant, shape, regime, backend and device.",
    "workload": "What is computed.",
    "variant": "How it is computed.",
    "shape": "Of which size.",
    "regime": "Under which load.",
    "backend": "What executes it.",
    "device": "Where.",
    "dtype": "Number format.",
    "status": "`ok`, `capped`, `failed` or `skipped`.",
    "reason": "Why.",
    "tier": "How the number was obtained: `measured`, `emulated`, `modelled` or `published`.",
    "parameters": "Weights held.",
    "threads": "Effective compute threads.",
    "load_s": "Time to load the arm.",
    "pss_bytes": "Memory of the worker, shared pages by share.",
    "verification_error": "Largest error of the output over the reference's root mean square.",
    "warmup_calls": "Calls until the steady state.",
    "warmup_s": "Time until the steady state.",
    "turn": "Order within the round.",
    "clock_hz": "Core clock.",
    "method": "How the energy was read.",
    "low_joule": "Lower bound of modelled joules.",
    "high_joule": "Upper bound of modelled joules.",
    "error": "Why the window is poisoned.",
    "window_s": "Time over which the joules were counted.",
    "note": "Why the tier was capped, or what spoilt the window.",
    "fact": "Its name.",
    "unit": "Of value, low and high.",
    "source": "Where it comes from.",
    "claim": "Id of the claim.",
    "estimand": "What is estimated.",
    "scope": "`literal`, or `analogue`: a stand-in for what the source means.",
    "verdict": "`supported`, `refuted`, `inconclusive` or `not tested`.",
    "metric": "What the ratio is of.",
    "baseline": "Arm that the ratio is over; the strongest in the pilot.",
    "candidate": "Arm that is judged.",
    "ratio": "The estimand's value.",
    "low": "Lower end of its interval.",
    "high": "Upper end of its interval.",
    "confidence": "Of the interval, after looks and Holm's procedure.",
    "threshold": "What the claim needs.",
    "replicates": "Fresh starts that count.",
    "time_low_s": "Lower end of the 95% interval of the replicates' geometric mean, without a floor.",
    "time_high_s": "Upper end of it.",
    "token_per_s": "Units of work of a call over its time.",
    "flop_per_s": "FLOP of a call over its time.",
    "op_per_s": "Integer operations of a call over its time.",
    "token_per_flop": "Units of work of a call over its FLOP.",
    "weight_bytes": "Stored for the weights in use.",
    "traffic_bytes": "Least that one call moves between memory and processor.",
    "energy_scope": "What the measured joules cover.",
    "token_per_joule_high": "All joules at their lower bound.",
    "idle_w": "Power with all arms loaded and none computing.",
    "void_share": "Samples that the environment spoilt.",
    "steady_load": "Void rounds were not rare, so all were kept.",
    "facts": "JSON: name to value, unit, tier, low, high, source.",
}
"""Meanings of columns that several tables share or whose type says nothing."""

_UNITS = {
    "token_per_joule": "token/J", "token_per_net_joule": "token/J", "token_per_s": "token/s", "flop_per_s": "FLOP/s",
    "op_per_s": "op/s", "bytes_per_s": "bytes/s", "token_per_flop": "token/FLOP", "mfu": "share", "mbu": "share",
    "roofline_share": "share", "void_share": "share", "confidence": "share", "alpha": "share", "floor": "share",
    "token": "token", "flop": "FLOP", "op": "op", "joule": "J",
}  # fmt: skip
_SUFFIXES = {"_bytes": "bytes", "_joule": "J", "_hz": "Hz", "_s": "s", "_w": "W", "_c": "°C"}


def unit_of(column: str) -> str:
    """The unit that a column's name says; empty for text, counts, flags and ratios."""
    known = next((unit for name, unit in _UNITS.items() if column in (name, f"{name}_low", f"{name}_high")), None)
    return known or next((unit for end, unit in _SUFFIXES.items() if column.endswith(end)), "")


Values = Iterator[tuple[Any, ...]]


@dataclass(frozen=True)
class Export:
    """One table: its line type, columns before those of the type, and how a run fills it."""

    name: str
    line: type[msgspec.Struct]
    values: Callable[[Run], Values]
    first: tuple[str, ...] = ()
    """Text columns that the line type lacks."""

    def columns(self) -> tuple[str, ...]:
        """Names, in order."""
        return (*self.first, *(field.name for field in msgspec.structs.fields(self.line)))

    def kinds(self) -> tuple[type, ...]:
        """``float``, ``int``, ``bool`` or ``str`` of each column."""
        hints = get_type_hints(self.line)
        return (*(str for _ in self.first), *(_kind(hints[field.name]) for field in msgspec.structs.fields(self.line)))

    def lines(self, runs: Sequence[Run]) -> Values:
        """Values in the order of the columns. The claims are the same for all runs and stand once."""
        for run in runs[:1] if self.line is ClaimLine else runs:
            yield from self.values(run)


def _kind(hint: Any) -> type:
    kinds = [item for item in get_args(hint) if item is not NoneType] if isinstance(hint, UnionType) else [hint]
    return kinds[0] if kinds[0] in (float, int, bool) else str


def _json(value: Any) -> str:
    if value == {}:
        return "{}"  # facts and details of most records
    return safe.json_text(msgspec.json.encode(value).decode())


def _run_values(run: Run) -> Values:
    manifest, evidence = run.manifest, evidence_of(run)
    measure = manifest.config.get("measure")
    known = measure if isinstance(measure, dict) else {}
    alpha = known.get("alpha")
    yield _in_order(
        RunLine, run=manifest.run_id, name=manifest.name, path=str(run.path), state=manifest.state,
        started=manifest.started, ended=manifest.ended, seed=manifest.seed, revision=manifest.revision,
        schema_version=manifest.schema_version, machine=evidence.machine,
        fingerprint=str(manifest.machine_before.get("fingerprint", "")), memory_bytes=evidence.memory_bytes,
        alpha=alpha if isinstance(alpha, float) else None, looks=_json(known.get("looks") or []), floor=manifest.floor,
        decisions=_json(manifest.decisions), claims_hash=manifest.claims_hash, versions=_json(manifest.versions),
        notes=_json(manifest.notes), records=len(run.records),
    )  # fmt: skip


def _in_order(line: type[msgspec.Struct], **values: Any) -> tuple[Any, ...]:
    return tuple(values[field.name] for field in msgspec.structs.fields(line))


def _claim_values(_: Run) -> Values:
    for claim in load_claims():
        yield (
            claim.id, claim.says, claim.estimand, claim.direction, claim.threshold, _json(claim.regimes), claim.scope,
            claim.flips, sources(claim), _json(claim.rule), _json(claim.modelled),
        )  # fmt: skip


def _verdict_values(run: Run) -> Values:
    pick = attrgetter(*(field.name for field in msgspec.structs.fields(Verdict)))
    for verdict in evaluate(evidence_of(run), load_claims()):
        yield (run.manifest.run_id, *pick(verdict))


def _case_values(run: Run) -> Values:
    names = [field.name for field in msgspec.structs.fields(Row)]
    pick, at = attrgetter(*names), names.index("facts")
    for row in rows(run):
        values = pick(row)
        yield (*values[:at], _json(row.facts), *values[at + 1 :])


_CASE = attrgetter("id", "workload", "variant", "shape", "regime", "backend", "device", "dtype")
_START = attrgetter(*FirstStart.__struct_fields__[:-1])
_COST = attrgetter("token", "flop", "op", "weight_bytes", "traffic_bytes", "parameters", "active_parameters")


def _record_values(run: Run) -> Values:
    name = run.manifest.run_id
    cases: dict[int, tuple[Any, ...]] = {}
    for number, record in enumerate(run.records, 1):
        worker, checked, warm = record.worker, record.verification, record.warmup
        case = cases.get(id(record.case)) or cases.setdefault(id(record.case), _of_case(record.case))
        yield (
            name, number, record.comparison, record.arm, record.replicate, record.status, record.reason,
            record.interrupted, record.steady_load, record.tier, *case,
            worker and worker.start_method, worker and worker.threads, record.load_s, record.pss_bytes,
            checked and checked.error, checked and checked.tolerance, warm and warm.calls, warm and warm.time_s,
            warm and warm.steady, _json(record.facts), _json(record.details),
            *(_START(record.first_start) if record.first_start else (None,) * 5),
        )  # fmt: skip


def _of_case(case: Case) -> tuple[Any, ...]:
    """What all records of a case share; an opened run holds equal cases once."""
    cost = _COST(case.cost) if case.cost else (None,) * 7
    return (*_CASE(case), *cost, _json(case.peaks), _json(case.params))


_SAMPLE = attrgetter(*SampleLine.__struct_fields__[2:8])
_HELD = Environment.__struct_fields__.index("gpu_throttle")


def _sample_values(run: Run) -> Values:
    name = run.manifest.run_id
    for number, record in enumerate(run.records, 1):
        for sample in record.samples:
            around = msgspec.structs.astuple(sample.environment)  # in the order of the columns
            if around[_HELD] is not None:
                around = (*around[:_HELD], _json(around[_HELD]), *around[_HELD + 1 :])
            yield (name, number, *_SAMPLE(sample), *around, sample.device_s)


def _reading_values(run: Run) -> Values:
    pick = attrgetter(*ReadingLine.__struct_fields__[2:])
    for number, record in enumerate(run.records, 1):
        for reading in record.readings:
            yield (run.manifest.run_id, number, *pick(reading))


def _fact_values(run: Run) -> Values:
    pick = attrgetter("value", "unit", "low", "high", "tier", "source")
    for number, record in enumerate(run.records, 1):
        for name, fact in record.facts.items():
            yield (run.manifest.run_id, number, name, *pick(fact))


def _sweep_values(run: Run) -> Values:
    for number, record in enumerate(run.records, 1):
        for sweep in record.sweeps:
            for at, value in enumerate(sweep.value):
                (first, second) = [*((name, column[at]) for name, column in sweep.over.items()), (None, None)][:2]
                bounds = sweep.low[at] if sweep.low else None, sweep.high[at] if sweep.high else None
                yield (
                    run.manifest.run_id, number, sweep.figure, sweep.line, *first, *second, value, sweep.unit, *bounds,
                    sweep.least, sweep.tier, sweep.source,
                )  # fmt: skip


EXPORTS = (
    Export("runs", RunLine, _run_values),
    Export("claims", ClaimLine, _claim_values),
    Export("verdicts", Verdict, _verdict_values, first=("run",)),
    Export("cases", Row, _case_values),
    Export("records", RecordLine, _record_values),
    Export("samples", SampleLine, _sample_values),
    Export("readings", ReadingLine, _reading_values),
    Export("facts", FactLine, _fact_values),
    Export("sweeps", SweepLine, _sweep_values),
)
"""Every table, from the widest view to the finest."""
