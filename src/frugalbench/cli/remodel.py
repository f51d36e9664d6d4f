"""The modelled rows of a stranger's run, computed anew."""

import re
from collections.abc import Iterator
from functools import cache

import msgspec

from frugalbench.analysis.load import Run
from frugalbench.analysis.submission.scrub import Scrubber
from frugalbench.analysis.submission.turns import Finding
from frugalbench.cli.replan import is_this_revision
from frugalbench.machine import Machine
from frugalbench.schema import Case, Quantity, Record
from frugalbench.specs import cluster_model
from frugalbench.specs.base import Settings

_INPUTS = ("sources", "assumptions", "notes", "model_sources", "cuts", "shares")
"""Details of a modelled row that say what it was computed from."""
_PLACEHOLDER = re.compile(r"<([a-z]+)-\d+>")
SAME = 1e-9
"""Relative; of two computations of one formula."""


def modelled(run: Run) -> Iterator[Finding]:
    """Rows of :mod:`frugalbench.specs.cluster_model` say what its model computes at the revision that is installed;
    another one may have another model, and :func:`odd_rows` says so."""
    if is_this_revision(run):
        yield from ((record.case.id, reason) for record, reason in _rows(run) if reason)


def odd_rows(run: Run) -> Iterator[str]:
    """In words: modelled rows that nobody can hold against the model, and those that another model computed."""
    found = list(_rows(run))
    if unknown := sum(reason is None for _, reason in found):
        yield f"{unknown} modelled rows rest on other inputs than the shipped ones, and are taken as they are"
    others = [(record.case.id, reason) for record, reason in found if reason]
    if others and not is_this_revision(run):
        first = f"{others[0][0]}: {others[0][1]}"
        yield f"{len(others)} modelled rows are not what the model of this revision computes; {first}"


def _rows(run: Run) -> Iterator[tuple[Record, str | None]]:
    """Modelled rows with what is wrong with them; empty where nothing is, ``None`` where that is not known: no shipped
    config asks for the row, or the data that it names have changed since."""
    for record in run.records:
        if record.case.workload == cluster_model.WORKLOAD:
            known = record.case == _usual().get(record.case.id)
            yield record, _told(record, _modelled(record.case.id)) if known else None


def _told(record: Record, fresh: Record) -> str | None:
    return (_row_fault(record, fresh) or "") if _rests_on(record) == _rests_on(fresh) else None


@cache
def _usual() -> dict[str, Case]:
    """Rows that shipped configs ask for, by id. Those of a stranger's own would have the reader compute whatever they
    say, and open what they name."""
    settings = Settings(workload=cluster_model.WORKLOAD, device="cpu", threads=1, seed=0)
    return {case.id: case for case in cluster_model.expand(settings, Machine.detect()).modelled}


@cache
def _modelled(name: str) -> Record:
    """A usual row, as the file would hold it."""
    return msgspec.json.decode(msgspec.json.encode(cluster_model.model(_usual()[name])), type=Record)


def _rests_on(record: Record) -> str:
    """Its inputs and their sources, without what ``frugalbench submit`` replaces (addresses of documents)."""
    found = Scrubber().clean({key: record.details.get(key) for key in _INPUTS})
    return _PLACEHOLDER.sub(r"<\1>", msgspec.json.encode(found).decode())


def _row_fault(record: Record, fresh: Record) -> str | None:
    if (record.status, record.tier) != (fresh.status, fresh.tier):
        return f"is {record.tier} and {record.status}; the model makes it {fresh.tier} and {fresh.status}"
    if record.facts.keys() != fresh.facts.keys():
        return "has other figures than the model computes"
    for name, told in record.facts.items():
        if reason := _fact_fault(told, fresh.facts[name]):
            return f"{name} is {reason}"
    lines = [[(sweep.figure, sweep.line, len(sweep.value)) for sweep in item.sweeps] for item in (record, fresh)]
    if lines[0] != lines[1]:
        return "has other curves than the model computes"
    pairs = zip(record.sweeps, fresh.sweeps, strict=True)
    off = any(not _same(*values) for one, other in pairs for values in zip(one.value, other.value, strict=True))
    return "has a curve with other points than the model computes" if off else None


def _fact_fault(told: Quantity, known: Quantity) -> str | None:
    for bound in ("value", "low", "high"):
        if not _same(getattr(told, bound), getattr(known, bound)):
            which = "" if bound == "value" else f"{bound} "
            return f"{which}{getattr(told, bound)}; from its inputs the model computes {getattr(known, bound)}"
    return None if told.tier == known.tier else f"called {told.tier}; it is {known.tier}"


def _same(told: float | None, known: float | None) -> bool:
    if told is None or known is None:
        return told is known
    return abs(told - known) <= SAME * max(abs(told), abs(known))
