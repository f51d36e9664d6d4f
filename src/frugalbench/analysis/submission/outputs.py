"""Checked outputs, and sizes: what was computed and stored is what the shape asks for, on that machine."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from frugalbench.analysis.load import Run
from frugalbench.analysis.statistics import latest
from frugalbench.analysis.submission.physics import Host
from frugalbench.analysis.submission.turns import Finding, name
from frugalbench.schema import Record, Status, Tier

STORED_AS_PLANNED = ("moe_ffn", "quantized_linear")
"""Workloads whose weights are all of one layer, stored as their cost counts them."""
MOST_SIZE_OFF = 0.02
MOST_EXACT = 0.1
"""Share of the outputs of such a workload whose error is smaller than rounding leaves."""
LEAST_ERROR = 2.0**-27
"""Largest error of an output over its rms: results are float32 at best, the largest of which is off by 2**-25 or so."""
MOST_APART = 2.0
"""Error of a case between starts that checked the same positions, and of fewer positions over more: the same bits in
all of 2,600 records so far, but kernels may add up in another order each time."""
LEAST_ALIKE = 3
RMS_APART = 1.1
"""The same for the distance from the unquantised answer, which averages over all outputs."""
LEAST_DISTANCE = 0.8
"""Relative rms error of weights in R bits, over 2**-R. No code for independent values of normal distribution has less
than 1, nor for uniform ones than 0.84 (Shannon's lower bound); 1.43 to 10 were seen."""
_CHECKED = re.compile(r"(\d+) of (\d+) positions ")


def outputs(run: Run) -> Iterator[Finding]:
    """No time without a passed check of the output; sizes that fit the machine."""
    host = Host(run)
    for record in latest(run.records):
        found = record.verification
        if record.samples and record.status in (Status.OK, Status.CAPPED) and record.tier is not Tier.PUBLISHED:
            if found is None or not found.passed:
                yield name(record), "is timed although its output was not checked, or was wrong"
            elif found.error is not None and not 0 <= found.error <= found.tolerance:
                yield name(record), f"an error of {found.error:.3g} passed a tolerance of {found.tolerance:.3g}"
        if host.memory_bytes and record.pss_bytes and record.pss_bytes > host.memory_bytes:
            yield name(record), f"held {record.pss_bytes:.3g} bytes on a machine of {host.memory_bytes:.3g}"
        if reason := _size_fault(record) or _told_twice(record):
            yield name(record), reason
        threads = record.worker.threads if record.worker else None
        if threads is not None and threads > 4 * host.cores + 64:
            yield name(record), f"{threads} threads on {host.cores} cores"
    yield from _exact(run)
    yield from _errors(run)


def _size_fault(record: Record) -> str | None:
    """What is stored for the weights is what the shape needs."""
    cost = record.case.cost
    if record.case.workload not in STORED_AS_PLANNED or cost is None:
        return None
    for fact, needed in (("weight_bytes", cost.weight_bytes), ("bf16_bytes", 2.0 * cost.parameters)):
        told = record.facts[fact].value if fact in record.facts else None
        if told is not None and abs(told - needed) > MOST_SIZE_OFF * needed:
            return f"{fact} is {told:.6g}; its shape needs {needed:.6g}"
    return None


def _told_twice(record: Record) -> str | None:
    """What the check found stands in more than one place of a record, and within the limits of its format."""
    found, facts, params = record.verification, record.facts, record.case.params
    if found is None:
        return None
    if record.case.tolerance is not None and found.tolerance != record.case.tolerance:
        return f"was checked against {found.tolerance:.3g}; its tolerance is {record.case.tolerance:.3g}"
    parity = facts.get("parity")
    if parity is not None and (parity.value != float(found.passed) or parity.source != found.what):
        return "says two things of the check of its output"
    distance = facts["output_error"].value if "output_error" in facts else None
    limit = params.get("format_tolerance")
    if found.passed and distance is not None and isinstance(limit, int | float) and distance > limit:
        return f"passed {distance:.3g} from the unquantised answer; its format allows {limit:.3g}"
    return None if distance is None else _too_near(record, distance)


def _too_near(record: Record, distance: float) -> str | None:
    """Rounded weights cannot answer as if they were not."""
    cost = record.case.cost
    if record.case.workload not in STORED_AS_PLANNED or cost is None or not cost.parameters:
        return None
    bits = 8 * cost.weight_bytes / cost.parameters
    least = LEAST_DISTANCE * 2**-bits
    if distance >= least:
        return None
    return f"{distance:.3g} from the unquantised answer; {bits:.3g} bits a weight come no nearer than {least:.3g}"


def _exact(run: Run) -> Iterator[Finding]:
    """Rounding leaves an error in whatever computes with fractions."""
    for workload in STORED_AS_PLANNED:
        mine = [r for r in run.records if r.case.workload == workload and r.samples and r.verification is not None]
        errors = [r.verification.error for r in mine if r.verification is not None and r.verification.error is not None]
        without = sum(error < LEAST_ERROR for error in errors)
        if without >= 2 and without > MOST_EXACT * len(mine):
            yield workload, f"{without} of {len(mine)} outputs are exact to the last digit: floating point is not"


def _errors(run: Run) -> Iterator[Finding]:
    """Inputs are seeded: a case errs alike in all starts, and by no less where more positions were looked at."""
    by_case: dict[str, dict[int, list[float]]] = {}
    distances: dict[str, dict[int, list[float]]] = {}
    for record in run.records:
        found = record.verification
        said = _CHECKED.match(found.what) if found is not None and found.passed else None
        if found is None or said is None or found.error is None:
            continue
        by_case.setdefault(record.case.id, {}).setdefault(int(said[1]), []).append(found.error)
        if (distance := record.facts.get("output_error")) is not None and distance.value is not None:
            distances.setdefault(record.case.id, {}).setdefault(int(said[1]), []).append(distance.value)
    for case, found_at in by_case.items():
        yield from ((case, reason) for reason in _unlike(found_at, MOST_APART))
        if reason := _shrinking(found_at):
            yield case, reason
    for case, found_at in distances.items():
        yield from ((case, reason) for reason in _unlike(found_at, RMS_APART))


def _unlike(found_at: dict[int, list[float]], apart: float) -> Iterator[str]:
    """Starts of which nearly all found the same number, and one another."""
    for checked, errors in found_at.items():
        usual, often = Counter(errors).most_common(1)[0]
        odd = [error for error in errors if not usual / apart <= error <= usual * apart]
        if often >= LEAST_ALIKE and odd:
            yield f"an error of {odd[0]:.3g} in one start and {usual:.3g} in {often}, at the same {checked} positions"


def _shrinking(found_at: dict[int, list[float]]) -> str | None:
    for few, many in pairwise(sorted(found_at)):
        least, most = min(found_at[few]), max(found_at[many])
        if least > MOST_APART * most:
            return f"an error of {least:.3g} at {few} positions, and of {most:.3g} at {many}, which hold these"
    return None
