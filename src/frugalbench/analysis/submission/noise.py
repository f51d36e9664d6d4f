"""Samples that look made up: real clocks resolve nanoseconds, real machines never do the same thing twice.

What is looked for are traces of typing, scaling, copying and of generators that did not know the clock. A forger who
simulates clock, turns and noise together passes; then physics and a second run of somebody else's have to say it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

import numpy as np

from frugalbench.analysis.load import Run
from frugalbench.analysis.submission.turns import Finding, name, window_s
from frugalbench.schema import Record

FEW = 20
FEW_OF_A_CASE = 10
"""Samples that a share over a run, and over a case, needs."""
NOT_NANOSECONDS = 0.05
ROUNDED = 0.2
"""Share of windows on whole microseconds; by chance 0.1%, up to 4% on a clock of 25 MHz."""
SAME_DIGIT = 0.3
"""Share of the commonest digit in the place of 100 ns; by chance a tenth."""
SAME_GAP = 0.2
"""Share of the commonest overhead between window and look, to the nanosecond."""
MANY, MOST_WITHOUT_WAIT = 100, 0.5
"""Turns that did not look whether the worker before them was quiet; 3% were seen, the first of each replicate."""
SAME_TIME = 1e-6
"""Of three or four windows."""
LEAST_SPREAD = 2e-5
"""Of the times of five or more windows: 0.4 us in 20 ms. The steadiest record so far has 0.6%."""
ALIKE = 0.005
"""Distance of two series of noise, over their size: beyond correlation 0.99998."""


def resolution(run: Run) -> Iterator[Finding]:
    """Windows are whole nanoseconds of the host's clock, and not whole microseconds."""
    by_case = _by_case(run)
    everything = [value for values in by_case.values() for value in values]
    if len(everything) >= FEW:
        yield from _fractions("records.jsonl", everything) or _digits("records.jsonl", everything)
    for case, values in by_case.items():
        if len(values) >= FEW_OF_A_CASE:
            yield from _fractions(case, values) or _digits(case, values, most=0.5)


def _fractions(where: str, values_ns: Sequence[float]) -> list[Finding]:
    off = sum(abs(value - round(value)) > max(0.01, 1e-15 * value) for value in values_ns) / len(values_ns)
    if off <= NOT_NANOSECONDS:
        return []
    return [(where, f"calls x time_s is no whole number of nanoseconds in {off:.0%} of the samples")]


