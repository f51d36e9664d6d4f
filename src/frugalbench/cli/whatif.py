"""``frugalbench simulate --chart``: curves over the size of clusters, as a page or as an SVG file."""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from frugalbench.cli import output
from frugalbench.cluster.model import sweeps
from frugalbench.cluster.sizes import sizes
from frugalbench.cluster.splits import Wanted
from frugalbench.cluster.topology import Cluster, load
from frugalbench.report.tables import Table
from frugalbench.schema import FrugalbenchError, Sweep

SUFFIXES = (".html", ".htm", ".svg")
_NO_FLAGS = ("module", "json", "format", "cluster", "more")


def check(arguments: argparse.Namespace) -> None:
    """Before anything is computed. Raises :class:`FrugalbenchError` for what ``--chart`` cannot draw."""
    from frugalbench.report.whatif import need_charts

    if arguments.against or arguments.events:
        other = "--against" if arguments.against else "--events"
        raise FrugalbenchError(f"simulate: --chart draws clusters over their size; leave {other} out")
    if Path(arguments.chart).suffix not in SUFFIXES:
        raise FrugalbenchError(f"simulate: --chart {arguments.chart}: name a file that ends in {', '.join(SUFFIXES)}")
    need_charts()


def over_sizes(clusters: Sequence[str]) -> list[Sweep]:
    """The data-parallel step of each cluster's own model."""
    return [sweep for cluster in clusters for scaling in ("strong", "weak") for sweep in sweeps(load(cluster), scaling)]


def cuts_over_sizes(clusters: Sequence[str], arguments: argparse.Namespace, wanted: Wanted) -> list[Sweep]:
    """The fastest cut of ``--model`` at each size."""
    show = output.progress()
    made = [sizes(cluster, arguments.model, arguments.devices, wanted, show) for cluster in clusters]
    output.end_progress()
    return [sweep for each in made for sweep in each]


def write(arguments: argparse.Namespace, found: Sequence[Sweep], tables: Sequence[Table]) -> None:
    """Draw what was found into ``--chart``."""
    from frugalbench.analysis.sweeps import grouped
    from frugalbench.report.render import write as write_file
    from frugalbench.report.whatif import whatif_page, whatif_svg

    file, groups = Path(arguments.chart), grouped(found)
    clusters = (arguments.cluster, *arguments.more)
    assumed = {name: list(_assumed(load(name))) for name in clusters}
    title = f"frugalbench simulate: {', '.join(load(name).name for name in clusters)}"
    page = file.suffix != ".svg"
    write_file(file, whatif_page(title, groups, tables, assumed, _command(arguments)) if page else whatif_svg(groups))
    output.wrote(file, arguments.json)


def _assumed(cluster: Cluster) -> Iterator[str]:
    """Inputs that no document backs, with their ranges."""
    inputs, sources = cluster.inputs(), cluster.sources()
    for name in cluster.assumptions():
        item = inputs[name]
        yield f"{name}: {item.value:g} [{item.low:g}, {item.high:g}], {sources[name]}"


def _command(arguments: argparse.Namespace) -> str:
    given = {name: value for name, value in vars(arguments).items() if name not in _NO_FLAGS and value}
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return shlex.join(["frugalbench", "simulate", arguments.cluster, *arguments.more, *flags])
