"""``net.cheap_power`` as one picture: cost per work over the price ratio, where it breaks even, and the quoted pairs.

Everything is a fact of a record, and the line is one of them: cost ratio = joule ratio x price ratio.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from frugalbench.analysis.load import Run
from frugalbench.analysis.statistics import counted, latest
from frugalbench.schema import Quantity, Record

CLAIM = "net.cheap_power"
_FACTS = ("ratio", "price_ratio", "joule_per_token_ratio", "break_even_price_ratio")


@dataclass(frozen=True)
class Pair:
    """Two quoted prices, with what electricity for the same work costs at them."""

    name: str
    price: Quantity
    cost: Quantity


@dataclass(frozen=True)
class BreakEven:
    """Two systems at all pairs of prices; every quantity here has a value and bounds above 0."""

    systems: str
    joule: Quantity
    """Per token, the first system over the second."""
    price: Quantity
    """Ratio of prices at which both cost the same."""
    pairs: tuple[Pair, ...]


def break_evens(runs: Sequence[Run]) -> list[BreakEven]:
    """One for each pair of systems with the same ratio of joules."""
    mine = [latest(record for record in run.records if record.case.variant == CLAIM) for run in runs]
    records = [record for found in mine for record in found if _usable(record)]
    groups: dict[tuple[str, float | None], dict[str, Record]] = {}
    for record in records:
        key = record.case.shape, record.facts["joule_per_token_ratio"].value
        groups.setdefault(key, {})[record.case.regime] = record
    return [_break_even(shape, list(found.values())) for (shape, _), found in groups.items()]


def _usable(record: Record) -> bool:
    return counted(record) and all(_bounded(record.facts.get(n)) for n in _FACTS)


def _bounded(fact: Quantity | None) -> bool:
    return fact is not None and all(part is not None and part > 0 for part in (fact.low, fact.value, fact.high))


def _break_even(shape: str, records: Sequence[Record]) -> BreakEven:
    facts = records[0].facts
    pairs = tuple(Pair(r.case.regime, r.facts["price_ratio"], r.facts["ratio"]) for r in records)
    return BreakEven(shape, facts["joule_per_token_ratio"], facts["break_even_price_ratio"], pairs)
