"""Builder of ``onnx_conformance``: executes the census while it loads; there is nothing to time.

The record holds how many cases ended how, the names of those that passed and the reasons of those that did not.
"""

import platform
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from frugalbench.schema import Arm, Artefact, Case, CaseOutcome, Quantity, Tier
from frugalbench.specs.onnx_conformance import COMMON_OPSETS, CORE_TYPES, WORKLOAD
from frugalbench.workloads import onnx_census
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.onnx_cases import Bench, Ended, execute
from frugalbench.workloads.onnx_census import Census, Entry

Pair = tuple[Entry, Ended]


def load(arm: Arm, context: Context) -> "LoadedCensus":
    """Write the suite's cases if no earlier run has, and execute those that were asked for.

    Raises ``RuntimeError`` where the runtime does not start or a model of the user's cannot be trusted.
    """
    p = arm.cases[0].params
    if p["folder"]:
        return LoadedCensus(arm.cases[0], context, onnx_census.own(Path(p["folder"])), ())
    census, artefact = onnx_census.shipped(context.cache_dir, p["seed"])
    return LoadedCensus(arm.cases[0], context, census, (artefact,))


class LoadedCensus:
    """How every case ended on one runtime."""

    def __init__(self, case: Case, context: Context, census: Census, artefacts: tuple[Artefact, ...]):
        self.artefacts, self.census = artefacts, census
        p = case.params
        log = context.scratch_dir / f"{WORKLOAD}-{case.backend}.log"
        bench = Bench(case.backend, context.device, Path(census.folder), p["case_limit_s"], p["batch"], log)
        entries = census.drawn(p["seed"], p["sample"])
        begin = time.perf_counter()
        self.started, ended = execute(bench, entries)
        self.spent_s = time.perf_counter() - begin
        self.pairs = list(zip(entries, ended, strict=True))

    def bind(self, case: Case) -> Bound:
        """Counts as facts, names and reasons as details."""
        return Bound(
            call=lambda _: None,
            output=_no_output,
            facts=self._facts(case),
            details=self._details(case),
            settled=True,
        )

    def close(self) -> None:
        """Nothing is held: children have ended."""

    def _facts(self, case: Case) -> dict[str, Quantity]:
        counts = Counter(ended.outcome for _, ended in self.pairs)
        source = f"cases of {self.census.suite}, each executed once"
        facts = {outcome.value: _count(counts[outcome], source) for outcome in CaseOutcome}
        facts["cases"] = _count(len(self.pairs), source)
        facts["census_s"] = Quantity(value=self.spent_s, unit="s", tier=Tier.MEASURED, source="children included")
        start = "" if self._whole(case) else "sampled_"
        for name, opsets in (("core", self._opsets), ("common", COMMON_OPSETS)):
            mine = list(core(self.pairs, opsets))
            source = f"ai.onnx, {len(CORE_TYPES)} core element types, operator sets {opsets[0]} to {opsets[1]}"
            facts[f"{start}{name}_cases"] = _count(len(mine), source)
            facts[f"{start}{name}_passed"] = _count(sum(_passed(ended) for _, ended in mine), source)
        return facts

    @property
    def _opsets(self) -> tuple[int, int]:
        return self.started.opsets or COMMON_OPSETS

    def _whole(self, case: Case) -> bool:
        return not case.params["folder"] and len(self.pairs) == len(self.census.entries)

    def _details(self, case: Case) -> dict[str, Any]:
        found: dict[str, Any] = {
            "suite": self.census.suite,
            "of": len(self.census.entries),
            "without_data": list(self.census.without_data),
            "version": self.started.version,
            "python": platform.python_version(),
            "opsets": list(self._opsets),
            "opsets_declared": self.started.opsets is not None,
            "passed": [entry.name for entry, ended in self.pairs if _passed(ended)],
            "not_passed": {
                outcome.value: {e.name: ended.reason for e, ended in self.pairs if ended.outcome is outcome}
                for outcome in CaseOutcome
                if outcome is not CaseOutcome.PASSED
            },
            "operators": tally((entry.subject, ended) for entry, ended in self.pairs if entry.kind == "node"),
            "by_opset": tally((str(entry.opset), ended) for entry, ended in self.pairs),
            "by_kind": tally((entry.kind, ended) for entry, ended in self.pairs),
            "slowest_s": {ended.name: ended.time_s for ended in _slowest(self.pairs)},
        }
        if not self._whole(case):
            what = "cases of one's own" if case.params["folder"] else "a sample"
            found["not_judged"] = f"{what}: {len(self.pairs)} cases; the whole census of the ONNX project decides"
        return found


def core(pairs: Iterable[Pair], opsets: tuple[int, int]) -> Iterable[Pair]:
    """Cases of ``ai.onnx`` alone, with core element types, whose operator set lies in ``opsets``, ends included."""
    first, last = opsets
    for entry, ended in pairs:
        if entry.domains == ("ai.onnx",) and first <= entry.opset <= last and CORE_TYPES.issuperset(entry.types):
            yield entry, ended


def tally(pairs: Iterable[tuple[str, Ended]]) -> dict[str, list[int]]:
    """Key to how many cases it has and how many of them passed."""
    found: dict[str, list[int]] = {}
    for key, ended in pairs:
        counts = found.setdefault(key, [0, 0])
        counts[0] += 1
        counts[1] += _passed(ended)
    return dict(sorted(found.items()))


def _passed(ended: Ended) -> bool:
    return ended.outcome is CaseOutcome.PASSED


def _slowest(pairs: Sequence[Pair]) -> list[Ended]:
    return sorted((ended for _, ended in pairs), key=lambda ended: -ended.time_s)[:5]


def _count(value: int, source: str) -> Quantity:
    return Quantity(value=float(value), unit="case", tier=Tier.MEASURED, source=source)


def _no_output(_: int) -> Arrays:
    return {}


def reference(_case: Case, _context: Context) -> Arrays:
    """None: the suite carries its expected outputs."""
    return {}


def reference_key(case: Case) -> str:
    """Each case stands for itself."""
    return case.id
