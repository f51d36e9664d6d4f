"""``frugalbench simulate``."""

import argparse
from collections.abc import Iterable
from itertools import groupby

from frugalbench.cli import output, whatif
from frugalbench.cluster.model import Row, simulate
from frugalbench.cluster.ranges import Range
from frugalbench.cluster.scene import shipped_scenes
from frugalbench.cluster.splits import Wanted
from frugalbench.cluster.topology import load
from frugalbench.cluster.whatif import Cut, cuts
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

_DEGREES = ("devices", "tp", "pp", "dp", "ep", "cp", "sequence")
_OF_MODEL = (*_DEGREES, "zero", "schedule")
_OF_EVENTS = ("steps", "seed", "split", "stragglers", "unfolded")


def main(arguments: argparse.Namespace) -> int:
    """Print a modelled cluster's throughput over its size or over cuts of a model, or misses on published figures."""
    if (arguments.cluster is None) == (arguments.against is None):
        raise FrugalbenchError("simulate: give either a CLUSTER or --against POINTS.csv")
    if arguments.chart:
        whatif.check(arguments)
    if arguments.more and arguments.events:
        raise FrugalbenchError("simulate: --events plays one scene at a time")
    if arguments.against is not None:
        from frugalbench.cli import against

        _refuse(arguments, ("model", *_OF_MODEL, "events", *_OF_EVENTS), "means nothing to --against; leave it out")
        return against.main(arguments)
    if arguments.format != "terminal":
        raise FrugalbenchError("simulate: --format belongs to --against; --json works everywhere")
    if arguments.events:
        from frugalbench.cli import events

        of_model = ("model", *(name for name in _OF_MODEL if name != "devices"))
        _refuse(arguments, of_model, "means nothing to --events; leave one of them out")

        return events.main(arguments)
    _refuse_scenes(arguments)
    if arguments.model is not None:
        return _cuts(arguments)
    if given := [f"--{name}" for name in _OF_MODEL if getattr(arguments, name) is not None]:
        other = ", or --events" if given[0] == "--devices" else ""
        raise FrugalbenchError(f"simulate: {given[0]} needs --model NAME, a shape of the package's list{other}")
    rows = [row for cluster in _clusters(arguments) for row in simulate(cluster)]
    tables = [_table(list(part)) for _, part in groupby(rows, key=lambda row: (row.cluster, row.scaling))]
    if arguments.chart:
        whatif.write(arguments, whatif.over_sizes(_clusters(arguments)), tables)
    if arguments.json:
        output.print_json(rows)
        return 0
    _print(tables)
    print("Everything above is modelled. Assumed inputs, each with its range in the cluster's file:")
    for line in dict.fromkeys(line for cluster in _clusters(arguments) for line in load(cluster).assumptions()):
        print(f"  {line}")
    return 0


def _clusters(arguments: argparse.Namespace) -> list[str]:
    return [arguments.cluster, *arguments.more]


def _print(tables: list[Table]) -> None:
    from frugalbench.report.terminal import table_terminal

    for table in tables:
        print(table_terminal(table), end="")


def _cuts(arguments: argparse.Namespace) -> int:
    """How a model is best cut over the cluster, or what the cut that was asked for gives."""
    for name in _DEGREES:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise FrugalbenchError(f"simulate: --{name} must be at least 1, not {value}")
    given = {"context": arguments.cp, "sequence": arguments.sequence, "zero": arguments.zero}
    given |= {"schedule": arguments.schedule, "tensor": arguments.tp, "pipeline": arguments.pp, "data": arguments.dp}
    given |= {"expert": arguments.ep}
    wanted = Wanted(**{name: value for name, value in given.items() if value is not None})
    each = [cuts(cluster, arguments.model, arguments.devices, wanted) for cluster in _clusters(arguments)]
    tables, found = [_cut_table(rows) for rows in each], [row for rows in each for row in rows]
    if arguments.chart:
        whatif.write(arguments, whatif.cuts_over_sizes(_clusters(arguments), arguments, wanted), tables)
    if arguments.json:
        output.print_json(found)
        return 0
    _print(tables)
    print(
        f"Modelled; value [low, high]. {found[0].batch_token} tokens a step, sequences of {found[0].sequence_token}.\n"
        f"GB: of {found[0].memory_limit_bytes / 1e9:.0f} a device. exposed: communication that nothing hides.\n"
        f"v: chunks of layers a device. +: activations computed again.{_asked(found[0])}"
    )
    return 0


def _asked(cut: Cut) -> str:
    """What all rows share and no column shows."""
    if (cut.context, cut.zero, cut.schedule) == (1, 1, "1f1b"):
        return ""
    return f"\nAll rows: CP {cut.context}, ZeRO {cut.zero}, {cut.schedule}."


def _cut_table(found: list[Cut]) -> Table:
    columns = tuple((name, True) for name in ("TP", "PP", "DP", "EP", "v", "token/s", "MFU", "exposed", "bubble", "GB"))
    first = found[0]
    title = f"{first.model} on {first.devices} devices of {first.cluster}, fastest cuts first (modelled)"
    return Table(title=title, columns=columns, rows=tuple(_cut_line(item) for item in found))


def _cut_line(item: Cut) -> tuple[Cell, ...]:
    degrees = (item.tensor, item.pipeline, item.data, item.expert)
    mfu = f"{item.mfu.value:.0%} [{item.mfu.low:.0%}, {item.mfu.high:.0%}]"
    memory = f"{item.memory_bytes / 1e9:.0f}"
    chunks = f"{item.interleave}{'+' if item.recompute else ''}"
    shares = (f"{item.exposed_share.value:.0%}", f"{item.bubble_share.value:.0%}")
    return tuple(Cell(text) for text in (*map(str, degrees), chunks, _text(item.token_per_s), mfu, *shares, memory))


def _refuse(arguments: argparse.Namespace, names: Iterable[str], why: str) -> None:
    for name in names:
        if getattr(arguments, name) not in (None, False):
            raise FrugalbenchError(f"simulate: --{name} {why}")


def _refuse_scenes(arguments: argparse.Namespace) -> None:
    _refuse(arguments, _OF_EVENTS, "belongs to --events; add it")
    for name in _clusters(arguments):
        if name in shipped_scenes():
            raise FrugalbenchError(f"'{name}' is a scene: frugalbench simulate {name} --events")


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
