"""All-reduce: what was measured, beside what a line fitted on the other half of the sizes predicts."""

from collections.abc import Iterable, Sequence

from frugalbench.analysis.alphabeta import AlphaBeta, fit_alpha_beta
from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import rows
from frugalbench.analysis.statistics import counted
from frugalbench.report.tables import Cell, Table
from frugalbench.schema import FrugalbenchError
from frugalbench.units import DASH, byte_size, seconds, si

WORKLOAD = "allreduce"
MOST = 2**53
"""Bytes or ranks beyond it are none."""
Point = tuple[float, float]
"""Size in bytes per rank, measured time in seconds."""


def collectives_tables(runs: Sequence[Run]) -> list[Table]:
    """One table per run that measured all-reduce; empty when none did."""
    tables = [_table(run) for run in runs]
    return [table for table in tables if table.rows]


def _table(run: Run) -> Table:
    names = ("variant", "ranks", "size", "measured", "busbw B/s", "modelled", "miss", "role")
    columns = tuple((name, name not in ("variant", "role")) for name in names)
    groups = _points(run)
    lines = tuple(line for key, points in groups.items() for line in _lines(*key, sorted(points)))
    notes = (
        "measured: median time of replicates; modelled: 2(n-1) alpha + 2(n-1)/n size beta",
        "fitted on every other size; a miss is shown only where the size took no part in the fit",
        "busbw as nccl-tests defines it: size / time x 2(n-1)/n",
    )
    title = f"Collectives: measured beside predicted ({run.manifest.name})"
    return Table(title, columns, lines, notes if lines else (), "net")


def _points(run: Run) -> dict[tuple[str, int], list[Point]]:
    params = {r.case.id: r.case.params for r in run.records if r.case.workload == WORKLOAD and counted(r)}
    groups: dict[tuple[str, int], list[Point]] = {}
    for row in rows(run):
        size_bytes, ranks = (_count(params.get(row.case, {}).get(name)) for name in ("size_bytes", "ranks"))
        if row.time_s and size_bytes and ranks and ranks > 1:
            groups.setdefault((row.variant, ranks), []).append((float(size_bytes), row.time_s))
    return groups


def _count(value: object) -> int | None:
    """A parameter is whatever its file says; only a sane number takes part."""
    return int(value) if isinstance(value, int | float) and 0 < value <= MOST else None


def _lines(variant: str, ranks: int, points: list[Point]) -> Iterable[tuple[Cell, ...]]:
    fit = _fit(points[::2], ranks)
    for index, (size_bytes, time_s) in enumerate(points):
        fitted = index % 2 == 0
        busbw = size_bytes / time_s * 2 * (ranks - 1) / ranks
        start = (
            Cell(variant),
            Cell(str(ranks)),
            Cell(byte_size(size_bytes)),
            Cell(seconds(time_s)),
            Cell(si(busbw, "")),
        )
        yield (*start, *_prediction(fit, size_bytes, time_s, fitted))


def _prediction(fit: AlphaBeta | None, size_bytes: float, time_s: float, fitted: bool) -> tuple[Cell, ...]:
    if fit is None:
        return Cell(DASH), Cell(DASH), Cell("too few sizes")
    predicted_s = fit.predict(size_bytes)
    hint = f"alpha {seconds(fit.alpha_s)}, 1/beta {si(_inverse(fit.beta_s_per_byte), 'B/s')}"
    miss = DASH if fitted else f"{100 * (predicted_s / time_s - 1):+.0f}%"
    return Cell(seconds(predicted_s), mark="modelled", hint=hint), Cell(miss), Cell("fit" if fitted else "held out")


def _inverse(value: float) -> float | None:
    return 1 / value if value else None


def _fit(points: Sequence[Point], ranks: int) -> AlphaBeta | None:
    try:
        return fit_alpha_beta([size for size, _ in points], [time for _, time in points], ranks)
    except (FrugalbenchError, ValueError, ArithmeticError):
        return None
