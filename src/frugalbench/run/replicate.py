"""One replicate of one comparison: fresh workers, one baton, rounds in seeded random order."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from frugalbench.run import energy_turns, memory, placement, protocol, schedule
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
_LEAST_SHARE = 0.8
"""Share of the wanted window that a turn fills at least."""
_GROWTH_BYTES = 32 * 2**20
"""Between turns a worker's memory is looked at closely only when it has grown by this much and by a twentieth."""
_GROWTH_LOOK_S = 0.25
"""Looks of that kind are at least so far apart: on many short turns they would add up."""
_MOST_SUSPICIONS = 4
"""So often may a worker be waited for that was not quiet for the next turn and fell quiet a little later."""


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
    late_turns: int = 0
    """Turns in whose window something was compiled or tuned."""
    settled: bool = False
    """Loading found out all there is to know."""

    @property
    def active(self) -> bool:
        """Whether it can take turns."""
        return not self.settled and self._can_go_on()

    def _can_go_on(self) -> bool:
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
    pids: tuple[int, ...] = ()
    """The worker and its children, when last looked at closely."""
    rss_bytes: float = 0.0
    held_bytes: float = 0.0
    load_from_s: float = 0.0
    looked_s: float = -math.inf
    suspicions: int = 0
    no_path_pid: int | None = None
    """The worker that found no kernel for this arm."""

    def look(self, own_pss_bytes: float | None = None) -> None:
        """See closely what the worker and its children hold; one without children may tell by itself."""
        assert self.worker is not None
        self.pids = tuple(memory.tree(self.worker.pid))
        self.rss_bytes = memory.rss_bytes(self.pids)
        alone = own_pss_bytes is not None and len(self.pids) == 1
        self.held_bytes = own_pss_bytes if alone and own_pss_bytes else memory.pss_bytes(self.pids)

    def has_grown(self) -> bool:
        """Whether a close look is due; costs microseconds."""
        return memory.rss_bytes(self.pids) > max(1.05 * self.rss_bytes, self.rss_bytes + _GROWTH_BYTES)

    def fail(self, reason: str, status: Status = Status.FAILED) -> None:
        """The worker is gone or of no use: every case of the arm fails or is skipped, its neighbours go on."""
        for state in self.cases.values():
            state.fail(reason, status)
        self.worker, self.held_bytes = None, 0.0


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
        limit_s: float = math.inf,
        sample_s: float = 0.0,
    ):
        self.setting = setting
        self.pool = pool
        self.comparison = comparison
        self.number = number
        self.first = first
        self.idle: tuple[Reading, ...] | None = None
        """The meters while nobody computed; ``None`` until they were asked."""
        self.rounds = rounds
        self.limit_s = limit_s
        self.sample_s = sample_s or setting.measure.sample_s
        self.references = references
        self.unreferenced = unreferenced
        self.arms = [state for state in (_arm_state(arm, dropped) for arm in comparison.arms) if state.cases]
        self.previous: ArmState | None = None
        """Whose turn it was last."""
        self.turns = 0
        self.void_rounds: Counter[str] = Counter()
        """By regime, as :attr:`all_rounds`: a quiet regime must not hide that another one lost every round."""
        self.all_rounds: Counter[str] = Counter()
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
            left_s = self.limit_s - self.fixed_s
            self.rounds = schedule.affordable_rounds(self.rounds, left_s, 1, 0.0, self._estimated_round_s())
            for regime in schedule.regimes(self.comparison):
                self._regime(regime)
            self.round_s = (self.setting.clock() - loaded) / max(1, self.rounds)
            measured = self.setting.clock()
            self._verify_again()
            self.fixed_s += self.setting.clock() - measured
        except OutOfTime:
            self.interrupted = self.out_of_time = True
        except KeyboardInterrupt:
            self.interrupted = True
            raise
        finally:
            self._finish_all()

    def _estimated_round_s(self) -> float:
        """One round of every regime, from the calibrated times per call."""
        measure = self.setting.measure
        calls = [item.call_s for arm in self.arms for item in arm.cases.values() if item.active]
        return sum(measure.lead_in_s + max(self.sample_s, call_s) + call_s for call_s in calls)

    def _load_all(self) -> None:
        by_id = {state.arm.id: state for state in self.arms}
        order = schedule.shuffled(self.setting.seed, list(by_id), self.comparison.id, self.number, "start")
        for group in _together([by_id[name] for name in order]):
            self._load(group)

    def _load(self, group: list[ArmState]) -> None:
        """Load the arms of a group side by side, then check one after the other: nothing is timed while one loads."""
        for state in group:
            self._check_time()
            self._attempt(state, self._begin_load)
        for state in group:
            if state.worker is not None:
                self._attempt(state, self._end_load)
        for state in group:
            if state.loaded is not None and state.worker is not None:
                self._check_cases(state)
                if self.first:
                    self._expect_quiet(state)

    def _attempt(self, state: ArmState, step: Callable[[ArmState], None]) -> None:
        try:
            step(state)
        except WorkerGone as gone:
            self._gone(state, str(gone))
        except _Refused as refused:
            state.no_path_pid = state.worker.pid if refused.no_path and state.worker else None
            state.fail(str(refused), Status.SKIPPED if refused.no_path else Status.FAILED)

    def _begin_load(self, state: ArmState) -> None:
        state.worker, state.template_id = self.pool.start(state.arm.imports)
        self._ask(state, make_job(self.setting, _remaining(state), state.template_id, self.number))
        state.load_from_s = self.setting.clock()
        state.worker.hand_over(protocol.Load(), self.setting.measure.load_limit_s)

    def _end_load(self, state: ArmState) -> None:
        limit_s = self.setting.measure.load_limit_s
        state.loaded = self._ask(state, protocol.Load(), limit_s, watched=True, since_s=state.load_from_s)
        assert state.loaded is not None
        self._look(state, state.loaded.pss_bytes)

    def _check_cases(self, state: ArmState) -> None:
        assert state.loaded is not None
        for name, reason in state.loaded.problems.items():
            state.cases[name].fail(reason)
        for name, reason in state.loaded.capped.items():
            state.cases[name].fail(reason, Status.CAPPED)
        for name in state.loaded.settled:
            state.cases[name].settled = True
        for item in state.cases.values():
            if item.active:
                self._guard(state, item, self._verify)
            if item.active:
                self._guard(state, item, self._calibrate)
        self._check_growth(state)

    def _guard(self, state: ArmState, item: CaseState, step: Callable[[ArmState, CaseState], None]) -> None:
        self._check_time()
        try:
            step(state, item)
        except WorkerGone as gone:
            self._gone(state, str(gone))
        except _Refused as refused:
            item.fail(str(refused))

    def _verify(self, state: ArmState, item: CaseState) -> None:
        if item.case.tolerance is None:
            return
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
        reply = self._ask(state, request, self.setting.measure.load_limit_s, watched=True)
        item.verification = reply.verification
        item.facts.update(reply.facts)
        if not reply.verification.passed:
            item.fail(f"wrong answer: {_error_of(reply.verification)}")

    def _verify_again(self) -> None:
        """One position of each case once more, after its turns: an answer must not depend on how often it was asked."""
        for state in self.arms:
            for item in state.cases.values():
                checked = item.case.tolerance is not None and item.samples
                if state.worker is not None and checked and (item.status is Status.OK or self.first):
                    self._guard(state, item, self._verify_once_more)

    def _verify_once_more(self, state: ArmState, item: CaseState) -> None:
        request = protocol.Verify(case=item.case.id, reference=self.references[item.case.id], limit_s=0.0, least=1)
        reply = self._ask(state, request, self.setting.measure.load_limit_s, watched=True)
        if reply.verification.passed:
            return
        item.verification = reply.verification
        item.facts.update(reply.facts)
        calls = sum(sample.calls for sample in item.samples)
        found = _error_of(reply.verification)
        item.fail(f"answer changed between calls: right at first, after {calls} timed ones {found}")

    def _calibrate(self, state: ArmState, item: CaseState) -> None:
        measure = self.setting.measure
        request = protocol.Calibrate(case=item.case.id, limit_s=measure.warmup_limit_s)
        reply = self._ask(state, request, 4 * measure.cap_call_s + _TURN_GRACE_S, watched=True)
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
        if schedule.is_steady_load(self.void_rounds[regime], self.all_rounds[regime]):
            for _, item in states.values():
                _fail_if_late(item, pilot=self.first)
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
        self.all_rounds[regime] += 1
        self.void_rounds[regime] += void
        for _, item in active.values():
            item.good_rounds += not void

    def _order(self, regime: str, number: int, active: dict[str, tuple[ArmState, CaseState]]) -> list[str]:
        return schedule.shuffled(self.setting.seed, list(active), self.comparison.id, self.number, regime, number)

    def _turn(self, arm: ArmState, item: CaseState, number: int) -> bool:
        declared = arm.loaded is not None and arm.loaded.update_period_s is None
        try:
            reply = self._take_turn(arm, item, number, self.sample_s, energy=declared and number == 0)
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
                device_s=reply.device_s,
                start_s=reply.start_s,
                environment=reply.environment,
                void=reply.void,
            )
        )
        item.readings.extend(reply.readings)
        item.late_turns += reply.compilations > 0
        return reply.void is not None

    def _take_turn(
        self, arm: ArmState, item: CaseState, number: int, window_s: float, energy: bool, fill_s: float = 0.0
    ) -> protocol.Turned:
        measure = self.setting.measure
        request = protocol.Turn(
            case=item.case.id,
            calls=schedule.calls_per_sample(item.call_s, window_s),
            lead_in_s=measure.lead_in_s,
            quiet_limit_s=measure.quiet_limit_s,
            previous_pid=self.previous.worker.pid if self.previous and self.previous.worker else None,
            energy=energy,
            fill_s=fill_s,
            place=number,
            least_s=_LEAST_SHARE * window_s,
        )
        turn_s = measure.quiet_limit_s + measure.lead_in_s + window_s + item.call_s
        reply: protocol.Turned = self._ask(
            arm, request, 20 * (window_s + item.call_s) + _TURN_GRACE_S, undisturbed_s=1.0 + 3 * turn_s
        )
        if not reply.environment.quiet and self.previous is not None:
            self._expect_quiet(self.previous)
        self.previous = arm
        self._check_growth(arm)
        return reply

    def _expect_quiet(self, state: ArmState) -> None:
        """A worker that goes on computing when it is not its turn spoils everybody's samples: it must leave.

        Pools that spin on for a while after their work do not count; each worker is waited for a few times only.
        """
        if state.worker is None or state.suspicions >= _MOST_SUSPICIONS:
            return
        state.suspicions += 1
        threads = sum(placement.spinning_threads(pid) for pid in state.pids)
        if threads:
            self._kill(
                state,
                f"keeps {threads} thread{'s' if threads > 1 else ''} running when it is not its turn "
                f"({placement.SPIN_LIMIT_S:g} s later still), which would disturb its neighbours",
            )

    def _energy_rounds(self, regime: str, states: dict[str, tuple[ArmState, CaseState]], slow: set[str]) -> None:
        """Turns of their own for energy, where a meter measures: long windows, joules and time from the same one."""
        metered = {
            name: (arm, item)
            for name, (arm, item) in states.items()
            if item.active and name not in slow and arm.loaded is not None and arm.loaded.update_period_s is not None
        }
        if not metered or not self.comparison.metered:
            return
        if not self._energy_fits(list(metered.values())) or self._spares_energy(list(metered.values())):
            return
        self._energy_baseline([arm for arm, _ in metered.values()])
        for _, item in metered.values():
            item.readings.extend(self.idle or ())
        for number in range(self.setting.measure.energy_rounds):
            for name in self._order(regime, -1 - number, metered):
                self._check_time()
                self._energy_turn(*metered[name], number)

    def _spares_energy(self, metered: list[tuple[ArmState, CaseState]]) -> bool:
        """A pilot takes none where a meter is slow: it chooses who competes, for which times do."""
        slowest_s = max(arm.loaded.update_period_s or 0.0 for arm, _ in metered if arm.loaded is not None)
        return self.number == 0 and slowest_s >= energy_turns.SLOW_METER_S

    def _energy_fits(self, metered: list[tuple[ArmState, CaseState]]) -> bool:
        """Whether the time that is left holds these turns up to the first look; if not, the cases say so."""
        periods_s = [arm.loaded.update_period_s or 0.0 for arm, _ in metered if arm.loaded is not None]
        windows_s = [energy_turns.window_s(period_s, self.setting.measure.sample_s) for period_s in periods_s]
        rounds = self.setting.measure.energy_rounds
        needed_s = energy_turns.turns_s(windows_s, [item.call_s for _, item in metered], rounds)
        if self.idle is None:
            needed_s += (1 + energy_turns.SETTLE_SHARE) * energy_turns.idle_s(max(periods_s))
        left_s = self.setting.deadline_s - self.setting.clock()
        to_come = energy_turns.replicates_to_come(self.number, self.setting.measure.looks[0])
        skipped = energy_turns.skipped(rounds * len(metered), needed_s, left_s, to_come)
        for _, item in metered if skipped else ():
            item.facts["energy_turns_s"] = skipped
        return skipped is None

    def _energy_baseline(self, arms: list[ArmState]) -> None:
        """Once a replicate, before its first energy turn: the meters while all arms are loaded and none computes."""
        arm = next((arm for arm in arms if arm.worker is not None and arm.loaded is not None), None)
        if self.idle is not None or arm is None or arm.loaded is None:
            return
        self.idle = ()
        window_s = energy_turns.idle_s(arm.loaded.update_period_s or 0.0)
        settle_s, quiet_limit_s = energy_turns.SETTLE_SHARE * window_s, self.setting.measure.quiet_limit_s
        previous_pid = self.previous.worker.pid if self.previous and self.previous.worker else None
        request = protocol.Idle(window_s, settle_s, quiet_limit_s, previous_pid)
        try:
            self.idle = self._ask(arm, request, 2 * (settle_s + window_s) + _TURN_GRACE_S).readings
        except WorkerGone as gone:
            self._gone(arm, str(gone))
        except _Refused:
            pass  # without a baseline there are gross joules only

    def _energy_turn(self, arm: ArmState, item: CaseState, number: int) -> None:
        if not item.active or arm.loaded is None or arm.loaded.update_period_s is None:
            return
        window_s = energy_turns.window_s(arm.loaded.update_period_s, self.setting.measure.sample_s)
        for last in (False, True):
            self._check_time()
            try:
                reply = self._take_turn(arm, item, number, window_s, energy=True, fill_s=window_s)
            except WorkerGone as gone:
                self._gone(arm, str(gone))
                return
            except _Refused as refused:
                item.fail(str(refused))
                return
            item.readings.extend(energy_turns.kept(reading, number, reply.void, last) for reading in reply.readings)
            if reply.void is None or not item.active:
                return

    def _ask(
        self,
        state: ArmState,
        message: object,
        limit_s: float = 30.0,
        watched: bool = False,
        undisturbed_s: float = 0.0,
        since_s: float | None = None,
    ) -> Any:
        """Send a message and wait for its answer; only wait for it where it was sent before, at ``since_s``."""
        assert state.worker is not None
        left_s = self.setting.deadline_s - self.setting.clock() + self.setting.grace_s
        watch = partial(self._watch_memory, state) if watched else None
        within_s = min(limit_s, max(left_s, 0.1))
        try:
            if since_s is None:
                reply = state.worker.request(message, within_s, watch, undisturbed_s)
            else:
                end_s = min(since_s + limit_s, self.setting.clock() + within_s)
                reply = state.worker.take_back(message, end_s, limit_s, watch)
        except WorkerGone:
            if left_s < limit_s and self.setting.clock() >= self.setting.deadline_s:
                raise OutOfTime from None
            raise
        if isinstance(reply, protocol.Problem):
            raise _Refused(reply.reason, reply.no_path)
        return reply

    def _check_time(self) -> None:
        if self.setting.clock() >= self.setting.deadline_s:
            raise OutOfTime

    def _watch_memory(self, state: ArmState) -> str | None:
        """Asked while a worker computes, just after it was looked at from afar: is a close look due?"""
        assert state.worker is not None
        others = sum(other.held_bytes for other in self.arms if other is not state)
        if others + state.worker.held_bytes <= self.setting.measure.memory_limit_bytes:
            return None
        state.look()
        return self._over_memory()

    def _check_growth(self, state: ArmState) -> None:
        """Between turns, now and then: the memory of a worker that has just computed."""
        if state.worker is None or self.setting.clock() < state.looked_s + _GROWTH_LOOK_S:
            return
        state.looked_s = self.setting.clock()
        if state.has_grown():
            self._look(state)

    def _look(self, state: ArmState, own_pss_bytes: float | None = None) -> None:
        """See closely what a worker holds, and kill it when that is too much for it or for all together."""
        assert state.worker is not None
        state.look(own_pss_bytes)
        if over := state.worker.over_limit(state.held_bytes) or self._over_memory():
            self._kill(state, over)

    def _over_memory(self) -> str | None:
        total = sum(state.held_bytes for state in self.arms)
        self.peak_pss_bytes = max(self.peak_pss_bytes, total)
        limit = self.setting.measure.memory_limit_bytes
        if total <= limit:
            return None
        return (
            f"memory limit: {memory.gib(total)} in use, {memory.gib(limit)} allowed for all workers of a comparison; "
            "raise measure.memory_limit_bytes"
        )

    def _kill(self, state: ArmState, reason: str) -> None:
        if state.worker is not None:
            state.worker.kill()
        self._gone(state, reason)

    @staticmethod
    def _gone(state: ArmState, reason: str) -> None:
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
        for arm in self.arms:
            for item in arm.cases.values():
                regime = item.case.regime
                yield self._record(
                    arm, item, schedule.is_steady_load(self.void_rounds[regime], self.all_rounds[regime])
                )

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
            tier=self.comparison.tier,
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
            first_start=loaded.first_starts.get(name) if loaded else None,
        )

    @staticmethod
    def _worker_info(arm: ArmState) -> WorkerInfo | None:
        """Who measured it, or found out that there is nothing to measure here."""
        pid = arm.loaded.pid if arm.loaded else arm.no_path_pid
        if pid is None:
            return None
        return WorkerInfo(
            pid=pid,
            start_method="fork" if arm.template_id else "spawn",
            template_id=arm.template_id,
            threads=arm.loaded.threads if arm.loaded else None,
            libraries=arm.loaded.libraries if arm.loaded else {},
        )


