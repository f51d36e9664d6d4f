"""One run: comparisons in the order of the plan, replicates until ``decide`` says stop, records as they come."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from statistics import median

from frugalbench import machine
from frugalbench.config import Config
from frugalbench.paths import cache_dir
from frugalbench.run import protocol, schedule
from frugalbench.run.replicate import Replicate
from frugalbench.run.setting import Setting, make_job
from frugalbench.run.store import Store, came_to_a_worker
from frugalbench.run.transport import Pool, Worker, WorkerGone
from frugalbench.schema import SCHEMA_VERSION, Arm, Case, Comparison, Decision, Plan, Record, Status, Tier
from frugalbench.specs import SPECS

Decide = Callable[[Sequence[Record], int], Decision]
"""``decide(records of a comparison, counted replicates) -> Decision``; pure."""


ChooseRounds = Callable[[Sequence[Record], float, float], int | None]
"""``choose_rounds(records, fixed_s, round_s)``: rounds per replicate that suit the noise seen so far; pure."""

LEAST_REPLICATES = 2
"""With fewer there is no interval."""
FIT_MARGIN = 1.5
"""One more replicate is begun at the end of a run only when this many times its length is left."""
STEADY_STRETCH = 4.0
"""So many times longer are the samples of a comparison whose latest replicate was under a steady load ..."""
WIDE_SPREAD = 0.3
"""... if its samples differ by more than this (median over cases of the standard deviation of log time)."""


@dataclass
class Outcome:
    """What a run leaves behind beside its records."""

    state: str = "complete"
    decisions: dict[str, Decision] = field(default_factory=dict)
    measuring_s: float = 0.0
    """Everything but the preparation of artefacts."""
    prepared_s: float = 0.0
    modelling_cpu_s: float = 0.0
    """Of this process, for modelled cases."""
    peak_pss_bytes: float = 0.0
    import_s: dict[str, float] = field(default_factory=dict)
    spoilt: dict[str, str] = field(default_factory=dict)
    """Modules that each worker had to import by itself, and what they do on import."""
    failed: int = 0


class Engine:
    """Executes a plan into a store."""

    def __init__(
        self,
        plan: Plan,
        config: Config,
        store: Store,
        decide: Decide,
        cores: int,
        progress: Callable[[str], None],
        before: Sequence[Record] = (),
        choose_rounds: ChooseRounds = lambda _records, _fixed_s, _round_s: None,
        plugins: Mapping[str, str] | None = None,
        elapsed_s: float = 0.0,
    ):
        """``before`` are the records of a run that is gone on with, ``elapsed_s`` its clock: starts stay in order."""
        self.plan = plan
        self.measure = config.measure
        self.store = store
        self.decide = decide
        self.choose_rounds = choose_rounds
        self.progress = progress
        self.records: list[Record] = list(before)
        self.outcome = Outcome()
        self.short: dict[str, float] = {}
        """Comparisons that spent their share of the time undecided, and what one more replicate of each takes."""
        self.references: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
        start_s = time.monotonic()
        budget_s = config.measure.time_budget_s
        cache = cache_dir()
        cache.mkdir(parents=True, exist_ok=True)
        self.setting = Setting(
            measure=config.measure,
            energy=config.energy,
            seed=plan.seed,
            cores=cores,
            cache_dir=str(cache),
            scratch_dir=str(store.scratch),
            start_s=start_s - elapsed_s,
            clock=time.monotonic,
            deadline_s=start_s + budget_s,
            grace_s=max(1.0, 0.05 * budget_s),
            plugins=plugins or {},
        )
        self.pool = Pool(store.scratch, config.measure.load_limit_s, config.measure.worker_limit_bytes)

    def run(self) -> Outcome:
        """Everything; on Ctrl-C what was measured is kept and the outcome says ``interrupted``."""
        begin = time.monotonic()
        try:
            self._skips()
            self._models()
            for position, comparison in enumerate(self.plan.comparisons):
                self._compare(comparison, self.plan.comparisons[position + 1 :])
            self._spend_the_rest()
        except KeyboardInterrupt:
            self.outcome.state = "interrupted"
        finally:
            self.outcome.measuring_s = time.monotonic() - begin - self.outcome.prepared_s
            self.outcome.import_s, self.outcome.spoilt = self.pool.import_s(), self.pool.spoilt()
            self.pool.close()
        self.outcome.failed = sum(record.status is Status.FAILED for record in self.records)
        return self.outcome

    def _append(self, records: Sequence[Record]) -> None:
        self.store.append(records)
        self.records.extend(records)

    def _skips(self) -> None:
        known = {record.case.id for record in self.records}
        skipped = [skip for skip in self.plan.skipped if skip.case.id not in known]
        self._append([_skip_record("plan", skip.case, skip.case.variant, skip.reason) for skip in skipped])

    def _models(self) -> None:
        """What a model computes is work that was asked for, and no overhead of measuring."""
        begin_s = time.process_time()
        known = {record.case.id for record in self.records}
        for case in self.plan.modelled:
            if case.id not in known:
                self._append([import_module(SPECS[case.workload]).model(case)])
        self.outcome.modelling_cpu_s = time.process_time() - begin_s

    def _of(self, comparison: Comparison) -> list[Record]:
        """What its workers found, be it that an arm has no kernel here; not what never came to a worker."""
        return [
            record
            for record in self.records
            if record.comparison == comparison.id and not record.interrupted and came_to_a_worker(record)
        ]

    def _compare(self, comparison: Comparison, waiting: Sequence[Comparison]) -> None:
        left_s = self.setting.deadline_s - time.monotonic()
        if left_s <= 0:
            self._out_of_time(comparison)
            return
        done = self._done(comparison)
        self._look(comparison, max(done & set(self.measure.looks), default=0))
        if self._decided(comparison):
            return
        if comparison.id not in self.references:
            self.references[comparison.id] = self._references(comparison)
        references, unreferenced = self.references[comparison.id]
        if time.monotonic() >= self.setting.deadline_s:
            self._out_of_time(comparison)
            return
        left_s = self.setting.deadline_s - time.monotonic()
        budget_end_s = time.monotonic() + schedule.share_of_budget(left_s, comparison, waiting)
        rounds = self.measure.rounds
        for number in range(_first(comparison), self.measure.looks[-1] + 1):
            if number in done:
                continue
            if self._nothing_left(comparison):
                self._stop(comparison, "nothing is left to time")
                return
            wanted = rounds if number else self.measure.pilot_rounds
            limit_s = (budget_end_s - time.monotonic()) / max(1, self.measure.looks[0] - number + 1)
            replicate = self._replicate(comparison, number, wanted, references, unreferenced, limit_s)
            if replicate.out_of_time:
                self._out_of_time(comparison)
                return
            self._look(comparison, number)
            if self._decided(comparison):
                return
            rounds = self._affordable(comparison, replicate, number, budget_end_s)
            next_s = replicate.fixed_s + rounds * replicate.round_s
            if number >= LEAST_REPLICATES and time.monotonic() + next_s > budget_end_s + self._slack_s(number):
                self._stop(comparison, f"its share of the time budget is spent after {number} replicates")
                self.short[comparison.id] = next_s
                return

    def _spend_the_rest(self) -> None:
        """Time that settled comparisons left over goes to those that spent their share undecided."""
        while self.short:
            state, short = self.outcome.state, self.short
            self.short = {}
            waiting = [item for item in self.plan.comparisons if self._fits(short.get(item.id))]
            for position, comparison in enumerate(waiting):
                if self._fits(short[comparison.id]):
                    del self.outcome.decisions[comparison.id]
                    self._compare(comparison, waiting[position + 1 :])
            self.outcome.state = state

    def _fits(self, replicate_s: float | None) -> bool:
        return replicate_s is not None and time.monotonic() + FIT_MARGIN * replicate_s < self.setting.deadline_s

    def _done(self, comparison: Comparison) -> set[int]:
        """Replicates of which every case that was to be measured has a record; the rest is measured again."""
        dropped = self._dropped(comparison)
        wanted = {case.id for arm in comparison.arms for case in arm.cases}
        found: dict[int, set[str]] = {}
        for record in self._of(comparison):
            found.setdefault(record.replicate, set()).add(record.case.id)
        return {number for number, cases in found.items() if cases >= (wanted - dropped if number else wanted)}

    def _slack_s(self, number: int) -> float:
        """What a comparison that has not reached its first look may take beyond its share from those after it."""
        left_s = self.setting.deadline_s - time.monotonic()
        return self.measure.overdraft * left_s if number < self.measure.looks[0] else 0.0

    def _affordable(self, comparison: Comparison, replicate: Replicate, number: int, budget_end_s: float) -> int:
        """Rounds for the next replicate: those that suit its noise, and that reach the next look within its share."""
        to_come = max(1, min((look for look in self.measure.looks if look > number), default=number) - number)
        left_s, fixed_s, round_s = budget_end_s - time.monotonic(), replicate.fixed_s, replicate.round_s
        wanted = self.choose_rounds(self._of(comparison), fixed_s, round_s) or self.measure.rounds
        return schedule.affordable_rounds(wanted, left_s, to_come, fixed_s, round_s)

    def _replicate(
        self,
        comparison: Comparison,
        number: int,
        rounds: int,
        references: dict[str, str],
        unreferenced: dict[str, str],
        limit_s: float,
    ) -> Replicate:
        name = f"replicate {number} of up to {self.measure.looks[-1]}" if number else "pilot"
        self.progress(f"{comparison.id}: {name}, {rounds} rounds")
        dropped = self._dropped(comparison)
        first = number == _first(comparison)
        replicate = Replicate(
            self.setting, self.pool, comparison, number, rounds, references, unreferenced, dropped, first, limit_s,
            self._sample_s(comparison),
        )  # fmt: skip
        try:
            replicate.run()
        finally:
            shared = sum(machine.pss_bytes(pid) or 0.0 for pid in self.pool.pids())
            self.outcome.peak_pss_bytes = max(self.outcome.peak_pss_bytes, replicate.peak_pss_bytes + shared)
            self._append(list(replicate.records()))
        return replicate

    def _sample_s(self, comparison: Comparison) -> float:
        """Under a steady load that makes samples differ widely they are longer: one that lasts three slices of the
        scheduler tells little."""
        records = self._of(comparison)
        number = max((record.replicate for record in records), default=0)
        loaded = [record for record in records if record.replicate == number and record.steady_load]
        spreads = [schedule.spread([sample.time_s for sample in record.samples]) for record in loaded]
        wide = bool(spreads) and median(spreads) > WIDE_SPREAD
        return self.measure.sample_s * (STEADY_STRETCH if wide else 1.0)

    def _look(self, comparison: Comparison, number: int) -> None:
        """A planned look at the data; unplanned ones are not taken."""
        if number in self.measure.looks:
            seen = [record for record in self._of(comparison) if record.replicate <= number]
            self.outcome.decisions[comparison.id] = self.decide(seen, number)

    def _decided(self, comparison: Comparison) -> bool:
        decision = self.outcome.decisions.get(comparison.id)
        return decision is not None and decision.stop

    def _stop(self, comparison: Comparison, reason: str) -> None:
        self.outcome.decisions[comparison.id] = Decision(stop=True, look=0, reason=reason)

    def _dropped(self, comparison: Comparison) -> set[str]:
        """Cases that the pilot showed to be wrong, broken or hopelessly slow: recorded once, not tried again."""
        return {
            record.case.id
            for record in self._of(comparison)
            if record.replicate == _first(comparison) and (record.status is Status.FAILED or not record.samples)
        }

    def _nothing_left(self, comparison: Comparison) -> bool:
        """Whether the first replicate dropped every case: another one would start no worker."""
        return self._dropped(comparison) >= {case.id for arm in comparison.arms for case in arm.cases}

    def _references(self, comparison: Comparison) -> tuple[dict[str, str], dict[str, str]]:
        """Folders of the float64 references by case, and why there is none; once per run, in workers of their own."""
        paths: dict[str, str] = {}
        reasons: dict[str, str] = {}
        checked = [arm for arm in comparison.arms if not all(case.tolerance is None for case in arm.cases)]
        for number, arm in enumerate(checked):
            if all(case.id in paths for case in arm.cases):
                continue
            self.progress(f"{comparison.id}: artefacts and reference of {arm.id}")
            try:
                paths.update(self._reference(arm, checked[number + 1 :]))
            except WorkerGone as gone:
                reasons.update({case.id: str(gone) for case in arm.cases})
        return paths, reasons

    def _reference(self, arm: Arm, others: Sequence[Arm]) -> dict[str, str]:
        worker, template_id = self.pool.start(arm.imports)
        try:
            worker.request(make_job(self.setting, arm, template_id), self._limit_s())
            self._prepare(worker)
            reply = worker.request(protocol.Reference(tuple(others)), self._limit_s())
        except BaseException:
            worker.kill()
            worker.close()
            raise
        worker.finish()
        if isinstance(reply, protocol.Problem):
            raise WorkerGone(reply.reason)
        paths: dict[str, str] = reply.paths
        return paths

    def _limit_s(self) -> float:
        """The load limit, or what is left of the time budget."""
        left_s = self.setting.deadline_s + self.setting.grace_s - time.monotonic()
        return min(self.measure.load_limit_s, max(0.1, left_s))

    def _prepare(self, worker: Worker) -> None:
        """Exports and compilations that are not cached yet; their time extends the deadline and is told apart."""
        begin = time.monotonic()
        worker.request(protocol.Prepare(), self.measure.load_limit_s)
        spent_s = time.monotonic() - begin
        self.outcome.prepared_s += spent_s
        self.setting = replace(self.setting, deadline_s=self.setting.deadline_s + spent_s)

    def _out_of_time(self, comparison: Comparison) -> None:
        self.outcome.state = "out of time"
        reason = f"the time budget of {self.measure.time_budget_s:.0f} s ran out; raise it with --time-budget"
        self._stop(comparison, reason)
        if not any(record.replicate for record in self._of(comparison)):
            self._append(
                [_skip_record(comparison.id, case, arm.id, reason) for arm in comparison.arms for case in arm.cases]
            )


def _first(comparison: Comparison) -> int:
    """Number of the first replicate: the pilot, 0, unless nothing has to be chosen."""
    return 0 if comparison.competes else 1


def _skip_record(comparison: str, case: Case, arm: str, reason: str) -> Record:
    return Record(
        schema_version=SCHEMA_VERSION,
        comparison=comparison,
        arm=arm,
        case=case,
        replicate=0,
        status=Status.SKIPPED,
        reason=reason,
        tier=Tier.MEASURED,
    )
