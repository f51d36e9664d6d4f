"""The words in which a verdict is explained: what :mod:`frugalbench.analysis.explain` gives and every output shows."""

from dataclasses import dataclass, field
from typing import Any

from frugalbench.analysis.judge import Evidence
from frugalbench.analysis.load import Run
from frugalbench.schema import Claim, Frozen, Record, Tier, Verdict

COUNTS, PILOT, LEFT_OUT = "counts", "pilot", "left out"


class RoundDatum(Frozen, frozen=True, kw_only=True):
    """Both arms in one round, per unit of work (token, where the case has tokens)."""

    round: int
    candidate: float | None
    """Seconds, or joules."""
    baseline: float | None
    void: str | None = None
    """Why the environment spoilt it."""
    used: bool = True


class Datum(Frozen, frozen=True, kw_only=True):
    """One number that the verdict rests on, or that was left out of it."""

    name: str
    value: float | None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    log_ratio: float | None = None
    """Natural logarithm of baseline over candidate, before the claim's scale; of what enters the interval."""
    replicate: int | None = None
    use: str = COUNTS
    """``counts``, ``pilot`` or ``left out``."""
    rounds: int = 0
    """Those that entered the datum."""
    void: int = 0
    """Those that were set aside."""
    note: str = ""
    records: tuple[int, ...] = ()
    """Lines of ``records.jsonl``, from 1, blank ones not counted."""
    samples: tuple[RoundDatum, ...] = ()


class Working(Frozen, frozen=True, kw_only=True):
    """How the interval follows from the data that count: exp(mean of logs + log factor ± half width)."""

    method: str
    replicates: int
    log_mean: float
    log_sd: float | None
    degrees: int
    t: float | None
    """Quantile of Student's t at 1 - alpha / 2."""
    alpha_run: float | None
    """Of the run's config."""
    alpha_look: float
    """What the deciding look may spend."""
    alpha: float
    """What is left of it for this candidate after Holm's procedure."""
    rivals: tuple[str, ...]
    """Candidates that shared it."""
    floor: float
    """A/A floor: the interval is widened by it on each side."""
    factor: float
    """The claim's scale: what multiplies the ratio of speeds."""
    scale: str
    ratio: float
    low: float | None
    high: float | None
    looks: tuple[int, ...] = ()
    decision: str = ""
    """Why measuring stopped."""


class Side(Frozen, frozen=True, kw_only=True):
    """One arm."""

    role: str
    """``candidate``, ``baseline``, or ``baseline (strongest in the pilot)``."""
    variant: str
    case: str
    backend: str
    device: str
    dtype: str
    replicates: int
    tier: Tier | None
    token: float | None = None
    """Per call."""
    time_s: float | None = None
    """Per call: median of the counted replicates' medians."""
    flop: float | None = None
    op: float | None = None
    traffic_bytes: float | None = None
    weight_bytes: float | None = None
    flop_formula: str = ""
    traffic_formula: str = ""
    token_per_joule: float | None = None
    token_per_joule_low: float | None = None
    token_per_joule_high: float | None = None
    energy_tier: Tier | None = None
    energy_note: str = ""
    """What the joules cover, or why there are none."""
    error: float | None = None
    """Largest of the replicates, over the reference's rms."""
    tolerance: float | None = None
    checked: str = ""
    placed: str = ""
    """Which device executed which operators, what was fused and put in, what was copied; empty where no record says."""


class Against(Frozen, frozen=True, kw_only=True):
    """The candidate over one baseline; a claim needs every one."""

    baseline: str
    ratio: float
    low: float | None
    high: float | None
    outcome: str
    strongest: bool


class Flip(Frozen, frozen=True, kw_only=True):
    """What would have given another verdict."""

    verdict: str
    change: float | None
    """Factor on the value (of the speed ratio for a tax), everything else as it is; ``None`` where no factor does."""
    what: str


class Chain(Frozen, frozen=True, kw_only=True):
    """From one verdict back to the numbers it rests on."""

    verdict: Verdict
    rule: str
    comparison: str | None = None
    sides: tuple[Side, ...] = ()
    data: tuple[Datum, ...] = ()
    working: Working | None = None
    against: tuple[Against, ...] = ()
    flips: tuple[Flip, ...] = ()
    method: str = ""
    """How the value follows from the data, where there is no interval to work out."""
    repeat: str = ""
    """The command that measures it again."""
    repeat_note: str = ""


class Explanation(Frozen, frozen=True, kw_only=True):
    """Everything on one claim in one run."""

    run: str
    path: str
    machine: str
    revision: str | None
    started: str
    state: str
    claim: str
    says: str
    sources: tuple[str, ...]
    estimand: str
    direction: str
    threshold: float
    scope: str
    flips: str
    note: str
    same_claims: bool
    """Whether the run was planned under the installed claim files."""
    chains: tuple[Chain, ...]


@dataclass(frozen=True)
class Asked:
    """What every rule's function is given."""

    run: Run
    claim: Claim
    evidence: Evidence
    numbers: dict[int, int]
    """``id`` of a record to its line."""
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What several verdicts of the claim derive alike."""

    def lines(self, *records: Record) -> tuple[int, ...]:
        """Where records stand in ``records.jsonl``."""
        return tuple(self.numbers[id(record)] for record in records if id(record) in self.numbers)