class _Refused(Exception):
    """The worker answered that it cannot; it lives on."""

    def __init__(self, reason: str, no_path: bool = False):
        super().__init__(reason)
        self.no_path = no_path


def _fail_if_late(item: CaseState, pilot: bool) -> None:
    """Where so many rounds are void that all are kept, windows in which something was compiled must not be.

    A pilot's windows count for nothing, so there one without a compilation is enough to go on.
    """
    if item.late_turns and not (pilot and item.late_turns < len(item.samples)):
        item.fail(
            f"kernels were compiled or tuned inside {item.late_turns} of {len(item.samples)} windows, after warm-up: "
            "too often to set these aside, and their times are none of the arm's"
        )


def _error_of(verification: Verification) -> str:
    found = "not finite or of the wrong shape" if verification.error is None else f"{verification.error:.3g}"
    return f"error {found}, allowed {verification.tolerance:.3g} ({verification.what})"


def _arm_state(arm: Arm, dropped: set[str]) -> ArmState:
    return ArmState(arm=arm, cases={case.id: CaseState(case) for case in arm.cases if case.id not in dropped})


def _together(arms: list[ArmState]) -> list[list[ArmState]]:
    """Arms that load side by side: those of a device, which leave most of the work to it; others one by one."""
    on_device = [state for state in arms if state.arm.cases[0].device != "cpu"]
    return [*([state] for state in arms if state.arm.cases[0].device == "cpu"), *([on_device] if on_device else [])]


def _remaining(state: ArmState) -> Arm:
    cases = tuple(item.case for item in state.cases.values())
    return Arm(id=state.arm.id, cases=cases, imports=state.arm.imports)
