"""Devices, systems and prices: published figures, each with its source and how it was obtained.

The facts lie in ``data/hardware/*.toml`` and ``data/prices.toml``. A figure that is unpublished is absent. Where
sources disagree there are several entries under one name: the first is the central one, all of them span the range.
A figure marked ``recalled`` is kept and shown, and refused where a verdict would rest on it
(:meth:`Hardware.deciding`).
Names carry units and say what is meant: ``dense`` (not sparse), ``unidirectional`` or ``bidirectional``;
rates of links are per device for a device, and summed over the devices for a system.
"""

import difflib
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from frugalbench import paths, untrusted
from frugalbench.cluster.ranges import Range, spanning
from frugalbench.schema import FrugalbenchError

T = TypeVar("T")


class _Fact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what is read from a data file: unknown keys are errors."""


class Figure(_Fact, frozen=True, kw_only=True):
    """One published number. Its unit is the suffix of its name."""

    name: str
    value: float
    provenance: Literal["read", "announced", "recalled"]
    source: str
    note: str = ""


class Hardware(_Fact, frozen=True, kw_only=True):
    """A device (accelerator, cpu, soc) or a whole system of ``devices`` of them."""

    id: str
    name: str
    kind: Literal["accelerator", "system", "cpu", "soc"]
    devices: int = 1
    memory_type: str = ""
    scaleup_name: str = ""
    provenance: str = ""
    note: str = ""
    figure: tuple[Figure, ...] = ()

    def figures(self, name: str) -> tuple[Figure, ...]:
        """Every figure of that name, the central one first; empty when unpublished."""
        return tuple(item for item in self.figure if item.name == name)

    def recalled(self) -> tuple[Figure, ...]:
        """The figures that were recalled rather than read; none of them may decide a verdict."""
        return tuple(item for item in self.figure if item.provenance == "recalled")

    def deciding(self, name: str) -> Range | None:
        """The figure with the range that its conflicting sources span; ``None`` when unpublished.

        Raises :class:`FrugalbenchError` when it is known from memory only.
        """
        known = self.figures(name)
        usable = [item.value for item in known if item.provenance != "recalled"]
        if known and not usable:
            raise FrugalbenchError(
                f"{self.id}: '{name}' is marked recalled and cannot decide; add a figure that was read"
            )
        return spanning(usable[0], usable) if usable else None

    def require(self, name: str) -> Range:
        """:meth:`deciding`, with a :class:`FrugalbenchError` naming the nearest figure when it is unpublished."""
        found = self.deciding(name)
        if found is None:
            have = sorted({item.name for item in self.figure})
            raise FrugalbenchError(f"{self.id}: no figure '{name}'" + nearest(name, have))
        return found

    def sources(self, name: str) -> str:
        """Where the figure comes from, all entries."""
        return "; ".join(dict.fromkeys(item.source for item in self.figures(name) if item.provenance != "recalled"))


class Price(_Fact, frozen=True, kw_only=True):
    """One quoted price."""

    id: str
    what: str
    value: float
    unit: str
    when: str
    source: str
    note: str = ""


class PricePair(_Fact, frozen=True, kw_only=True):
    """Quotations that are set against each other, by id."""

    name: str
    theirs: tuple[str, ...]
    baseline: tuple[str, ...]
    note: str = ""


class Prices(_Fact, frozen=True, kw_only=True):
    """The whole price file."""

    price: tuple[Price, ...]
    pair: tuple[PricePair, ...]

    def ratio(self, name: str) -> Range:
        """Theirs over the baseline's for one pair: the geometric mean of the quotations' ratios, and their extremes.

        Raises :class:`FrugalbenchError` for an unknown pair or price and for quotations in different units.
        """
        pair = {item.name: item for item in self.pair}.get(name)
        if pair is None:
            raise FrugalbenchError(f"prices.toml: unknown pair '{name}'" + nearest(name, [p.name for p in self.pair]))
        theirs, baseline = self._quoted(pair.theirs), self._quoted(pair.baseline)
        if len({item.unit for item in (*theirs, *baseline)}) > 1:
            raise FrugalbenchError(f"prices.toml: pair '{name}' mixes units; compare prices in one unit only")
        ratios = [t.value / b.value for t in theirs for b in baseline]
        # The geometric mean: swapping theirs and baseline must give the inverse.
        return spanning(math.prod(ratios) ** (1 / len(ratios)), ratios)

    def _quoted(self, ids: Iterable[str]) -> list[Price]:
        known = {item.id: item for item in self.price}
        for key in ids:
            if key not in known:
                raise FrugalbenchError(f"prices.toml: unknown price '{key}'" + nearest(key, list(known)))
        return [known[key] for key in ids]


def hardware(name: str) -> Hardware:
    """A device or system by id. Raises :class:`FrugalbenchError` naming the nearest id."""
    path = paths.data("hardware", f"{name}.toml")
    if not path.is_file():
        raise FrugalbenchError(f"unknown hardware '{name}'" + nearest(name, names()))
    return _load(path)


def names() -> list[str]:
    """Ids of every device and system."""
    return sorted(path.stem for path in paths.data("hardware").glob("*.toml"))


@cache
def prices() -> Prices:
    """The quoted prices."""
    return convert(read_toml(paths.data("prices.toml")), Prices, "prices.toml")


def read_toml(path: Path) -> dict[str, Any]:
    """A parsed TOML file; raises :class:`FrugalbenchError` naming file and fault."""
    document = untrusted.read_toml(path)
    if reason := untrusted.fault(document):
        raise FrugalbenchError(f"{path}: holds {reason}")
    return document


def convert(document: dict[str, Any], kind: type[T], where: str) -> T:
    """``document`` as ``kind``; raises :class:`FrugalbenchError` naming place, key and the nearest known key."""
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise FrugalbenchError(f"{where}: {error}{_hint(str(error), kind)}") from None


def nearest(word: str, known: list[str]) -> str:
    """The end of an error message: the closest of ``known``, if there is any."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0)
    return f"; did you mean '{near[0]}'?" if near else ""


@cache
def _load(path: Path) -> Hardware:
    return convert(read_toml(path), Hardware, path.name)


def _hint(message: str, kind: Any) -> str:
    _, _, tail = message.partition("unknown field `")
    word = tail.partition("`")[0]
    return nearest(word, sorted(_keys(msgspec.inspect.type_info(kind), set()))) if word else ""


def _keys(info: Any, seen: set[type]) -> set[str]:
    """Every key that can occur anywhere in a document of this type."""
    if isinstance(info, msgspec.inspect.StructType):
        if info.cls in seen:
            return set()
        seen.add(info.cls)
        return {f.encode_name for f in info.fields}.union(*(_keys(f.type, seen) for f in info.fields))
    parts = [getattr(info, "item_type", None), *getattr(info, "types", ())]
    return set().union(*(_keys(part, seen) for part in parts if part is not None))
