"""Which of several arms is fastest, by how much and how surely: the answer of ``versus`` from stored records."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, stdev

from frugalbench.analysis import variance
from frugalbench.analysis.duel import answers, faster, question
from frugalbench.analysis.judge import Evidence
from frugalbench.analysis.statistics import counted, pair_logs, round_values, void_rounds
from frugalbench.schema import Claim, Record, Status, Verdict
from frugalbench.units import significant

POWER = 0.8


@dataclass(frozen=True)
class Standing:
    """One arm on its own: absolute figures say little on a shared machine."""

    arm: str
    time_s: float | None
    """Per call: median over replicates of the median over rounds."""
    replicates: int
    samples: int
    calls: int
    problem: str = ""
    """Why it was not measured."""


@dataclass(frozen=True)
class Pair:
    """Two arms against each other."""

    baseline: str
    candidate: str
    metric: str
    """``time`` or ``energy``."""
    ratio: float
    """Speed (or calls per joule) of the candidate over the baseline's."""
    low: float | None
    high: float | None
    confidence: float | None
    candidate_faster: bool | None
    """``None``: these data cannot tell."""
    detectable: float | None
    """Difference that this many replicates with this spread find 4 times in 5."""
    replicates: int

    def turned(self) -> "Pair":
        """The same seen from the other arm."""
        return Pair(
            baseline=self.candidate,
            candidate=self.baseline,
            metric=self.metric,
            ratio=1 / self.ratio,
            low=None if self.high is None else 1 / self.high,
            high=None if self.low is None else 1 / self.low,
            confidence=self.confidence,
            candidate_faster=None if self.candidate_faster is None else not self.candidate_faster,
            detectable=self.detectable,
            replicates=self.replicates,
        )


@dataclass(frozen=True)
class Result:
    """All of it."""

    sentence: str
    arms: tuple[Standing, ...]
    pairs: tuple[Pair, ...]
    energy: tuple[Pair, ...]
    """Empty where no meter measures."""
    floor: float
    """Widening of each interval, from this machine's self-test or the default."""
    void_share: float
    steady_load: bool


def claims(workload: str, regime: str, arms: Sequence[str], metric: str = "time") -> list[Claim]:
    """One question per pair of arms, grouped by the earlier one."""
    return [question(workload, regime, arm, arms[at + 1 :], metric=metric) for at, arm in enumerate(arms[:-1])]


def share_alpha(alpha: float, arms: int) -> float:
    """Alpha of each question: those that share a baseline pay by Holm's procedure, the baselines split it evenly."""
    return alpha / max(1, arms - 1)


def result(evidence: Evidence, workload: str, regime: str, arms: Sequence[str]) -> Result:
    """What the records say."""
    standings = tuple(_standing(evidence.records, name) for name in arms)
    pairs = _pairs(evidence, workload, regime, arms, "time")
    mine = [record for record in evidence.records if counted(record)]
    samples = [sample for record in mine for sample in record.samples]
    return Result(
        sentence=_sentence(standings, pairs),
        arms=standings,
        pairs=pairs,
        energy=_pairs(evidence, workload, regime, arms, "energy"),
        floor=evidence.floor,
        void_share=sum(sample.void is not None for sample in samples) / len(samples) if samples else 0.0,
        steady_load=any(record.steady_load for record in mine),
    )


def _pairs(evidence: Evidence, workload: str, regime: str, arms: Sequence[str], metric: str) -> tuple[Pair, ...]:
    rows = [row for claim in claims(workload, regime, arms, metric) for row in answers(claim, evidence)]
    return tuple(_pair(evidence, row, metric) for row in rows if row.ratio is not None)


def _pair(evidence: Evidence, row: Verdict, metric: str) -> Pair:
    assert row.baseline is not None and row.candidate is not None and row.ratio is not None
    logs = _logs(evidence.records, row.baseline, row.candidate, metric)
    alpha = 1 - (row.confidence or 0.95)
    return Pair(
        baseline=row.baseline,
        candidate=row.candidate,
        metric=metric,
        ratio=row.ratio,
        low=row.low,
        high=row.high,
        confidence=row.confidence,
        candidate_faster=faster(row),
        detectable=variance.smallest_effect(stdev(logs), len(logs), alpha, evidence.floor, POWER)
        if len(logs) > 1
        else None,
        replicates=row.replicates,
    )


