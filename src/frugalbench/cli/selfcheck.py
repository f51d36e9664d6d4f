"""The self-test from end to end: banks idle and beside a busy core, the floor that they ask for, live comparisons."""

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from frugalbench.analysis.duel import answers, faster, question
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import Run
from frugalbench.analysis.selftest import (
    Bank,
    Kind,
    Live,
    Planted,
    SelfTest,
    document,
    effect_in,
    floor_from,
    planted,
    sentence,
    study,
)
from frugalbench.analysis.statistics import DEFAULT_FLOOR
from frugalbench.cli.floor import self_test_file
from frugalbench.cli.session import decide_by_claims, measure
from frugalbench.config import Config, load_config
from frugalbench.machine import Machine
from frugalbench.plan import make_plan
from frugalbench.run.load import busy_core
from frugalbench.schema import Decision, FrugalbenchError
from frugalbench.specs.base import SIMULATED
from frugalbench.specs.selftest import KINDS, MISTAKES, WORKLOAD

FULL_S, QUICK_S, QUICK_SIMULATED_S = 900.0, 120.0, 40.0
PLANTED_S = 30.0
"""Planted mistakes take three seconds, and are looked at whatever the budget."""
QUICK_ROUNDS = 5
"""Fewer, so that two minutes hold enough comparisons to say anything."""
LIVE_SHARE = 0.35
"""Part of a full self-test that goes to live comparisons."""
LIVE_LIMIT_S = 15.0
"""Some twenty of them then fit."""
ALPHA = 0.05
BANK_LOOKS = tuple(range(4, 8001, 4))
"""A bank is never decided; it ends with its time."""
LIVE_IDLE = (0.0, 0.0, None, None, 5.0)
"""Percent of extra work per kind; ``None``: what the bank says is found in that time, rounded up to whole percent."""
LIVE_LOADED = (0.0, 20.0)


