"""What comes before the first answer, step by step, over the fresh starts of one arm; from stored records alone.

Every start counts, the pilot's too: each is a fresh process, and nothing in it depends on how often others ran.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import replicate_time_s, time_interval
from frugalbench.analysis.statistics import counted, latest
from frugalbench.schema import FirstStart, Record, Status

LEAST_STARTS = 3
"""Below this no interval is given."""
WIDEST = 1000.0
"""Nor one whose ends lie further apart than this."""


@dataclass(frozen=True)
class Step:
    """Median over fresh starts, with its 95% interval where there are enough of them."""

    time_s: float
    low_s: float | None
    high_s: float | None
    starts: int
    """Starts that took the step; 0 where a cache on disk spoke for all of them."""


@dataclass(frozen=True)
class Start:
    """The steps of one arm, and the steady time per call of the same case."""

    load: Step | None
    compile: Step | None
    first_inference: Step | None
    cached_compile: Step | None
    """The compiling step through a cache on disk, where it took time of its own."""
    steady_s: float | None
    starts: int
    cached_starts: int
    note: str


def started(records: Iterable[Record]) -> Start | None:
    """Over the records of one arm, or one case; ``None`` where none of them tells of a start that gave right answers.

    Where different cases met the fresh process (the first one may fail), the one that most often did speaks.
    """
    told = [r for r in records if r.first_start and r.status in (Status.OK, Status.CAPPED) and not r.interrupted]
    if not told:
        return None
    cases = [record.case.id for record in told]
    chosen = max(dict.fromkeys(cases), key=cases.count)
    mine = [record for record in told if record.case.id == chosen]
    found = [record.first_start for record in mine if record.first_start]
    steady = [time_s for record in mine if counted(record) and (time_s := replicate_time_s(record))]
    return Start(
        load=_step([item.load_s for item in found]),
        compile=_compiled(found),
        first_inference=_step([item.first_inference_s for item in found]),
        cached_compile=_step([item.cached_compile_s for item in found]),
        steady_s=median(steady) if steady else None,
        starts=len(found),
        cached_starts=sum(item.cached for item in found),
        note=found[0].note,
    )


def _compiled(found: Sequence[FirstStart]) -> Step | None:
    """Of the starts that compiled; where all took the result from a cache, of the build that filled it."""
    if done := _step([item.compile_s for item in found if not item.cached]):
        return done
    kept = [item.compile_s for item in found if item.compile_s is not None]
    return Step(kept[0], None, None, 0) if kept else None


def _step(times: Sequence[float | None]) -> Step | None:
    known = [time_s for time_s in times if time_s is not None]
    return Step(median(known), *_span(known), len(known)) if known else None


def _span(times_s: list[float]) -> tuple[float | None, float | None]:
    """Student's t on two starts, or on a few that differ by powers of ten, tells nothing: then there is no interval."""
    low, high = time_interval(times_s) if len(times_s) >= LEAST_STARTS else (None, None)
    return (low, high) if low and high and high < WIDEST * low else (None, None)


def starts_of(run: Run) -> dict[tuple[str, str, str], Start]:
    """(workload, shape, variant) to its start, in the order of the records."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in latest(run.records):
        groups.setdefault((record.case.workload, record.case.shape, record.case.variant), []).append(record)
    return {key: start for key, records in groups.items() if (start := started(records))}
