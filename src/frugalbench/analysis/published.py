"""What others published for a claim's own question: ratios of figures of ``published_figures.csv``, none typed again.

They stand beside verdicts and decide nothing. ``published_rows.toml`` names the figures.
"""

import csv
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from frugalbench.paths import data
from frugalbench.schema import Frozen, FrugalbenchError, Tier


class Published(Frozen, frozen=True, kw_only=True):
    """One published ratio, in the claim's own estimand."""

    claim: str
    regime: str
    """The claim's; ``pair`` says what was really run."""
    device: str
    pair: str
    """Candidate over baseline, in the source's words."""
    ratio: float
    figures: tuple[float, ...]
    """The published numbers that the ratio is made of."""
    source: str
    """With its date or revision where it has one."""
    provenance: str
    """``read``, or ``recalled`` and so shown only."""
    note: str = ""
    tier: Tier = Tier.PUBLISHED


@lru_cache(maxsize=1)
def published() -> tuple[Published, ...]:
    """All of them, in the order of the file. Raises :class:`FrugalbenchError` for a figure that the CSV lacks."""
    with data("published_figures.csv").open(newline="", encoding="utf-8") as file:
        figures = list(csv.DictReader(file))
    groups = tomllib.loads(data("published_rows.toml").read_text(encoding="utf-8"))["group"]
    return tuple(row for group in groups for row in _rows(group, figures))


def _rows(group: dict[str, Any], figures: list[dict[str, str]]) -> Iterator[Published]:
    quantity = group["quantity"]
    for of, *over in group["pairs"]:
        found = [_figure(figures, group["claim"], quantity, of)]
        found += [_figure(figures, group["claim"], group.get("over_quantity", quantity), item) for item in over]
        numbers = tuple(float(part) for figure in found for part in figure["value"].split(" / "))
        yield Published(
            claim=group["claim"],
            regime=group["regime"],
            device=group["device"],
            pair=f"{of} over {over[0]}" if over and over[0] != of else f"{of}: {quantity}",
            ratio=numbers[0] / numbers[1] if len(numbers) == 2 else numbers[0],
            figures=numbers,
            source=found[0]["source"],
            provenance=_weakest(found),
            note=group.get("note", ""),
        )


def _figure(figures: list[dict[str, str]], claim: str, quantity: str, config: str) -> dict[str, str]:
    for figure in figures:
        if (figure["quantity"], figure["config"]) == (quantity, config) and claim in figure["claims"].split():
            return figure
    raise FrugalbenchError(f"published_figures.csv: no figure '{quantity}' of '{config}' for {claim}")


def _weakest(found: list[dict[str, str]]) -> str:
    said = {figure["read_or_recalled"] for figure in found}
    return "read" if said == {"read"} else "recalled" if "recalled" in said else sorted(said - {"read"})[0]
