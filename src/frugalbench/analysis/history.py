"""One metric over many runs: a series per machine and case, and where its level changes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from statistics import median

from frugalbench.analysis.load import Run, load_run
from frugalbench.analysis.metrics import Row, rows
from frugalbench.schema import Frozen, FrugalbenchError

METRICS = (
    "time_s", "token_per_s", "flop_per_s", "op_per_s", "bytes_per_s", "mfu", "mbu", "roofline_share", "token_per_joule",
    "output_error", "pss_bytes", "load_s", "build_s", "weight_bytes",
)  # fmt: skip
OF_TIME = (
    "time_s", "token_per_s", "flop_per_s", "op_per_s", "bytes_per_s", "mfu", "mbu", "roofline_share",
)  # fmt: skip
"""Metrics that follow from the time of a call, and share its interval."""
MOST_DEPTH = 4
LEAST_RUNS = 4
"""Fewer runs than this have no change points."""
LEAST_CHANGE = 0.01
_PENALTY = 3.0
"""Times log n times the variance of one step: as BIC, for a change of level and its place."""


class Point(Frozen, frozen=True, kw_only=True):
    """One run's value."""

    run: str
    path: str
    started: str
    revision: str | None
    value: float
    low: float | None = None
    """95% interval over the run's replicates; ``None`` where the run has one, and for metrics without interval."""
    high: float | None = None


class Level(Frozen, frozen=True, kw_only=True):
    """Runs between two changes."""

    first: int
    last: int
    value: float
    """Median."""


class Step(Frozen, frozen=True, kw_only=True):
    """A change of level: the first run that has the new one, and new / old median."""

    run: str
    revision: str | None
    at: int
    ratio: float


class Series(Frozen, frozen=True, kw_only=True):
    """One case on one machine, in the order of the runs."""

    machine: str
    """Its fingerprint."""
    machine_name: str = ""
    case: str
    metric: str
    points: tuple[Point, ...]
    steps: tuple[Step, ...] | None
    """``None`` where they were not looked for: too few runs, or no ``ruptures``."""

    def levels(self) -> list[Level]:
        """What lies between changes; one level where none was found or looked for."""
        ends = [0, *(step.at for step in self.steps or ()), len(self.points)]
        return [
            Level(first=first, last=last - 1, value=median(point.value for point in self.points[first:last]))
            for first, last in pairwise(ends)
        ]


@dataclass(frozen=True)
class History:
    """What a folder of runs holds of one metric."""

    series: tuple[Series, ...]
    runs: int
    problems: tuple[str, ...]
    """Runs that could not be read, and what else to know."""


def history(folder: Path, metric: str, case: str = "*") -> History:
    """Every run under ``folder``, oldest first.

    Raises :class:`FrugalbenchError` for an unknown metric, and where no run or no value is found.
    """
    if metric not in METRICS:
        raise FrugalbenchError(f"--metric {metric}: choose from {', '.join(METRICS)}")
    runs, problems = _runs(folder)
    if not runs:
        raise FrugalbenchError(f"{folder}: holds no run directory; name a folder of what `frugalbench run` wrote")
    found: dict[tuple[str, str], list[Point]] = {}
    names: dict[str, str] = {}
    for run in sorted(runs, key=lambda item: item.manifest.started):
        for row in rows(run):
            value = getattr(row, metric)
            if fnmatchcase(row.case, case) and value is not None and value > 0:
                found.setdefault((row.machine, row.case), []).append(_point(run, row, metric, value))
                names[row.machine] = _name(run)
    if not found:
        raise FrugalbenchError(f"{folder}: no case that matches '{case}' has {metric} in {len(runs)} runs")
    able = _has_ruptures()
    series = [
        Series(
            machine=machine,
            machine_name=names[machine],
            case=name,
            metric=metric,
            points=tuple(points),
            steps=steps(points) if able else None,
        )
        for (machine, name), points in found.items()
    ]
    missing = [] if able else ["change points need ruptures: pip install 'frugalbench[history]'"]
    return History(tuple(series), len(runs), (*problems, *missing))


def _runs(folder: Path) -> tuple[list[Run], list[str]]:
    """Runs at most :data:`MOST_DEPTH` folders deep; one that cannot be read is a line, not the end."""
    patterns = ["/".join(["*"] * depth + ["manifest.json"]) for depth in range(MOST_DEPTH)]
    runs, problems = [], []
    for file in sorted(file for pattern in patterns for file in folder.glob(pattern)):
        try:
            runs.append(load_run(file.parent))
        except FrugalbenchError as problem:
            problems.append(f"left out: {str(problem).splitlines()[0]}")
    return runs, problems


def _name(run: Run) -> str:
    machine = run.manifest.machine_before
    return str(machine.get("name") or machine.get("cpu_model") or machine.get("fingerprint") or "unknown machine")


def _point(run: Run, row: Row, metric: str, value: float) -> Point:
    low, high = _bounds(row, metric, value)
    manifest = run.manifest
    return Point(
        run=row.run,
        path=str(run.path),
        started=manifest.started,
        revision=manifest.revision,
        value=value,
        low=low,
        high=high,
    )


def _bounds(row: Row, metric: str, value: float) -> tuple[float | None, float | None]:
    """The interval of the time, as it is for what is work over time."""
    time_s, low_s, high_s = row.time_s, row.time_low_s, row.time_high_s
    if not time_s or not low_s or not high_s or metric not in OF_TIME:
        return None, None
    return (low_s, high_s) if metric == "time_s" else (value * time_s / high_s, value * time_s / low_s)


def _has_ruptures() -> bool:
    from importlib.util import find_spec

    return find_spec("ruptures") is not None


def steps(points: Sequence[Point]) -> tuple[Step, ...] | None:
    """Changes of level of the logarithms by PELT (Killick, Fearnhead, Eckley, JASA 107, 2012); ``None`` below 4 runs.

    The noise is that of one step to the next (median absolute difference), which a few changes do not move.
    """
    if len(points) < LEAST_RUNS:
        return None
    import numpy as np
    import ruptures

    logs = np.array([math.log(point.value) for point in points])
    noise = max(1.4826 * float(np.median(np.abs(np.diff(logs)))) / math.sqrt(2), LEAST_CHANGE / 3)
    penalty = _PENALTY * math.log(len(points)) * noise**2
    ends = ruptures.Pelt(model="l2", min_size=2, jump=1).fit(logs.reshape(-1, 1)).predict(pen=penalty)
    return tuple(_steps(points, [0, *ends]))


def _steps(points: Sequence[Point], ends: Sequence[int]) -> Iterable[Step]:
    """Changes too small to matter part no levels."""
    middles = [median(point.value for point in points[first:last]) for first, last in pairwise(ends)]
    moved = [abs(math.log(new / old)) > LEAST_CHANGE for old, new in pairwise(middles)]
    kept = [0, *(at for at, large in zip(ends[1:-1], moved, strict=True) if large), len(points)]
    for before, at, after in zip(kept, kept[1:], kept[2:], strict=False):
        ratio = median(p.value for p in points[at:after]) / median(p.value for p in points[before:at])
        yield Step(run=points[at].run, revision=points[at].revision, at=at, ratio=ratio)
