"""Expert parallelism: what a split layer spends on its all-to-alls, measured beside predicted, and against one rank."""

from collections.abc import Sequence

from frugalbench.analysis.expert_parallel import COMPUTE, EXCHANGE, SINGLE, STEP, Link, Split, splits
from frugalbench.analysis.load import Run
from frugalbench.analysis.statistics import Interval
from frugalbench.report.tables import Cell, Table, interval_text
from frugalbench.units import DASH, byte_size, seconds, share, si, significant

_STEP_COLUMNS = ("tokens", "step", "all-to-all", "of step", "experts", "one rank", "speed", "rows")
_WIRE_COLUMNS = ("tokens", "moved", "measured", "modelled", "miss", "of step", "modelled of step")


def expert_parallel_tables(runs: Sequence[Run]) -> list[Table]:
    """Two tables for each split layer of each run; empty when none was measured."""
    tables = []
    for run in runs:
        for shape, found in _by_shape(splits(run)).items():
            tables += [_step_table(run, shape, found), _wire_table(run, shape, found)]
    return tables


def _by_shape(found: Sequence[Split]) -> dict[str, list[Split]]:
    shapes: dict[str, list[Split]] = {}
    for item in found:
        shapes.setdefault(item.shape, []).append(item)
    return shapes


def _step_table(run: Run, shape: str, found: Sequence[Split]) -> Table:
    notes = (
        "of step: the step's all-to-alls by themselves over the whole step, paired, with the 95% interval",
        "experts: the slowest rank's, without an exchange; the rest of a step is routing, sorting, adding and waiting",
        "speed: of the step over one process with all experts, all tokens and as many threads, with its 95% interval",
        "rows: of the busiest rank over the mean of all ranks",
    )
    columns = tuple((name, True) for name in _STEP_COLUMNS)
    rows = tuple(_step_line(item) for item in found)
    return Table(f"Expert parallelism {shape} ({run.manifest.name})", columns, rows, notes, "net")


def _step_line(item: Split) -> tuple[Cell, ...]:
    return (
        Cell(str(item.tokens), hint=item.regime),
        *(_time(item, variant) for variant in (STEP, EXCHANGE)),
        Cell(_shares(item.exchange_share)),
        *(_time(item, variant) for variant in (COMPUTE, SINGLE)),
        Cell(interval_text(item.over_single, 2)),
        Cell(significant(item.imbalance)),
    )


def _wire_table(run: Run, shape: str, found: Sequence[Split]) -> Table:
    link = next((item.link for item in found if item.link), None)
    notes = (
        "moved: what the busiest rank sends or receives in a step's three all-to-alls",
        _fit_text(link),
        "modelled of step: the modelled exchange over itself and the measured experts",
    )
    columns = tuple((name, True) for name in _WIRE_COLUMNS)
    title = f"Expert parallelism: all-to-all measured beside predicted, {shape} ({run.manifest.name})"
    return Table(title, columns, tuple(_wire_line(item) for item in found), notes, "net")


def _wire_line(item: Split) -> tuple[Cell, ...]:
    hint = _fit_text(item.link)
    modelled = "modelled" if item.link else ""
    return (
        Cell(str(item.tokens), hint=item.regime),
        Cell(byte_size(item.terms[1] if item.terms else None)),
        _time(item, EXCHANGE),
        Cell(seconds(item.predicted_s), mark=modelled, hint=hint),
        Cell(DASH if item.miss is None else f"{100 * item.miss:+.0f}%"),
        Cell(share(item.exchange_share.ratio if item.exchange_share else None)),
        Cell(share(item.predicted_share), mark=modelled, hint=hint),
    )


def _fit_text(link: Link | None) -> str:
    if link is None:
        return "modelled: missing, for fewer than two sizes of equal blocks were measured"
    rate = si(1 / link.wire.beta_s_per_byte if link.wire.beta_s_per_byte else None, "B/s")
    fitted = f"fitted to {link.sizes} sizes of equal blocks alone (median miss there {100 * link.miss:.0f}%)"
    return f"modelled: {seconds(link.wire.alpha_s)} a step and {rate}, {fitted}"


def _time(item: Split, variant: str) -> Cell:
    row = item.rows.get(variant)
    return Cell(seconds(item.time_s(variant)), hint=f"{row.case}; {row.source}" if row else "")


def _shares(found: Interval | None) -> str:
    """A share in percent, with its interval."""
    if found is None:
        return DASH
    if found.low is None or found.high is None:
        return share(found.ratio)
    high = ">100" if found.high > 1 else f"{100 * found.high:.0f}"
    return f"{share(found.ratio)} [{100 * found.low:.0f}, {high}]"
