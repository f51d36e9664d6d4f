"""Numbers that no measurement gives: what a stored record or manifest may not hold, so that arithmetic stays finite.

JSON carries no NaN and no infinity, but it does carry 1e308, an integer of 300 digits and zero calls.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from frugalbench.schema import Cost, Manifest, Plan, Reading, Record, Role, Sample, Sweep
from frugalbench.untrusted import brief, fault

MOST = 1e30
LEAST = 1e-30
"""Magnitudes beyond these are no quantity of this project; 0 is one."""
LONGEST_S = 1e9
SHORTEST_S = 1e-12
MOST_COUNT = 2**53
MOST_POINTS = 10_000
"""Of one sweep."""
MOST_NAME = 4096
"""Characters of what identifies a run: tables repeat it in every line."""


def record_fault(record: Record) -> str | None:
    """What is impossible about ``record``, in a few words, or ``None``."""
    for sample in record.samples:
        if reason := _sample_fault(sample):
            return reason
    if not 0 <= record.replicate <= MOST_COUNT:
        return f"replicate is not a number from 0 to {MOST_COUNT}"
    return next(_rare_faults(record), None)


def _sample_fault(sample: Sample) -> str | None:
    """Of the figures that are computed with; this runs for every sample of a run."""
    time_s, found = sample.time_s, sample.environment
    if not (SHORTEST_S <= time_s <= LONGEST_S or time_s == 0):
        return f"time_s {time_s!r} is no time of a call"
    if not (0 < sample.calls <= MOST_COUNT and 0 <= sample.round <= MOST_COUNT):
        return f"calls and round of a sample are no counts up to {MOST_COUNT}"
    if not -LONGEST_S <= sample.start_s <= LONGEST_S:
        return f"start_s {sample.start_s!r} lies outside of any run"
    if found.clock_hz is not None and not 0 <= found.clock_hz <= MOST:
        return f"clock_hz {found.clock_hz!r} is no clock"
    if found.temperature_c is not None and not -MOST <= found.temperature_c <= MOST:
        return f"temperature_c {found.temperature_c!r} is no temperature"
    return None if found.gpu_clock_hz is None and sample.device_s is None else _gpu_fault(sample)


def _gpu_fault(sample: Sample) -> str | None:
    found = sample.environment
    figures = (found.gpu_clock_hz, found.gpu_memory_clock_hz, found.gpu_temperature_c, sample.device_s)
    return None if _fit(figures) else "clocks, heat or time of a GPU beyond what can be computed with"


def _rare_faults(record: Record) -> Iterator[str]:
    """Of what stands once in a record."""
    if record.case.cost is not None and (reason := _cost_fault(record.case.cost)):
        yield reason
    for reading in record.readings:
        least_calls = 0 if reading.role is Role.IDLE else 1
        if not least_calls <= reading.calls <= MOST_COUNT or not _fit(_joules(reading)):
            yield "an energy reading without calls, or of impossible joules or seconds"
    for name, quantity in record.facts.items():
        if not _fit((quantity.value, quantity.low, quantity.high)):
            yield f"the fact {brief(name)} is beyond what can be computed with"
    for sweep in record.sweeps:
        if reason := sweep_fault(sweep):
            yield f"the sweep of {brief(sweep.figure)} {reason}"
    threads = record.worker.threads if record.worker is not None else None
    if threads is not None and not 0 <= threads <= MOST_COUNT:
        yield f"threads of the worker is no count up to {MOST_COUNT}"
    if not _fit(_singles(record)):
        yield "a time, size or error of the worker is beyond what can be computed with"


def sweep_fault(sweep: Sweep) -> str | None:
    """What is impossible about it, or ``None``."""
    columns = (*sweep.over.values(), sweep.value, sweep.low or sweep.value, sweep.high or sweep.value)
    if not 1 <= len(sweep.over) <= 2:
        return f"has {len(sweep.over)} inputs, not one or two"
    if len(set(map(len, columns))) > 1 or len(sweep.value) > MOST_POINTS:
        return f"has columns of different lengths, or more than {MOST_POINTS} points"
    fits = all(map(_fit, columns)) and _fit([sweep.least])
    return None if fits else "is beyond what can be computed with"


def _joules(reading: Reading) -> tuple[float | None, ...]:
    return reading.joule, reading.low_joule, reading.high_joule, reading.window_s, reading.start_s


def _singles(record: Record) -> Iterator[float | None]:
    yield record.load_s
    yield record.pss_bytes
    if record.verification is not None:
        yield record.verification.error
        yield record.verification.tolerance
    for artefact in record.artefacts:
        yield artefact.build_s
    if (start := record.first_start) is not None:
        yield from (start.load_s, start.compile_s, start.first_inference_s, start.cached_compile_s)


def _cost_fault(cost: Cost) -> str | None:
    figures = (cost.token, cost.flop, cost.op, cost.weight_bytes, cost.traffic_bytes)
    return None if min(figures) >= 0 and _fit(figures) else "a cost is negative or beyond what can be computed with"


def _fit(values: Iterable[float | None]) -> bool:
    return not any(value and not LEAST <= abs(value) <= MOST for value in values)


def manifest_fault(manifest: Manifest) -> str | None:
    """What is impossible about ``manifest``, in a few words, or ``None``."""
    plain: tuple[tuple[str, Any], ...] = (
        ("config", manifest.config),
        ("machine_before", manifest.machine_before),
        ("machine_after", manifest.machine_after),
        ("seed", [manifest.seed, manifest.plan.seed]),
    )
    for name, value in plain:
        if reason := fault(value):
            return f"{name}: {reason}"
    if reason := next(_long_names(manifest), None):
        return reason
    if manifest.floor is not None and not 0 <= manifest.floor <= 1:
        return f"floor {manifest.floor!r} is no share"
    harness = manifest.harness
    if harness is not None and not _fit((harness.wall_s, harness.parent_cpu_s, harness.measuring_s)):
        return "harness: a time is beyond what can be computed with"
    return next(filter(None, map(_cost_fault, _costs(manifest.plan))), None)


def _long_names(manifest: Manifest) -> Iterator[str]:
    for name in ("run_id", "name", "revision", "claims_hash", "state", "started"):
        text: str = getattr(manifest, name) or ""
        if len(text) > MOST_NAME:
            yield f"{name}: a text of {len(text)} characters, more than {MOST_NAME}"


def _costs(plan: Plan) -> Iterator[Cost]:
    cases = [case for item in plan.comparisons for arm in item.arms for case in arm.cases]
    for case in (*cases, *plan.modelled, *(item.case for item in plan.skipped)):
        if case.cost is not None:
            yield case.cost
