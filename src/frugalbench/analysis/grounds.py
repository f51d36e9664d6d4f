"""What each verdict of a report rests on, for thousands of verdicts at once: cases, data, interval, what would flip it.

The same numbers as :mod:`frugalbench.analysis.explain` gives for one verdict, without the single rounds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from frugalbench.analysis import paired
from frugalbench.analysis.chain import COUNTS, Asked, Chain, Flip
from frugalbench.analysis.claims import load_claims, under
from frugalbench.analysis.explain import repeat
from frugalbench.analysis.explain_facts import coverage, equal_loss, exact, modelled, non_inferiority, reached
from frugalbench.analysis.flips import flips
from frugalbench.analysis.judge import evidence_of
from frugalbench.analysis.load import Run
from frugalbench.analysis.statistics import Interval
from frugalbench.schema import (
    Claim,
    Coverage,
    EqualLoss,
    ExactRatio,
    Modelled,
    NonInferiority,
    Outcome,
    PairedRatio,
    Reach,
    Verdict,
)
from frugalbench.units import significant

MOST_CASES = 12
MOST_DATA = 60
_CHAINS: dict[type, Callable[[Asked, Verdict], Chain | None]] = {
    ExactRatio: exact,
    Coverage: coverage,
    Modelled: modelled,
    EqualLoss: equal_loss,
    NonInferiority: non_inferiority,
    Reach: reached,
}
_Group = tuple[Claim, paired.Group]


@dataclass(frozen=True)
class Grounds:
    """Of one verdict."""

    run: int
    """Place of the run among those of the report."""
    cases: tuple[tuple[str, str], ...] = ()
    """Role and case id."""
    data: tuple[tuple[str, float | None, str], ...] = ()
    """Name, value and unit of what was counted."""
    how: str = ""
    """How the interval follows from the data."""
    against: tuple[str, ...] = ()
    """The candidate over each baseline."""
    flips: tuple[str, ...] = ()
    repeat: str = ""
    """The command that measures it again."""
    clipped: int = 0
    """Data beyond :data:`MOST_DATA`, which are not listed."""


class Finder:
    """Finds the grounds of the verdicts of one run."""

    def __init__(self, run: Run, number: int) -> None:
        self.run, self.number, self.evidence = run, number, evidence_of(run)
        self.claims = {claim.id: claim for claim in load_claims()}
        self.lines = {id(record): line for line, record in enumerate(run.records, 1)}
        self.groups: dict[tuple[str, str, str], list[_Group]] = {}
        for claim in self.claims.values():
            if isinstance(claim.rule, PairedRatio):
                self._index(claim)

    def _index(self, claim: Claim) -> None:
        for view, group in paired.views(claim, self.evidence):
            for name in group.counted:
                self.groups.setdefault((claim.id, group.regime, name + group.label), []).append((view, group))

    def find(self, verdict: Verdict) -> Grounds | None:
        """``None`` where the run is not the one that the verdict is about."""
        claim = self.claims.get(verdict.claim)
        if claim is None or verdict.machine != self.evidence.machine:
            return None
        claim = under(claim, verdict)
        asked = Asked(self.run, claim, self.evidence, self.lines)
        if verdict.verdict is Outcome.NOT_TESTED:
            return Grounds(self.number, repeat=repeat(asked, None)[0])
        if isinstance(claim.rule, PairedRatio):
            return self._paired(asked, verdict)
        make = _CHAINS.get(type(claim.rule))
        chain = make(asked, verdict) if make else None
        return None if chain is None else self._chained(asked, chain)

    def _paired(self, asked: Asked, verdict: Verdict) -> Grounds | None:
        for view, group in self.groups.get((verdict.claim, verdict.regime, verdict.candidate or ""), ()):
            worked = paired.working(view, self.evidence, group, verdict)
            if worked is not None and _same(view, worked, verdict):
                return self._worked(asked, view, group, verdict, worked)
        return None

    def _worked(
        self, asked: Asked, view: Claim, group: paired.Group, verdict: Verdict, worked: paired.Working
    ) -> Grounds:
        rule, base = view.rule, verdict.baseline or ""
        assert isinstance(rule, PairedRatio)
        name = (verdict.candidate or "").removesuffix(group.label)
        rest = [arm for arm in rule.baselines if arm in group.counted and arm != base]
        roles = [("candidate", name), ("baseline", base), *(("further baseline", arm) for arm in rest)]
        ratios = paired.replicate_ratios(rule, group, name, base, worked.factors[base])
        found = flips(view.direction, worked.limit, verdict.verdict, worked.intervals[base], worked.intervals.values())
        return Grounds(
            run=self.number,
            cases=tuple((role, group.counted[arm][0].case.id) for role, arm in roles[:MOST_CASES]),
            data=tuple((f"replicate {number}", ratio, "ratio") for number, ratio in ratios),
            how=_how(worked, worked.intervals[base], self.evidence.floor),
            against=tuple(_over(rule, arm, item, worked.outcomes[arm]) for arm, item in worked.intervals.items()),
            flips=tuple(_words(found)),
            repeat=repeat(asked, group.comparison)[0],
        )

    def _chained(self, asked: Asked, chain: Chain) -> Grounds:
        counted = [item for item in chain.data if item.use == COUNTS]
        sides = [(item.role, item.case) for item in chain.sides]
        seen = {case for _, case in sides}
        others = dict.fromkeys(self.run.records[line - 1].case.id for item in chain.data for line in item.records)
        roles = [*sides, *(("case", case) for case in others if case not in seen)]
        working = chain.working.method if chain.working else ""
        return Grounds(
            run=self.number,
            cases=tuple(roles[:MOST_CASES]),
            data=tuple((item.name, item.value, item.unit) for item in counted[:MOST_DATA]),
            how="; ".join(part for part in (chain.method, working) if part),
            flips=tuple(_words(chain.flips)),
            repeat=repeat(asked, chain.comparison)[0],
            clipped=max(0, len(counted) - MOST_DATA),
        )


def grounds(runs: Sequence[Run], verdicts: Sequence[Verdict]) -> Iterator[Grounds | None]:
    """One per verdict, in order; ``None`` where none of the runs holds what it rests on."""
    finders = [Finder(run, number) for number, run in enumerate(runs)]
    for verdict in verdicts:
        yield next((found for finder in finders if (found := finder.find(verdict)) is not None), None)


def _same(view: Claim, worked: paired.Working, verdict: Verdict) -> bool:
    """Whether these workings gave this verdict: runs of one machine share names."""
    assert isinstance(view.rule, PairedRatio)
    return paired.shown(view.rule, worked.intervals[verdict.baseline or ""].ratio) == verdict.ratio


def _how(worked: paired.Working, item: Interval, floor: float) -> str:
    if item.low is None:
        return "one replicate gives no interval"
    shared = f", shared by Holm's procedure among {len(worked.rivals)} candidates" if len(worked.rivals) > 1 else ""
    return (
        f"geometric mean over {item.replicates} replicates, each the median log-ratio of its good rounds; Student's t "
        f"with {item.replicates - 1} degrees of freedom at alpha {worked.alpha:.2g} (of {worked.alpha_look:.2g} that "
        f"this look may spend{shared}), widened on each side by the A/A floor of {100 * floor:.2g}%"
    )


def _over(rule: PairedRatio, base: str, item: Interval, outcome: Outcome) -> str:
    bounds = [] if item.low is None or item.high is None else [paired.shown(rule, v) for v in (item.low, item.high)]
    span = f" [{', '.join(map(significant, bounds))}]" if bounds else ""
    return f"{significant(paired.shown(rule, item.ratio))}{span} over {base}: {outcome.value}"


def _words(found: Sequence[Flip]) -> Iterator[str]:
    return (item.what for item in found)
