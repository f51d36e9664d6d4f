"""One replicate of one comparison: fresh workers, one baton, rounds in seeded random order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from frugalbench import machine
from frugalbench.run import protocol, schedule
from frugalbench.run.setting import Setting, make_job
from frugalbench.run.transport import Pool, Worker, WorkerGone
from frugalbench.schema import (
    SCHEMA_VERSION,
    Arm,
    Case,
    Comparison,
    Reading,
    Record,
    Sample,
    Status,
    Verification,
    Warmup,
)
from frugalbench.schema import Worker as WorkerInfo

_PILOT_VERIFY_LIMIT_S = 0.5
"""After this long, the pilot's verification of a case stops at the positions checked so far (at least two). Later
replicates hold the same weights by construction and check one position each."""
_TURN_GRACE_S = 20.0


class OutOfTime(Exception):
    """The time budget is spent."""


@dataclass
class CaseState:
    """What is known of one case in this replicate."""

    case: Case
    status: Status = Status.OK
    reason: str = ""
    verification: Verification | None = None
    warmup: Warmup | None = None
    facts: dict[str, object] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    good_rounds: int = 0

    @property
    def active(self) -> bool:
        """Whether it can take turns."""
        return self.status is Status.OK or (self.status is Status.CAPPED and self.warmup is not None)

    @property
    def call_s(self) -> float:
        """Calibrated time per call."""
        return (self.warmup.call_s if self.warmup and self.warmup.call_s else 0.0) or 1e-6

    def fail(self, reason: str, status: Status = Status.FAILED) -> None:
        """Take the case out, with its reason; what was sampled is kept."""
        if self.status in (Status.OK, Status.CAPPED):
            self.status, self.reason = status, reason
            self.warmup = self.warmup if self.samples else None


@dataclass
class ArmState:
    """One arm's worker and cases."""

    arm: Arm
    cases: dict[str, CaseState]
    worker: Worker | None = None
    template_id: str | None = None
    loaded: protocol.Loaded | None = None

    def fail(self, reason: str) -> None:
        """The worker is gone: every case of the arm fails, its neighbours go on."""
        for state in self.cases.values():
            state.fail(reason)
        self.worker = None


