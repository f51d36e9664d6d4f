"""``frugalbench simulate --against``: the model's predictions of published figures, and how far off they are."""

import argparse
from pathlib import Path

from frugalbench import paths
from frugalbench.cli import output
from frugalbench.cluster.published import validation
from frugalbench.cluster.published.constants import Trial, shipped
from frugalbench.cluster.published.points import Fault, Point, read
from frugalbench.cluster.published.predict import Prediction, predict
from frugalbench.cluster.published.validation import Score
from frugalbench.report.tables import Cell, Table
from frugalbench.schema import Frozen
from frugalbench.units import DASH, significant

SHIPPED = "shipped"
_SCORES = (
    ("rows", False), ("n", True), ("predicted", True), ("median", True), ("p95", True), ("largest", True),
    ("80% holds", True), ("95% holds", True),
)  # fmt: skip
_TABLES = (
    ("table", False), ("fit n", True), ("median", True), ("test n", True), ("median", True), ("p95", True),
    ("largest", True), ("80% holds", True), ("95% holds", True),
)  # fmt: skip
_TRIALS = (("left out", False), ("what limits", False), ("n", True), ("median", True), ("largest", True))
_MISSES = (("id", False), ("what", False), ("published", True), ("predicted", True), ("error", True), ("why", False))
_POINTS = (("id", False), ("what", False), ("published", True), ("predicted", True), ("95%", True), ("error", True))


_HEAD = """# The cluster model against published figures

Written by `frugalbench simulate --against shipped --format md` (`make validation`). Everything here is modelled; the
published figures and their sources are `src/frugalbench/data/network/points.csv`.

"""


class Answer(Frozen, frozen=True, kw_only=True):
    """What ``--json`` prints."""

    points: list[Prediction]
    faults: list[Fault]
    summary: list[Score]


def main(arguments: argparse.Namespace) -> int:
    """Predict every row; rows that cannot be read are named on standard error. Exit code 1 where there were any."""
    path = paths.data("network", "points.csv") if arguments.against == SHIPPED else Path(arguments.against)
    points, faults = read(path)
    for fault in faults:
        output.warn(f"{path}: line {fault.line}, '{fault.id}': {fault.reason}; the row is left out.")
    found = predict(points)
    if arguments.json:
        output.print_json(Answer(points=found, faults=faults, summary=validation.overall(points, found)))
    elif arguments.format == "md":
        print(document(points, found), end="")
    else:
        for table in _short(points, found):
            print(_shown(table), end="")
    return 1 if faults else 0


def document(points: list[Point], found: list[Prediction]) -> str:
    """The account in Markdown; of the shipped rows it is ``docs/validation.md``."""
    from frugalbench.report.markdown import table_markdown

    return _HEAD + "\n".join(table_markdown(table) for table in _tables(points, found))


def _shown(table: Table) -> str:
    from frugalbench.report.terminal import table_terminal

    return table_terminal(table)


def _short(points: list[Point], found: list[Prediction]) -> list[Table]:
    rows = tuple(_point(p) for p in found if p.predicted is not None)
    each = Table(title="Predictions (modelled)", columns=_POINTS, rows=rows)
    return [table for table in (each, _overall(points, found), _missed(found), _absent(found)) if table.rows]


def _tables(points: list[Point], found: list[Prediction]) -> list[Table]:
    by_table = Table(
        title="By published table",
        columns=_TABLES,
        rows=tuple(_pair(name, fit, test) for name, fit, test in validation.tables(points, found) if _any(fit, test)),
        notes=("Relative errors without sign, of the metric as published; a rate and a time of one row count twice.",),
    )
    trials = (
        _trials("Systems left out of the fit whole", shipped().systems),
        _trials("Scales left out of the fit", shipped().scales),
    )
    return [t for t in (_overall(points, found), by_table, *trials, _missed(found), _absent(found)) if t.rows]


def _trials(title: str, trials: tuple[Trial, ...]) -> Table:
    rows = tuple(
        tuple(Cell(text) for text in (t.left_out, t.family, str(t.rows), _share(t.median), _share(t.most)))
        for t in trials
    )
    return Table(title=title, columns=_TRIALS, rows=rows)


def _overall(points: list[Point], found: list[Prediction]) -> Table:
    scores = validation.overall(points, found)
    rows = tuple((Cell(s.name), Cell(str(s.rows)), Cell(str(s.predicted)), *_errors(s)) for s in scores)
    return Table(title="Predicted against published (modelled)", columns=_SCORES, rows=rows, notes=_HOW)


_HOW = (
    "Fitted rows: a constant rests on them, or the form of the model was chosen with them in sight. "
    "Test rows: nothing rests on them.",
    "At most half of a table's rows are fitted on. Every constant with the ids of its rows: "
    "src/frugalbench/data/network/constants.json, made by python -m frugalbench.cluster.published.refit.",
    "Intervals come from what fitted rows miss by, scaled for leverage, and from systems left out whole; "
    "never from test rows.",
)


def _missed(found: list[Prediction]) -> Table:
    rows = tuple(
        (
            Cell(f"{m.prediction.id}{' (fit)' if m.prediction.fitted_on else ''}"),
            Cell(_what(m.prediction)),
            Cell(_figure(m.prediction.value, m.prediction.unit)),
            Cell(_figure(m.prediction.predicted, m.prediction.unit)),
            Cell(_signed(m.prediction.error)),
            Cell(m.why),
        )
        for m in validation.misses(found)
    )
    return Table(title="Missed by more than 15%", columns=_MISSES, rows=rows)


def _absent(found: list[Prediction]) -> Table:
    rows = tuple((Cell(reason), Cell(", ".join(ids))) for reason, ids in validation.unpredicted(found).items())
    return Table(title="Not predicted", columns=(("why", False), ("rows", False)), rows=rows)


def _point(p: Prediction) -> tuple[Cell, ...]:
    interval = f"{significant(p.low_95)} to {significant(p.high_95)}"
    cells = (p.id, _what(p), _figure(p.value, p.unit), _figure(p.predicted, p.unit), interval, _signed(p.error))
    return tuple(Cell(text) for text in cells)


def _pair(name: str, fit: Score, test: Score) -> tuple[Cell, ...]:
    return (Cell(name), Cell(str(fit.predicted)), Cell(_share(fit.median)), Cell(str(test.predicted)), *_errors(test))


def _any(fit: Score, test: Score) -> bool:
    return bool(fit.predicted or test.predicted)


def _errors(s: Score) -> tuple[Cell, ...]:
    shares = (s.median, s.p95, s.most, s.held_80, s.held_95)
    return tuple(Cell(_share(value)) for value in shares)


def _what(p: Prediction) -> str:
    return f"{p.system}: {p.work}, {p.metric}"


def _figure(value: float | None, unit: str) -> str:
    return DASH if value is None else f"{significant(value)} {unit}"


def _signed(error: float | None) -> str:
    return DASH if error is None else f"{error:+.1%}"


def _share(value: float | None) -> str:
    return DASH if value is None else f"{value:.1%}"
