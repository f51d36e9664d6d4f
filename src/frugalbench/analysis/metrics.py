"""From records to one row per case: rates, shares of the measured peaks, energy, bytes, errors.

A row is rebuilt from ``manifest.json`` and ``records.jsonl`` alone. Rates follow from the case's cost (by formula
from its shape) and the median of its replicates' medians; a missing number is ``None``.
"""

import math
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any
from weakref import WeakKeyDictionary

from frugalbench.analysis.energy import energy
from frugalbench.analysis.load import Run
from frugalbench.analysis.noise import case_flags, unsteady_warmups
from frugalbench.analysis.statistics import counted
from frugalbench.schema import Case, Cost, Frozen, Quantity, Record, Status, Tier

PEAKS_WORKLOAD = "machine_peaks"
CONFIDENCE = 0.95
"""Of the interval of an absolute time (Student's t over the logarithms of the replicate medians)."""


class Row(Frozen, frozen=True, kw_only=True):
    """One case of one run, as a line of a table."""

    run: str
    machine: str
    revision: str | None
    comparison: str
    arm: str
    case: str
    workload: str
    variant: str
    shape: str
    regime: str
    backend: str
    device: str
    dtype: str
    status: Status
    reason: str
    tier: Tier | None
    """``None`` where there is no record."""
    replicates: int
    """Counted ones: neither the pilot nor cut short."""
    time_s: float | None = None
    """Per call: median over replicates of their medians."""
    time_low_s: float | None = None
    time_high_s: float | None = None
    token_per_s: float | None = None
    flop_per_s: float | None = None
    op_per_s: float | None = None
    bytes_per_s: float | None = None
    """Effective bandwidth: least traffic of a call / time."""
    mfu: float | None = None
    """Share of the measured compute peaks named by the case."""
    mbu: float | None = None
    """Share of the measured bandwidth named by the case."""
    roofline_share: float | None = None
    """The larger of the two: time at the measured roofline / time."""
    token_per_flop: float | None = None
    weight_bytes: float | None = None
    traffic_bytes: float | None = None
    verification_error: float | None = None
    """Largest of the replicates, relative to the reference's rms."""
    output_error: float | None = None
    """Distance of a lossy format to the unquantised reference."""
    token_per_joule: float | None = None
    """From measured readings."""
    energy_scope: str = ""
    poisoned_windows: int = 0
    """Energy windows with a failed reading; they count for nothing."""
    token_per_joule_low: float | None = None
    """From modelled readings: all at their upper bound of joules."""
    token_per_joule_high: float | None = None
    token_per_net_joule: float | None = None
    """The same above the idle baseline, taken with all arms loaded and none computing."""
    idle_w: float | None = None
    disagreement: str = ""
    """Why a window's tier was capped: two methods that read the same energy differ."""
    pss_bytes: float | None = None
    load_s: float | None = None
    build_s: float | None = None
    """Export and compilation before any timing, also when it came from the cache."""
    void_share: float | None = None
    steady_load: bool = False
    unsteady: int | None = None
    """Replicates whose warm-up found no steady state."""
    flags: str = ""
    """Two modes, or a trend, in the times."""
    threads: int | None = None
    facts: dict[str, Quantity] = {}
    source: str = ""
    """How the time was obtained."""


def replicate_time_s(record: Record) -> float | None:
    """Median time per call of one replicate, over its non-void samples (over all under a steady load)."""
    times = [s.time_s for s in record.samples if record.steady_load or s.void is None]
    return median(times) if times else None


def measured_peaks(run: Run) -> dict[tuple[str, str], float]:
    """``(device, peak name)`` to the highest replicate median of the run's own ``machine_peaks`` records.

    A peak is a limit, so the best replicate speaks for it. FLOP/s, op/s or bytes/s, as its name says.
    """
    peaks: dict[tuple[str, str], float] = {}
    for record in run.records:
        if record.case.workload != PEAKS_WORKLOAD or not counted(record):
            continue
        time_s, work = replicate_time_s(record), _peak_work(record.case)
        if time_s and work:
            key = (record.case.device, record.case.variant)
            peaks[key] = max(peaks.get(key, 0.0), work / time_s)
    return peaks


