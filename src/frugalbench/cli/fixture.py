"""What the ``frugal`` fixture of pytest does: turns functions into arms and measures them as ``versus`` does."""

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from frugalbench.schema import FrugalbenchError

if TYPE_CHECKING:
    from frugalbench.analysis.load import Run
    from frugalbench.analysis.versus import Pair

Function = Callable[..., Any]


@dataclass(frozen=True)
class Timing:
    """One function on its own; on a shared machine an absolute time says little."""

    time_s: float
    """Per call: median over fresh processes of the median over rounds."""
    replicates: int
    joule_per_token: float | None
    """Measured joules; ``None`` where none were asked for, or no meter can be read."""

    @property
    def token_per_joule(self) -> float | None:
        """Units of work per measured joule."""
        return 1 / self.joule_per_token if self.joule_per_token else None


@dataclass(frozen=True)
class Ratio:
    """A function against another one."""

    ratio: float
    """Speed over the other's: above 1 is faster."""
    low: float | None
    high: float | None
    confidence: float | None
    faster: bool | None
    """``None``: these data cannot tell."""
    detectable: float | None
    """Difference that would have been found four times in five."""
    sentence: str
    mine: Timing
    other: Timing


class Frugal:
    """The fixture's value."""

    def __init__(self, folders: Any) -> None:
        self._folders = folders

    def __call__(self, function: Function, *, against: Function, **options: Any) -> Ratio:
        """Speed of ``function`` over ``against``, both in fresh processes, turn by turn.

        Options: ``setup`` (makes the argument), ``check`` (both must return the same), ``energy`` (joules, where a
        meter can be read), ``tokens`` (units of work per call), ``replicates`` (at most, 10), ``time_budget_s`` (30),
        ``threads``, ``seed``. Raises :class:`FrugalbenchError` for a function that no fresh process can import, and for
        one that fails.
        """
        from frugalbench.analysis import versus
        from frugalbench.analysis.judge import evidence_of
        from frugalbench.specs.versus import REGIME, WORKLOAD

        run = self._run([against, function], options)
        arms = [arm.id for arm in run.manifest.plan.comparisons[0].arms]
        other, mine = (_timing(run, arm) for arm in arms)
        found = versus.result(evidence_of(run), WORKLOAD, REGIME, arms)
        if not found.pairs:
            raise FrugalbenchError(f"frugal: {found.sentence}")
        return _ratio(found.pairs[0], found.sentence, mine, other)

    def time(self, function: Function, **options: Any) -> Timing:
        """Time per call of ``function``; options as above."""
        run = self._run([function], options)
        return _timing(run, run.manifest.plan.comparisons[0].arms[0].id)

    def _run(self, functions: Sequence[Function], options: dict[str, Any]) -> "Run":
        from frugalbench.cli.versus import measured
        from frugalbench.machine import Machine
        from frugalbench.specs.versus import Options, plan

        given = {**_DEFAULTS, **options}
        if unknown := given.keys() - _DEFAULTS.keys():
            raise FrugalbenchError(f"frugal: no option '{min(unknown)}'; there are {', '.join(_DEFAULTS)}")
        machine = Machine.detect()
        arms = Options(
            commands=False,
            setups=(place(given["setup"]),) if given["setup"] else (),
            check=given["check"],
            ignore_failure=False,
            threads=given["threads"] or machine.logical_cores,
            seed=given["seed"],
            tokens=float(given["tokens"]),
        )
        planned = plan([place(item) for item in functions], arms, least=1)
        folder: Path = self._folders.mktemp("frugal") / "run"
        return measured(planned, _config(given, len(functions)), machine, folder, lambda _: None)


_DEFAULTS: dict[str, Any] = {
    "setup": None, "check": False, "energy": False, "tokens": 1.0, "replicates": 10, "time_budget_s": 30.0,
    "threads": None, "seed": 1,
}  # fmt: skip


def _config(given: dict[str, Any], arms: int) -> Any:
    import msgspec

    from frugalbench.cli.versus import make_config

    asked = argparse.Namespace(
        replicates=given["replicates"], command=False, time_budget=given["time_budget_s"], seed=given["seed"]
    )
    config = make_config(asked, arms)
    meter = "auto" if given["energy"] else "none"
    return msgspec.structs.replace(config, energy=msgspec.structs.replace(config.energy, meter=meter))


def place(function: Function) -> str:
    """``file.py:name`` or ``module:name``. Raises :class:`FrugalbenchError` for what a fresh process cannot import."""
    from frugalbench.specs.versus import is_installed

    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not name or "<" in name:
        raise FrugalbenchError(
            f"frugal: {name or function!r} cannot be imported by a fresh process; define it at the top of a file"
        )
    file = getattr(sys.modules.get(module), "__file__", None)
    if is_installed(module) or module == "builtins" or not file:
        return f"{module}:{name}"
    return f"{inspect.getsourcefile(function) or file}:{name}"


def _timing(run: "Run", arm: str) -> Timing:
    from frugalbench.analysis.statistics import counted, round_values, void_rounds

    mine = [record for record in run.records if record.arm == arm]
    spoilt = void_rounds(run.records)
    values: dict[str, list[float]] = {"time": [], "energy": []}
    for record in filter(counted, mine):
        bad = spoilt.get((record.comparison, record.case.regime, record.replicate), set())
        for metric, found in values.items():
            if rounds := round_values(record, metric, bad if metric == "time" else set()):
                found.append(median(rounds.values()))
    if not values["time"]:
        reasons = [record.reason for record in mine if record.reason]
        raise FrugalbenchError(f"frugal: {arm}: {reasons[0] if reasons else 'no replicate was finished'}")
    cost = mine[0].case.cost
    per_call = cost.token if cost and cost.token else 1.0
    joules = median(values["energy"]) if values["energy"] else None
    return Timing(median(values["time"]) * per_call, len(values["time"]), joules)


def _ratio(pair: "Pair", sentence: str, mine: Timing, other: Timing) -> Ratio:
    return Ratio(
        pair.ratio, pair.low, pair.high, pair.confidence, pair.candidate_faster, pair.detectable, sentence, mine, other
    )
