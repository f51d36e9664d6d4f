"""What the environment did to a run: void rounds and their causes, load, clocks, heat; and how steady each case was.

Nothing here changes a number. A round is void for its environment alone (the measuring side decides that and says so in
the record); modes, trends and warm-ups without a steady state are reported beside the ratio.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from statistics import median

from frugalbench.analysis.statistics import counted
from frugalbench.analysis.steadiness import drift, modes, round_modes
from frugalbench.schema import Environment, Frozen, Record, Sample

LEAST_CLOCK_CHANGE = 0.05
"""Clocks of an undisturbed processor wander by a few percent."""
LEAST_WARMING_C = 10.0
LEAST_SHARE = 0.05
"""Share of samples from which on a cause is worth a flag."""


class Noise(Frozen, frozen=True, kw_only=True):
    """What the environment did to one comparison, or to a whole run; the pilot does not count."""

    comparison: str
    """Empty for a whole run."""
    replicates: int
    rounds: int
    void: int
    """Rounds that the environment spoilt for any arm."""
    kept: int
    """Void rounds that were used all the same, because the load was steady; the others were repeated."""
    steady_load: int
    """Replicates under a steady load."""
    void_share: float | None
    """``None`` without rounds."""
    causes: dict[str, int] = {}
    """Void samples by what spoilt them."""
    flags: tuple[str, ...] = ()


def noise(records: Sequence[Record]) -> tuple[Noise, ...]:
    """One per comparison that has rounds, in the order of the records."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.samples and record.replicate > 0 and not record.interrupted:
            groups.setdefault(record.comparison, []).append(record)
    return tuple(_of(name, group) for name, group in groups.items())


def share_void(parts: Sequence[Noise]) -> Noise:
    """The sum over comparisons: what share of a run's rounds was void, and how many of them were kept."""
    rounds, void = sum(part.rounds for part in parts), sum(part.void for part in parts)
    return Noise(
        comparison="",
        replicates=sum(part.replicates for part in parts),
        rounds=rounds,
        void=void,
        kept=sum(part.kept for part in parts),
        steady_load=sum(part.steady_load for part in parts),
        void_share=void / rounds if rounds else None,
        causes=dict(sum((Counter(part.causes) for part in parts), Counter()).most_common()),
    )


def _of(name: str, records: Sequence[Record]) -> Noise:
    rounds: set[tuple[str, int, int]] = set()
    void: set[tuple[str, int, int]] = set()
    steady: set[tuple[str, int]] = set()
    causes: Counter[str] = Counter()
    for record in records:
        where = (record.case.regime, record.replicate)
        if record.steady_load:
            steady.add(where)
        rounds.update((*where, sample.round) for sample in record.samples)
        spoilt = [sample for sample in record.samples if sample.void is not None]
        void.update((*where, sample.round) for sample in spoilt)
        causes.update(cause(sample.void or "") for sample in spoilt)
    replicates = {record.replicate for record in records}
    loaded = {replicate for _, replicate in steady}
    kept = sum(item[:2] in steady for item in void)
    return Noise(
        comparison=name,
        replicates=len(replicates),
        rounds=len(rounds),
        void=len(void),
        kept=kept,
        steady_load=len(loaded),
        void_share=len(void) / len(rounds),
        causes=dict(causes.most_common()),
        flags=tuple(_flags(records, len(loaded), len(replicates))),
    )


def cause(reason: str) -> str:
    """The first words of a void reason, without its numbers."""
    return re.split(r" \d|:", reason, maxsplit=1)[0]


def _flags(records: Sequence[Record], loaded: int, replicates: int) -> Iterator[str]:
    if loaded:
        yield f"steady load in {loaded} of {replicates} replicates: nothing set aside there"
    warmups = [record.warmup for record in records if record.warmup is not None]
    restless = sum(not warmup.steady for warmup in warmups)
    if restless:
        yield f"no steady state in {restless} of {len(warmups)} warm-ups"
    samples = sorted((sample for record in records for sample in record.samples), key=lambda sample: sample.start_s)
    change = clock_drift(samples)
    if change is not None and abs(change) >= LEAST_CLOCK_CHANGE:
        yield f"clock {'fell' if change < 0 else 'rose'} {100 * abs(change):.0f}%"
    warmer = _ends([s.environment.temperature_c for s in samples])
    if warmer is not None and warmer[1] - warmer[0] >= LEAST_WARMING_C:
        yield f"processor warmed from {warmer[0]:.0f} to {warmer[1]:.0f} °C"
    seen = Counter(what for sample in samples for what in _strains(sample.environment))
    for what, number in seen.most_common():
        if number >= LEAST_SHARE * len(samples):
            yield f"{what} in {100 * number / len(samples):.0f}% of samples"


