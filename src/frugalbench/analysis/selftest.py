"""What a bank of identical and slowed arms says about this harness on this machine.

Replicates of the bank are cut into disjoint blocks, and each block is replayed through the stopping rule and the
interval that real comparisons use. Nothing here measures.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median, stdev

import msgspec

from frugalbench.analysis import variance
from frugalbench.analysis.duel import answers, conclude, faster, question
from frugalbench.analysis.judge import Evidence
from frugalbench.analysis.spending import last_level
from frugalbench.analysis.statistics import DEFAULT_FLOOR, counted, pair_logs, round_values, void_rounds
from frugalbench.schema import Outcome, Record, Status, Verdict

WORKLOAD = "selftest"
LEAST_FLOOR = 0.002
"""Floor of a machine whose identical arms give no more false alarms than allowed: 0.2%, about what timer and rounding
of calls may add. Differences in code layout between builds of one program are not measured by identical arms."""
BLOCK = 4
"""Replicates of a replayed comparison: the one look of the `smoke` config."""
POWER = 0.8


@dataclass(frozen=True)
class Rate:
    """A share with its 95% Wilson interval; ``None`` without a trial."""

    count: int
    of: int
    rate: float | None
    low: float | None
    high: float | None


def rate(hits: Iterable[bool]) -> Rate:
    """Share of true values."""
    values = list(hits)
    count, of = sum(values), len(values)
    if not of:
        return Rate(0, 0, None, None, None)
    z = 1.959964
    share = count / of
    centre, scale = share + z * z / (2 * of), 1 + z * z / of
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return Rate(count, of, share, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


@dataclass(frozen=True)
class Effect:
    """How comparisons with a known slowdown ended."""

    percent: float
    detected: Rate
    undecided: Rate
    wrong: Rate


@dataclass(frozen=True)
class Kind:
    """One kind of work under one condition."""

    kind: str
    looks: tuple[int, ...]
    comparisons: int
    """Replayed comparisons of identical arms."""
    unusable: int
    """Comparisons that could not be replayed: no round of any replicate was left unspoilt."""
    replicates: int
    false_verdict_rate: Rate
    """Identical arms called different, with the floor in force."""
    unwidened_false_verdict_rate: Rate
    """The same without any floor: what the interval alone achieves."""
    undecided_rate: Rate
    """Identical arms left undecided, which is the right answer."""
    champion_false_verdict_rate: Rate
    """Identical arms, the best of several chosen in a pilot, against the first."""
    champion_reused_rate: Rate
    """The same with the champion chosen on the very data that judge it: what the pilot prevents."""
    coverage: Rate
    """Intervals that hold the true ratio, over identical and slowed arms, without the floor."""
    detection: tuple[Effect, ...]
    spread: float | None
    """Standard deviation of the log-ratio of identical arms between replicates; ``None`` with fewer than two."""
    smallest_detectable_effect: float | None
    """Slowdown found with 80% power at the one look of ``looks``."""
    smallest_detectable_effect_at_most: float | None
    """The same when a comparison goes on to the last look that ``versus`` plans."""
    median_time_to_verdict_s: float | None
    pair_replicate_s: float | None
    """Wall time of one replicate of two arms, start-up included."""
    components: variance.Components | None
    void_share: float
    problem: str = ""
    """Why there is no whole replicate."""


def too_few(comparisons: int, alpha: float) -> bool:
    """Whether so few comparisons of identical arms cannot show a false-verdict rate of ``alpha``, whatever they say."""
    return comparisons < 1 / alpha


def floor_from(excesses: Sequence[Sequence[float]], alpha: float) -> float:
    """Smallest floor at which at most ``alpha`` of the identical pairs of all banks are called different.

    At least the default of a machine that was never self-tested when they are too few.
    """
    every = sorted((item for excess in excesses for item in excess), reverse=True)
    worst = max(every[int(alpha * len(every)) :], default=0.0)
    return max(DEFAULT_FLOOR if too_few(len(every), alpha) else LEAST_FLOOR, math.expm1(worst))


class Bank:
    """The records of one kind of work, cut into blocks of replicates."""

    def __init__(self, kind: str, records: Sequence[Record], alpha: float) -> None:
        self.kind = kind
        self.alpha = alpha
        mine = [record for record in records if record.case.workload == WORKLOAD and record.case.regime == kind]
        self.units = {record.case.variant: int(record.case.params["units"]) for record in mine}
        by_replicate: dict[int, list[Record]] = {}
        for record in mine:
            if counted(record) and record.samples:
                by_replicate.setdefault(record.replicate, []).append(record)
        whole = {number: rows for number, rows in by_replicate.items() if len(rows) == len(self.units)}
        self.replicates = [whole[number] for number in sorted(whole)]
        self.reasons = [record.reason for record in mine if record.status in (Status.FAILED, Status.SKIPPED)]
        self.identical = [name for name in self.units if self.units[name] == self.units.get("same")]
        self.slowed = [name for name in self.units if name not in self.identical]

    def blocks(self, size: int) -> list[list[Record]]:
        """Disjoint runs of ``size`` replicates, numbered from 1 again."""
        return [
            [
                msgspec.structs.replace(record, replicate=number, comparison=WORKLOAD)
                for number, rows in enumerate(self.replicates[start : start + size], 1)
                for record in rows
            ]
            for start in range(0, len(self.replicates) - size + 1, size)
        ]

    def pairs(self) -> list[tuple[str, str]]:
        """Identical arms two by two, each in one pair."""
        return list(zip(self.identical[::2], self.identical[1::2], strict=False))

    def replay(
        self, block: Sequence[Record], base: str, other: str, looks: Sequence[int], floor: float
    ) -> Verdict | None:
        """What a comparison of two arms on this block would have said; ``None`` when all its rounds are spoilt."""
        end = self.ended(block, base, other, looks, floor)
        return end and end[0]

    def ended(
        self, block: Sequence[Record], base: str, other: str, looks: Sequence[int], floor: float
    ) -> tuple[Verdict, int] | None:
        """The same, and after how many replicates."""
        chosen = [record for record in block if record.case.variant in (base, other)]
        return conclude(chosen, question(WORKLOAD, self.kind, base, [other]), looks, self.alpha, floor)

    def excess(self) -> list[float]:
        """By how much (log) the interval of each identical pair in each block misses 1; 0 when it holds it."""
        rows = [self.replay(block, *pair, (BLOCK,), 0.0) for block in self.blocks(BLOCK) for pair in self.pairs()]
        return [_excess(row) for row in rows if row is not None]

    def truth(self, base: str, other: str) -> float:
        """The ratio of speeds that the units of work make."""
        return self.units[base] / self.units[other]


def study(bank: Bank, floor: float, versus_looks: Sequence[int]) -> Kind:
    """Everything that the bank says when intervals are widened by ``floor``."""
    looks = (BLOCK,)
    blocks = bank.blocks(BLOCK)
    pairs = [(item, pair) for item in blocks for pair in bank.pairs()]
    same = [row for item, pair in pairs if (row := bank.replay(item, *pair, looks, floor))]
    bare = [row for item, pair in pairs if (row := bank.replay(item, *pair, looks, 0.0))]
    slowed = [(item, name) for item in blocks for name in bank.slowed]
    slow = [(name, row) for item, name in slowed if (row := bank.replay(item, "same", name, looks, 0.0))]
    spread = _spread(bank)
    pair_s = _pair_replicate_s(bank)
    last = versus_looks[-1]
    return Kind(
        kind=bank.kind,
        looks=looks,
        comparisons=len(same),
        unusable=len(pairs) + len(slowed) - len(same) - len(slow),
        replicates=len(bank.replicates),
        false_verdict_rate=rate(faster(row) is not None for row in same),
        unwidened_false_verdict_rate=rate(faster(row) is not None for row in bare),
        undecided_rate=rate(row.verdict is Outcome.INCONCLUSIVE for row in same),
        champion_false_verdict_rate=rate(_champion(bank, floor)),
        champion_reused_rate=rate(end for item in blocks if (end := _reused(bank, item, floor)) is not None),
        coverage=_coverage([*((row, 1.0) for row in bare), *((row, bank.truth("same", name)) for name, row in slow)]),
        detection=tuple(_effect(bank, name, blocks, looks, floor) for name in bank.slowed),
        spread=spread,
        smallest_detectable_effect=_smallest(spread, BLOCK, bank.alpha, floor),
        smallest_detectable_effect_at_most=_smallest(spread, last, last_level(bank.alpha, versus_looks, last), floor),
        median_time_to_verdict_s=_time_to_verdict_s(bank, versus_looks, floor, pair_s),
        pair_replicate_s=pair_s,
        components=variance.components(_tables(bank)),
        void_share=_void_share(bank),
        problem=bank.reasons[0] if bank.reasons and not bank.replicates else "",
    )


def _smallest(spread: float | None, replicates: int, alpha: float, floor: float) -> float | None:
    return None if spread is None else variance.smallest_effect(spread, replicates, alpha, floor, POWER)


def _coverage(rows: Sequence[tuple[Verdict, float]]) -> Rate:
    """Share of the intervals, where there is one, that hold the truth beside them."""
    return rate(row.low <= truth <= row.high for row, truth in rows if row.low is not None and row.high is not None)


def _excess(row: Verdict) -> float:
    if row.low is None or row.high is None:
        return 0.0
    return max(0.0, math.log(row.low), -math.log(row.high))


def _effect(bank: Bank, name: str, blocks: Sequence[Sequence[Record]], looks: Sequence[int], floor: float) -> Effect:
    ends = [faster(row) for block in blocks if (row := bank.replay(block, "same", name, looks, floor))]
    return Effect(
        percent=100 * (bank.units[name] / bank.units["same"] - 1),
        detected=rate(end is False for end in ends),
        undecided=rate(end is None for end in ends),
        wrong=rate(end is True for end in ends),
    )


def _champion(bank: Bank, floor: float) -> list[bool]:
    """Blocks of one pilot and ``BLOCK`` counted replicates: is the pilot's champion called different from the first?"""
    others = [name for name in bank.identical if name != "same"]
    if not others:
        return []
    claim = question(WORKLOAD, bank.kind, "same", [], others)
    found = []
    for item in bank.blocks(BLOCK + 1):
        shifted = [msgspec.structs.replace(record, replicate=record.replicate - 1) for record in item]
        evidence = Evidence(records=tuple(shifted), machine="", alpha=bank.alpha, floor=floor)
        found += [faster(row) is not None for row in answers(claim, evidence) if row.arm == "best" and row.ratio]
    return found


