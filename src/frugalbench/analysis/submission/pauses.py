"""What lies between two turns: the next worker's wait for quiet, its lead-in, and little else.

Whoever shortens an arm's windows leaves their starts where they were, and the time that was cut off stands behind each
of them as a pause that no other arm has.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from statistics import median, quantiles

from frugalbench.analysis.load import Run
from frugalbench.analysis.submission.turns import Finding
from frugalbench.schema import Record, Sample

FEW_TURNS, FEW_CASES = 8, 3
MOST_SHARE, MOST_S = 0.2, 3e-3
"""Of its windows that a case's pause may exceed the others', and what it may in any case. Seen: 11% and 2 ms on a
loaded machine; shortening by a sixth shows."""
OF_RANKS = ("allreduce", "expert_parallel", "local_steps")
"""Several processes compute a call: when the last one is back differs with its size."""


def pauses(run: Run) -> Iterator[Finding]:
    """No case is followed by longer pauses than the others of its comparison."""
    lead_in_s = _lead_in_s(run)
    for comparison, found in _by_case(run, lead_in_s).items():
        usual = {case: quantiles(after, n=4)[0] for case, (after, _) in found.items() if len(after) >= FEW_TURNS}
        if len(usual) < FEW_CASES or comparison.startswith(OF_RANKS):
            continue
        common_s = max(0.0, median(usual.values()))  # under load a lead-in is shorter than it is taken for
        for case, pause_s in usual.items():
            window_s = median(found[case][1])
            if pause_s - common_s > max(MOST_S, MOST_SHARE * window_s):
                yield (
                    case,
                    f"{1e3 * pause_s:.3g} ms pass between its windows of {1e3 * window_s:.3g} ms and the next turn, "
                    f"after others {1e3 * common_s:.3g} ms: its windows were longer",
                )


def _lead_in_s(run: Run) -> float:
    measure = run.manifest.config.get("measure")
    found = measure.get("lead_in_s") if isinstance(measure, dict) else None
    return float(found) if isinstance(found, int | float) and found > 0 else 0.0


def _by_case(run: Run, lead_in_s: float) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Comparison to case to the pauses behind its windows, and these windows."""
    groups: dict[tuple[str, int], list[tuple[Sample, Record]]] = {}
    for record in run.records:
        for sample in record.samples:
            groups.setdefault((record.comparison, record.replicate), []).append((sample, record))
    found: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for (comparison, _), group in groups.items():
        group.sort(key=lambda pair: pair[0].start_s)
        for (before, record), (after, _) in pairwise(group):
            if after.turn == before.turn + 1 and after.time_s > 0:
                mine = found.setdefault(comparison, {}).setdefault(record.case.id, ([], []))
                mine[0].append(_pause_s(before, after, lead_in_s))
                mine[1].append(before.environment.wall_s)
    return found


def _pause_s(before: Sample, after: Sample, lead_in_s: float) -> float:
    """Without what the next worker waited, and without its lead-in of whole calls."""
    lead_in_s = after.time_s * max(1, math.ceil(lead_in_s / after.time_s))
    return after.start_s - before.start_s - before.environment.wall_s - after.environment.quiet_wait_s - lead_in_s
