"""``frugalbench simulate``."""

import argparse

from frugalbench.cli import output
from frugalbench.cluster.model import Row, simulate
from frugalbench.cluster.ranges import Range
from frugalbench.cluster.scene import shipped_scenes
from frugalbench.cluster.topology import load
from frugalbench.report.tables import Cell, Table
from frugalbench.schema import FrugalbenchError
from frugalbench.units import DASH, significant

_COLUMNS = (
    ("devices", True),
    ("token/s", True),
    ("per added device", True),
    ("efficiency", True),
    ("exposed comm.", True),
)


def main(arguments: argparse.Namespace) -> int:
    """Print a modelled cluster's throughput over its size, with bounds, and what was assumed."""
    if arguments.events:
        from frugalbench.cli import events

        return events.main(arguments)
    _refuse_scenes(arguments)
    rows = simulate(arguments.cluster)
    if arguments.json:
        output.print_json(rows)
        return 0
    from frugalbench.report.terminal import table_terminal

    for scaling in dict.fromkeys(row.scaling for row in rows):
        print(table_terminal(_table([row for row in rows if row.scaling == scaling])), end="")
    print("Everything above is modelled. Assumed inputs, each with its range in the cluster's file:")
    for line in load(arguments.cluster).assumptions():
        print(f"  {line}")
    return 0


def _refuse_scenes(arguments: argparse.Namespace) -> None:
    for name in ("devices", "steps", "seed", "split", "stragglers", "unfolded"):
        if getattr(arguments, name) not in (None, False):
            raise FrugalbenchError(f"simulate: --{name} belongs to --events; add it")
    if arguments.cluster in shipped_scenes():
        raise FrugalbenchError(f"'{arguments.cluster}' is a scene: frugalbench simulate {arguments.cluster} --events")


def _table(rows: list[Row]) -> Table:
    first = rows[0]
    title = f"{first.cluster}, {first.scaling} scaling (modelled; value [low, high])"
    return Table(title=title, columns=_COLUMNS, rows=tuple(_line(row) for row in rows))


def _line(row: Row) -> tuple[Cell, ...]:
    marginal = DASH if row.marginal_token_per_s is None else _short(row.marginal_token_per_s.value)
    exposed = f"{row.exposed_share.value:.1%}"
    figures = (str(row.devices), _text(row.token_per_s), marginal, _text(row.efficiency), exposed)
    return tuple(Cell(figure) for figure in figures)


def _text(figure: Range) -> str:
    value, low, high = (_short(number) for number in (figure.value, figure.low, figure.high))
    return f"{value} [{low}, {high}]"


def _short(number: float) -> str:
    for factor, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{significant(number / factor, 2)}{suffix}"
    return significant(number, 2)
