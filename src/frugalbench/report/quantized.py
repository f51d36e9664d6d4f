"""The quantised linear layer: every format beside the fastest unquantised arm, and the kernels that ran."""

from collections.abc import Sequence

from frugalbench.analysis.break_even import BreakEven, break_evens
from frugalbench.analysis.load import Run
from frugalbench.analysis.quantized import Product, products
from frugalbench.report.tables import Cell, Table
from frugalbench.schema import Status
from frugalbench.units import DASH, seconds, share, significant

_COLUMNS = ("arm", "time", "speed", "of limit", "GOP/s", "bytes", "error")
_SLOW = 0.1
"""Below this ratio a third digit only widens the table."""
_BEYOND = 1.05
_NOTES = (
    "speed over the fastest unquantised arm, with its 95% interval; arms with 16 bits or more are unquantised",
    "of limit: share of the measured read bandwidth, or of the measured peak of the arm's arithmetic",
    "bytes: stored per weight, scales and zero points included; error: distance to the float64 answer of the "
    "unquantised weights, relative rms, of float32 arms the largest",
)


def quantized_tables(runs: Sequence[Run]) -> list[Table]:
    """Per run a table for each shape and number of tokens, and one of kernels; empty when no run measured the layer."""
    tables: list[Table] = []
    for run in runs:
        found = products(run)
        points = list(_by_point(found).values())
        tables += [_table(run, items, _NOTES if items is points[0] else ()) for items in points]
        tables += _break_even_tables(run, break_evens(found))
        tables += [_kernels(run, found)] if any(item.kernel for item in found) else []
    return tables


def _by_point(found: Sequence[Product]) -> dict[tuple[str, int, str], list[Product]]:
    points: dict[tuple[str, int, str], list[Product]] = {}
    for item in found:
        points.setdefault((item.shape, item.tokens, item.regime), []).append(item)
    return points


def _table(run: Run, items: Sequence[Product], notes: tuple[str, ...]) -> Table:
    """``notes`` explain the columns, once for all tables of a run."""
    first = items[0]
    tokens = f"{first.tokens} token{'s' if first.tokens != 1 else ''}"
    title = f"Quantised linear {first.shape}, {tokens}, {first.regime} ({run.manifest.name})"
    columns = tuple((name, name != "arm") for name in _COLUMNS)
    return Table(title, columns, tuple(_line(item) for item in items), (*notes, *_seen(items)), "quant")


def _seen(items: Sequence[Product]) -> list[str]:
    capped = [item.row.variant for item in items if item.row.status is Status.CAPPED]
    notes = [f"capped, one round a replicate: {', '.join(capped)}"] if capped else []
    if any(item.limit and item.limit[0] > _BEYOND for item in items):
        notes.append("above 100%: data came from a cache, or the measured limit is too low")
    return notes


def _line(item: Product) -> tuple[Cell, ...]:
    row, error = item.row, item.row.output_error if item.row.output_error is not None else item.row.verification_error
    return (
        Cell(row.variant, hint=f"{row.case}: {item.kernel}" if item.kernel else row.case),
        Cell(seconds(row.time_s), hint=row.source),
        _speed(item),
        Cell(DASH if item.limit is None else f"{share(item.limit[0])} {item.limit[1]}"),
        Cell(DASH if item.operation_per_s is None else significant(item.operation_per_s / 1e9)),
        Cell(significant(item.bytes_per_weight)),
        Cell(DASH if error is None else f"{error:.1e}", hint="" if error is None else f"{error:.3g}"),
    )


def _speed(item: Product) -> Cell:
    ratio = item.over_unquantised
    if ratio is None:
        return Cell("1" if item.is_baseline else DASH)
    digits = 3 if ratio.ratio >= _SLOW else 2
    bounds = [significant(bound, digits) for bound in (ratio.low, ratio.high)]
    text = significant(ratio.ratio, digits) + ("" if bounds == [DASH, DASH] else f" [{', '.join(bounds)}]")
    return Cell(text, hint="over the fastest unquantised arm")


def _break_even_tables(run: Run, found: Sequence[BreakEven]) -> list[Table]:
    """One per shape."""
    notes = (
        "pays / loses: tokens of a call at which the 95% interval of the speed over the fastest unquantised arm lies "
        "above / below 1",
        "break-even: straight in log speed over log tokens between the last that pays and the first that loses",
    )
    columns = tuple((name, name != "arm") for name in ("arm", "break-even", "pays", "loses"))
    shapes = dict.fromkeys(item.shape for item in found)
    return [
        Table(
            f"Break-even batch of quantised linear {shape} ({run.manifest.name})", columns,
            tuple(_break_even_line(item) for item in found if item.shape == shape), notes, "quant",
        )
        for shape in shapes
    ]  # fmt: skip


def _break_even_line(item: BreakEven) -> tuple[Cell, ...]:
    pays, loses = (", ".join(map(str, tokens)) or DASH for tokens in (item.pays, item.loses))
    return Cell(item.variant), Cell(_break_even(item)), Cell(pays), Cell(loses)


def _break_even(item: BreakEven) -> str:
    """The number of tokens, or what is known of it."""
    if item.tokens is not None:
        return f"{significant(item.tokens, 2)} [{item.pays[-1]}, {item.loses[0]}]"
    if item.pays and item.loses:
        return "not in order"
    if item.pays:
        return f"> {item.pays[-1]}"
    return f"< {item.loses[0]}" if item.loses else "open"


def _kernels(run: Run, found: Sequence[Product]) -> Table:
    """Each arm with what ran; several lines where shapes or numbers of tokens ran differently."""
    seen = dict.fromkeys((item.row.variant, item.kernel) for item in found if item.kernel)
    lines = tuple((Cell(variant), Cell(kernel)) for variant, kernel in sorted(seen))
    title = f"Kernels of the quantised linear layer ({run.manifest.name})"
    notes = ("as the loaded object or the profiler of the library names them",)
    return Table(title, (("arm", False), ("kernel", False)), lines, notes, "quant")
