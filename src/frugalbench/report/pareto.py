"""Accuracy, speed, bytes and joules of each scheme in one row, and which schemes nobody beats in all of them."""

from collections.abc import Sequence

from frugalbench.analysis.claims import load_claims
from frugalbench.analysis.load import Run
from frugalbench.analysis.pareto import Point, grouped, points
from frugalbench.report.tables import Cell, Table
from frugalbench.schema import NonInferiority
from frugalbench.units import DASH, byte_size, significant

_COLUMNS = ("scheme", "right %", "token/s", "stored", "J/token", "front")


def run_points(run: Run) -> list[Point]:
    """Points of a run, with the baseline of the accuracy claims."""
    base = next((claim.rule.baseline for claim in load_claims() if isinstance(claim.rule, NonInferiority)), "")
    return points(run, base)


def pareto_tables(runs: Sequence[Run]) -> list[Table]:
    """Per run one table for each model, task and regime with two schemes or more."""
    groups = [(run, key, group) for run in runs for key, group in grouped(run_points(run)).items()]
    return [_table(run, *key, group) for run, key, group in groups if len(group) > 1]


def _table(run: Run, model: str, task: str, regime: str, group: Sequence[Point]) -> Table:
    joules = all(point.joule_per_token is not None for point in group)
    axes = [*(["right answers"] if task else []), "token/s", "stored bytes", *(["joules"] if joules else [])]
    notes = [f"front: no other scheme is as good in {', '.join(axes)} and better in one; by values, not intervals"]
    notes.append(
        "token/s: of the task's small batches, arm after arm and not turn by turn: for orientation only"
        if task
        else "the weights are random: there are no right answers to count, and the front says nothing of quality"
    )
    where = f"{model} on {task}" if task else model
    columns = tuple((name, name not in ("scheme", "front")) for name in _COLUMNS)
    return Table(f"Trade-offs of {where}, {regime} ({run.manifest.name})", columns, tuple(map(_line, group)),
                 tuple(notes), "quant")  # fmt: skip


def _line(point: Point) -> tuple[Cell, ...]:
    right = point.accuracy
    return (
        Cell(point.scheme),
        Cell(DASH if right is None else f"{100 * right.value:.1f} [{100 * right.low:.0f}, {100 * right.high:.0f}]"),
        Cell(significant(point.token_per_s)),
        Cell(byte_size(point.stored_bytes)),
        Cell(significant(point.joule_per_token)),
        Cell("yes" if point.front else ""),
    )