def _strains(environment: Environment) -> Iterator[str]:
    if environment.throttled:
        yield "CPU throttled"
    for reason in environment.gpu_throttle or ():
        yield f"GPU held back ({reason})"
    if not environment.quiet:
        yield "last worker still busy"
    if environment.major_faults:
        yield "reads from disk"


def clock_drift(samples: Sequence[Sample]) -> float | None:
    """Change of the core clock from the first to the last quarter of ``samples`` (in order of time), as a share."""
    ends = _ends([sample.environment.clock_hz for sample in samples])
    return ends[1] / ends[0] - 1 if ends and ends[0] else None


def _ends(values: Iterable[float | None]) -> tuple[float, float] | None:
    """Medians of the first and the last quarter of the known values; ``None`` below eight."""
    known = [value for value in values if value is not None]
    quarter = len(known) // 4
    return (median(known[:quarter]), median(known[-quarter:])) if quarter >= 2 else None


def case_flags(records: Sequence[Record]) -> str:
    """Modes and trends in the times of one case, in one line; empty without any. Samples set aside are left out."""
    valid = sorted((r for r in records if counted(r)), key=lambda record: record.replicate)
    values = [times for record in valid if (times := _times_s(record))]
    middles = [median(times) for times in values]
    return "; ".join((*_mode_flags(values, middles), *_trend_flags(values, middles)))


def unsteady_warmups(records: Iterable[Record]) -> int:
    """Counted replicates of a case whose warm-up found no steady state within its limit."""
    return sum(counted(record) and record.warmup is not None and not record.warmup.steady for record in records)


def _times_s(record: Record) -> list[float]:
    return [s.time_s for s in record.samples if (record.steady_load or s.void is None) and s.time_s > 0]


def _mode_flags(values: Sequence[Sequence[float]], middles: Sequence[float]) -> Iterator[str]:
    between = modes(middles)
    if between is not None:
        slow = round(between.slow_share * len(values))
        yield f"two kinds of process, {between.ratio:.2f}x apart, {slow} of {len(values)} slow"
        return
    within = round_modes(values)
    if within is not None:
        yield f"two modes, {within.ratio:.2f}x apart, {100 * within.slow_share:.0f}% slow"


def _trend_flags(values: Sequence[Sequence[float]], middles: Sequence[float]) -> Iterator[str]:
    over_run = drift(middles)
    if over_run is not None:
        yield f"{_slower(over_run.change)} from the first replicates to the last"
    within = drift(_in_step(values, middles))
    if within is not None:
        yield f"{_slower(within.change)} from the first rounds of a replicate to its last"


def _in_step(values: Sequence[Sequence[float]], middles: Sequence[float]) -> list[float]:
    """All values over the median of their replicate, first rounds first."""
    placed = [
        (place / len(times), time_s / middle)
        for times, middle in zip(values, middles, strict=True)
        if len(times) > 1
        for place, time_s in enumerate(times)
    ]
    return [value for _, value in sorted(placed, key=itemgetter(0))]


def _slower(change: float) -> str:
    return f"{100 * abs(change):.0f}% {'slower' if change > 0 else 'faster'}"


def noise_text(part: Noise) -> str:
    """The share of void rounds and what became of them, in one line."""
    if not part.rounds:
        return "no rounds"
    if not part.void:
        return f"none of {part.rounds} rounds void"
    causes = ", ".join(f"{name} {number}" for name, number in part.causes.items())
    fate = {0: "repeated", part.void: "kept: the load was steady, so nothing was set aside"}
    became = fate.get(part.kept, f"{part.kept} kept under a steady load, the others repeated")
    return f"{_percent(part.void, part.rounds)} of {part.rounds} rounds void, {became} ({causes})"


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole
    return f"{share:.1f}%" if share < 9.95 else f"{share:.0f}%"