def _logs(records: Sequence[Record], base: str, other: str, metric: str) -> list[float]:
    mine = [record for record in records if counted(record)]
    ours, theirs = ([record for record in mine if record.case.variant == name] for name in (base, other))
    return list(pair_logs(ours, theirs, metric, void_rounds(records)))


def _standing(records: Sequence[Record], name: str) -> Standing:
    mine = [record for record in records if record.case.variant == name]
    good = [record for record in mine if counted(record) and record.samples]
    spoilt = void_rounds(records)
    times = []
    for record in good:
        values = round_values(
            record, "time", spoilt.get((record.comparison, record.case.regime, record.replicate), set())
        )
        if values:
            times.append(median(values.values()))
    problems = [record.reason for record in mine if record.status in (Status.FAILED, Status.SKIPPED) and record.reason]
    return Standing(
        arm=name,
        time_s=median(times) if times else None,
        replicates=len(good),
        samples=sum(len(record.samples) for record in good),
        calls=sum(sample.calls for record in good for sample in record.samples),
        problem=problems[0] if problems and not times else "",
    )


def _sentence(standings: Sequence[Standing], pairs: Sequence[Pair]) -> str:
    if not pairs:
        problems = [f"{item.arm}: {item.problem}" for item in standings if item.problem]
        return f"Nothing to compare: {'; '.join(problems) or 'no replicate was finished'}."
    leader = _leader(standings, pairs)
    rest = [_from(leader, pair) for pair in pairs if leader in (pair.baseline, pair.candidate)]
    beaten = [pair for pair in rest if pair.candidate_faster]
    level = [pair for pair in rest if not pair.candidate_faster]
    if not level:
        return f"{leader} is fastest: {', '.join(map(_how_much, beaten))}."
    names = " and ".join([leader, *(pair.baseline for pair in level)])
    apart = f"{names} cannot be told apart here ({'; '.join(map(_what_it_could, level))})"
    return f"{apart}; {leader} is {', '.join(map(_how_much, beaten))}." if beaten else f"{apart}."


def _leader(standings: Sequence[Standing], pairs: Sequence[Pair]) -> str:
    """The arm that no other beats, by the ratios themselves."""
    gains = dict.fromkeys((item.arm for item in standings if item.time_s is not None), 0.0)
    for pair in pairs:
        gains[pair.candidate] += math.log(pair.ratio)
        gains[pair.baseline] -= math.log(pair.ratio)
    return max(gains, key=lambda name: gains[name])


def _from(leader: str, pair: Pair) -> Pair:
    return pair if pair.candidate == leader else pair.turned()


def _how_much(pair: Pair) -> str:
    sure = "" if pair.confidence is None else f", {pair.confidence:.1%} sure"
    return f"{number(pair.ratio)} times as fast as {pair.baseline} ({_span(pair)}{sure})"


def _span(pair: Pair) -> str:
    if pair.low is None or pair.high is None:
        return "one replicate, no interval"
    return f"{number(pair.low)} to {number(pair.high)}"


def _what_it_could(pair: Pair) -> str:
    found = "" if pair.detectable is None else f"a difference of {pair.detectable:.1%} would have been found"
    could = f", {found} four times in five" if found else ""
    return f"{number(pair.ratio)}, {_span(pair)}{could}"


def slower_by(pairs: Sequence[Pair], first: str) -> dict[str, float]:
    """By how much each arm is surely slower than ``first``, in percent; negative where it may be as fast."""
    return {
        pair.candidate: 100 * (1 / pair.high - 1) for pair in pairs if pair.baseline == first and pair.high is not None
    }


def number(ratio: float) -> str:
    """A ratio with a digit more near 1, where it matters."""
    return f"{ratio:.3f}" if 0.8 < ratio < 1.25 else significant(ratio)
