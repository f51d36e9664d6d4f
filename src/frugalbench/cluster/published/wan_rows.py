"""Rows about training across sites."""

import math
import re
from collections.abc import Mapping, Sequence

from frugalbench.cluster import wan
from frugalbench.cluster.published.guess import Guess
from frugalbench.cluster.published.points import Point

GRID_LOW, GRID_HIGH, GRID_POINTS = -1.0, 3.0, 50
"""Gbit/s: the published simulation tried ``logspace(-1, 3, 50)`` and prints the point below the crossing."""
STEP = (GRID_HIGH - GRID_LOW) / (GRID_POINTS - 1)
_TARGET = re.compile(r"bandwidth for ([\d.]+) ?% (?:compute )?utili[sz]ation")
_SHAPE = re.compile(r"(\d+) layers?,? ([\d.]+) ?s(?:ec(?:onds)?)? step")
_EVERY = re.compile(r"\bh ?= ?(\d+)")
_INNER = re.compile(r"([\d.]+) ?(min|s|h)\w* inner")
_ALONE = re.compile(r"([\d.]+) ?% without communication")
MINUTE_ROUNDING_S = 30 / 3**0.5
"""Standard deviation of a phase that is printed in whole minutes."""
_FLOWS = re.compile(r"(\d{1,3}) connections")
_COUNT = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_SECONDS = {"min": 60.0, "s": 1.0, "h": 3600.0}
_EVERYWHERE = re.compile(r"\+|asia|global|world|intercontinental|\bna\+eu\b")


def parameters(text: str) -> float | None:
    """``1B``, ``405B``, ``~100B``, ``671B MoE``: a number of parameters."""
    found = re.search(r"(\d+(?:\.\d+)?)\s*([kmbt])\b", text.lower())
    return float(found[1]) * _COUNT[found[2]] if found else None


def guess(point: Point, siblings: Sequence[Point], constants: Mapping[str, float]) -> Guess | str:
    """A prediction, why there is none, or an empty text for rows of another kind."""
    metric = point.metric.lower()
    if _TARGET.search(metric):
        return _bandwidth(point)
    if "outer all-reduce" in metric or ("pccl" in point.system.lower() and metric == "time"):
        return _ring(point, constants)
    if ("compute utili" in metric and _outer(siblings)) or (metric == "mfu" and _ALONE.search(point.note)):
        return _utilisation(point, siblings)
    if "vs single dc" in metric or "vs single-chip" in metric or "two dcs" in point.system.lower():
        return "no bandwidth between the sites, batch or exchange scheme is published"
    if "diloco" in f"{point.work} {metric}".lower() or metric.startswith(("total exchanged", "hours at")):
        return "tokens per step are not published, so neither is the number of exchanges"
    return ""


def _bandwidth(point: Point) -> Guess | str:
    target = _TARGET.search(point.metric.lower())
    shape, size = _SHAPE.search(point.note.lower()), parameters(point.size)
    if target is None or shape is None or size is None or not int(shape[1]) or not float(shape[2]):
        return "needs model size, layers and seconds per step (note: '24 layers, 0.1 s step')"
    if not 0 < float(target[1]) < 100:
        return "a utilisation that is not between 0 and 100%"
    scheme = _scheme(point, size, int(shape[1]), float(shape[2]))
    gbit = wan.bit_per_s_for(scheme, float(target[1]) / 100) / 1e9
    return Guess(
        si=_below(gbit) * 0.125e9,
        pool="grid",
        basis="layered exchange; grid point below the crossing",
        fitted=size < 2e9,
    )


def _scheme(point: Point, size: float, layers: int, step_s: float) -> wan.Exchange:
    work, text = point.work.lower(), point.text()
    every = _EVERY.search(text)
    local = "diloco" in work or "streaming" in work
    return wan.Exchange(
        parameters=size,
        layers=layers,
        step_s=step_s,
        bits=4.0 if re.search(r"fp4|int4|4[- ]bit", work) else 8.0 if re.search(r"fp8|int8|8[- ]bit", work) else 16.0,
        every=max(int(every[1]), 1) if every and local else 1,
        streaming="streaming" in work,
        overlap_steps=1 if "overlap" in work else 0,
    )


def _below(gbit_per_s: float) -> float:
    """The grid's point at or below."""
    steps = min((math.log10(gbit_per_s) - GRID_LOW) / STEP + 1e-9, GRID_POINTS - 1)
    return float(10 ** (GRID_LOW + STEP * max(math.floor(steps), 0)))


def _ring(point: Point, constants: Mapping[str, float]) -> Guess | str:
    size = point.size_bytes
    if size is None:
        count = parameters(point.size) or parameters(point.work)
        if count is None:
            return "no message size"
        size = count * (1.0 if "int8" in point.text() else 2.0)
    ranks = point.devices or 2
    span = "intercontinental" if _EVERYWHERE.search(point.system.lower()) else "continental"
    traffic = size * 2 * (ranks - 1) / ranks
    flows = _FLOWS.search(point.text())
    rate = constants[span] * max(int(flows[1]) if flows else 1, 1)
    return Guess(si=traffic / rate, pool="wan ring", basis=f"ring at the usual {span} rate of one flow")


def _utilisation(point: Point, siblings: Sequence[Point]) -> Guess | str:
    inner = _inner_s(point, siblings)
    outer = _outer(siblings)
    if not inner or outer is None:
        return "needs the length of the inner phase and the outer all-reduce, as rows beside it give them"
    share = inner / (inner + outer)
    spread = (1 - share) * MINUTE_ROUNDING_S / inner
    if point.metric.lower() == "mfu":
        alone = _ALONE.search(point.note)
        if alone is None:
            return "needs the MFU without communication"
        share *= float(alone[1]) / 100
    return Guess(si=share, pool="wan share", spread=spread, basis="published inner phase and outer all-reduce")


def _outer(siblings: Sequence[Point]) -> float | None:
    return next((p.si for p in siblings if "outer all-reduce" in p.metric.lower()), None)


def _inner_s(point: Point, siblings: Sequence[Point]) -> float | None:
    for candidate in (point, *siblings):
        if found := _INNER.search(candidate.note.lower()):
            return float(found[1]) * _SECONDS[found[2]]
    return None
