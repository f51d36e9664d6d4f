"""Emulated networks: measured beside predicted, calibration cases apart."""

from collections.abc import Iterable, Sequence

from frugalbench.analysis.emulated import Emulated, Point, emulated
from frugalbench.analysis.load import Run
from frugalbench.gloo import Costs
from frugalbench.report.tables import Cell, Table
from frugalbench.units import DASH, byte_size, seconds, share

_COLUMNS = ("scene", "ranks", "what", "size", "emulated", "modelled", "miss", "role")


def emulated_tables(runs: Sequence[Run]) -> list[Table]:
    """One table for each run that has emulated networks."""
    found = [(run, emulated(run)) for run in runs]
    return [_table(run, item) for run, item in found if item.points]


def _table(run: Run, found: Emulated) -> Table:
    columns = tuple((name, name not in ("scene", "what", "role")) for name in _COLUMNS)
    lines = tuple(_line(point, found.costs) for point in found.points)
    title = f"Emulated networks: real ranks beside what was predicted ({run.manifest.name})"
    return Table(title, columns, lines, tuple(_notes(found)), "net")


def _notes(found: Emulated) -> Iterable[str]:
    yield "emulated: real gloo ranks in namespaces of their own on shaped links; computing is a sleep"
    if found.costs is None:
        yield "nothing is predicted: the two calibration cases (uniform, two ranks) were not measured"
        return
    yield (
        f"modelled: fitted to the cases marked fit: {seconds(found.costs.message_s)} a message, "
        f"{share(found.costs.payload)} of a link's rate carries tensors"
    )
    if found.misses:
        yield (
            f"predicted {len(found.misses)} cases: absolute miss {share(found.median_miss)} in the median, "
            f"{share(found.misses[-1])} at most"
        )


def _line(point: Point, costs: Costs | None) -> tuple[Cell, ...]:
    start = (
        Cell(point.scene),
        Cell(str(point.ranks)),
        Cell(point.regime),
        Cell(byte_size(point.size_bytes)),
        Cell(seconds(point.time_s), mark="emulated"),
    )
    if costs is None:
        return (*start, Cell(DASH), Cell(DASH), Cell(DASH))
    miss = DASH if point.calibration else f"{100 * point.miss(costs):+.1f}%"
    role = "fit" if point.calibration else "held out"
    return (*start, Cell(seconds(point.predicted_s(costs)), mark="modelled"), Cell(miss), Cell(role))