def _reused(bank: Bank, block: Sequence[Record], floor: float) -> bool | None:
    """Is the arm that looks fastest in a block called different from the first on the same block?"""
    others = [name for name in bank.identical if name != "same"]
    rows = [row for name in others if (row := bank.replay(block, "same", name, (BLOCK,), floor))]
    return faster(max(rows, key=lambda row: row.ratio or 0.0)) is not None if rows else None


def _logs(bank: Bank, base: str, other: str) -> list[float]:
    records = [
        msgspec.structs.replace(record, replicate=number, comparison=WORKLOAD)
        for number, rows in enumerate(bank.replicates, 1)
        for record in rows
    ]
    ours, theirs = ([r for r in records if r.case.variant == name] for name in (base, other))
    return list(pair_logs(ours, theirs, "time", void_rounds(records)))


def _spread(bank: Bank) -> float | None:
    """Root mean square over the identical pairs of the standard deviation between replicates."""
    logs = [_logs(bank, *pair) for pair in bank.pairs()]
    squares = [stdev(values) ** 2 for values in logs if len(values) >= 2]
    return math.sqrt(fmean(squares)) if squares else None


def _tables(bank: Bank) -> list[list[list[float]]]:
    """Log times of the identical arms of each replicate, over the rounds that all of them took."""
    tables = []
    for rows in bank.replicates:
        bad = set().union(*void_rounds(rows).values())
        times = [round_values(row, "time", bad) for row in rows if row.case.variant in bank.identical]
        rounds = sorted(set.intersection(*map(set, times))) if times else []
        tables.append([[math.log(arm[number]) for number in rounds] for arm in times])
    return tables