class SelfCheck:
    """One self-test on one device."""

    def __init__(
        self,
        machine: Machine,
        device: str,
        quick: bool,
        budget_s: float | None,
        folder: Path,
        show: Callable[[str], None],
    ) -> None:
        self.machine = machine
        self.device = device
        self.quick = quick
        quick_s = QUICK_SIMULATED_S if device == SIMULATED else QUICK_S
        self.budget_s = budget_s or (quick_s if quick else FULL_S)
        self.folder = folder
        self.show = show
        self.config = load_config(WORKLOAD)
        self.looks = self.config.measure.looks

    def run(self) -> SelfTest:
        """Everything; a result that rests on enough comparisons is also kept in the user's state directory."""
        begin = time.monotonic()
        mistakes = self._planted() if self.device == SIMULATED else ()
        idle, loaded = self._idle_and_loaded()
        floor = floor_from([bank.excess() for bank in (*idle, *loaded)], ALPHA)
        if self.quick:  # some twenty comparisons without a false verdict would still fit a rate of one in seven
            floor = max(floor, DEFAULT_FLOOR)
        calm, busy = (tuple(study(bank, floor, self.looks) for bank in banks) for banks in (idle, loaded))
        live = () if self.quick else self._live(calm, floor, begin + self.budget_s)
        found = SelfTest(
            machine=self.machine.name,
            fingerprint=self.machine.fingerprint,
            device=self.device,
            quick=self.quick,
            ended=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            wall_s=time.monotonic() - begin,
            alpha=ALPHA,
            aa_floor=floor,
            sentence=sentence(calm, ALPHA, floor, self.looks),
            idle=calm,
            loaded=busy,
            live=live,
            runs=str(self.folder),
            planted=mistakes,
        )
        if found.enough and self.device != SIMULATED:
            self._keep(found)
        return found

    def _planted(self) -> tuple[Planted, ...]:
        """Each known mistake of timing in an arm beside an honest one, for one counted replicate."""
        config = self._config((1,), max(self.budget_s, PLANTED_S), {"kinds": [], "mistakes": list(MISTAKES)})
        plan = make_plan(config, self.machine, device=self.device)
        once = lambda _records, _number: Decision(stop=True, look=1, reason="planted mistakes are seen at once")  # noqa: E731
        run = measure(config, plan, self.machine, self.folder / "planted", once, 0.0, self._shown("planted mistakes"))
        _stop_if_interrupted(run)
        return tuple(planted(run.records, mistake, words) for mistake, (_, words) in MISTAKES.items())

    def _idle_and_loaded(self) -> tuple[list[Bank], list[Bank]]:
        if self.quick:
            return self._banks("idle", self.budget_s), []
        each_s = self.budget_s * (1 - LIVE_SHARE) / 2
        idle = self._banks("idle", each_s)
        with busy_core():
            return idle, self._banks("loaded", each_s)

    def _banks(self, condition: str, budget_s: float) -> list[Bank]:
        config = self._config(BANK_LOOKS, budget_s, {})
        plan = make_plan(config, self.machine, device=self.device)
        never = lambda _records, _number: Decision(stop=False, look=0, reason="a bank goes on")  # noqa: E731
        run = measure(config, plan, self.machine, self.folder / condition, never, 0.0, self._shown(condition))
        _stop_if_interrupted(run)
        return [Bank(kind, run.records, ALPHA) for kind in KINDS]

    def _config(self, looks: Sequence[int], budget_s: float, options: dict[str, object]) -> Config:
        rounds = QUICK_ROUNDS if self.quick else self.config.measure.rounds
        planned = msgspec.structs.replace(
            self.config.measure, looks=tuple(looks), time_budget_s=budget_s, rounds=rounds
        )
        workload = {**self.config.workloads[0], **options}
        return msgspec.structs.replace(self.config, measure=planned, workloads=(workload,))

    def _shown(self, what: str) -> Callable[[str], None]:
        return lambda text: self.show(f"{what}: {text}")

    def _live(self, calm: Sequence[Kind], floor: float, end_s: float) -> tuple[Live, ...]:
        found = [self._one("idle", kind, percent, floor, end_s) for percent in LIVE_IDLE for kind in calm]
        with busy_core():
            found += [self._one("loaded", kind, percent, floor, end_s) for percent in LIVE_LOADED for kind in calm]
        return tuple(item for item in found if item is not None)

    def _one(self, condition: str, kind: Kind, percent: float | None, floor: float, end_s: float) -> Live | None:
        """One comparison with fresh records; ``None`` when there is no time left for it."""
        if percent is None:
            found = effect_in(kind, LIVE_LIMIT_S, ALPHA, floor, self.looks)
            percent = float(math.ceil(100 * found[0])) if found else 5.0
        extra = [percent] if percent else []
        options: dict[str, object] = {"kinds": [kind.kind], "identical": 2 - len(extra), "extra": extra}
        left_s = min(LIVE_LIMIT_S, end_s - time.monotonic())
        if left_s < 1:
            return None
        config = self._config(self.looks, left_s, options)
        plan = make_plan(config, self.machine, device=self.device)
        base, other = plan.comparisons[0].arms
        claim = question(WORKLOAD, kind.kind, base.id, [other.id])
        number = len(list(self.folder.glob("live-*"))) + 1
        begin = time.monotonic()
        run = measure(
            config,
            plan,
            self.machine,
            self.folder / f"live-{number}-{condition}-{kind.kind}-{percent:g}",
            decide_by_claims(config, [claim], floor),
            floor,
            self._shown(f"live {number}, {condition}, {percent:g}% more work"),
        )
        _stop_if_interrupted(run)
        row = next((row for row in answers(claim, evidence_of(run)) if row.ratio is not None), None)
        if row is None or row.ratio is None:
            return None
        return Live(
            condition=condition,
            kind=kind.kind,
            percent=percent,
            faster=faster(row),
            ratio=row.ratio,
            low=row.low,
            high=row.high,
            truth=base.cases[0].params["units"] / other.cases[0].params["units"],
            replicates=row.replicates,
            time_s=time.monotonic() - begin,
        )

    def _keep(self, found: SelfTest) -> None:
        target = self_test_file(self.machine.fingerprint, self.device)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".partial")
            partial.write_bytes(msgspec.json.format(msgspec.json.encode(document(found)), indent=1))
            partial.replace(target)
        except OSError as problem:
            raise FrugalbenchError(
                f"{target}: {problem.strerror}; the self-test is done but cannot be kept; set FRUGALBENCH_STATE_DIR"
            ) from None


def _stop_if_interrupted(run: Run) -> None:
    """Half a self-test is none: it is neither judged nor kept."""
    if run.manifest.state == "interrupted":
        raise KeyboardInterrupt