class Replicate:
    """Runs one replicate; :meth:`run` gives its records."""

    def __init__(
        self,
        setting: Setting,
        pool: Pool,
        comparison: Comparison,
        number: int,
        rounds: int,
        references: dict[str, str],
        unreferenced: dict[str, str],
        dropped: set[str],
        first: bool,
    ):
        self.setting = setting
        self.pool = pool
        self.comparison = comparison
        self.number = number
        self.first = first
        self.rounds = rounds
        self.references = references
        self.unreferenced = unreferenced
        self.arms = [state for state in (_arm_state(arm, dropped) for arm in comparison.arms) if state.cases]
        self.previous_pid: int | None = None
        self.turns = 0
        self.void_rounds = 0
        self.all_rounds = 0
        self.interrupted = False
        self.out_of_time = False
        self.peak_pss_bytes = 0.0
        self.fixed_s = 0.0
        self.round_s = 0.0

    def run(self) -> None:
        """Measure; afterwards :meth:`records` has everything, also when cut short."""
        begin = self.setting.clock()
        try:
            self._load_all()
            loaded = self.setting.clock()
            self.fixed_s = loaded - begin
            for regime in schedule.regimes(self.comparison):
                self._regime(regime)
            self.round_s = (self.setting.clock() - loaded) / max(1, self.rounds)
        except OutOfTime:
            self.interrupted = self.out_of_time = True
        except KeyboardInterrupt:
            self.interrupted = True
            raise
        finally:
            self._finish_all()

    def _load_all(self) -> None:
        by_id = {state.arm.id: state for state in self.arms}
        for name in schedule.shuffled(self.setting.seed, list(by_id), self.comparison.id, self.number, "start"):
            self._check_time()
            self._load(by_id[name])

    def _load(self, state: ArmState) -> None:
        try:
            state.worker, state.template_id = self.pool.start(state.arm.imports)
            self._ask(state, make_job(self.setting, _remaining(state), state.template_id))
            state.loaded = self._ask(state, protocol.Load(), self.setting.measure.load_limit_s, self._memory_watch)
        except WorkerGone as gone:
            self._gone(state, str(gone))
            return
        except _Refused as refused:
            state.fail(str(refused))
            return
        if over := self._over_memory():
            self._kill(state, over)
            return
        self._check_cases(state)

    def _check_cases(self, state: ArmState) -> None:
        assert state.loaded is not None
        for name, reason in state.loaded.problems.items():
            state.cases[name].fail(reason)
        for item in state.cases.values():
            if item.active:
                self._guard(state, item, self._verify)
            if item.active:
                self._guard(state, item, self._calibrate)

    def _guard(self, state: ArmState, item: CaseState, step: Callable[[ArmState, CaseState], None]) -> None:
        self._check_time()
        try:
            step(state, item)
        except WorkerGone as gone:
            self._gone(state, str(gone))
        except _Refused as refused:
            item.fail(str(refused))

    def _verify(self, state: ArmState, item: CaseState) -> None:
        path = self.references.get(item.case.id)
        if path is None:
            why = self.unreferenced.get(item.case.id, "unknown")
            raise _Refused(f"no float64 reference could be computed: {why}")
        request = protocol.Verify(
            case=item.case.id,
            reference=path,
            limit_s=_PILOT_VERIFY_LIMIT_S if self.first else 0.0,
            least=2 if self.first else 1,
        )
        reply = self._ask(state, request, self.setting.measure.load_limit_s)
        item.verification = reply.verification
        item.facts.update(reply.facts)
        if not reply.verification.passed:
            error = reply.verification.error
            found = "not finite or of the wrong shape" if error is None else f"{error:.3g}"
            item.fail(
                f"wrong answer: error {found}, allowed {reply.verification.tolerance:.3g} ({reply.verification.what})"
            )

    def _calibrate(self, state: ArmState, item: CaseState) -> None:
        measure = self.setting.measure
        request = protocol.Calibrate(case=item.case.id, limit_s=measure.warmup_limit_s)
        reply = self._ask(state, request, 4 * measure.cap_call_s + _TURN_GRACE_S)
        item.warmup = reply.warmup
        if item.call_s > measure.cap_call_s:
            item.fail(
                f"one call takes {item.call_s:.1f} s, more than the cap of {measure.cap_call_s:g} s", Status.CAPPED
            )

    def _regime(self, regime: str) -> None:
        states = {
            item.case.id: (arm, item) for arm in self.arms for item in arm.cases.values() if item.case.regime == regime
        }
        slow = schedule.slow_cases(
            {name: item.call_s for name, (_, item) in states.items() if item.active}, self.setting.measure
        )
        for name in slow:
            item = states[name][1]
            item.status = Status.CAPPED
            item.reason = f"one call takes {item.call_s:.2g} s; one round a replicate"
        limit = schedule.attempts(self.rounds)
        for number in range(limit):
            active = {name: pair for name, pair in states.items() if pair[1].active}
            waiting = {name for name, (_, item) in active.items() if item.good_rounds < self._wanted(name, slow)}
            if not waiting:
                break
            self._round(regime, number, {n: p for n, p in active.items() if n in waiting or n not in slow})
        self._energy_rounds(regime, states, slow)

    def _wanted(self, name: str, slow: set[str]) -> int:
        return 1 if name in slow else self.rounds

    def _round(self, regime: str, number: int, active: dict[str, tuple[ArmState, CaseState]]) -> None:
        void = False
        for name in self._order(regime, number, active):
            self._check_time()
            arm, item = active[name]
            if item.active:
                void |= self._turn(arm, item, number)
        self.all_rounds += 1
        self.void_rounds += void
        for _, item in active.values():
            item.good_rounds += not void

    def _order(self, regime: str, number: int, active: dict[str, tuple[ArmState, CaseState]]) -> list[str]:
        return schedule.shuffled(self.setting.seed, list(active), self.comparison.id, self.number, regime, number)

    def _turn(self, arm: ArmState, item: CaseState, number: int) -> bool:
        declared = arm.loaded is not None and arm.loaded.update_period_s is None
        try:
            reply = self._take_turn(arm, item, self.setting.measure.sample_s, energy=declared and number == 0)
        except (WorkerGone, _Refused) as problem:
            self._gone(arm, str(problem)) if isinstance(problem, WorkerGone) else item.fail(str(problem))
            return False
        self.turns += 1
        item.samples.append(
            Sample(
                round=number,
                turn=self.turns,
                calls=reply.calls,
                time_s=reply.time_s,
                start_s=reply.start_s,
                environment=reply.environment,
                void=reply.void,
            )
        )
        item.readings.extend(reply.readings)
        return reply.void is not None

    def _take_turn(self, arm: ArmState, item: CaseState, window_s: float, energy: bool) -> protocol.Turned:
        measure = self.setting.measure
        request = protocol.Turn(
            case=item.case.id,
            calls=schedule.calls_per_sample(item.call_s, window_s),
            lead_in_s=measure.lead_in_s,
            quiet_limit_s=measure.quiet_limit_s,
            previous_pid=self.previous_pid,
            energy=energy,
        )
        reply: protocol.Turned = self._ask(arm, request, 20 * (window_s + item.call_s) + _TURN_GRACE_S)
        assert arm.worker is not None
        self.previous_pid = arm.worker.pid
        return reply

    def _energy_rounds(self, regime: str, states: dict[str, tuple[ArmState, CaseState]], slow: set[str]) -> None:
        """Turns of their own for energy, where a meter measures: long windows, joules and time from the same one."""
        metered = {
            name: (arm, item)
            for name, (arm, item) in states.items()
            if item.active and name not in slow and arm.loaded is not None and arm.loaded.update_period_s is not None
        }
        for number in range(self.setting.measure.energy_rounds if metered else 0):
            for name in self._order(regime, -1 - number, metered):
                self._check_time()
                self._energy_turn(*metered[name], number)

    def _energy_turn(self, arm: ArmState, item: CaseState, number: int) -> None:
        if not item.active or arm.loaded is None or arm.loaded.update_period_s is None:
            return
        window_s = max(schedule.METER_UPDATES * arm.loaded.update_period_s, self.setting.measure.sample_s)
        try:
            reply = self._take_turn(arm, item, window_s, energy=True)
        except WorkerGone as gone:
            self._gone(arm, str(gone))
            return
        except _Refused as refused:
            item.fail(str(refused))
            return
        item.readings.extend(_in_round(reading, number) for reading in reply.readings)

    def _ask(
        self,
        state: ArmState,
        message: object,
        limit_s: float = 30.0,
        watch: Callable[[], str | None] | None = None,
    ) -> Any:
        assert state.worker is not None
        left_s = self.setting.deadline_s - self.setting.clock() + self.setting.grace_s
        try:
            reply = state.worker.request(message, min(limit_s, max(left_s, 0.1)), watch)
        except WorkerGone:
            if left_s < limit_s and self.setting.clock() >= self.setting.deadline_s:
                raise OutOfTime from None
            raise
        if isinstance(reply, protocol.Problem):
            raise _Refused(reply.reason)
        return reply

    def _check_time(self) -> None:
        if self.setting.clock() >= self.setting.deadline_s:
            raise OutOfTime

    def _memory_watch(self) -> str | None:
        return self._over_memory(measure_now=True)

    def _over_memory(self, measure_now: bool = False) -> str | None:
        total = sum(self._pss(state, measure_now) for state in self.arms)
        self.peak_pss_bytes = max(self.peak_pss_bytes, total)
        limit = self.setting.measure.memory_limit_bytes
        if total <= limit:
            return None
        return (
            f"memory limit: {total / 2**30:.1f} GiB in use, {limit / 2**30:.1f} GiB allowed; "
            "raise measure.memory_limit_bytes"
        )

    @staticmethod
    def _pss(state: ArmState, measure_now: bool) -> float:
        if state.worker is None:
            return 0.0
        if state.loaded is not None:
            return state.loaded.pss_bytes or 0.0
        return (machine.pss_bytes(state.worker.pid) or 0.0) if measure_now else 0.0

    def _kill(self, state: ArmState, reason: str) -> None:
        if state.worker is not None:
            state.worker.kill()
        self._gone(state, reason)

    def _gone(self, state: ArmState, reason: str) -> None:
        if state.worker is not None:
            state.worker.close()
        state.fail(reason)

    def _finish_all(self) -> None:
        for state in self.arms:
            if state.worker is None:
                continue
            if self.interrupted:
                state.worker.kill()
                state.worker.close()
            else:
                state.worker.finish()
            state.worker = None

    def records(self) -> Iterator[Record]:
        """One record per arm and case."""
        steady = schedule.is_steady_load(self.void_rounds, self.all_rounds)
        for arm in self.arms:
            for item in arm.cases.values():
                yield self._record(arm, item, steady)

    def _record(self, arm: ArmState, item: CaseState, steady: bool) -> Record:
        loaded, name = arm.loaded, item.case.id
        return Record(
            schema_version=SCHEMA_VERSION,
            comparison=self.comparison.id,
            arm=arm.arm.id,
            case=item.case,
            replicate=self.number,
            status=item.status,
            reason=item.reason,
            interrupted=self.interrupted,
            steady_load=steady,
            worker=self._worker_info(arm),
            load_s=loaded.load_s if loaded else None,
            artefacts=loaded.artefacts if loaded else (),
            verification=item.verification,
            warmup=item.warmup,
            samples=tuple(item.samples),
            readings=tuple(item.readings),
            pss_bytes=loaded.pss_bytes if loaded else None,
            facts={**(loaded.facts.get(name, {}) if loaded else {}), **item.facts},  # type: ignore[dict-item]
            details=loaded.details.get(name, {}) if loaded else {},
        )

    @staticmethod
    def _worker_info(arm: ArmState) -> WorkerInfo | None:
        if arm.loaded is None:
            return None
        return WorkerInfo(
            pid=arm.loaded.pid,
            start_method="fork" if arm.template_id else "spawn",
            template_id=arm.template_id,
            threads=arm.loaded.threads,
            libraries=arm.loaded.libraries,
        )


class _Refused(Exception):
    """The worker answered that it cannot; it lives on."""


def _arm_state(arm: Arm, dropped: set[str]) -> ArmState:
    return ArmState(arm=arm, cases={case.id: CaseState(case) for case in arm.cases if case.id not in dropped})


def _remaining(state: ArmState) -> Arm:
    cases = tuple(item.case for item in state.cases.values())
    return Arm(id=state.arm.id, cases=cases, imports=state.arm.imports)


def _in_round(reading: Reading, number: int) -> Reading:
    import msgspec

    return msgspec.structs.replace(reading, round=number)