def _digits(where: str, values_ns: Sequence[float], most: float = ROUNDED) -> list[Finding]:
    whole = [round(value) for value in values_ns]
    rounded = sum(value % 1000 == 0 for value in whole) / len(whole)
    if rounded > most:
        return [(where, f"{rounded:.0%} of the windows are whole microseconds: the times were rounded or typed")]
    digit, count = Counter(value // 100 % 10 for value in whole).most_common(1)[0]
    if count / len(whole) <= max(SAME_DIGIT, most) or len(whole) < 2 * FEW:
        return []
    return [(where, f"the digit {digit} stands for 100 ns in {count / len(whole):.0%} of the windows, not in a tenth")]


def _by_case(run: Run) -> dict[str, list[float]]:
    """Windows in ns of the host's clock, per case."""
    found: dict[str, list[float]] = {}
    for record in run.records:
        if record.case.device == "cpu":
            found.setdefault(record.case.id, []).extend(1e9 * window_s(sample) for sample in record.samples)
    return found


def copies(run: Run) -> Iterator[Finding]:
    """No two windows share both their length and the look around them, to the nanosecond."""
    seen: dict[tuple[float, float], Record] = {}
    count, where = 0, ""
    for record in run.records:
        for sample in record.samples:
            key = (window_s(sample), sample.environment.wall_s)
            if key in seen:
                count += 1
                where = where or f"{name(record)}, and {name(seen[key])}"
            seen[key] = record
    if count >= 2:
        yield where, f"{count} samples are copies: equal windows in equal environments, to the nanosecond"


def regular(run: Run) -> Iterator[Finding]:
    """Times that stand still, count up, or take turns between few values."""
    for record in run.records:
        times = [sample.time_s for sample in record.samples]
        if len(times) >= 5 and max(times) - min(times) < LEAST_SPREAD * median(times):
            yield name(record), f"{len(times)} windows whose times differ by less than {LEAST_SPREAD:.0e} of themselves"
        elif len(times) >= 3 and max(times) - min(times) <= SAME_TIME * median(times):
            yield name(record), f"{len(times)} windows of exactly the same time"
        elif len(times) >= 6 and len(set(times)) <= 2:
            yield name(record), f"{len(times)} windows share {len(set(times))} values"
        elif len(times) >= 4 and _counts_up(times):
            yield name(record), "the times grow by equal steps"
    yield from _still(run)


def _still(run: Run) -> Iterator[Finding]:
    """Fresh starts of one case differ, too."""
    found: dict[str, list[float]] = {}
    for record in run.records:
        if record.replicate:
            found.setdefault(record.case.id, []).extend(sample.time_s for sample in record.samples)
    for case, times in found.items():
        if len(times) >= 5 and max(times) - min(times) < LEAST_SPREAD * median(times):
            yield (
                case,
                f"{len(times)} windows of several fresh starts whose times differ by less than {LEAST_SPREAD:.0e}",
            )


def _counts_up(times: Sequence[float]) -> bool:
    """Equal differences, or equal ratios, of sorted times."""
    ordered = np.sort(np.asarray(times, dtype=float))
    if ordered[0] <= 0:
        return False
    return any(
        float(np.ptp(steps)) < 1e-4 * float(np.mean(steps)) for steps in (np.diff(ordered), np.diff(np.log(ordered)))
    )


def twins(run: Run) -> Iterator[Finding]:
    """No two series of times are multiples of each other."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in run.records:
        if len(record.samples) >= 5 and all(sample.time_s > 0 for sample in record.samples):
            groups.setdefault((len(record.samples),), []).append(record)
    for records in groups.values():
        yield from _twins_of(records)


def _twins_of(records: Sequence[Record]) -> Iterator[Finding]:
    """Series are compared with those next to them when sorted by their first entry, which twins nearly share."""
    logs = np.log([[sample.time_s for sample in record.samples] for record in records])
    logs -= logs.mean(axis=1, keepdims=True)
    sizes = np.sqrt((logs**2).mean(axis=1))
    logs, kept = logs[sizes > 0] / sizes[sizes > 0, None], np.flatnonzero(sizes > 0)
    order = np.argsort(logs[:, 0])
    for step in range(1, min(8, len(kept))):
        one, other = order[:-step], order[step:]
        far = np.sqrt(((logs[one] - logs[other]) ** 2).mean(axis=1))
        for position in np.flatnonzero(far < ALIKE)[:1]:
            pair = sorted((name(records[kept[one[position]]]), name(records[kept[other[position]]])))
            yield " and ".join(pair), "the same noise twice: one series of times is a multiple of the other"


def environment(run: Run) -> Iterator[Finding]:
    """Looks around a window cost something, and not the same to the nanosecond each time."""
    samples = [(record, sample) for record in run.records for sample in record.samples]
    if len(samples) < FEW:
        return
    gaps = Counter(round(1e9 * (s.environment.wall_s - window_s(s))) for _, s in samples)
    gap_ns, count = gaps.most_common(1)[0]
    if count / len(samples) > SAME_GAP:
        yield (
            "records.jsonl",
            f"wall_s exceeds calls x time_s by exactly {gap_ns} ns in {count / len(samples):.0%} of the samples",
        )
    same = sum(s.environment.cpu_s == s.environment.wall_s for _, s in samples) / len(samples)
    if same > SAME_GAP:
        yield "records.jsonl", f"cpu_s equals wall_s exactly in {same:.0%} of the samples: two clocks never agree so"
    waits = [s.environment.quiet_wait_s for _, s in samples if s.turn > 1]
    if len(waits) >= MANY and waits.count(0.0) > MOST_WITHOUT_WAIT * len(waits):
        yield (
            "records.jsonl",
            f"{waits.count(0.0)} of {len(waits)} turns waited for no worker before them: that takes time",
        )
