"""What fewer exchanges between ranks cost in loss, beside the speed that they brought on an emulated network."""

from collections.abc import Iterable, Mapping, Sequence

from frugalbench.analysis.load import Run
from frugalbench.analysis.local_steps import Speed, Trained, speeds, trainings
from frugalbench.analysis.statistics import Interval
from frugalbench.report.tables import Cell, Table, interval_text
from frugalbench.units import byte_size, significant

_COLUMNS = ("exchange", "steps between", "final loss", "loss ratio", "tokens to equal loss", "sent per rank")
_SPEEDS = ("emulated speed", "overlapped")


def local_steps_tables(runs: Sequence[Run]) -> list[Table]:
    """One table for each run that trained with local steps; emulated speeds may come from another of ``runs``."""
    found = [(run, trainings(run)) for run in runs]
    return [_table(run, items, speeds(runs)) for run, items in found if items]


def _table(run: Run, items: Sequence[Trained], emulated: Mapping[int, Speed]) -> Table:
    known = {steps: speed for steps, speed in emulated.items() if steps in {item.local_steps for item in items}}
    names = (*_COLUMNS, *(_SPEEDS if known else ()), "n")
    columns = tuple((name, name != "exchange") for name in names)
    lines = tuple(_line(item, known) for item in items)
    title = f"Local steps: what fewer exchanges cost in loss ({run.manifest.name})"
    return Table(title, columns, lines, tuple(_notes(items, bool(known))), "net")


def _line(item: Trained, known: Mapping[int, Speed]) -> tuple[Cell, ...]:
    over, speed = item.over_every_step, known.get(item.local_steps, Speed())
    token = over.token if over else None
    return (
        Cell(item.variant, hint=item.shape),
        Cell(str(item.local_steps)),
        Cell(significant(item.loss, 4), mark="measured", hint="nat per byte of held-out text, mean over replicates"),
        Cell(interval_text(over.loss if over else None, 4), mark="measured" if over else ""),
        Cell(interval_text(token, 3), mark="measured" if token else "", hint=_unread(item)),
        Cell(byte_size(item.sent_bytes), mark="modelled" if item.sent_bytes else "", hint="by formula"),
        *((_speed(speed.plain), _speed(speed.overlapped)) if known else ()),
        Cell(str(over.loss.replicates if over else item.replicates)),
    )


def _unread(item: Trained) -> str:
    unread = item.over_every_step.unread if item.over_every_step else 0
    return f"left out: {unread} replicates in which a curve was there before its first point" if unread else ""


def _speed(found: Interval | None) -> Cell:
    return Cell(interval_text(found, 3), mark="emulated" if found else "")


def _notes(items: Sequence[Trained], emulated: bool) -> Iterable[str]:
    yield "ratios to every-step: same seeds, weights and batches, equal tokens; 95% intervals over replicates"
    if any(item.over_every_step and item.over_every_step.unread for item in items):
        yield "a replicate whose curve reached the equal loss before its first point is not in that ratio"
    yield (
        "tokens to equal loss are read where a curve was still at a higher learning rate than at its end, which draws "
        "the ratio towards 1"
    )
    yield "a tiny model, some hundred steps: it shows the price here, not at the sizes where local steps are used"
    yield (
        "emulated speed: two sites over one, per local step, from emulated_network; no model was trained there"
        if emulated
        else "no emulated_network case with as many local steps in these runs: its speed is not beside the price"
    )