def _pair_replicate_s(bank: Bank) -> float | None:
    """Median wall time from one replicate's first sample to the next one's, times two of its arms."""
    starts = [min(sample.start_s for row in rows for sample in row.samples) for rows in bank.replicates]
    steps = [after - before for before, after in pairwise(starts) if after > before]
    return 2 / len(bank.units) * median(steps) if steps else None


def _time_to_verdict_s(bank: Bank, looks: Sequence[int], floor: float, pair_s: float | None) -> float | None:
    """Median over replays of slowed arms with all looks: replicates until the verdict times the time of one."""
    size = min(looks[-1], max((look for look in looks if look <= len(bank.replicates)), default=0))
    if pair_s is None or not size or not bank.slowed:
        return None
    blocks = [(item, name) for item in bank.blocks(size) for name in bank.slowed]
    ends = [end[1] for item, name in blocks if (end := bank.ended(item, "same", name, looks, floor))]
    return pair_s * median(ends) if ends else None


def _void_share(bank: Bank) -> float:
    samples = [sample for rows in bank.replicates for row in rows for sample in row.samples]
    return sum(sample.void is not None for sample in samples) / len(samples) if samples else 0.0


@dataclass(frozen=True)
class Live:
    """One comparison measured from end to end, as ``versus`` measures it, with the floor that the bank asked for."""

    condition: str
    kind: str
    percent: float
    """Extra work of the second arm."""
    faster: bool | None
    """Whether the second arm was called faster (``true``), slower (``false``) or neither (``null``)."""
    ratio: float
    low: float | None
    high: float | None
    truth: float
    replicates: int
    time_s: float

    @property
    def right(self) -> bool:
        """No difference where there is none, the right direction where there is one."""
        return self.faster is None if self.percent == 0 else self.faster is False