def rows(run: Run) -> tuple[Row, ...]:
    """One row per case in the order of the records, then what was skipped or never had its turn."""
    if run not in _ROWS:
        _ROWS[run] = _rows(run)
    return _ROWS[run]


_ROWS: WeakKeyDictionary[Run, tuple[Row, ...]] = WeakKeyDictionary()
"""A report asks for the rows of a run a dozen times."""


def _rows(run: Run) -> tuple[Row, ...]:
    peaks = measured_peaks(run)
    groups: dict[tuple[str, str, str], dict[int, Record]] = {}
    for record in run.records:
        by_replicate = groups.setdefault((record.comparison, record.arm, record.case.id), {})
        by_replicate[record.replicate] = record
    measured = tuple(_row(run, list(group.values()), peaks) for group in groups.values())
    return measured + tuple(_absent_rows(run, {row.case for row in measured}))


def _row(run: Run, records: list[Record], peaks: dict[tuple[str, str], float]) -> Row:
    valid = [r for r in records if counted(r)]
    timed = [t for r in valid if (t := replicate_time_s(r)) is not None]
    last = (valid or records)[-1]
    time_s = median(timed) if timed else None
    low, high = time_interval(timed)
    status, reason = _status(records, len(valid))
    base = _identity(run, last.case, last.comparison, last.arm)
    fields: dict[str, Any] = {"status": status, "reason": reason, "tier": last.tier, "replicates": len(timed)}
    fields |= {"time_s": time_s, "time_low_s": low, "time_high_s": high, "source": _source(last, len(timed))}
    fields |= _rates(last.case.cost, time_s) | _shares(last.case, time_s, peaks)
    fields |= energy(valid, last.case.cost) | _process(valid)
    return Row(**base, **fields)


def _identity(run: Run, case: Case, comparison: str, arm: str) -> dict[str, Any]:
    return {
        "run": run.manifest.run_id,
        "machine": str(run.manifest.machine_before.get("fingerprint", "")),
        "revision": run.manifest.revision,
        "comparison": comparison,
        "arm": arm,
        "case": case.id,
        "workload": case.workload,
        "variant": case.variant,
        "shape": case.shape,
        "regime": case.regime,
        "backend": case.backend,
        "device": case.device,
        "dtype": case.dtype,
    }


def _status(records: list[Record], counted: int) -> tuple[Status, str]:
    """The worst that happened to a case, with its reason."""
    for status in (Status.FAILED, Status.CAPPED, Status.SKIPPED):
        found = [r for r in records if r.status is status]
        if found:
            return status, found[-1].reason
    if not counted:
        return Status.OK, "interrupted before a replicate counted"
    return Status.OK, records[-1].reason


def _source(record: Record, timed: int) -> str:
    if not timed:
        return record.reason
    how = "all samples, steady load" if record.steady_load else "non-void samples"
    return f"median of {timed} replicate medians, {how}"


def time_interval(times_s: list[float], confidence: float = CONFIDENCE) -> tuple[float | None, float | None]:
    """Student's t interval of the geometric mean of replicate times, in seconds; ``None`` below two replicates."""
    if len(times_s) < 2 or min(times_s) <= 0:
        return None, None
    logs = [math.log(t) for t in times_s]
    mean = sum(logs) / len(logs)
    variance = sum((x - mean) ** 2 for x in logs) / (len(logs) - 1)
    half = _t_quantile(len(logs) - 1, confidence) * math.sqrt(variance / len(logs))
    return math.exp(mean - half), math.exp(mean + half)


def _t_quantile(freedom: int, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + confidence / 2))


def _rates(cost: Cost | None, time_s: float | None) -> dict[str, float | None]:
    if cost is None:
        return {}
    return {
        "token_per_s": _ratio(cost.token, time_s),
        "flop_per_s": _ratio(cost.flop, time_s),
        "op_per_s": _ratio(cost.op, time_s),
        "bytes_per_s": _ratio(cost.traffic_bytes, time_s),
        "token_per_flop": _ratio(cost.token, cost.flop),
        "weight_bytes": cost.weight_bytes or None,
        "traffic_bytes": cost.traffic_bytes or None,
    }


