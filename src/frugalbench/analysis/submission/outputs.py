"""Checked outputs, and sizes: what was computed and stored is what the shape asks for, on that machine."""

from collections.abc import Iterator

from frugalbench.analysis.load import Run
from frugalbench.analysis.statistics import latest
from frugalbench.analysis.submission.physics import Host
from frugalbench.analysis.submission.turns import Finding, name
from frugalbench.schema import Record, Status, Tier

STORED_AS_PLANNED = ("moe_ffn", "quantized_linear")
"""Workloads whose weights are all of one layer, stored as their cost counts them."""
MOST_SIZE_OFF = 0.02
MOST_EXACT = 0.1
"""Share of the outputs of such a workload whose error is 0."""


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
        if reason := _size_fault(record):
            yield name(record), reason
        threads = record.worker.threads if record.worker else None
        if threads is not None and threads > 4 * host.cores + 64:
            yield name(record), f"{threads} threads on {host.cores} cores"
    yield from _exact(run)


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


def _exact(run: Run) -> Iterator[Finding]:
    """Rounding leaves an error in whatever computes with fractions."""
    for workload in STORED_AS_PLANNED:
        mine = [r for r in run.records if r.case.workload == workload and r.samples and r.verification is not None]
        without = sum(r.verification is not None and r.verification.error == 0 for r in mine)
        if without >= 2 and without > MOST_EXACT * len(mine):
            yield workload, f"{without} of {len(mine)} outputs are exact to the last digit: floating point is not"