@dataclass(frozen=True)
class Planted:
    """What became of a timing mistake that was planted into an arm on purpose."""

    mistake: str
    caught: bool
    """Whether the arm was refused for that very mistake, took no part in a ratio, and the honest arm passed."""
    reason: str


def planted(records: Sequence[Record], mistake: str, words: str) -> Planted:
    """Judge one mistake by the records of its comparison; ``words`` are in the reason that it must fail with."""
    mine = [record for record in records if record.comparison == f"{WORKLOAD}/{mistake}"]
    wrong = [record for record in mine if record.arm == mistake]
    honest = [record for record in mine if record.arm != mistake]
    timed = any(counted(record) and record.samples for record in wrong)
    refused = not timed and any(record.status is Status.FAILED and words in record.reason for record in wrong)
    counts = any(counted(record) and record.samples for record in honest)
    if not counts or any(record.status is not Status.OK for record in honest):
        why = next((record.reason for record in honest if record.reason), "it never took a turn")
        return Planted(mistake, False, f"the honest arm beside it has no times: {why}")
    return Planted(mistake, refused, next((record.reason for record in wrong if record.reason), "it got its times"))


@dataclass(frozen=True)
class SelfTest:
    """All that one self-test found."""

    machine: str
    fingerprint: str
    device: str
    quick: bool
    ended: str
    """ISO 8601, UTC."""
    wall_s: float
    alpha: float
    aa_floor: float
    """Widens each interval of later runs on this machine."""
    sentence: str
    idle: tuple[Kind, ...]
    loaded: tuple[Kind, ...]
    live: tuple[Live, ...]
    runs: str
    """Folder of the records that all of this is computed from."""
    planted: tuple[Planted, ...] = ()
    """Mistakes planted on the simulated device."""

    @property
    def enough(self) -> bool:
        """Whether identical arms were compared often enough to show a false-verdict rate of ``alpha``."""
        return not too_few(sum(kind.comparisons for kind in (*self.idle, *self.loaded)), self.alpha)


def sentence(kinds: Sequence[Kind], alpha: float, floor: float, looks: Sequence[int], time_s: float = 20.0) -> str:
    """What this machine can tell apart, in one line."""
    parts = []
    for kind in kinds:
        if found := effect_in(kind, time_s, alpha, floor, looks):
            parts.append(f"{found[0]:.1%} of {kind.kind} work from nothing in {found[1]:.0f} s")
    return (
        f"Your machine tells {', '.join(parts)}." if parts else "Too few replicates to say what this machine can tell."
    )


def effect_in(
    kind: Kind, time_s: float, alpha: float, floor: float, looks: Sequence[int]
) -> tuple[float, float] | None:
    """Smallest effect that a comparison of at most ``time_s`` finds with 80% power, and the time that it takes."""
    if not kind.pair_replicate_s:
        return None
    replicates = min(looks[-1], int(time_s / kind.pair_replicate_s))
    effect = _smallest(kind.spread, replicates, last_level(alpha, looks, replicates), floor)
    return None if effect is None else (effect, replicates * kind.pair_replicate_s)


_PER_KIND = (
    "comparisons", "unusable", "false_verdict_rate", "unwidened_false_verdict_rate", "undecided_rate",
    "champion_false_verdict_rate",
    "champion_reused_rate", "coverage", "smallest_detectable_effect", "smallest_detectable_effect_at_most",
    "median_time_to_verdict_s", "spread", "components", "void_share", "replicates", "pair_replicate_s",
    "problem",
)  # fmt: skip


def document(found: SelfTest) -> dict[str, object]:
    """The self-test as JSON: each figure maps a kind of work to its value, idle at the top, loaded beneath."""
    top = msgspec.to_builtins(found)
    del top["idle"], top["loaded"]
    live = [{**msgspec.to_builtins(item), "right": item.right} for item in found.live]
    return {**top, "enough": found.enough, "live": live, **_figures(found.idle), "loaded": _figures(found.loaded)}


def _figures(kinds: Sequence[Kind]) -> dict[str, object]:
    figures: dict[str, object] = {
        name: {kind.kind: msgspec.to_builtins(getattr(kind, name)) for kind in kinds} for name in _PER_KIND
    }
    detection = {
        kind.kind: {f"{item.percent:g}": msgspec.to_builtins(item) for item in kind.detection} for kind in kinds
    }
    return {**figures, "detection": detection}