def _ratio(numerator: float, denominator: float | None) -> float | None:
    """``None`` where either side is missing; a cost of 0 means that there is none of this kind."""
    return numerator / denominator if numerator and denominator else None


def _shares(case: Case, time_s: float | None, peaks: dict[tuple[str, str], float]) -> dict[str, float | None]:
    """Model FLOP utilisation and model bandwidth utilisation against the measured peaks."""
    if case.cost is None or not time_s or case.workload == PEAKS_WORKLOAD:
        return {}
    mfu = _utilisation([n for n in case.peaks if not n.endswith("_bytes_per_s")], case, time_s, peaks)
    mbu = _utilisation([n for n in case.peaks if n.endswith("_bytes_per_s")][:1], case, time_s, peaks)
    known = [share for share in (mfu, mbu) if share is not None]
    return {"mfu": mfu, "mbu": mbu, "roofline_share": max(known) if known else None}


def _utilisation(names: list[str], case: Case, time_s: float, peaks: dict[tuple[str, str], float]) -> float | None:
    """Sum over the named peaks of (time that this work would take at the peak) / time.

    ``None`` where a named peak was not measured, and for a case of lower precision that names the fp32 peak
    although its own was measured: a share of the wrong roof is a guess.
    """
    total = 0.0
    for name in names:
        peak = peaks.get((case.device, name))
        if peak is None or _wrong_roof(name, case, peaks):
            return None
        total += _work(name, case.cost) / peak
    return total / time_s if total else None


_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Types as cases name them to types as peaks do."""


def _wrong_roof(name: str, case: Case, peaks: dict[tuple[str, str], float]) -> bool:
    own = f"{_SHORT.get(case.dtype, case.dtype)}_flop_per_s"
    return name == "fp32_flop_per_s" and own != name and (case.device, own) in peaks


def _work(peak_name: str, cost: Cost | None) -> float:
    if cost is None:
        return 0.0
    if peak_name.endswith("_bytes_per_s"):
        return cost.traffic_bytes
    return cost.flop if peak_name.endswith("_flop_per_s") else cost.op


def _peak_work(case: Case) -> float:
    return _work(case.variant, case.cost)


def _process(records: list[Record]) -> dict[str, Any]:
    samples = [s for r in records for s in r.samples]
    threads = [r.worker.threads for r in records if r.worker]
    errors = [r.verification.error for r in records if r.verification]
    output = [q.value for r in records if (q := r.facts.get("output_error"))]
    return {
        "verification_error": max((e for e in errors if e is not None), default=None),
        "output_error": max((e for e in output if e is not None), default=None),
        "pss_bytes": _median(r.pss_bytes for r in records),
        "load_s": _median(r.load_s for r in records),
        "build_s": _median(sum(a.build_s for a in r.artefacts) if r.artefacts else None for r in records),
        "void_share": sum(s.void is not None for s in samples) / len(samples) if samples else None,
        "steady_load": any(r.steady_load for r in records),
        "unsteady": unsteady_warmups(records) if records else None,
        "flags": case_flags(records),
        "threads": threads[-1] if threads else None,
        "facts": records[-1].facts if records else {},
    }


def _median(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return median(known) if known else None


def _absent_rows(run: Run, seen: set[str]) -> Iterator[Row]:
    """Cases that the plan skipped, and cases whose turn never came."""
    for skipped in run.manifest.plan.skipped:
        if skipped.case.id not in seen:
            yield _absent(run, skipped.case, "", "", skipped.reason)
    ended = f"no record: the run ended before its turn ({run.manifest.state})"
    for comparison in run.manifest.plan.comparisons:
        for arm in comparison.arms:
            for case in arm.cases:
                if case.id not in seen:
                    yield _absent(run, case, comparison.id, arm.id, ended)


def _absent(run: Run, case: Case, comparison: str, arm: str, reason: str) -> Row:
    base = _identity(run, case, comparison, arm)
    return Row(**base, status=Status.SKIPPED, reason=reason, tier=None, replicates=0)
